"""Pictures: detections, training batches, plots."""
