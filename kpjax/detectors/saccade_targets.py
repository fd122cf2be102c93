"""Targets and losses of CornerNet-Saccade: those of corners, masked, and its attention maps' (arXiv 1904.08900)."""

from __future__ import annotations

import jax.numpy as jnp

from kpjax.detectors import corner_targets
from kpjax.detectors.base import Array, Outputs, Targets
from kpjax.detectors.corner_config import STRIDE
from kpjax.detectors.corner_targets import gaussian_sizes, map_size, to_cells
from kpjax.detectors.saccade_config import FACTORS, LEAST, RELEASED_VIEW, SIZES, SaccadeConfig
from kpjax.objects import Objects, Placed
from kpjax.ops.keypoint_targets import keypoint_targets
from kpjax.ops.losses import focal_loss

# The attention maps, the coarsest first: their names, and input pixels a cell.
ATTENTION = {f"attention{j}": STRIDE * 2 ** (len(FACTORS) - 1 - j) for j in range(len(FACTORS))}
_SHOWN = 0.5  # an object is learnt if the crop shows more than this part of its box


def encode(objects: Objects, placed: Placed, *, config: SaccadeConfig, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels, boxes not cut.  placed: its size, and `window`, as much of the input as the
    image covers.  Returns what `corner_targets.encode` does, of the objects that are large enough and mostly seen;
    "tl_valid" and "br_valid" (h, w, K) float32, 0 around the corners of the others, where heatmaps are not trained;
    "attention0" to "attention2", coarsest first, (h', w', 1) float32: 1 at the centres of the boxes, cut to the
    window, whose longer side is of the map's range (golden: saccade_functions).
    """
    boxes, labels = objects.boxes.astype(jnp.float32), objects.labels
    height, width = placed.size
    window = jnp.asarray([0, 0, height, width], jnp.float32) if placed.window is None else placed.window
    whole = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    boxes, inside = cut_to_window(boxes, window)
    valid = objects.valid & inside
    unit = width / RELEASED_VIEW
    targets = attention_targets(boxes, valid, placed.size, unit)

    ends = jnp.floor(boxes)
    large_enough = (ends[:, 2:] - ends[:, :2]).max(-1) >= LEAST * unit
    learnt = valid & large_enough & ((boxes[:, 2:] - boxes[:, :2]).prod(-1) > _SHOWN * whole)
    cells = to_cells(boxes, placed.size)
    radius = gaussian_sizes(cells, valid, config.rules)
    shape = map_size(placed.size)
    targets["mask"] = learnt
    for name, points in (("tl", cells[:, :2]), ("br", cells[:, 2:])):
        targets |= keypoint_targets(name, points, radius, labels, learnt, shape, num_classes)
        others = keypoint_targets(name, points, radius, labels, valid & ~learnt, shape, num_classes)
        targets[f"{name}_valid"] = (others[f"{name}_heat"] == 0).astype(jnp.float32)
    return targets


def cut_to_window(boxes: Array, window: Array) -> tuple[Array, Array]:
    """Boxes (M, 4) cut to the pixels of a window (4,), top, left, bottom, right, and which have an area left, (M,)."""
    top, left, bottom, right = (window[i].astype(jnp.float32) for i in range(4))
    boxes = jnp.clip(boxes, jnp.stack([left, top, left, top]), jnp.stack([right, bottom, right, bottom]) - 1)
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(-1)


def attention_targets(boxes: Array, valid: Array, size: tuple[int, int], unit: float) -> Targets:
    """The attention maps of an input of `size` (H, W), see `encode`.

    boxes: (M, 4), inside the input.  valid: (M,) bool.  unit: pixels that one of the released model's is.  A box whose
    longer side is the border of two ranges belongs to both.
    """
    longer = (boxes[:, 2:] - boxes[:, :2]).max(-1)
    borders = [256.0 * unit, *(side * unit for side in SIZES), 0.0]
    targets: Targets = {}
    for (name, ratio), most, least in zip(ATTENTION.items(), borders[:-1], borders[1:], strict=True):
        shape = (-(-size[0] // ratio), -(-size[1] // ratio))
        cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 / ratio).astype(jnp.int32)
        marked = valid & (longer >= least) & (longer <= most)
        rows = jnp.where(marked, cells[:, 1], shape[0])  # beyond the map, and dropped
        targets[name] = jnp.zeros((*shape, 1), jnp.float32).at[rows, cells[:, 0], 0].max(1.0, mode="drop")
    return targets


def normaliser(targets: Targets) -> dict[str, Array]:
    """The counts of `corner_targets.normaliser`, and of each attention map the cells of 1."""
    counts = {name: (targets[name] == 1).sum(dtype=jnp.float32) for name in ATTENTION}
    return {**corner_targets.normaliser(targets), **counts}


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: SaccadeConfig
) -> tuple[Array, dict[str, Array]]:
    """The corners' loss with masked heatmaps, and the attention maps' focal loss, divided by the stacks once more.

    The second division is the original's (golden: loss_cornernet_lite_saccade).  Returns the loss and its unweighted
    parts, those of `corner_targets.loss` and "attention".
    """
    total, parts = corner_targets.loss(outputs, targets, counts, config=config)
    attention = jnp.float32(0)
    for maps in outputs:
        for name in ATTENTION:
            attention += focal_loss(maps[name], targets[name], counts[name])
    attention /= len(outputs) ** 2
    return total + attention, {**parts, "attention": attention}
