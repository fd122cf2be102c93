"""How good detections are: COCO's average precision, and where a detector errs."""
