"""Drawing pictures: detections, training batches, plots."""
