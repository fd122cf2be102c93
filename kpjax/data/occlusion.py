"""Copy-paste on the device (arXiv 2012.07177), of boxes rather than masks: some objects of another image of the batch,
each with the pixels of its box, at the place where that image's own crop has them; and which objects that hides.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kpjax.data.mosaic import largest
from kpjax.images.geometry import Crop
from kpjax.objects import HIDDEN, NONE, UNLABELLED, Objects

Array = jax.Array
Size = tuple[int, int]  # (height, width)

# An object stays while half of its box is to be seen: both of what is covered, and of what is pasted with another.
SEEN = 0.5
_CHOSEN = 0.5  # how often an object is pasted where an input gets any


def pixels_of(boxes: Array, output: Size, last: float) -> tuple[Array, Array]:
    """Which rows and columns of an input (H, W) boxes (M, 4) cover: (M, H) and (M, W) float32, 0 or 1."""
    ys, xs = (jnp.arange(side) + 0.5 for side in output)
    rows = (ys >= boxes[:, 1:2]) & (ys < boxes[:, 3:4] + last)
    columns = (xs >= boxes[:, 0:1]) & (xs < boxes[:, 2:3] + last)
    return rows.astype(jnp.float32), columns.astype(jnp.float32)


def pixels_under(boxes: Array, mask: Array, last: float) -> tuple[Array, Array]:
    """How many pixels of boxes (M, 4) are in the input, and how many of these under `mask` (H, W) bool: (M,) twice."""
    rows, columns = pixels_of(boxes, mask.shape, last)  # type: ignore[arg-type]
    under = jnp.dot(rows, mask.astype(jnp.float32), precision="highest")
    return rows.sum(-1) * columns.sum(-1), (under * columns).sum(-1)


def points_under(points: Array, mask: Array) -> Array:
    """Which points (..., 2) x y lie under `mask` (H, W) bool: (...) bool."""
    x, y = jnp.round(points[..., 0]), jnp.round(points[..., 1])
    inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
    cells = (jnp.clip(v, 0, side - 1).astype(jnp.int32) for v, side in ((y, mask.shape[0]), (x, mask.shape[1])))
    return inside & mask[tuple(cells)]


def hide(objects: Objects, mask: Array, last: float) -> Objects:
    """The objects (M, ...) of an input of which `mask` (H, W) bool is covered.

    One with more than half of its pixels under it is dropped; points under it are hidden.
    last: 1 where a box ends on its last pixel.
    """
    pixels, under = pixels_under(objects.boxes, mask, last)
    objects = dataclasses.replace(objects, role=jnp.where(under > (1 - SEEN) * pixels, NONE, objects.role))
    if objects.points is not None:
        hidden = jnp.minimum(objects.seen, HIDDEN)
        seen = jnp.where(points_under(objects.points, mask), hidden, objects.seen)
        objects = dataclasses.replace(objects, seen=seen)
    return objects


def paste(
    key: Array, objects: Objects, other: Objects, crop: Crop, on: Array, output: Size, last: float
) -> tuple[Array, Objects]:
    """Which pixels of an input show another image, and the objects that are then in it.

    objects, other: (M, ...), of the input and of the other image, in pixels of the input.  crop: of the other image.
    on: () bool, whether anything is pasted.  last: 1 where a box ends on its last pixel.
    Each object of the other image of which half lies in the input is pasted with probability 1/2.  Further ones of
    which half lies in what is pasted are kept too.  Where more than M are left the smallest are dropped.
    Returns (H, W) bool and (M, ...).
    """
    rows, columns = pixels_of(other.boxes, output, last)
    rows = rows * ((crop.ys >= 0) & (crop.ys <= crop.extent[0] - 1))
    columns = columns * ((crop.xs >= 0) & (crop.xs <= crop.extent[1] - 1))
    area = (other.boxes[:, 2:] - other.boxes[:, :2] + last).prod(-1)
    chosen = on & other.valid & jax.random.bernoulli(key, _CHOSEN, other.valid.shape)
    chosen &= (rows.sum(-1) * columns.sum(-1) >= SEEN * area) & (area > 0)
    mask = jnp.einsum("mh,mw->hw", rows * chosen[:, None], columns, precision="highest") > 0.5
    _, under = pixels_under(other.boxes, mask, last)
    shown = chosen | ((under >= SEEN * area) & (under > 0))
    other = dataclasses.replace(other, role=jnp.where(shown, other.role, NONE))
    if other.points is not None:
        seen = jnp.where(points_under(other.points, mask), other.seen, UNLABELLED)
        other = dataclasses.replace(other, seen=seen)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), hide(objects, mask, last), other)
    return mask, largest(both, len(objects), output, last)
