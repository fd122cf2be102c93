"""Backbones: normalised images (B, H, W, 3) -> a list of maps (B, H / 4, W / 4, C), one a stack."""
