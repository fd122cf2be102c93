"""Peaks of a heatmap: 3x3 maximum test, the top k over all classes, and the other heads' values there."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.ops.largest import largest

Array = jax.Array


def max_pool_3x3(x: Array) -> Array:
    """Stride-1 3x3 maximum, the border ignored.  x: (B, h, w, K), any float dtype.

    Two passes of three shifted views: on a CPU many times faster than a window reduction.
    """
    for axis in (1, 2):
        widths = [(0, 0)] * 4
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        size = x.shape[axis]
        views = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(views[0], views[1]), views[2])
    return x


def keep_peaks(heat: Array) -> Array:
    """`heat` where a cell equals the maximum of its 3x3 neighbourhood, elsewhere 0.

    Objects as Points, section 4: this stands in for box NMS.  heat: (B, h, w, K) float32 scores.
    """
    return jnp.where(max_pool_3x3(heat) == heat, heat, 0.0)


def top_k(heat: Array, k: int) -> tuple[Array, Array, Array, Array]:
    """The k best cells of each image over all classes, best first.

    heat: (B, h, w, K) float32.  Returns scores (B, k) float32, labels, ys, xs (B, k) int32.
    k is cut to the number of scores there are.  Of equal scores the lower class, then the lower cell comes first,
    as in one flat top-k over (K, h, w).

    The k best lie in the k pieces of rows (of one class each) with the best maxima, so that only those are compared in
    full: `lax.top_k` itself sees one number a piece, and then k pieces.
    """
    batch, height, width, classes = heat.shape
    piece = _best_piece(height * classes, width, k)
    pieces = heat.reshape(batch, height * (width // piece), piece, classes)
    maxima = pieces.max(2).transpose(0, 2, 1).reshape(batch, -1)  # class by class, as the flat order is
    _, best = largest(maxima, min(k, maxima.shape[1]))
    best = jnp.sort(best, axis=1)  # so that of equal scores the first still comes first
    label, start = best // pieces.shape[1], best % pieces.shape[1] * piece
    few = pieces[jnp.arange(batch)[:, None], start // piece, :, label].reshape(batch, -1)
    scores, place = largest(few, min(k, few.shape[1]))
    cell = jnp.take_along_axis(start, place // piece, axis=1) + place % piece
    return scores, jnp.take_along_axis(label, place // piece, axis=1), cell // width, cell % width


def _best_piece(rows: int, width: int, k: int) -> int:
    """The length of equal pieces of a row with which `top_k` sorts the fewest numbers."""
    lengths = [length for length in range(1, width + 1) if width % length == 0]
    return min(lengths, key=lambda length: rows * (width // length) + min(k, rows * (width // length)) * length)


def best_peaks(heat: Array, k: int, *, kernel: int = 3, logits: bool = False) -> tuple[Array, Array, Array, Array]:
    """`top_k` of the peaks: the k best cells of each image, (B, k) scores, labels, ys, xs.

    heat: (B, h, w, K) float32 scores, or with `logits` what is still to go through the sigmoid.  kernel: 3 keeps the
    peaks of 3x3 neighbourhoods only; 1 keeps every cell.
    """
    scores = jax.nn.sigmoid(heat) if logits else heat
    return top_k(keep_peaks(scores) if kernel == 3 else scores, k)


def peaks_of_channels(heat: Array, k: int) -> tuple[Array, Array, Array]:
    """The k best cells of each channel that are maxima of their 3x3 neighbourhoods: scores, ys, xs (B, C, k).

    heat: (B, h, w, C) float32 scores.
    """
    batch, height, width, channels = heat.shape
    alone = keep_peaks(heat).transpose(0, 3, 1, 2).reshape(batch * channels, height, width, 1)
    scores, _, ys, xs = top_k(alone, k)
    scores, ys, xs = (x.reshape(batch, channels, -1) for x in (scores, ys, xs))
    return scores, ys, xs


def gather_cells(maps: Array, index: Array) -> Array:
    """The vectors of a map at flat cells y * w + x.

    maps: (B, h, w, D).  index: (B, N) int32.  Returns (B, N, D).
    """
    batch, height, width, depth = maps.shape
    return jnp.take_along_axis(maps.reshape(batch, height * width, depth), index[..., None], axis=1)
