"""Bilinear up-sampling by 2 whose corners are those of the map (PyTorch's `align_corners=True`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def upsample_corners(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2 H, 2 W, C) of x's dtype: output i of an axis lies at i (H - 1) / (2 H - 1).

    So 0, 1, 2 becomes 0, 0.4, 0.8, 1.2, 1.6, 2.  As two shifted maps an axis, without a gather.
    """
    for axis in (1, 2):
        x = _along(x, axis)
    return x


def _along(x: Array, axis: int) -> Array:
    size = x.shape[axis]
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, size - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis=axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis=axis)
    # Output 2 k lies k / (2 H - 1) before cell k, output 2 k + 1 lies (H - 1 - k) / (2 H - 1) behind it.
    part = jnp.arange(size, dtype=jnp.float32) / (2 * size - 1)
    part = part.reshape(-1, *[1] * (x.ndim - 1 - axis))
    even = x * (1 - part) + before * part
    odd = x * (1 - jnp.flip(part, 0)) + after * jnp.flip(part, 0)
    both = jnp.stack([even, odd], axis=axis + 1).astype(x.dtype)
    return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
