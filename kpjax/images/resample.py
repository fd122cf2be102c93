"""Bilinear sampling on the device, of an image or of several, as OpenCV's with a constant border."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def resample(canvas: Array, size: Array, ys: Array, xs: Array, border: Array) -> Array:
    """Bilinear samples of the image at the crossings of ys and xs.

    canvas: (S, S, 3) uint8 or float32, the image in its top left `size` (h, w).  ys (H,), xs (W,) float32
    pixel indices.  border: (3,) float32, the colour outside.  Returns (H, W, 3) float32, 0..255.
    """

    def gather(canvas: Array, size: Array, ys: Array, xs: Array, border: Array) -> Array:
        y, x = _axis_weights(ys, size[0]), _axis_weights(xs, size[1])
        image, covered = jnp.zeros((len(ys), len(xs), 3)), jnp.zeros((len(ys), len(xs)))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = y[2 + i][:, None] * x[2 + j]
            image += canvas[y[i][:, None], x[j]] * weight[..., None]
            covered += weight
        return image + (1 - covered)[..., None] * border

    # Reading a pixel's neighbours takes a CPU a tenth of the products' time.
    return jax.lax.platform_dependent(canvas, size, ys, xs, border, cpu=gather, default=_products)


def _products(canvas: Array, size: Array, ys: Array, xs: Array, border: Array) -> Array:
    """`resample` by two matrix products."""
    y, x = _axis_weights(ys, size[0]), _axis_weights(xs, size[1])
    rows, columns = _matrix(y, canvas.shape[0]), _matrix(x, canvas.shape[1])
    image = jnp.einsum("hs,swc->hwc", rows, canvas.astype(jnp.float32), precision="highest")
    image = jnp.einsum("hsc,ws->hwc", image, columns, precision="highest")
    covered = (y[2] + y[3])[:, None] * (x[2] + x[3])[None, :]
    return image + (1 - covered)[..., None] * border


def resample_several(canvases: Array, sizes: Array, ys: Array, xs: Array, which: Array, border: Array) -> Array:
    """Bilinear samples of n images, each pixel of the result from one of them.

    canvases: (n, S, S, 3) uint8 or float32, each image in its top left `sizes` (n, 2).  ys (n, H), xs (n, W) float32:
    the pixel indices at which an image is read, as if it filled the whole.  which: (H, W) int32, the image of a pixel.
    border: as in `resample`.  Returns (H, W, 3) float32, 0..255.
    """

    def gather(canvases: Array, sizes: Array, ys: Array, xs: Array, which: Array, border: Array) -> Array:
        rows, columns = jnp.arange(which.shape[0])[:, None], jnp.arange(which.shape[1])
        y = [part[which, rows] for part in jax.vmap(_axis_weights)(ys, sizes[:, 0])]
        x = [part[which, columns] for part in jax.vmap(_axis_weights)(xs, sizes[:, 1])]
        image, covered = jnp.zeros((*which.shape, 3)), jnp.zeros(which.shape)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = y[2 + i] * x[2 + j]
            image += canvases[which, y[i], x[j]] * weight[..., None]
            covered += weight
        return image + (1 - covered)[..., None] * border

    def multiply(canvases: Array, sizes: Array, ys: Array, xs: Array, which: Array, border: Array) -> Array:
        image = jnp.zeros((*which.shape, 3))
        for n in range(len(canvases)):
            shown = _products(canvases[n], sizes[n], ys[n], xs[n], border)
            image = jnp.where((which == n)[..., None], shown, image)
        return image

    # A TPU reads single pixels slowly.
    return jax.lax.platform_dependent(
        *(canvases, sizes, ys, xs, which, border), cpu=gather, cuda=gather, default=multiply
    )


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
