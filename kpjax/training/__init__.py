"""Training: the run, its step, its state on disk, its logs."""
