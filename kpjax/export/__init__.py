"""Detectors as StableHLO and as TensorFlow's SavedModel."""
