"""Measuring detections: COCO's average precision, KITTI's in 3D, and where a detector errs."""
