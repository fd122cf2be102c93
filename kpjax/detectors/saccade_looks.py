"""Where CornerNet-Saccade looks: the whole image first, then the places that attention maps and boxes point to.

A look is a square window of the image, resized to the network's input.  Places are compared in float64, as the
original does: in a grid of cells most of its comparisons are between equal numbers, which rounding decides
(golden: saccade_functions, pipe_cornernet_saccade), so that another precision looks elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.images.resample import resample

Array = jax.Array


@flax.struct.dataclass
class Looks:
    """Windows of images, (..., L) of them.

    centers: (..., L, 2) int32 y x, pixels of the image.  scales: (..., L) float32, pixels of the network's input that
    an image pixel becomes where boxes are brought back.  sides: (..., L) int32, of the window in image pixels.
    valid: (..., L) bool.
    """

    centers: Array
    scales: Array
    sides: Array
    valid: Array

    @property
    def corners(self) -> Array:
        """(..., L, 2) int32 y x, the image's pixel that is each window's first; perhaps outside."""
        return self.centers - self.sides[..., None] // 2

    def to_image(self, boxes: Array) -> Array:
        """Boxes (..., L, N, 4) from pixels of the network's input to those of the image."""
        corner = jnp.tile(self.corners[..., ::-1], 2).astype(jnp.float32)
        return boxes / self.scales[..., None, None] + corner[..., None, :]


@flax.struct.dataclass
class Places:
    """Candidates for a look, (P,) of one image.  ys, xs: float64 image pixels.  scales: float64, see `Looks`.

    scores: float32.  valid: bool.
    """

    ys: Array
    xs: Array
    scales: Array
    scores: Array
    valid: Array


def first_looks(size: Array, longest: Sequence[float], view: int) -> Looks:
    """The whole of an image, resized so that its longer side has each of `longest` pixels.

    size: (2,) int32 h w of the image.  view: side of the network's input.  The window's side is rounded down from a
    float32 scale, as in the original: 849 pixels and not 850 where 640 become 192 of 255.
    """
    with jax.enable_x64(True):
        wanted = jnp.asarray(longest, jnp.float64)
        scales = (wanted / jnp.maximum(size.max(), 1).astype(jnp.float64)).astype(jnp.float32)
        sides = jnp.floor((view / scales.astype(jnp.float64)).astype(jnp.float32)).astype(jnp.int32)
    centers = jnp.broadcast_to(size // 2, (len(longest), 2))
    return Looks(centers, scales, sides, jnp.broadcast_to(size.min() > 0, (len(longest),)))


def see(canvas: Array, window: Array, center: Array, side: Array, view: int) -> Array:
    """What one look shows: (view, view, 3) float32, 0..255, black outside of the image.

    canvas: (H, W, 3) uint8.  window: (4,) int32 top, left, bottom, right of the image on it.  center, side: see
    `Looks`.  The part inside the image is resized by bilinear interpolation without antialiasing, and its pixel at the
    centre comes to lie at view // 2.  Halves of odd sides and of resized parts are rounded down, each by itself
    (golden: saccade_functions, `crop/*`).
    """
    ys, xs = (
        _positions(center[axis], side, window[axis + 2] - window[axis], view) + window[axis].astype(jnp.float32)
        for axis in (0, 1)
    )
    return resample(canvas, window[2:], ys, xs, jnp.zeros(3))


def _positions(center: Array, side: Array, length: Array, view: int) -> Array:
    """The image's pixel, (view,) float32, that each cell of the input shows along one axis; far outside: none."""
    first, last = jnp.maximum(center - side // 2, 0), jnp.minimum(center + side // 2, length)
    with jax.enable_x64(True):
        factor = jnp.float64(view) / jnp.maximum(side, 1).astype(jnp.float64)
        before, behind = ((x.astype(jnp.float64) * factor).astype(jnp.int32) for x in (center - first, last - center))
    start, end = view // 2 - before, view // 2 + behind
    cells = jnp.arange(view, dtype=jnp.int32)
    inside = ((cells - start).astype(jnp.float32) + 0.5) * (
        (last - first).astype(jnp.float32) / jnp.maximum(end - start, 1).astype(jnp.float32)
    ) - 0.5
    position = first.astype(jnp.float32) + jnp.clip(inside, 0.0, (last - first - 1).astype(jnp.float32))
    return jnp.where((cells >= start) & (cells < end), position, -1e4)


def attended_places(
    maps: Sequence[Array],
    looks: Looks,
    size: Array,
    *,
    least: float,
    ratios: Sequence[int],
    factors: Sequence[float],
    largest_scale: float,
) -> Places:
    """The cells of an image's attention maps that are to be looked at.

    maps: of each size (L, h, w) float32, 0 where a cell is no peak.  looks: (L,), what the maps were made of.  size:
    (2,) int32 h w of the image.  least: scores have to be above it.  ratios: input pixels a cell of each map.  factors:
    how much closer its places are looked at.  largest_scale: a closer look is not taken above it, and none after a
    look above half of it.  Places come look by look, map by map, row by row.
    """
    with jax.enable_x64(True):
        parts = []
        scales, corners = looks.scales.astype(jnp.float64), looks.corners.astype(jnp.float64)
        for scores, ratio, factor in zip(maps, ratios, factors, strict=True):
            shape = scores.shape
            axes = [
                _divide((jnp.arange(length, dtype=jnp.int32) * ratio).astype(jnp.float64), scales[:, None])
                + corners[:, i, None]
                for i, length in enumerate(shape[1:])
            ]
            ys, xs = (jnp.broadcast_to(axis, shape) for axis in (axes[0][:, :, None], axes[1][:, None, :]))
            closer = (looks.scales * jnp.float32(factor)).astype(jnp.float64)
            useful = looks.valid & (closer <= largest_scale) & (scales <= largest_scale / 2)
            valid = (scores > least) & (ys >= 0) & (ys < size[0]) & (xs >= 0) & (xs < size[1])
            places = Places(
                ys,
                xs,
                jnp.broadcast_to(closer[:, None, None], shape),
                scores.astype(jnp.float32),
                valid & useful[:, None, None],
            )
            parts.append(jax.tree.map(lambda x: x.reshape(x.shape[0], -1), places))
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).reshape(-1), *parts)


def _divide(one: Array, other: Array) -> Array:
    """The quotient as IEEE 754 has it: XLA multiplies by the reciprocal of what is broadcast."""
    return jax.lax.optimization_barrier(one / jax.lax.optimization_barrier(jnp.broadcast_arrays(one, other)[1]))


def places_of_boxes(
    boxes: Array, scores: Array, *, least: float, sizes: Sequence[float], close: Sequence[float]
) -> Places:
    """The middles of boxes that are sure enough, (N,), to be looked at so close that each gets a side of its kind.

    boxes: (N, 4) float32, image pixels.  scores: (N,), which have to be above `least`.  sizes: a box is large above
    the first, small up to the second.  close: longer sides of a large, a medium and a small one in the look.  All
    score 1.
    """
    ys, xs = (boxes[:, 1] + boxes[:, 3]) / 2, (boxes[:, 0] + boxes[:, 2]) / 2
    longer = jnp.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    wanted = jnp.where(longer > sizes[0], close[0], jnp.where(longer > sizes[1], close[1], close[2]))
    valid = (scores > least) & (longer > 0)
    scales = wanted.astype(jnp.float32) / jnp.where(longer > 0, longer, 1.0)
    with jax.enable_x64(True):
        ys, xs, scales = (x.astype(jnp.float64) for x in (ys, xs, scales))
    return Places(ys, xs, scales, jnp.ones_like(longer), valid)


def join_places(*places: Places) -> Places:
    """Places one after another."""
    with jax.enable_x64(True):
        return jax.tree.map(lambda *x: jnp.concatenate(x), *places)


def distant_places(places: Places, count: int, near: float) -> tuple[Array, Array]:
    """The best places of which no two show the same: (count,) int32 numbers of them, best first, and bool, valid.

    A place is left out where a better one lies within near / scale of it, along one of the two axes, and has 0.8 to
    1.2 times its scale (the original takes the smaller of the two distances).  Of equal scores the last comes first.
    """
    with jax.enable_x64(True):
        place = jnp.arange(places.scores.shape[0], dtype=jnp.int32)

        def step(turn: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            is_open, chosen, valid = state
            best = jnp.where(is_open, places.scores, -jnp.inf)
            best = jnp.where(is_open & (best == best.max()), place, -1).max()
            found = best >= 0
            best = jnp.maximum(best, 0)
            distance = jnp.minimum(jnp.abs(places.ys - places.ys[best]), jnp.abs(places.xs - places.xs[best]))
            scale = places.scales[best]
            ratio = scale / places.scales
            is_open = is_open & ((distance > near / scale) | (ratio > 1.2) | (ratio < 0.8))
            return is_open & (place != best), chosen.at[turn].set(best), valid.at[turn].set(found)

        none = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
        _, chosen, valid = jax.lax.fori_loop(0, count, step, (places.valid, *none))
    return chosen, valid


def looks_at(places: Places, chosen: Array, valid: Array, view: int) -> Looks:
    """The looks at some places.  chosen, valid: see `distant_places`.  view: side of the network's input."""
    with jax.enable_x64(True):
        ys, xs, scales = (x[chosen] for x in (places.ys, places.xs, places.scales))
        centers = jnp.stack([ys, xs], axis=-1).astype(jnp.int32)
        sides = (view / scales).astype(jnp.int32)
        scales = scales.astype(jnp.float32)
    return Looks(centers, scales, sides, valid & (sides > 0))
