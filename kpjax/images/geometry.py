"""The geometry of training: the random crop of an image is drawn here (`kpjax.data.augment` applies it).

Three kinds of crop, all in OpenCV's pixel-index convention, (x, y), the image in the top left corner of its canvas:

    crop, shift   CenterNet's: a square of side s around a centre c of the image, by x' = (x - c) W / s + W / 2
    window        CornerNet's: a window of pixels, of the input's own size times a scale, resized to the input
    none          the whole image: the square of its longer side

A `Crop` says where the input's pixels are read (`kpjax.images.resample`); its `Geometry` moves the annotations.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.objects import Geometry

Array = jax.Array
Size = tuple[int, int]  # (height, width)


@flax.struct.dataclass
class Crop:
    """One image's crop.

    geometry: canvas pixels -> input pixels.  ys (H,), xs (W,): float32 canvas pixel indices at which each row and
    column of the input is read.  extent: (2,) int32 h w, as much of the image as the crop shows.
    """

    geometry: Geometry
    ys: Array
    xs: Array
    extent: Array


def draw_crop(key: Array, size: Array, config: AugmentConfig, fills: str = "longer") -> Crop:
    """The crop of `config.kind` for an image of `size` (2,) int32 h, w (pixels of its canvas).

    fills: which side of the whole image fills the input's width, see `kpjax.images.preprocess.Preprocess`.
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
    # As in the originals, the centre that was drawn is one of the mirrored image.
    center = center.at[0].set(jnp.where(flip, extent[0] - center[0] - 1, center[0]))
    return square_crop(center, side, flip, size, output, fills)


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
    extent = jnp.asarray([output[1], output[0]], jnp.float32)
    start = center - jnp.floor(sides / 2)  # the image's pixel that becomes the window's first; perhaps outside
    sign = jnp.where(flip, jnp.asarray([-1.0, 1.0]), 1.0)
    target = jnp.where(flip, jnp.stack([extent[0] - 1, jnp.float32(0)]), 0.0)
    geometry = Geometry(start, sign * (extent / sides), target, flip, jnp.bool_(True))

    def positions(start: Array, side: Array, length: int) -> Array:
        # OpenCV's bilinear resize: pixels have their centres at halves, and the window's edge is repeated.
        inside = (jnp.arange(length, dtype=jnp.float32) + 0.5) * (side / length) - 0.5
        return start + jnp.clip(inside, 0.0, side - 1)

    ys, xs = positions(start[1], sides[1], output[0]), positions(start[0], sides[0], output[1])
    shown = jnp.minimum(size, (start + 2 * jnp.floor(sides / 2))[::-1].astype(jnp.int32))
    return Crop(geometry, ys, jnp.where(flip, xs[::-1], xs), shown)


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
