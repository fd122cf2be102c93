"""Bilinear sampling of an image on the device, as OpenCV's with a constant border."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def resample(canvas: Array, size: Array, ys: Array, xs: Array, border: Array) -> Array:
    """Bilinear samples of the image at the crossings of ys and xs.

    canvas: (S, S, 3) uint8 or float32, the image in its top left `size` (h, w).  ys (H,), xs (W,) float32
    pixel indices.  border: (3,) float32, the colour outside.  Returns (H, W, 3) float32, 0..255.
    """
    y, x = _axis_weights(ys, size[0]), _axis_weights(xs, size[1])
    rows, columns = _matrix(y, canvas.shape[0]), _matrix(x, canvas.shape[1])
    image = jnp.einsum("hs,swc->hwc", rows, canvas.astype(jnp.float32), precision="highest")
    image = jnp.einsum("hsc,ws->hwc", image, columns, precision="highest")
    covered = (y[2] + y[3])[:, None] * (x[2] + x[3])[None, :]
    return image + (1 - covered)[..., None] * border


def _axis_weights(positions: Array, length: Array) -> tuple[Array, Array, Array, Array]:
    """The two neighbours of each position and their weights, 0 for a neighbour outside [0, length)."""
    low = jnp.floor(positions)
    part = positions - low
    low = jnp.clip(low, -2, 1e6).astype(jnp.int32)  # far positions have no weight in any case
    high = low + 1
    inside_low = (low >= 0) & (low < length)
    inside_high = (high >= 0) & (high < length)
    return (
        jnp.clip(low, 0, length - 1),
        jnp.clip(high, 0, length - 1),
        jnp.where(inside_low, 1 - part, 0.0),
        jnp.where(inside_high, part, 0.0),
    )


def _matrix(axis: tuple[Array, ...], length: int) -> Array:
    """The weights of one axis as a matrix (positions, length): two matrix products then sample an image."""
    low, high, weight_low, weight_high = axis
    cells = jnp.arange(length)
    return (cells == low[:, None]) * weight_low[:, None] + (cells == high[:, None]) * weight_high[:, None]
