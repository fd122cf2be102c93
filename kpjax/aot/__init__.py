"""Programs compiled ahead of time for a TPU that is not there: memory, collectives, roofline."""
