"""Augmentation on the device, one image at a time: crop (drawn by `kpjax.images.geometry`), colours, normalisation.

A random crop (`kpjax.images.geometry`), bilinear resampling in which a pixel outside the image has the border's colour,
as OpenCV's BORDER_CONSTANT does, then colours.

All random numbers come from the example counter, so a step's batch is a pure function of its number.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.data.photometric import distort, draw_distortion
from kpjax.images.geometry import draw_crop
from kpjax.images.preprocess import Preprocess
from kpjax.images.resample import resample
from kpjax.objects import NONE, Objects, Placed, PointSet, move_ends

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


def jitter_color(key: Array, image: Array, config: AugmentConfig, order: str) -> Array:
    """Brightness, contrast and saturation in random order, then PCA lighting.

    image: (H, W, 3) float32 in 0..1, channels in `order`.  Grey values are those of the input
    image at every step.  Nothing is clipped.
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
        weights = jnp.asarray(_EIGENVALUES, jnp.float32) * config.lighting * jax.random.normal(keys[2], (3,))
        noise = jnp.dot(vectors, weights, precision="highest")
        image = image + (noise if order == "BGR" else noise[::-1])
    return image


def cut_boxes(objects: Objects, output: tuple[int, int], last: float = 0.0) -> Objects:
    """Objects (M, ...) with their boxes cut to the input (H, W); one whose box's centre lies outside is dropped.

    mmdetection's RandomCenterCropPad.  The other recipes leave cutting to `encode`.  last: 1 where a box ends on its
    last pixel.
    """
    limit = jnp.asarray([output[1], output[0], output[1], output[0]], jnp.float32)
    boxes = objects.boxes
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((center > 0) & (center < limit[:2])).all(-1)
    boxes = jnp.where(inside[:, None], jnp.clip(boxes, 0.0, limit - last), 0.0)
    return dataclasses.replace(objects, boxes=boxes, role=jnp.where(inside, objects.role, NONE))


def augment(
    key: Array,
    canvas: Array,
    size: Array,
    objects: Objects,
    config: AugmentConfig,
    preprocess: Preprocess,
    points: PointSet | None = None,
    inclusive: bool = False,
) -> tuple[Array, Objects, Placed]:
    """One training example.

    canvas: (S, S, 3) uint8 RGB.  size: (2,) int32 h, w.  objects: (M, ...), in canvas pixels.  points: what their
    points are, where they have any.  inclusive: boxes are to end on their last pixel, see `Detector`.
    Returns the network's input (H, W, 3) float32, the objects in its pixels, with boxes cut to it only with
    `config.clip_boxes`, and how the image is placed there.
    """
    geometry_key, color_key = jax.random.split(key)
    if config.photometric:  # before the crop, so that what lies outside the image keeps the border's colour
        canvas = distort(canvas, draw_distortion(jax.random.fold_in(key, 2)))  # a split is fold_in of 0 and 1
    output = (config.height, config.width)
    if inclusive:
        objects = move_ends(objects, -1)
    crop = draw_crop(geometry_key, size, config, preprocess.fills, objects)
    border = jnp.asarray(preprocess.border_rgb(), jnp.float32)
    image = resample(canvas, crop.extent, crop.ys, crop.xs, border) / 255.0
    if preprocess.order == "BGR":
        image = image[..., ::-1]
    image = jitter_color(color_key, image, config, preprocess.order)
    image = (image - jnp.asarray(preprocess.mean, jnp.float32)) / jnp.asarray(preprocess.std, jnp.float32)
    objects = crop.geometry.move(objects, points)
    if config.clip_boxes:
        objects = cut_boxes(objects, output, float(inclusive))
    return image, objects, Placed(output, crop.window, crop.geometry.changed)
