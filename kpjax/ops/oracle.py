"""Maps that hold the ground truth, to take the place of a network's (Objects as Points, error analysis)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def nearest_values(index: Array, mask: Array, values: Array, shape: tuple[int, int]) -> Array:
    """In every cell the values of the object whose cell is nearest, (B, h, w, C) float32; 0 in images without one.

    index: (B, M) int32 cell y * w + x.  mask: (B, M) bool, which slots are objects.  values: (B, M, C).  shape: (h, w).
    """
    height, width = shape
    y, x = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    to_y, to_x = (index // width)[:, None, None, :], (index % width)[:, None, None, :]
    far = height**2 + width**2
    distance = jnp.where(mask[:, None, None, :], (y - to_y) ** 2 + (x - to_x) ** 2, far)
    nearest = jnp.argmin(distance, axis=-1).reshape(index.shape[0], -1, 1)
    values = jnp.where(mask[..., None], values.astype(jnp.float32), 0.0)
    return jnp.take_along_axis(values, nearest, axis=1).reshape(index.shape[0], height, width, -1)


def logits(scores: Array) -> Array:
    """What a sigmoid makes `scores` (0..1) of: -inf and inf at the ends."""
    return jnp.log(scores) - jnp.log1p(-scores)
