"""From images to detections: the compiled test-time program, prediction, evaluation."""
