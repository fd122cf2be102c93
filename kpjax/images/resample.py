"""Bilinear sampling on the device, of an image or of four for a mosaic, as OpenCV's with a constant border."""

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


def resample_tiles(canvases: Array, sizes: Array, ys: Array, xs: Array, center: Array, border: Array) -> Array:
    """Bilinear samples of four images, each in its tile: 0 top left of the centre, 1 top right, 2 and 3 below.

    canvases: (4, S, S, 3) uint8 or float32, each image in its top left `sizes` (4, 2).  ys (4, H), xs (4, W) float32:
    the pixel indices at which an image would be read if its tile were the whole.  center: (2,) int32 x y, the first
    column and row of the tiles right and below.  border: as in `resample`.  Returns (H, W, 3) float32, 0..255.
    """
    side, height, width = canvases.shape[1], ys.shape[1], xs.shape[1]
    below, right = jnp.arange(height) >= center[1], jnp.arange(width) >= center[0]
    low, high, weight_low, weight_high = jax.vmap(_axis_weights)(ys, sizes[:, 0])
    image, covered = jnp.zeros((height, width, 3)), jnp.zeros((height, width))
    for column in (0, 1):
        # Rows are copied rather than multiplied by a matrix: one image of the column is read for each.
        row, tile = jnp.arange(height), jnp.where(below, 2 + column, column)
        first, last = weight_low[tile, row][:, None, None], weight_high[tile, row][:, None, None]
        rows = canvases[tile, low[tile, row]] * first + canvases[tile, high[tile, row]] * last
        for number, of_tile in ((column, ~below), (2 + column, below)):
            axis = _axis_weights(xs[number], sizes[number, 1])
            columns = _matrix(axis, side) * (right == bool(column))[:, None]
            image += jnp.einsum("hsc,ws->hwc", rows * of_tile[:, None, None], columns, precision="highest")
            covered += ((first + last)[:, :, 0] * of_tile[:, None]) * columns.sum(1)
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
