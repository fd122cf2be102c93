"""`train.py --show-batch`: a picture of what the network sees, augmented images with their boxes and heatmaps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from kpjax.config import Config
from kpjax.data.augment import images_of
from kpjax.data.opening import open_source, training_images
from kpjax.data.source import Source
from kpjax.detectors import data_needed, from_config
from kpjax.detectors.base import Detector, Targets
from kpjax.errors import ConfigError
from kpjax.images.preprocess import Preprocess
from kpjax.objects import NONE, UNLABELLED, Objects, Placed, PointSet, map_coordinates
from kpjax.parallel import distributed
from kpjax.show.drawing import class_color, draw_objects
from kpjax.show.skeleton import Color, point_colors

_TILE = 256  # smaller images are enlarged to about this side, so that a person sees the pixels
_GAP = 4
_MOST = 16  # images in a picture
_OF_POINTS = "joint_heatmap"  # the heatmap, of those that a detector names, with a channel for each point of an object


def show(config: Config, path: str, *, train_source: Source | None = None) -> None:
    """Write the first batch of a training run as a picture: `train.py --show-batch PATH`.

    What is drawn is what the first step gets, made by the same program: images after augmentation,
    boxes after it, and the heatmaps that the loss compares with.  At most 16 images.
    train_source: the training split, where the caller has it; by default `config.data`'s.
    Raises ConfigError or DataError for what a user can fix.
    """
    from kpjax.data.pipeline import train_batches  # TensorFlow
    from kpjax.training.sizes import at_width, width_at
    from kpjax.training.step import prepare

    config.check()
    if not distributed.first():  # one picture; the other processes only wait
        return
    if os.path.isdir(path):
        raise ConfigError(f"--show-batch {path} is a folder; name a PNG file")
    source = train_source or open_source(config.data, "train", **data_needed(config.model.name))
    source = training_images(source, config.data)
    detector = with_objects(from_config(config, len(source.classes), source.points))
    # Examples are numbered from 0, so a smaller batch holds the first images of the real one.  What is combined are
    # the next ones of a micro-batch, in a ring.
    count, micro = min(_MOST, config.batch), config.batch // config.optim.accumulate
    read = count if images_of(config.augment) == 1 else min(_MOST + images_of(config.augment) - 1, micro)
    batch = next(train_batches(source, config.data, batch=read, seed=config.seed))
    del batch["index"]
    first = at_width(config, width_at(config, 0))
    made = jax.device_get(jax.jit(lambda b: prepare(detector, first, b))(batch))
    images, targets = jax.tree.map(lambda x: x[:count], made)
    seen = to_pixels(images, detector.preprocess)
    height, width = seen.shape[1:3]
    objects: Objects = targets["objects"]
    corner = np.array([width, height], np.float32)
    inside = (np.minimum(objects.boxes[..., 2:], corner) > np.maximum(objects.boxes[..., :2], 0)).all(-1)
    shown = dataclasses.replace(objects, role=np.where(inside, objects.role, NONE))
    # A detector of several keypoints has a heatmap each, all of the classes; that of the objects' points stands apart.
    heatmaps = np.maximum.reduce([targets[name] for name in detector.heatmaps if name != _OF_POINTS])
    of_points = targets[_OF_POINTS] if _OF_POINTS in detector.heatmaps else None
    try:
        show_batch(path, seen, shown, heatmaps, source.classes, _MOST, detector.points, of_points)
    except OSError as error:
        raise ConfigError(f"--show-batch {path} cannot be written: {error.strerror or error}") from error
    print(f"{path}: {_said(shown, int((objects.valid & ~inside).sum()), seen, detector)}")


def _said(shown: Objects, gone: int, images: np.ndarray, detector: Detector) -> str:
    """What the picture shows, in words.  shown: the objects in the images (B, H, W, 3).  gone: how many are not."""
    height, width = images.shape[1:3]
    boxes = f"{int(shown.valid.sum())} boxes ({gone} more are outside the crops)"
    if detector.points is not None:
        inside = ((shown.points >= 0) & (shown.points < (width, height))).all(-1) & shown.valid[..., None]
        labelled = int((inside & (shown.seen != UNLABELLED)).sum())
        boxes = f"{boxes} and {labelled} labelled keypoints"
    of_points = _OF_POINTS in detector.heatmaps
    return (
        f"the first {len(images)} training images of {width} x {height} pixels, left with their {boxes}, "
        f"{'in the middle' if of_points else 'right'} with the heatmaps of {detector.num_classes} classes"
        + (f", right with those of {len(detector.points or ())} keypoints" if of_points else "")
    )


def with_objects(detector: Detector) -> Detector:
    """The detector with targets that also hold what they were made from, as "objects"."""

    def encode(objects: Objects, placed: Placed) -> Targets:
        return {**detector.encode(objects, placed), "objects": objects}  # type: ignore[dict-item]

    return dataclasses.replace(detector, encode=encode)


def to_pixels(images: Any, preprocess: Preprocess) -> np.ndarray:
    """The network's input (B, H, W, 3) float32 -> uint8 RGB, cut to 0..255 where colour jitter left that range."""
    pixels = (np.asarray(images) * np.array(preprocess.std, np.float32) + np.array(preprocess.mean, np.float32)) * 255
    if preprocess.order == "BGR":
        pixels = pixels[..., ::-1]
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def show_batch(
    path: str,
    images: np.ndarray,
    objects: Objects,
    heatmaps: np.ndarray,
    names: Sequence[str],
    limit: int = _MOST,
    points: PointSet | None = None,
    point_heatmaps: np.ndarray | None = None,
) -> None:
    """Write a PNG grid: each training image with its objects, and beside it with its heatmaps.

    images: (B, H, W, 3) uint8 RGB, as augmented, before normalisation.  objects: (B, M, ...) in pixels of these
    images.  heatmaps: (B, h, w, K) floats in 0..1, the targets; each class has the colour of its boxes.  At most
    `limit` images are shown.  points: what the objects' points are.  point_heatmaps: (B, h, w, J) floats in 0..1, shown
    beside those of the classes in the colours of the skeletons' sides.  Raises ValueError where the shapes do not
    belong together.
    """
    images, heatmaps = np.asarray(images), np.asarray(heatmaps, np.float32)
    if images.ndim != 4 or images.dtype != np.uint8 or heatmaps.ndim != 4 or len(heatmaps) != len(images):
        raise ValueError(
            "show_batch needs (B, H, W, 3) uint8 images and (B, h, w, K) heatmaps, "
            f"not {images.shape} {images.dtype} and {heatmaps.shape}"
        )
    panels = [(heatmaps, [class_color(k) for k in range(heatmaps.shape[-1])])]
    if point_heatmaps is not None:
        point_heatmaps = np.asarray(point_heatmaps, np.float32)
        if points is None or point_heatmaps.shape[::3] != (len(images), len(points)) or point_heatmaps.ndim != 4:
            raise ValueError(f"show_batch needs (B, h, w, J) point_heatmaps of its points, not {point_heatmaps.shape}")
        panels.append((point_heatmaps, point_colors(points, class_color(0))))
    height, width = images.shape[1:3]
    scale = max(1, _TILE // max(height, width))
    tiles = []
    for b in range(min(limit, len(images))):
        of_image = jax.tree.map(lambda x, b=b: np.asarray(x)[b], objects)
        of_image = map_coordinates(of_image, lambda xy: xy * scale)
        image = images[b].repeat(scale, 0).repeat(scale, 1)
        drawn = draw_objects(image, of_image, names, points=points)
        tiles.append(np.concatenate([drawn, *(_overlay(image, maps[b], colors) for maps, colors in panels)], axis=1))
    columns = 1 if len(tiles) < 3 else 2 if len(tiles) < 12 else 3
    rows = -(-len(tiles) // columns)
    h, w = height * scale + _GAP, (1 + len(panels)) * width * scale + _GAP
    grid = np.full((rows * h + _GAP, columns * w + _GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * h + _GAP, i % columns * w + _GAP
        grid[y : y + h - _GAP, x : x + w - _GAP] = tile
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    Image.fromarray(grid).save(path, format="PNG")


def _overlay(image: np.ndarray, heatmap: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Heatmaps (h, w, K), each in its colour, over the darkened grey image (H, W, 3) -> uint8."""
    height, width = image.shape[:2]
    heat = np.clip(heatmap, 0, 1)
    strength = heat.max(-1, initial=0.0)
    mixed = (heat @ np.asarray(colors, np.float32)) / np.maximum(heat.sum(-1, keepdims=True), 1e-6)
    # nearest: one output cell is seen as one square
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), heat.shape[:2], strict=True))
    alpha = 0.9 * strength[rows][:, columns, None]
    grey = 0.45 * image.mean(-1, keepdims=True)
    return np.rint(grey * (1 - alpha) + mixed[rows][:, columns] * alpha).astype(np.uint8)
