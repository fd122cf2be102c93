"""Targets and losses of ExtremeNet: heatmaps of four extreme points and the centre, and offsets of the former."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from kpjax.detectors.base import Array, Outputs, Targets
from kpjax.detectors.corner_targets import map_size, to_cells
from kpjax.extreme_points import BOTTOM, EXTREME_POINTS, LEFT, RIGHT, TOP
from kpjax.objects import UNLABELLED, Objects, Placed
from kpjax.ops import losses
from kpjax.ops.heatmap import gaussian_radius, radius_in_cells
from kpjax.ops.keypoint_targets import keypoint_targets
from kpjax.ops.oracle import logits, nearest_values

CENTER = "center"
KEYPOINTS = (*EXTREME_POINTS.names, CENTER)  # those of the heatmaps; the centre has no offset


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """Which Gaussians the keypoints have: radius: the formula, overlap: the IoU, of `heatmap.gaussian_radius`."""

    radius: str = "legacy"
    overlap: float = 0.7


def encode(objects: Objects, placed: Placed, *, gaussians: Gaussians, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels, with their extreme points.  placed: only its size is read.  Returns for each of
    `KEYPOINTS` "_heat" (h, w, K) float32; for the extreme points also "_index" (M,) int32 cell y * w + x and "_off"
    (M, 2) float32, the offset within the cell, where "mask" (M,) bool is set.

    Boxes and points are cut to the input's pixels; what has no area then, or no extreme points, is no object, and later
    ones move up (golden: targets_extremenet).
    """
    if objects.points is None or objects.points.shape[-2] != len(EXTREME_POINTS):
        given = "no points" if objects.points is None else f"{objects.points.shape[-2]} points"
        raise ValueError(f"the objects have {given}; ExtremeNet learns {len(EXTREME_POINTS)} extreme points")
    size = placed.size
    limit = jnp.asarray([size[1], size[0]], jnp.float32) - 1
    boxes = jnp.clip(objects.boxes.astype(jnp.float32), 0.0, jnp.tile(limit, 2))
    points = jnp.clip(objects.points.astype(jnp.float32), 0.0, limit)
    valid = objects.valid & (objects.seen != UNLABELLED).all(-1) & (boxes[:, 2:] > boxes[:, :2]).all(-1)
    order = jnp.argsort(~valid, stable=True)
    boxes, points, labels, valid = boxes[order], points[order], objects.labels[order], valid[order]
    sides = jnp.ceil(to_cells(boxes, size)[:, 2:] - to_cells(boxes, size)[:, :2])
    middle = (points[:, [LEFT, TOP]] + points[:, [RIGHT, BOTTOM]]) / 2
    center = jnp.stack([middle[:, 0, 0], middle[:, 1, 1]], axis=-1)
    cells = to_cells(jnp.concatenate([points, center[:, None]], axis=1), size)
    return targets_at(cells, sides, labels, valid, map_size(size), num_classes, gaussians)


def targets_at(
    cells: Array,
    sides: Array,
    labels: Array,
    valid: Array,
    shape: tuple[int, int],
    num_classes: int,
    gaussians: Gaussians,
) -> Targets:
    """The targets of M objects whose keypoints lie at `cells`, (M, 5, 2) float32 x y, in the order of `KEYPOINTS`.

    sides: (M, 2) float32 width and height in whole cells.  labels: (M,) int32.  valid: (M,) bool.  shape: (h, w).
    """
    width, height = jnp.where(valid[:, None], sides, 1.0).T
    radius = radius_in_cells(gaussian_radius(height, width, gaussians.overlap, gaussians.radius))
    targets: Targets = {"mask": valid}
    for number, name in enumerate(KEYPOINTS):
        own = keypoint_targets(name, cells[:, number], radius, labels, valid, shape, num_classes)
        kept = ("heat",) if name == CENTER else ("heat", "index", "off")
        targets |= {f"{name}_{part}": own[f"{name}_{part}"] for part in kept}
    return targets


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: of each keypoint the heatmap's cells of 1, and the objects."""
    peaks = {f"{name}_peaks": (targets[f"{name}_heat"] == 1).sum(dtype=jnp.float32) for name in KEYPOINTS}
    return peaks | {"objects": targets["mask"].sum(dtype=jnp.float32)}


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, offset_weight: float
) -> tuple[Array, dict[str, Array]]:
    """ExtremeNet, section 4.1: the focal losses of five heatmaps and the smooth L1 of four offsets, the stacks' mean.

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted parts ("heatmap",
    "offset"), float32 scalars.
    """
    parts = {name: jnp.float32(0) for name in ("heatmap", "offset")}
    for maps in outputs:
        for name in KEYPOINTS:
            parts["heatmap"] += losses.focal_loss(
                maps[f"{name}_heat"], targets[f"{name}_heat"], counts[f"{name}_peaks"]
            )
            if name != CENTER:
                index, off = targets[f"{name}_index"], targets[f"{name}_off"]
                objects = counts["objects"] + 1e-4
                parts["offset"] += losses.smooth_l1_at(maps[f"{name}_off"], index, targets["mask"], off, objects)
    parts = {name: value / len(outputs) for name, value in parts.items()}
    return parts["heatmap"] + offset_weight * parts["offset"], parts


def oracle(targets: Targets, size: tuple[int, int]) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets: heatmaps, and in each cell the offset of the nearest point.

    size: (H, W) of the input.
    """
    maps = {f"{name}_heat": logits(targets[f"{name}_heat"]) for name in KEYPOINTS}
    for name in EXTREME_POINTS.names:
        index, off = targets[f"{name}_index"], targets[f"{name}_off"]
        maps[f"{name}_off"] = nearest_values(index, targets["mask"], off, map_size(size))
    return maps
