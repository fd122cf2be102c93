"""TTFNet's targets (arXiv 1909.00700, sections 3.2 and 3.3): the heatmap, and the box that each cell learns."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kpjax.detectors.base import Array, Targets
from kpjax.detectors.ttf_config import TTFConfig
from kpjax.objects import Objects, Placed
from kpjax.ops.heatmap import draw_profiles, gaussian_profile
from kpjax.ops.oracle import logits, nearest_values


class _Regions(NamedTuple):
    """Where M objects learn their sides: a mask and a weight along each axis, whose products are those of a cell.

    columns (M, w), rows (M, h): bool.  x_weights (M, w), y_weights (M, h): float32.
    """

    columns: Array
    rows: Array
    x_weights: Array
    y_weights: Array


def encode(objects: Objects, placed: Placed, *, config: TTFConfig, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels, corners inclusive: a box ends on its last pixel.  placed: only its size is read.
    Returns "heatmap" (h, w, K) float32; "box" (h, w, 4) float32, the corners in input pixels that each cell learns, -1
    where it learns none; "weight" (h, w, 1) float32 of the cell, 0 where it learns none; with `class_specific_sides`
    both are of each class in turn, (h, w, 4 K) and (h, w, K).  Of several objects at a cell the one with the smallest
    area is learnt, as in the original, where smaller ones are drawn over larger ones.
    For each slot m, for the oracle: "index" (M,) int32 the centre's cell y * w + x, "mask" (M,) bool, whether that is
    on the map, and "corners" (M, 4) float32.
    """
    shape = config.map_size(placed.size)
    height, width = shape
    boxes = objects.boxes.astype(jnp.float32)
    valid = objects.valid & (boxes[:, 2:] >= boxes[:, :2]).all(-1)
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    # A centre slightly left of the image, or above it, is in cell 0, since the original cuts off decimals.
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 / config.stride).astype(jnp.int32)
    on_map = boxes / config.stride
    on_map = jnp.clip(on_map, 0.0, jnp.asarray([width - 1, height - 1] * 2, jnp.float32))
    halves = (on_map[:, 2:] - on_map[:, :2]) / 2
    columns, rows = _gaussians(cell, halves, config.alpha, shape)
    labels = jnp.where(valid, objects.labels, num_classes)  # scatters of empty slots are out of range, and dropped
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    regions = _gaussian_regions(cell, halves, config, shape)
    if config.region == "box":
        regions = _box_regions(boxes, config, shape)
    importance = _importance(area, config.area)
    if config.class_specific_sides:
        own = (labels == jnp.arange(num_classes)[:, None]) & valid
        box, weight = jax.lax.map(lambda one: _smallest(regions, one, area, importance, boxes), own)
        box = jnp.moveaxis(box, 0, 2).reshape(height, width, -1)
        weight = jnp.moveaxis(weight, 0, 2)
    else:
        box, weight = _smallest(regions, valid, area, importance, boxes)
        weight = weight[..., None]
    mask = valid & ((cell >= 0) & (cell < jnp.asarray([width, height]))).all(-1)
    return {
        "heatmap": draw_profiles(columns, rows * valid[:, None], labels, num_classes),
        "box": box,
        "weight": weight,
        "index": jnp.where(mask, cell[:, 1] * width + cell[:, 0], 0),
        "mask": mask,
        "corners": boxes,
    }


def _gaussians(cell: Array, halves: Array, part: float, shape: tuple[int, int]) -> tuple[Array, Array]:
    """M Gaussians as profiles, (M, w) and (M, h), of `part` of the boxes' sides.  halves: (M, 2) half width, height."""
    radii = (halves * part).astype(jnp.int32)
    return gaussian_profile(cell[:, 0], radii[:, 0], shape[1]), gaussian_profile(cell[:, 1], radii[:, 1], shape[0])


def _gaussian_regions(cell: Array, halves: Array, config: TTFConfig, shape: tuple[int, int]) -> _Regions:
    """The Gaussians' windows, weighed by the Gaussians, of which the map's part sums to 1."""
    columns, rows = _gaussians(cell, halves, config.beta, shape)
    sums = [jnp.maximum(profile.sum(-1, keepdims=True), 1e-9) for profile in (columns, rows)]
    return _Regions(columns > 0, rows > 0, columns / sums[0], rows / sums[1])


def _box_regions(boxes: Array, config: TTFConfig, shape: tuple[int, int]) -> _Regions:
    """The boxes shrunk to `beta` of their sides, all cells weighing alike.

    Corners are rounded to input pixels, then to cells, halves to even numbers, and the last cell is included.  A start
    below 0 counts from the map's end, which mostly leaves no cell: a quirk that is kept (golden: fn_ttfnet_targets,
    not_gaussian).
    """
    part = (1 - config.beta) / 2
    low, high = boxes[:, :2], boxes[:, 2:]
    start, end = (
        jnp.round(jnp.round((1 - p) * low + p * high) / config.stride).astype(jnp.int32) for p in (part, 1 - part)
    )
    masks = []
    for axis, size in ((0, shape[1]), (1, shape[0])):
        first, stop = jnp.minimum(start[:, axis], size - 1), jnp.minimum(end[:, axis], size - 1) + 1
        first, stop = (jnp.where(x < 0, jnp.maximum(x + size, 0), x)[:, None] for x in (first, stop))
        masks.append((jnp.arange(size) >= first) & (jnp.arange(size) < stop))
    columns, rows = masks
    each = [mask / jnp.maximum(mask.sum(-1, keepdims=True), 1).astype(jnp.float32) for mask in masks]
    return _Regions(columns, rows, *each)


def _importance(area: Array, kind: str) -> Array:
    """What all cells of an object weigh together, of its area in pixels; 0 for a log of one pixel."""
    if kind == "log":
        return jnp.log(area)
    return {"sqrt": jnp.sqrt(area), "plain": area, "none": jnp.ones_like(area)}[kind]


def _smallest(regions: _Regions, own: Array, area: Array, importance: Array, boxes: Array) -> tuple[Array, Array]:
    """At each cell, of the objects `own` (M,) bool whose region covers it, the smallest: box (h, w, 4), weight (h, w).

    Its share of `importance` (M,); what a smaller object takes of a region is lost to the larger one.
    """
    # One comparison a cell and object in one loop of the compiled program; the M maps are never in memory together.
    covers = regions.rows[:, :, None] & regions.columns[:, None, :] & own[:, None, None]
    owner = jnp.argmin(jnp.where(covers, area[:, None, None], jnp.inf), axis=0)
    taken = covers.any(0)
    y, x = jnp.arange(owner.shape[0])[:, None], jnp.arange(owner.shape[1])
    share = regions.y_weights[owner, y] * regions.x_weights[owner, x] * importance[owner]
    return jnp.where(taken[..., None], boxes[owner], -1.0), jnp.where(taken, share, 0.0)


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: heatmap cells that are objects, and the sum of the weights."""
    return {"peaks": (targets["heatmap"] == 1).sum(dtype=jnp.float32), "weight": targets["weight"].sum()}


def oracle(targets: Targets, size: tuple[int, int], *, config: TTFConfig) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets; in each cell the sides of the object with the nearest centre.

    size: (H, W) of the input.
    """
    shape = config.map_size(size)
    corners = nearest_values(targets["index"], targets["mask"], targets["corners"], shape)
    sides = (corners - cell_corners(shape, config.stride)) * jnp.asarray([-1.0, -1.0, 1.0, 1.0])
    if config.class_specific_sides:
        sides = jnp.tile(sides, targets["heatmap"].shape[-1])
    return {"heatmap": logits(targets["heatmap"]), "sides": sides}


def cell_corners(shape: tuple[int, int], stride: int) -> Array:
    """(h, w, 4) float32: each cell's top left corner in input pixels, x y x y, from which the sides are measured."""
    y, x = jnp.meshgrid(jnp.arange(shape[0]), jnp.arange(shape[1]), indexing="ij")
    return jnp.stack([x, y, x, y], -1).astype(jnp.float32) * stride
