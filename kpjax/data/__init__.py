"""Where training examples come from: sources, the host pipeline, augmentation on the device."""
