"""Checkpoints of weights, through Orbax: `load_inference` and `save_inference`."""
