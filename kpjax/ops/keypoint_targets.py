"""Targets of one kind of keypoint: a heatmap, cells, and offsets within the cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.ops.heatmap import draw_gaussians

Array = jax.Array


def last_in_cell(index: Array, valid: Array) -> Array:
    """(M,) bool: the valid keypoints that no later one shares its cell with.  index: (M,) int32 cells."""
    same = (index[:, None] == index[None, :]) & valid[None, :]
    return valid & ~jnp.triu(same, 1).any(-1)


def keypoint_targets(
    name: str,
    points: Array,
    radius: Array,
    labels: Array,
    valid: Array,
    shape: tuple[int, int],
    num_classes: int,
    *,
    one_per_cell: bool = False,
    sigma_divisor: float = 6.0,
) -> dict[str, Array]:
    """Heatmap, cells and offsets of one kind of keypoint, one in each of M objects.

    points: (M, 2) float32 x y in cells; those beyond the map are pulled onto it.  radius: (M,) int32 of the Gaussians.
    labels: (M,) int32.  valid: (M,) bool.  shape: (h, w).  one_per_cell: of several keypoints in a cell the last alone
    trains the offset.  Returns NAME_heat (h, w, K) float32, NAME_index (M,) int32 cells y * w + x, NAME_mask (M,) bool
    and NAME_off (M, 2) float32.
    """
    height, width = shape
    cell = jnp.clip(points.astype(jnp.int32), 0, jnp.asarray([width - 1, height - 1]))
    # Scatters of empty slots are out of range, and dropped.
    classes = jnp.where(valid, labels, num_classes)
    index = jnp.where(valid, cell[:, 1] * width + cell[:, 0], 0)
    mask = last_in_cell(index, valid) if one_per_cell else valid
    return {
        f"{name}_heat": draw_gaussians(cell, radius, classes, valid, shape, num_classes, sigma_divisor),
        f"{name}_index": index,
        f"{name}_mask": mask,
        f"{name}_off": jnp.where(mask[:, None], points - cell, 0.0),
    }
