"""Programs compiled for a machine that is not there: memory, traffic, roofline."""
