"""Images: decoding, preprocessing, and the geometry of training and of test time."""
