"""Bilinear sampling of an image on the device, as OpenCV's with a constant border."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def resample(canvas: Array, size: Array, ys: Array, xs: Array, border: Array) -> Array:
    """Bilinear samples of the image at the crossings of ys and xs.

    canvas: (S, S, 3) uint8 or float32, the image in its top left `size` (h, w).  ys (H,), xs (W,) float32
    pixel indices.  border: (3,) float32, the colour outside.  Returns (H, W, 3) float32, 0..255.
    """
    weights = [_axis_weights(p, n) for p, n in ((ys, size[0]), (xs, size[1]))]
    image = lax.platform_dependent(canvas, *weights, cpu=_resample_gather, default=_resample_matmul)
    (_, _, wy0, wy1), (_, _, wx0, wx1) = weights
    covered = (wy0 + wy1)[:, None] * (wx0 + wx1)[None, :]
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


def _resample_gather(canvas: Array, y: tuple[Array, ...], x: tuple[Array, ...]) -> Array:
    # Two gathers of rows, then two of columns: little arithmetic, which suits a CPU.
    y0, y1, wy0, wy1 = y
    x0, x1, wx0, wx1 = x
    rows = canvas[y0] * wy0[:, None, None] + canvas[y1] * wy1[:, None, None]
    return rows[:, x0] * wx0[:, None] + rows[:, x1] * wx1[:, None]


def _resample_matmul(canvas: Array, y: tuple[Array, ...], x: tuple[Array, ...]) -> Array:
    # The same as two matrix products, which suit a TPU or a GPU.
    def matrix(axis: tuple[Array, ...], length: int) -> Array:
        low, high, weight_low, weight_high = axis
        cells = jnp.arange(length)
        return (cells == low[:, None]) * weight_low[:, None] + (cells == high[:, None]) * weight_high[:, None]

    rows, columns = matrix(y, canvas.shape[0]), matrix(x, canvas.shape[1])
    image = canvas.astype(jnp.float32)
    image = jnp.einsum("hs,swc->hwc", rows, image, precision="highest")
    return jnp.einsum("hsc,ws->hwc", image, columns, precision="highest")
