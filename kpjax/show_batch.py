"""A picture of what the network sees: augmented images with their boxes and heatmaps."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kpjax.draw import class_color, draw_detections

_TILE = 256  # smaller images are enlarged to about this side, so that a person sees the pixels
_GAP = 4


def show_batch(
    path: str,
    images: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    valid: np.ndarray,
    heatmaps: np.ndarray,
    names: Sequence[str],
    limit: int = 16,
) -> None:
    """Write a PNG grid: each training image with its boxes, and beside it with its heatmaps.

    images: (B, H, W, 3) uint8 RGB, as augmented, before normalisation.  boxes: (B, M, 4) xyxy in
    pixels of these images.  labels: (B, M) ints.  valid: (B, M) bool.  heatmaps: (B, h, w, K)
    floats in 0..1, the targets; each class has the colour of its boxes.  At most `limit` images
    are shown.  Raises ValueError where the shapes do not belong together.
    """
    images, heatmaps = np.asarray(images), np.asarray(heatmaps, np.float32)
    if images.ndim != 4 or images.dtype != np.uint8 or heatmaps.ndim != 4 or len(heatmaps) != len(images):
        raise ValueError(
            "show_batch needs (B, H, W, 3) uint8 images and (B, h, w, K) heatmaps, "
            f"not {images.shape} {images.dtype} and {heatmaps.shape}"
        )
    height, width = images.shape[1:3]
    scale = max(1, _TILE // max(height, width))
    tiles = []
    for b in range(min(limit, len(images))):
        keep = np.asarray(valid[b], bool)
        image = images[b].repeat(scale, 0).repeat(scale, 1)
        drawn = draw_detections(image, np.asarray(boxes[b])[keep] * scale, np.asarray(labels[b])[keep], None, names)
        tiles.append(np.concatenate([drawn, _overlay(image, heatmaps[b])], axis=1))
    columns = 1 if len(tiles) < 3 else 2 if len(tiles) < 12 else 3
    rows = -(-len(tiles) // columns)
    h, w = height * scale + _GAP, 2 * width * scale + _GAP
    grid = np.full((rows * h + _GAP, columns * w + _GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * h + _GAP, i % columns * w + _GAP
        grid[y : y + h - _GAP, x : x + w - _GAP] = tile
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(grid).save(path, format="PNG")


def _overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Heatmaps (h, w, K) in their classes' colours over the darkened grey image (H, W, 3) -> uint8."""
    height, width = image.shape[:2]
    colors = np.asarray([class_color(k) for k in range(heatmap.shape[-1])], np.float32)
    heat = np.clip(heatmap, 0, 1)
    strength = heat.max(-1, initial=0.0)
    mixed = (heat @ colors) / np.maximum(heat.sum(-1, keepdims=True), 1e-6)
    # nearest: one output cell is seen as one square
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), heat.shape[:2], strict=True))
    alpha = 0.9 * strength[rows][:, columns, None]
    grey = 0.45 * image.mean(-1, keepdims=True)
    return np.rint(grey * (1 - alpha) + mixed[rows][:, columns] * alpha).astype(np.uint8)
