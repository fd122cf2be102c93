"""Augmentation on the device: from a uint8 canvas to the network's input, one image at a time.

The geometry is CenterNet's: a square of side s around a centre c of the image becomes the
input, by x' = k (x - c) + W / 2 with k = W / s, both in OpenCV's pixel-index convention; or CornerNet's (`window.py`).
Resampling is separable and bilinear; a pixel outside the image has the border's colour and
takes part in the blend, as OpenCV's BORDER_CONSTANT does.

Every draw comes from the example counter, so a step's batch is a pure function of its number.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.data.photometric import distort, draw_distortion
from kpjax.images.preprocess import Preprocess
from kpjax.images.resample import resample
from kpjax.images.window import Window, visible, window_boxes, window_positions

Array = jax.Array

# ImageNet's colour covariance in BGR order: AlexNet's "fancy PCA", with the constants that
# CornerNet published and the CenterNets kept.
_EIGENVALUES = (0.2141788, 0.01817699, 0.00341571)
_EIGENVECTORS_BGR = (
    (-0.58752847, -0.69563484, 0.41340352),
    (-0.5832747, 0.00994535, -0.81221408),
    (-0.56089297, 0.71832671, 0.41158938),
)
_GREY_BGR = (0.114, 0.587, 0.299)  # ITU-R BT.601, as cv2.cvtColor


@dataclasses.dataclass(frozen=True)
class Draw:
    """One image's random geometry.  center (2,) float32 x y, already mirrored if flip; side float32; flip bool."""

    center: Array
    side: Array
    flip: Array


jax.tree_util.register_dataclass(Draw, data_fields=["center", "side", "flip"], meta_fields=[])


def shrink_border(border: int, size: Array) -> Array:
    """The border halved until twice of it is below `size` (float32 pixels)."""
    chosen = jnp.zeros_like(size)
    for halvings in range(10, -1, -1):  # the fewest halvings that fit are written last
        narrow = border >> halvings
        chosen = jnp.where(size > 2 * narrow, narrow, chosen)
    return chosen


def draw_geometry(key: Array, size: Array, config: AugmentConfig) -> Draw:
    """Centre, side and flip for an image of `size` (2,) int32 h, w (pixels of the canvas)."""
    keys = jax.random.split(key, 4)
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    extent = jnp.stack([width, height])
    center, side = extent / 2, extent.max()
    if config.kind == "crop":
        scales = jnp.asarray(config.scales, jnp.float32)
        side = side * scales[jax.random.randint(keys[0], (), 0, len(config.scales))]
        center = _draw_center(keys[1], extent, config.border)
    elif config.kind == "shift":
        move = jnp.clip(jax.random.normal(keys[1], (2,)) * config.shift, -2 * config.shift, 2 * config.shift)
        center = center + side * move
        side = side * jnp.clip(1 + jax.random.normal(keys[0], ()) * config.scale, 1 - config.scale, 1 + config.scale)
    flip = jax.random.uniform(keys[2], ()) < config.flip
    center = center.at[0].set(jnp.where(flip, width - center[0] - 1, center[0]))
    return Draw(center, side, flip)


def draw_window(key: Array, size: Array, config: AugmentConfig) -> Window:
    """CornerNet's crop of an image of `size` (2,) int32 h, w: the input's size times a scale, in whole pixels."""
    keys = jax.random.split(key, 4)
    scales = jnp.asarray(config.scales, jnp.float32)
    scale = scales[jax.random.randint(keys[0], (), 0, len(config.scales))]
    # int(511 * 0.7) has to come out as in float64.
    sides = jnp.floor(jnp.asarray([config.width, config.height], jnp.float32) * scale + 1e-3)
    center = _draw_center(keys[1], size[::-1].astype(jnp.float32), config.border)
    return Window(center, sides, jax.random.uniform(keys[2], ()) < config.flip)


def _draw_center(key: Array, extent: Array, border: int) -> Array:
    """A whole number in [border, extent - border) of each axis, as the originals draw it; extent (2,) w, h."""
    margin = shrink_border(border, extent)
    span = jnp.maximum(extent - 2 * margin, 1.0)
    return margin + jnp.minimum(jnp.floor(jax.random.uniform(key, (2,)) * span), span - 1)


def transform_boxes(boxes: Array, size: Array, draw: Draw, output: tuple[int, int]) -> Array:
    """Boxes (M, 4) xyxy from canvas to input pixels; not clipped.  output: (H, W)."""
    width = size[1].astype(jnp.float32)
    mirrored = jnp.stack([width - boxes[:, 2] - 1, boxes[:, 1], width - boxes[:, 0] - 1, boxes[:, 3]], -1)
    boxes = jnp.where(draw.flip, mirrored, boxes)
    scale = output[1] / draw.side
    center = jnp.tile(draw.center, 2)
    middle = jnp.asarray([output[1], output[0], output[1], output[0]], jnp.float32) / 2
    return (boxes - center) * scale + middle


def crop_boxes(boxes: Array, output: tuple[int, int]) -> Array:
    """Boxes (M, 4) cut to the input (H, W); one whose centre lies outside becomes empty (all 0).

    mmdetection's RandomCenterCropPad.  The other recipes leave cutting to `encode`.
    """
    limit = jnp.asarray([output[1], output[0], output[1], output[0]], jnp.float32)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((center > 0) & (center < limit[:2])).all(-1, keepdims=True)
    return jnp.where(inside, jnp.clip(boxes, 0.0, limit), 0.0)


def source_positions(size: Array, draw: Draw, output: tuple[int, int]) -> tuple[Array, Array]:
    """Where each output row and column is read: ys (H,), xs (W,) float32 pixel indices of the unmirrored canvas."""
    scale = draw.side / output[1]
    ys = (jnp.arange(output[0], dtype=jnp.float32) - output[0] / 2) * scale + draw.center[1]
    xs = (jnp.arange(output[1], dtype=jnp.float32) - output[1] / 2) * scale + draw.center[0]
    return ys, jnp.where(draw.flip, size[1].astype(jnp.float32) - 1 - xs, xs)


def jitter_color(key: Array, image: Array, config: AugmentConfig, order: str) -> Array:
    """Brightness, contrast and saturation in random order, then PCA lighting.

    image: (H, W, 3) float32 in 0..1, channels in `order`.  Grey values are those of the image as it
    came, whatever was applied before.  Nothing is clipped.
    """
    keys = jax.random.split(key, 3)
    if config.color > 0:
        weights = jnp.asarray(_GREY_BGR if order == "BGR" else _GREY_BGR[::-1], jnp.float32)
        grey = (image * weights).sum(-1, keepdims=True)
        mean = grey.mean()
        alphas = 1 + jax.random.uniform(keys[0], (3,), minval=-config.color, maxval=config.color)
        turn = jax.random.permutation(keys[1], 3)
        # Each step is image * alpha + other * (1 - alpha) with other = 0, the mean grey, or the
        # grey image; so is any chain of them: image * gain + grey * a + b, with scalars alone.
        gain, grey_part, constant = jnp.float32(1), jnp.float32(0), jnp.float32(0)
        for i in range(3):
            alpha = alphas[turn[i]]
            gain, grey_part, constant = gain * alpha, grey_part * alpha, constant * alpha
            constant = constant + jnp.where(turn[i] == 1, (1 - alpha) * mean, 0.0)
            grey_part = grey_part + jnp.where(turn[i] == 2, 1 - alpha, 0.0)
        image = image * gain + grey * grey_part + constant
    if config.lighting > 0:
        vectors = jnp.asarray(_EIGENVECTORS_BGR, jnp.float32)
        noise = vectors @ (jnp.asarray(_EIGENVALUES, jnp.float32) * config.lighting * jax.random.normal(keys[2], (3,)))
        image = image + (noise if order == "BGR" else noise[::-1])
    return image


def augment(
    key: Array, canvas: Array, size: Array, boxes: Array, config: AugmentConfig, preprocess: Preprocess
) -> tuple[Array, Array]:
    """One training example.

    canvas: (S, S, 3) uint8 RGB.  size: (2,) int32 h, w.  boxes: (M, 4) float32 xyxy, canvas pixels.
    Returns the network's input (H, W, 3) float32 and the boxes in its pixels, (M, 4) float32, cut to it
    only with `config.clip_boxes`.
    """
    geometry_key, color_key = jax.random.split(key)
    if config.photometric:  # before the crop, so that what lies outside the image keeps the border's colour
        canvas = distort(canvas, draw_distortion(jax.random.fold_in(key, 2)))  # a split is fold_in of 0 and 1
    output = (config.height, config.width)
    if config.kind == "window":
        window = draw_window(geometry_key, size, config)
        ys, xs = window_positions(window, output)
        boxes, size = window_boxes(boxes, window, output), visible(size, window)
    else:
        draw = draw_geometry(geometry_key, size, config)
        ys, xs = source_positions(size, draw, output)
        boxes = transform_boxes(boxes, size, draw, output)
    image = resample(canvas, size, ys, xs, jnp.asarray(preprocess.border_rgb(), jnp.float32)) / 255.0
    if preprocess.order == "BGR":
        image = image[..., ::-1]
    image = jitter_color(color_key, image, config, preprocess.order)
    image = (image - jnp.asarray(preprocess.mean, jnp.float32)) / jnp.asarray(preprocess.std, jnp.float32)
    return image, crop_boxes(boxes, output) if config.clip_boxes else boxes
