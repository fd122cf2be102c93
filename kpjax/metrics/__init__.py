"""Measuring detections: COCO's average precision, and where a detector errs."""
