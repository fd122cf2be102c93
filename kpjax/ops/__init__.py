"""Pure functions on arrays: heatmaps, peaks, losses.  Nothing here depends on a network."""
