"""Centres and boxes of Objects as Points: their targets, and maps that hold them."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from kpjax.detectors.base import Array, Targets
from kpjax.detectors.center_config import STRIDE, CenterNetConfig, Rules
from kpjax.objects import Objects, Placed
from kpjax.ops.heatmap import draw_gaussians, gaussian_radius, radius_in_cells
from kpjax.ops.keypoint_targets import last_in_cell
from kpjax.ops.oracle import logits, nearest_values


@flax.struct.dataclass
class Centers:
    """The objects of an image as centre points, (M, ...), in cells.

    boxes: (M, 4) float32 x1 y1 x2 y2.  wh: (M, 2) float32 sides.  center: (M, 2) float32 x y.  cell: (M, 2) int32 x y.
    radius: (M,) int32 of their Gaussians.  valid: (M,) bool, which slots are objects.
    """

    boxes: Array
    wh: Array
    center: Array
    cell: Array
    radius: Array
    valid: Array


def centers_of(objects: Objects, placed: Placed, rules: Rules) -> Centers:
    """The centres of one image's objects, (M, ...) in input pixels.  placed: only its size is read."""
    height, width = map_size(placed.size)
    boxes, valid = objects.boxes.astype(jnp.float32) / STRIDE, objects.valid
    if rules.clip:
        limit = jnp.asarray([width - 1, height - 1, width - 1, height - 1], jnp.float32)
        boxes = jnp.clip(boxes, 0.0, limit)
    wh = boxes[:, 2:] - boxes[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = center.astype(jnp.int32)
    inside = ((cell >= 0) & (cell < jnp.asarray([width, height]))).all(-1)
    valid = valid & (wh > 0).all(-1) & inside
    sides = jnp.ceil(wh) if rules.round_sides else wh
    sides = jnp.where(valid[:, None], sides, 1.0)
    radius = gaussian_radius(sides[:, 1], sides[:, 0], rules.overlap, rules.radius)
    return Centers(boxes, wh, center, cell, radius_in_cells(radius), valid)


def encode(
    objects: Objects, placed: Placed, *, rules: Rules, num_classes: int, centers: Centers | None = None
) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels.  placed: only its size is read.  centers: what `centers_of` makes of both.
    Returns "heatmap" (h, w, K)
    float32; and for each slot m "index" (M,) int32 cell y * w + x, "mask" (M,) bool, "wh" (M, 2) and "offset" (M, 2)
    float32 in cells, "label" (M,) int32.  A box that is no object keeps its slot, with mask False.
    """
    height, width = map_size(placed.size)
    at = centers_of(objects, placed, rules) if centers is None else centers
    labels = jnp.where(at.valid, objects.labels, num_classes)  # scatters of empty slots are out of range, and dropped
    heatmap = draw_gaussians(at.cell, at.radius, labels, at.valid, (height, width), num_classes)
    index = jnp.where(at.valid, at.cell[:, 1] * width + at.cell[:, 0], 0)
    mask = last_in_cell(index, at.valid) if rules.one_per_cell else at.valid
    keep = mask[:, None]
    return {
        "heatmap": heatmap,
        "index": jnp.where(mask, index, 0),
        "mask": mask,
        "wh": jnp.where(keep, at.wh, 0.0),
        "offset": jnp.where(keep, at.center - at.cell, 0.0),
        "label": jnp.where(mask, labels, 0),
    }


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the output map for an input of (H, W)."""
    return size[0] // STRIDE, size[1] // STRIDE


def oracle(targets: Targets, size: tuple[int, int], *, config: CenterNetConfig) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets: the heatmap; wh and offset of the object nearest to each cell.

    size: (H, W) of the input.  As in the analysis of errors of Objects as Points, where a detection gets the size of
    the nearest object.
    """
    shape = map_size(size)
    heat = targets["heatmap"]
    wh, offset = (nearest_values(targets["index"], targets["mask"], targets[key], shape) for key in ("wh", "offset"))
    if config.class_specific_wh:
        wh = jnp.tile(wh, heat.shape[-1])
    return {"heatmap": heat if config.rules.probabilities else logits(heat), "wh": wh, "offset": offset}


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: heatmap cells that are objects, and objects that train wh and offset."""
    return {
        "peaks": (targets["heatmap"] == 1).sum(dtype=jnp.float32),
        "boxes": targets["mask"].sum(dtype=jnp.float32),
    }
