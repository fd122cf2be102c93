"""TTFNet: Training-Time-Friendly Network (arXiv 1909.00700), as in ZJULearning/ttfnet.

An object is the cell of its box's centre, as in Objects as Points, but its Gaussian is as wide and high as the box asks
for, and all cells within it learn the box: their distances to its four sides, by GIoU, weighed by the Gaussian and
the logarithm of the box's area.  So each step learns more, and training is several times shorter.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from kpjax.detectors.base import Array, Detector, Outputs, Protocol, Targets
from kpjax.detectors.ttf_config import TTFConfig, with_options
from kpjax.detectors.ttf_network import TTFNet
from kpjax.detectors.ttf_targets import cell_corners, encode, normaliser, oracle
from kpjax.objects import Detections, Placed
from kpjax.ops import losses, nms, peaks
from kpjax.ops.merge import merge_scales

_OUTWARD = (-1.0, -1.0, 1.0, 1.0)  # from a cell's corner to the left, top, right and bottom


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: TTFConfig
) -> tuple[Array, dict[str, Array]]:
    """Heatmap + 5 GIoU of the boxes that the cells find (section 3.4).

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted parts ("heatmap",
    "sides"), float32 scalars.
    """
    (maps,) = outputs
    weight = targets["weight"]
    shape = weight.shape[1], weight.shape[2]
    corners = jnp.tile(cell_corners(shape, config.stride), weight.shape[-1])
    outward = jnp.tile(jnp.asarray(_OUTWARD), weight.shape[-1])
    found = (corners + maps["sides"].astype(jnp.float32) * outward).reshape(*weight.shape, 4)
    box = targets["box"].reshape(*weight.shape, 4)
    parts = {
        "heatmap": losses.focal_loss(maps["heatmap"], targets["heatmap"], counts["peaks"]),
        "sides": losses.giou_loss(found, box, weight, counts["weight"] + 1e-4),
    }
    return config.heatmap_weight * parts["heatmap"] + config.sides_weight * parts["sides"], parts


def decode(maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: TTFConfig) -> Detections:
    """Boxes of the best peaks, (B, top_k, ...), best first, in input pixels, cut to where the image is placed.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them.  placed: None: the image fills the
    input.  A score of `config.score_threshold` or less becomes 0.
    """
    merged = "scores" in maps
    heat = maps["scores" if merged else "heatmap"].astype(jnp.float32)
    scores, labels, ys, xs = peaks.best_peaks(heat, top_k, logits=not merged)
    sides = peaks.gather_cells(maps["sides"].astype(jnp.float32), ys * heat.shape[2] + xs)
    if config.class_specific_sides:
        of_classes = sides.reshape(*sides.shape[:2], -1, 4)
        sides = jnp.take_along_axis(of_classes, labels[..., None, None], axis=2)[:, :, 0]
    cell = jnp.stack([xs, ys, xs, ys], -1).astype(jnp.float32) * config.stride
    boxes = cell + sides * jnp.asarray(_OUTWARD)
    size = (heat.shape[1] * config.stride, heat.shape[2] * config.stride)
    window = jnp.asarray([[0, 0, *size]]) if placed is None or placed.window is None else placed.window
    top, left, bottom, right = (window[:, i, None].astype(jnp.float32) for i in range(4))
    low = jnp.stack([left, top, left, top], -1)
    high = jnp.stack([right, bottom, right, bottom], -1) - 1
    scores = jnp.where(scores > config.score_threshold, scores, 0.0)
    return Detections(boxes=jnp.clip(boxes, low, high), scores=scores, labels=labels)


def merge_flip(maps: dict[str, Array], *, config: TTFConfig) -> dict[str, Array]:
    """Merge the maps of [images; mirrored images], (2B, h, w, .): scores and sides are averaged.

    The original tests the image alone.  A cell's corner is another one of its pixels in the mirror image, stride - 1
    pixels away.  Returns {"scores", "sides"}, (B, h, w, .), for `decode`.
    """
    scores = jax.nn.sigmoid(maps["heatmap"].astype(jnp.float32))
    half = scores.shape[0] // 2
    sides = maps["sides"].astype(jnp.float32)
    mirrored = sides[half:, :, ::-1].reshape(*sides[half:].shape[:3], -1, 4)[..., jnp.asarray([2, 1, 0, 3])]
    mirrored += (config.stride - 1) * jnp.asarray([-1.0, 0.0, 1.0, 0.0])
    return {
        "scores": (scores[:half] + scores[half:, :, ::-1]) / 2,
        "sides": (sides[:half] + mirrored.reshape(sides[:half].shape)) / 2,
    }


def protocols(config: TTFConfig) -> dict[str, Protocol]:
    """The original's test of one view, and with the mirror image; NMS where `config.nms` names a method."""
    merge = None
    if config.nms in nms.METHODS:  # of the image's boxes, which end after their last pixel
        rules = dataclasses.replace(nms.ORIGINAL, method=config.nms, pixel=0.0)
        merge = functools.partial(merge_scales, rules=rules)
    return {"na": Protocol(merge=merge), "flip": Protocol(mirror="maps", merge=merge)}


def build(name: str, released: TTFConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options)
    return Detector(
        name=name,
        net=TTFNet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, config=config, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=functools.partial(merge_flip, config=config),
        protocols=protocols(config),
        oracle=functools.partial(oracle, config=config),
        inclusive=True,
        stride=config.stride,
        multiple=config.multiple,
        import_rules=config.import_rules,
        options=options,
    )
