"""Exporting detectors as StableHLO and as TensorFlow's SavedModel."""
