"""The geometry of training: the random crop of an image is drawn here (`kpjax.data.augment` applies it).

Kinds of crop, all in OpenCV's pixel-index convention, (x, y), the image in the top left corner of its canvas:

    crop, shift   CenterNet's: a square of side s around a centre c of the image, by x' = (x - c) W / s + W / 2
    window        CornerNet's: a window of pixels, of the input's own size times a scale, resized to the input
    patch         SSD's: a window of any shape whose boxes all keep a part of themselves, resized to the input
    object        CornerNet-Saccade's: the image resized so that an object gets a random size, then a window around it
    none          the whole image: the square of its longer side

Where images are stretched to the input (`kpjax.images.preprocess.Preprocess.fills`), crop, shift and none show
the window of the image's own shape in place of the square.

A `Crop` says where the input's pixels are read (`kpjax.images.resample`); its `Geometry` moves the annotations.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.objects import Geometry, Objects

Array = jax.Array
_PATCH_OVERLAPS = (-1.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # -1: the whole image; 0: any window with a centre
_PATCHES = 50
# Pixels, of an input of 255, that the longer side of a large, a medium and a small object gets: from, and below.
_OBJECT_SIZES = ((96, 32, 16), (255, 97, 33))
Size = tuple[int, int]  # (height, width)


@flax.struct.dataclass
class Crop:
    """One image's crop.

    geometry: canvas pixels -> input pixels.  ys (H,), xs (W,): float32 canvas pixel indices at which each row and
    column of the input is read.  extent: (2,) int32 h w, as much of the image as the crop shows.
    window: (4,) float32 top, left, bottom, right of the image in the input; None where nothing depends on it.
    """

    geometry: Geometry
    ys: Array
    xs: Array
    extent: Array
    window: Array | None = None


def draw_crop(
    key: Array, size: Array, config: AugmentConfig, fills: str = "longer", objects: Objects | None = None
) -> Crop:
    """The crop of `config.kind` for an image of `size` (2,) int32 h, w (pixels of its canvas).

    fills: which side of the whole image fills the input's width, see `kpjax.images.preprocess.Preprocess`.
    objects: (M, ...) of the image, which the kinds "patch" and "object" need.
    """
    keys = jax.random.split(key, 4)
    output = (config.height, config.width)
    extent = size[::-1].astype(jnp.float32)
    flip = jax.random.uniform(keys[2], ()) < config.flip
    if config.kind == "window":
        scales = jnp.asarray(config.scales, jnp.float32)
        scale = scales[jax.random.randint(keys[0], (), 0, len(config.scales))]
        # int(511 * 0.7) has to come out as in float64.
        sides = jnp.floor(jnp.asarray([config.width, config.height], jnp.float32) * scale + 1e-3)
        return window_crop(_draw_center(keys[1], extent, config.border), sides, flip, size, output)
    if config.kind == "patch":
        assert objects is not None
        start, sides = draw_patch(keys[0], extent, objects.boxes, objects.valid, config.expand)
        return stretched_crop(start, sides, flip, size, output)
    if config.kind == "object":
        assert objects is not None
        return draw_object_window(keys[0], extent, objects, config.scales, flip, output)
    center, side = extent / 2, whole_side(extent, fills)
    if config.kind == "crop":
        scales = jnp.asarray(config.scales, jnp.float32)
        side = side * scales[jax.random.randint(keys[0], (), 0, len(config.scales))]
        center = _draw_center(keys[1], extent, config.border)
    elif config.kind == "shift":
        move = jnp.clip(jax.random.normal(keys[1], (2,)) * config.shift, -2 * config.shift, 2 * config.shift)
        zoom = jnp.clip(1 + jax.random.normal(keys[0], ()) * config.scale, 1 - config.scale, 1 + config.scale)
        changes = jax.random.uniform(keys[3], ()) < config.shift_probability
        units = extent if config.shift_unit == "side" else extent.max()
        center = center + jnp.where(changes, units * move, 0.0)
        side = side * jnp.where(changes, zoom, 1.0)
    if fills == "both":
        sides = extent * (side / whole_side(extent, fills))
        return stretched_crop(center - sides / 2, sides, flip, size, output)
    # As in the originals, the centre that was drawn is one of the mirrored image.
    center = center.at[0].set(jnp.where(flip, extent[0] - center[0] - 1, center[0]))
    return square_crop(center, side, flip, size, output, fills)


def whole_crop(size: Array, output: Size, fills: str = "longer") -> Crop:
    """The whole image, not mirrored.  size: (2,) int32 h w.  output: (H, W) of the input.  fills: as in `draw_crop`."""
    extent, flip = size[::-1].astype(jnp.float32), jnp.bool_(False)
    if fills == "both":
        return stretched_crop(jnp.zeros(2), extent, flip, size, output)
    return square_crop(extent / 2, whole_side(extent, fills), flip, size, output, fills)


def whole_side(extent: Array, fills: str) -> Array:
    """() the side of the square that shows the whole image, extent (2,) w h.  fills: as in `draw_crop`."""
    return extent[0] if fills == "width" else extent.max()


def square_crop(center: Array, side: Array, flip: Array, size: Array, output: Size, fills: str = "longer") -> Crop:
    """CenterNet's crop: the square of `side` around `center` fills the input's width.

    center: (2,) float32 x y, of the mirrored image where `flip` (() bool).  side: () float32.  size: (2,) int32 h w of
    the image.  output: (H, W) of the input.  fills: as in `draw_crop`.
    """
    extent = size[::-1].astype(jnp.float32)
    sign = jnp.where(flip, jnp.asarray([-1.0, 1.0]), 1.0)
    middle = jnp.asarray([output[1], output[0]], jnp.float32) / 2
    source = center.at[0].set(jnp.where(flip, extent[0] - 1 - center[0], center[0]))
    changed = (side != whole_side(extent, fills)) | (source != extent / 2).any()
    geometry = Geometry(source, sign * (output[1] / side), middle, flip, changed)
    step = side / output[1]
    ys = (jnp.arange(output[0], dtype=jnp.float32) - middle[1]) * step + center[1]
    xs = (jnp.arange(output[1], dtype=jnp.float32) - middle[0]) * step + center[0]
    return Crop(geometry, ys, jnp.where(flip, extent[0] - 1 - xs, xs), size)


def window_crop(center: Array, sides: Array, flip: Array, size: Array, output: Size) -> Crop:
    """CornerNet's crop: a window of `sides` around a pixel of the image, resized to the input and then mirrored.

    center: (2,) float32 x y, whole numbers; it becomes the window's pixel sides // 2.  sides: (2,) float32 w h, whole
    numbers.  flip: () bool.  size: (2,) int32 h w of the image.  output: (H, W) of the input.  Mirrored, x becomes
    W - 1 - x.  A window of an odd side shows one column (row) less than it has, as in the original (golden:
    targets_cornernet).
    """
    start = center - jnp.floor(sides / 2)  # the image's pixel that becomes the window's first; perhaps outside
    shown = jnp.minimum(size, (start + 2 * jnp.floor(sides / 2))[::-1].astype(jnp.int32))
    return stretched_crop(start, sides, flip, shown, output)


def stretched_crop(start: Array, sides: Array, flip: Array, size: Array, output: Size) -> Crop:
    """A window of the image resized to the input, each side by itself, and then mirrored: x becomes W - 1 - x.

    start: (2,) float32 x y of its first pixel, perhaps outside.  sides: (2,) float32 w h.  flip: () bool.  size: (2,)
    int32 h w of the image, or as much of it as is to be seen.  output: (H, W) of the input.
    """
    extent = jnp.asarray([output[1], output[0]], jnp.float32)
    sign = jnp.where(flip, jnp.asarray([-1.0, 1.0]), 1.0)
    target = jnp.where(flip, jnp.stack([extent[0] - 1, jnp.float32(0)]), 0.0)
    geometry = Geometry(start, sign * (extent / sides), target, flip, jnp.bool_(True))

    def positions(start: Array, side: Array, length: int) -> Array:
        # OpenCV's bilinear resize: pixels have their centres at halves, and the window's edge is repeated.
        inside = (jnp.arange(length, dtype=jnp.float32) + 0.5) * (side / length) - 0.5
        return start + jnp.clip(inside, 0.0, side - 1)

    ys, xs = positions(start[1], sides[1], output[0]), positions(start[0], sides[0], output[1])
    return Crop(geometry, ys, jnp.where(flip, xs[::-1], xs), size)


def scaled_crop(
    key: Array,
    size: Array,
    scale_range: tuple[float, float],
    flip: Array,
    tile: Array,
    output: Size,
    fills: str = "longer",
) -> Crop:
    """The image at a random size and place, as a part of a mosaic.

    size: (2,) int32 h w of the image.  scale_range: least and greatest size, log-uniform; at 1 the whole image fills
    the input, see `whole_crop`.  flip: () bool.  tile: (4,) float32 x1 y1 x2 y2, the part of the input to fill.
    output: (H, W) of the input, all of which the crop covers.  fills: as in `draw_crop`.
    Along each axis an image larger than the tile covers it, and a smaller one lies anywhere in it.
    """
    size_key, place_key = jax.random.split(key)
    least, greatest = (math.log(value) for value in scale_range)
    zoom = jnp.exp(jax.random.uniform(size_key, (), minval=least, maxval=greatest))
    extent, sides = size[::-1].astype(jnp.float32), jnp.asarray([output[1], output[0]], jnp.float32)
    scale = zoom * (sides / extent if fills == "both" else sides[0] / whole_side(extent, fills))
    room = tile[2:] - tile[:2] - extent * scale
    first = tile[:2] + jax.random.uniform(place_key, (2,)) * room  # where the image begins in the input
    if fills == "both":
        mirrored = sides[0] - first[0] - extent[0] * scale[0]
        start = first.at[0].set(jnp.where(flip, mirrored, first[0]))
        return stretched_crop(-start / scale, sides / scale, flip, size, output)
    return square_crop((sides / 2 - first) / scale, sides[0] / scale, flip, size, output, fills)


def draw_patch(key: Array, extent: Array, boxes: Array, valid: Array, expand: float) -> tuple[Array, Array]:
    """SSD's window (arXiv 1512.02325, section 2.2, and the zoom out of 3.6), as mmdetection 1 draws it.

    Half of the images are put on a canvas up to `expand` times as large.  Then a least overlap of window and boxes is
    drawn, or that the whole is shown; of 50 windows the first is taken in which every box has that overlap (IoU, a box
    ends on its last pixel) and a centre lies; where there is none, another overlap is drawn.
    extent: (2,) float32 w h.  boxes: (M, 4) float32, inclusive.  valid: (M,) bool.
    Returns start and sides for `stretched_crop`, whole pixels of the image; it may begin or end outside.
    """
    keys = jax.random.split(key, 4)
    ratio = jax.random.uniform(keys[1], (), minval=1.0, maxval=expand)
    ratio = jnp.where(jax.random.bernoulli(keys[0]), ratio, 1.0)
    whole = jnp.floor(extent * ratio)
    offset = jnp.floor(jax.random.uniform(keys[2], (2,)) * extent * (ratio - 1))
    boxes = boxes + jnp.tile(offset, 2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    overlaps = jnp.asarray(_PATCH_OVERLAPS, jnp.float32)

    def attempt(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        turn = state[0]
        which, sizes, places = jax.random.split(jax.random.fold_in(keys[3], turn), 3)
        least = overlaps[jax.random.randint(which, (), 0, len(_PATCH_OVERLAPS))]
        sides = whole * jax.random.uniform(sizes, (_PATCHES, 2), minval=0.3, maxval=1.0)
        # Not from 0 on: the original gives the random number's upper end alone, and its lower one is then 1.
        start = 1 + jax.random.uniform(places, (_PATCHES, 2)) * (whole - sides - 1)
        low, high = jnp.floor(start)[:, None], jnp.floor(start + sides)[:, None]
        shared = jnp.maximum(jnp.minimum(high, boxes[:, 2:]) - jnp.maximum(low, boxes[:, :2]) + 1, 0).prod(-1)
        iou = shared / ((high - low + 1).prod(-1) + areas - shared)
        shape = sides[:, 1] / sides[:, 0]
        good = (shape >= 0.5) & (shape <= 2) & ((iou >= least) | ~valid).all(-1)
        good &= ((centers > low) & (centers < high) & valid[:, None]).all(-1).any(-1)
        first = jnp.argmax(good)
        shown = least < 0
        low, high = (jnp.where(shown, own, x[first, 0]) for x, own in ((low, jnp.zeros(2)), (high, whole)))
        return turn + 1, shown | good.any(), low, high - low

    start = jnp.int32(0), jnp.bool_(False), jnp.zeros(2), whole
    _, _, low, sides = jax.lax.while_loop(lambda state: ~state[1], attempt, start)
    return low - offset, sides


def draw_object_window(
    key: Array, extent: Array, objects: Objects, scales: tuple[float, ...], flip: Array, output: Size
) -> Crop:
    """CornerNet-Saccade's crop: a window of the input's size, of an image resized for one of its objects.

    The object is drawn, and a new size for its longer side among those of its kind, large, medium or small.  The window
    contains it, or half of the time has its centre within 15 pixels of the object's.  Without an object the image is
    resized by one of `scales`.  An image smaller than the input lies in its middle.  Sizes are those of inputs of 255
    pixels, and proportional in others.  An input of odd sides shows one row and column less, as in the original.

    extent: (2,) float32 w h.  objects: (M, ...), pixels of the image.  flip: () bool.  output: (H, W) of the input.
    """
    keys = jax.random.split(key, 6)
    boxes = jnp.clip(objects.boxes, 0.0, jnp.tile(extent - 1, 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    there = objects.valid & (sides > 0).all(-1)
    some = there.any()
    which = jnp.argmax(jnp.where(there, jax.random.uniform(keys[0], there.shape), -1.0))
    longer = jnp.where(some, sides[which].max(), 1.0)

    unit = output[1] / 255
    kind = jnp.where(longer > 96 * unit, 0, jnp.where(longer > 32 * unit, 1, 2))
    least, beyond = (jnp.asarray([round(x * unit) for x in of_kinds])[kind] for of_kinds in _OBJECT_SIZES)
    wanted = jax.random.randint(keys[1], (), least, beyond).astype(jnp.float32)
    other = jnp.asarray(scales, jnp.float32)[jax.random.randint(keys[2], (), 0, len(scales))]
    scale = jnp.where(some, wanted / longer, other)
    resized = jnp.maximum(jnp.floor(extent * scale + 1e-3), 1.0)  # a product that is whole but for its rounding
    box = boxes[which] * scale

    size = jnp.asarray([output[1], output[0]], jnp.float32)
    half = jnp.floor(size / 2)
    reach = max(round(15 * unit), 1)
    before, behind = (jax.random.randint(k, (2,), 0, reach).astype(jnp.float32) for k in jax.random.split(keys[3]))
    middle = jnp.floor((box[:2] + box[2:]) / 2)
    around = jnp.maximum(middle - before, 0.0), jnp.minimum(middle + behind, resized - 1)
    with_it = jnp.where(some, box[2:] - size, 0.0), jnp.where(some, box[:2], resized - size)
    with_it = jnp.maximum(with_it[0], 0.0), jnp.minimum(with_it[1], resized - size)
    near = some & (jax.random.uniform(keys[4]) > 0.5)
    low, high = (jnp.floor(jnp.where(near, a, b)) for a, b in zip(around, with_it, strict=True))
    high = jnp.maximum(low, high)
    drawn = jnp.minimum(low + jnp.floor(jax.random.uniform(keys[5], (2,)) * (high - low + 1)), high)
    start = jnp.where(near, drawn - half, drawn)
    start = jnp.where(resized <= size, jnp.floor(resized / 2) - half, start)
    return _cut_out(start, scale, resized, extent, flip, output)


def _cut_out(start: Array, scale: Array, resized: Array, extent: Array, flip: Array, output: Size) -> Crop:
    """A window of the input's size whose first pixel is `start` (2,) x y of an image resized to `resized` (2,) w h."""
    size = jnp.asarray([output[1], output[0]], jnp.float32)
    first = jnp.maximum(-start, 0.0)
    last = jnp.minimum(2 * jnp.floor(size / 2), resized - start)  # the first cell that shows nothing

    def positions(axis: int) -> Array:
        cells = jnp.arange(output[1 - axis], dtype=jnp.float32)
        seen = (cells >= first[axis]) & (cells < last[axis])
        # OpenCV's bilinear resize, as in `stretched_crop`.
        inside = (cells + start[axis] + 0.5) * (extent[axis] / resized[axis]) - 0.5
        return jnp.where(seen, jnp.clip(inside, 0.0, extent[axis] - 1), -1e4)

    ys, xs = positions(1), positions(0)
    # Boxes end on the image's last pixel, which lies before the resized image's last one where that is larger.
    end = jnp.minimum(last, (extent - 1) * scale - start + 1)
    left, right = jnp.where(flip, size[0] - end[0], first[0]), jnp.where(flip, size[0] - first[0], end[0])
    sign = jnp.where(flip, jnp.asarray([-1.0, 1.0]), 1.0)
    target = jnp.where(flip, jnp.stack([size[0] - 1 + start[0], -start[1]]), -start)
    return Crop(
        geometry=Geometry(jnp.zeros(2), sign * scale, target, flip, jnp.bool_(True)),
        ys=ys,
        xs=jnp.where(flip, xs[::-1], xs),
        extent=extent[::-1].astype(jnp.int32),
        window=jnp.stack([first[1], left, end[1], right]),
    )


def shrink_border(border: int, size: Array) -> Array:
    """The border halved until twice of it is below `size` (float32 pixels)."""
    fitting = jnp.zeros_like(size)
    for halvings in range(10, -1, -1):  # the fewest halvings that fit are written last
        narrow = border >> halvings
        fitting = jnp.where(size > 2 * narrow, narrow, fitting)
    return fitting


def _draw_center(key: Array, extent: Array, border: int) -> Array:
    """A whole number in [border, extent - border) of each axis, as the originals draw it; extent (2,) w, h."""
    margin = shrink_border(border, extent)
    span = jnp.maximum(extent - 2 * margin, 1.0)
    return margin + jnp.minimum(jnp.floor(jax.random.uniform(key, (2,)) * span), span - 1)
