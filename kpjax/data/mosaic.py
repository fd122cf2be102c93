"""Mosaic: one input made of four images of the batch (YOLOv4, arXiv 2004.10934, section 3.3), on the device.

The input is cut at a random centre into four tiles.  Each shows another image, at a size, a place and a mirroring of
its own.  The images are an example's own and those of the three examples after it in the batch, so nothing more is
decoded; the draws are those of the example's counter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.images.geometry import Crop, draw_crop, scaled_crop
from kpjax.objects import IGNORE, NONE, OBJECT, UNLABELLED, Objects, PointSet

Array = jax.Array

TILES = 4
# The centre lies at this part of each side: a narrower tile shows too little to recognise.
_CENTER = (0.25, 0.75)
# An object stays if this part of its box is in its tile, and two pixels of each side: of others a strip is left that
# nobody could name, and whose box says little of the object.
VISIBLE, _LEAST = 0.2, 2.0


@flax.struct.dataclass
class Tiles:
    """One example's mosaic.  crops: (4, ...), of the images in the tiles top left, top right, bottom left and bottom
    right.  center: (2,) int32 x y, the first column and row of those right and below.  whole: () bool, whether there
    is no mosaic: the first image has all of the input, and `center` lies at its end.
    """

    crops: Crop
    center: Array
    whole: Array

    def which(self, output: tuple[int, int]) -> Array:
        """(H, W) int32, the number of the image that each pixel of the input shows."""
        right, below = jnp.arange(output[1]) >= self.center[0], jnp.arange(output[0]) >= self.center[1]
        return 2 * below[:, None].astype(jnp.int32) + right

    def boxes(self, output: tuple[int, int]) -> Array:
        """(4, 4) float32 x1 y1 x2 y2 of the tiles, in pixels of the input (H, W)."""
        (x, y), (height, width) = self.center, output
        corners = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        return jnp.stack([jnp.stack([jnp.float32(value) for value in tile]) for tile in corners])


def with_next(batch: Any, count: int) -> Any:
    """A tree of arrays (B, ...) -> (B, count, ...): each example, and those after it in the batch, in a ring.

    Where the batch is divided among devices, they exchange images with the next ones alone.
    """
    return jax.tree.map(lambda x: jnp.stack([jnp.roll(x, -i, 0) for i in range(count)], axis=1), batch)


def draw_tiles(key: Array, sizes: Array, config: AugmentConfig, fills: str, objects: Objects, on: Array) -> Tiles:
    """The mosaic of one example, or with probability 1 - config.mosaic its own image by `config.kind`.

    sizes: (4, 2) int32 h w of the images.  fills: see `draw_crop`.  objects: (M, ...) of the first image, which the
    kind "patch" needs.  on: () bool, whether there are mosaics at this step.
    """
    coin, place, mirror, size, plain = jax.random.split(key, 5)
    output = (config.height, config.width)
    corner = jnp.asarray(output[::-1], jnp.int32)
    whole = ~(on & (jax.random.uniform(coin, ()) < config.mosaic))
    part = jax.random.uniform(place, (2,), minval=_CENTER[0], maxval=_CENTER[1])
    center = jnp.where(whole, corner, jnp.round(part * corner).astype(jnp.int32))
    flips = jax.random.uniform(mirror, (TILES,)) < config.flip
    tiles = Tiles(None, center, whole)  # type: ignore[arg-type]

    def one(key: Array, extent: Array, flip: Array, tile: Array) -> Crop:
        return scaled_crop(key, extent, config.mosaic_scale_range, flip, tile, output, fills)

    crops = jax.vmap(one)(jax.random.split(size, TILES), sizes, flips, tiles.boxes(output))
    alone = draw_crop(plain, sizes[0], config, fills, objects)
    crops = jax.tree.map(lambda x, y: x.at[0].set(jnp.where(whole, y, x[0])), crops, alone)
    return dataclasses.replace(tiles, crops=crops)


def moved(objects: Objects, tiles: Tiles, output: tuple[int, int], points: PointSet | None, last: float) -> Objects:
    """The objects in the input: of the four images (4, M, ...), in their pixels -> (M, ...), in the input's.

    In a mosaic boxes are cut to their tile, objects of which less than `VISIBLE` is in it are dropped, and points
    outside it become unlabelled.  Where more than M are left the smallest are dropped, regions to ignore first.  The
    objects of an image alone are moved, and no more.
    points: what their points are.  last: 1 where a box ends on its last pixel.
    """
    objects = jax.vmap(lambda crop, one: crop.geometry.move(one, points))(tiles.crops, objects)
    tile = tiles.boxes(output)[:, None]
    boxes = objects.boxes
    cut = jnp.clip(boxes, jnp.tile(tile[..., :2], 2), jnp.tile(tile[..., 2:] - last, 2))
    sides, shown = boxes[..., 2:] - boxes[..., :2] + last, cut[..., 2:] - cut[..., :2] + last
    area = shown.prod(-1)
    seen = (area >= VISIBLE * sides.prod(-1)) & (shown >= _LEAST).all(-1)
    first = jnp.arange(TILES)[:, None] == 0
    kept = jnp.where(tiles.whole, first, seen) & (objects.role != NONE)
    objects = dataclasses.replace(
        objects,
        boxes=jnp.where(tiles.whole, boxes, cut),
        role=jnp.where(kept, objects.role, NONE),
    )
    if objects.points is not None:
        xy = objects.points
        inside = ((xy >= tile[:, :, None, :2]) & (xy < tile[:, :, None, 2:])).all(-1) | tiles.whole
        objects = dataclasses.replace(objects, seen=jnp.where(inside, objects.seen, UNLABELLED))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), objects)
    return largest(flat, boxes.shape[1], output, last)


def largest(objects: Objects, count: int, output: tuple[int, int], last: float) -> Objects:
    """The `count` largest of the objects (N, ...) of an input (H, W), by what of their boxes is inside.

    Objects before regions to ignore, and these before empty slots.  last: 1 where a box ends on its last pixel.
    """
    limit = jnp.asarray([output[1], output[0]], jnp.float32)
    low, high = jnp.maximum(objects.boxes[:, :2], 0), jnp.minimum(objects.boxes[:, 2:] + last, limit)
    area = jnp.maximum(high - low, 0).prod(-1)
    rank = jnp.where(objects.role == OBJECT, 1.0, jnp.where(objects.role == IGNORE, 0.0, -1.0))
    rank = rank + jnp.where(objects.role != NONE, area / (limit.prod() + 1), 0.0)
    index = jnp.argsort(-rank)[:count]  # top_k would gather the batch of all devices
    return jax.tree.map(lambda x: x[index], objects)
