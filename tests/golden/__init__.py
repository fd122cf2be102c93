"""Comparison with inputs and outputs of the authors' own code.  See `cases.py`."""
