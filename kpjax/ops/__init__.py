"""Pure functions on arrays: heatmaps, peaks, losses.  Nothing here knows a network."""
