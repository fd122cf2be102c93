"""Targets and losses of the corner detectors: heatmaps, embeddings, offsets (CornerNet, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.detectors.base import Array, Outputs, Targets
from kpjax.detectors.corner_config import KEYPOINTS, SIDES, STRIDE, CornerNetConfig, Rules
from kpjax.objects import Objects, Placed
from kpjax.ops import losses
from kpjax.ops.heatmap import gaussian_radius, radius_in_cells
from kpjax.ops.keypoint_targets import keypoint_targets
from kpjax.ops.oracle import logits, nearest_values
from kpjax.ops.peaks import gather_cells


def map_size(size: tuple[int, int], stride: int = STRIDE) -> tuple[int, int]:
    """The output map's (h, w) for an input of (H, W): a quarter, or by another stride, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def boxes_on_map(objects: Objects, size: tuple[int, int], rules: Rules) -> tuple[Array, Array, Array, Array]:
    """Boxes in input pixels and in cells, labels, and which are objects, by the rules; see `encode`.

    Cells are pixels times w / W, which is 128 / 511 and not a quarter in the recipes.
    """
    boxes, labels, valid = objects.boxes.astype(jnp.float32), objects.labels, objects.valid
    if rules.clip:
        limit = jnp.asarray([size[1], size[0], size[1], size[0]], jnp.float32) - 1
        boxes = jnp.clip(boxes, 0.0, limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    in_image = (boxes[:, 2:] > 0) & (boxes[:, :2] < jnp.asarray([size[1], size[0]], jnp.float32))
    valid = valid & ((sides > 0) & in_image).all(-1)
    if rules.clip:
        order = jnp.argsort(~valid, stable=True)
        boxes, labels, valid = boxes[order], labels[order], valid[order]
    return boxes, to_cells(boxes, size, rules.stride), labels, valid


def to_cells(pixels: Array, size: tuple[int, int], stride: int = STRIDE) -> Array:
    """Input pixels (..., x y pairs) float32 as cells of the map."""
    height, width = map_size(size, stride)
    rest = [width / size[1] - 1 / stride, height / size[0] - 1 / stride] * (pixels.shape[-1] // 2)
    # The division by 4 or 8 is exact and the rest small, so that there is one rounding; a product with w / W would have
    # two.  A point on the border of two cells then gets the cell that the originals get in float64.
    return pixels / stride + pixels * jnp.asarray(rest, jnp.float32)


def gaussian_sizes(cells: Array, valid: Array, rules: Rules) -> Array:
    """The radius (M,) int32 of each box's Gaussians, from its sides in cells, rounded up."""
    sides = jnp.where(valid[:, None], jnp.ceil(cells[:, 2:] - cells[:, :2]), 1.0)
    radius = gaussian_radius(sides[:, 1], sides[:, 0], rules.overlap, rules.radius)
    return radius_in_cells(radius)


def encode(objects: Objects, placed: Placed, *, rules: Rules, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels.  placed: only its size is read.  Returns "mask" (M,) bool,
    the objects whose embeddings are trained; and for each corner, "tl" and "br": "_heat" (h, w, K) float32, "_index"
    (M,) int32 cell y * w + x, "_mask" (M,) bool and "_off" (M, 2) float32, the offset within the cell where "_mask"
    is set.
    """
    _, cells, labels, valid = boxes_on_map(objects, placed.size, rules)
    radius = gaussian_sizes(cells, valid, rules)
    shape = map_size(placed.size, rules.stride)
    targets: Targets = {"mask": valid}
    for name, points in (("tl", cells[:, :2]), ("br", cells[:, 2:])):
        targets |= keypoint_targets(
            name, points, radius, labels, valid, shape, num_classes, one_per_cell=rules.one_per_cell
        )
    return targets


def oracle(targets: Targets, size: tuple[int, int], stride: int = STRIDE) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets: heatmaps, and in each cell the values of the nearest keypoint.

    size: (H, W) of the input.  An object's embedding is its number, so that those of two differ by at least 1.
    """
    shape = map_size(size, stride)
    maps = {}
    for name in (n for n in KEYPOINTS if f"{n}_heat" in targets):
        index, mask = targets[f"{name}_index"], targets[f"{name}_mask"]
        maps[f"{name}_heat"] = logits(targets[f"{name}_heat"])
        maps[f"{name}_off"] = nearest_values(index, mask, targets[f"{name}_off"], shape)
        if name in SIDES:
            number = jnp.broadcast_to(jnp.arange(index.shape[1])[:, None], (*index.shape, 1))
            maps[f"{name}_tag"] = nearest_values(index, targets["mask"], number, shape)
    return maps


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: images, and of each keypoint the heatmap's cells of 1 and the offsets trained."""
    counts = {"images": jnp.float32(targets["mask"].shape[0])}
    for name in (n for n in KEYPOINTS if f"{n}_heat" in targets):
        counts[f"{name}_peaks"] = (targets[f"{name}_heat"] == 1).sum(dtype=jnp.float32)
        counts[f"{name}_offsets"] = targets[f"{name}_mask"].sum(dtype=jnp.float32)
    return counts


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: CornerNetConfig
) -> tuple[Array, dict[str, Array]]:
    """CornerNet eq. 6: heatmaps + 0.1 pull + 0.1 push + offsets, over keypoints and stacks as the rules say.

    counts: what `normaliser` returned for the whole batch.  targets: where they have "tl_valid" and "br_valid"
    (B, h, w, K), these weigh the heatmaps' cells.  Returns the loss and its unweighted parts ("heatmap", "pull",
    "push", "offset"), float32 scalars.
    """
    rules = config.rules
    parts = {name: jnp.float32(0) for name in ("heatmap", "pull", "push", "offset")}
    names = [name for name in KEYPOINTS if f"{name}_heat" in targets]
    for maps in outputs:
        for name in names:
            heat, wanted, peaks = maps[f"{name}_heat"], targets[f"{name}_heat"], counts[f"{name}_peaks"]
            if rules.clamp:
                weight = targets.get(f"{name}_valid")
                parts["heatmap"] += losses.focal_loss(heat, wanted, peaks, weight=weight)
            else:
                parts["heatmap"] += losses.gaussian_focal_loss(jax.nn.sigmoid(heat), wanted, jnp.maximum(peaks, 1))
            offsets = counts[f"{name}_offsets"]
            offsets = offsets + rules.offset_eps if rules.offset_eps else jnp.maximum(offsets, 1)
            index, mask = targets[f"{name}_index"], targets[f"{name}_mask"]
            parts["offset"] += losses.smooth_l1_at(maps[f"{name}_off"], index, mask, targets[f"{name}_off"], offsets)
        tags = [gather_cells(maps[f"{side}_tag"], targets[f"{side}_index"])[..., 0] for side in SIDES]
        pull, push = losses.associative_embedding(tags[0], tags[1], targets["mask"], rules.embedding_eps)
        parts["pull"] += pull
        parts["push"] += push
    if rules.average == "stacks":
        parts = {name: value / len(outputs) for name, value in parts.items()}
    else:
        parts = {name: value / (2 if name in ("heatmap", "offset") else 1) for name, value in parts.items()}
    if config.embedding_images:
        share = config.embedding_images / counts["images"]
        parts |= {name: parts[name] * share for name in ("pull", "push")}
    total = (
        parts["heatmap"]
        + config.pull_weight * parts["pull"]
        + config.push_weight * parts["push"]
        + config.offset_weight * parts["offset"]
    )
    return total, parts
