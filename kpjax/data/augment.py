"""Augmentation on the device, an example at a time: crop (drawn by `kpjax.images.geometry`), colours, normalisation.

A random crop (`kpjax.images.geometry`), bilinear resampling in which a pixel outside the image has the border's colour,
as OpenCV's BORDER_CONSTANT does, then colours.  With mosaic or copy-paste an example shows several images of its batch.

All random numbers come from the example counter, so a step's batch is a pure function of its number.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kpjax.config import AugmentConfig
from kpjax.data.mosaic import TILES, draw_tiles, moved
from kpjax.data.occlusion import paste
from kpjax.data.photometric import change_hsv, distort, draw_distortion, draw_hsv
from kpjax.images.geometry import draw_crop
from kpjax.images.preprocess import Preprocess
from kpjax.images.resample import resample, resample_several
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
    geometry_key, _ = jax.random.split(key)
    if config.photometric:  # before the crop, so that what lies outside the image keeps the border's colour
        canvas = distort(canvas, draw_distortion(jax.random.fold_in(key, 2)))  # a split is fold_in of 0 and 1
    if inclusive:
        objects = move_ends(objects, -1)
    crop = draw_crop(geometry_key, size, config, preprocess.fills, objects)
    border = jnp.asarray(preprocess.border_rgb(), jnp.float32)
    image = resample(canvas, crop.extent, crop.ys, crop.xs, border)
    objects = crop.geometry.move(objects, points)
    placed = Placed((config.height, config.width), crop.window, crop.geometry.changed)
    return _finished(key, image, objects, placed, config, preprocess, inclusive)


def images_of(config: AugmentConfig) -> int:
    """How many images of the batch an example is made of: its own, and the next ones."""
    return (TILES if config.mosaic else 1) + (1 if config.copy_paste else 0)


def augment_several(
    key: Array,
    canvases: Array,
    sizes: Array,
    objects: Objects,
    on: Array,
    config: AugmentConfig,
    preprocess: Preprocess,
    points: PointSet | None = None,
    inclusive: bool = False,
) -> tuple[Array, Objects, Placed]:
    """One training example with `config.mosaic` or `config.copy_paste`, made of n = `images_of(config)` images.

    canvases: (n, S, S, 3) uint8 RGB, its own image first.  sizes: (n, 2) int32 h, w.  objects: (n, M, ...), in canvas
    pixels.  on: () bool, whether images are combined at this step.  The rest, and what is returned: as of `augment`;
    of the objects of all images M are left.
    """
    geometry_key, _ = jax.random.split(key)
    last = float(inclusive)
    if inclusive:
        objects = move_ends(objects, -1)
    output = (config.height, config.width)
    own, other = (jax.tree.map(lambda x, i=i: x[i], objects) for i in (0, -1))
    if config.mosaic:
        tiles = draw_tiles(geometry_key, sizes[:TILES], config, preprocess.fills, own, on)
        crops, which = tiles.crops, tiles.which(output)
        found = moved(jax.tree.map(lambda x: x[:TILES], objects), tiles, output, points, last)
        changed = ~tiles.whole | crops.geometry.changed[0]
    else:
        crop = draw_crop(geometry_key, sizes[0], config, preprocess.fills, own)
        crops, which = jax.tree.map(lambda x: x[None], crop), jnp.zeros(output, jnp.int32)
        found, changed = crop.geometry.move(own, points), crop.geometry.changed
    if config.copy_paste:
        coin, choice, place = jax.random.split(jax.random.fold_in(key, 4), 3)
        crop = draw_crop(place, sizes[-1], config, preprocess.fills, other)
        pastes = on & (jax.random.uniform(coin, ()) < config.copy_paste)
        mask, found = paste(choice, found, crop.geometry.move(other, points), crop, pastes, output, last)
        which = jnp.where(mask, len(canvases) - 1, which)
        crops = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), crops, crop)
    border = jnp.asarray(preprocess.border_rgb(), jnp.float32)
    image = resample_several(canvases, crops.extent, crops.ys, crops.xs, which, border)
    if config.photometric:  # on the input, which is smaller than the canvases: the border's colour changes too
        image = distort(image, draw_distortion(jax.random.fold_in(key, 2)))
    return _finished(key, image, found, Placed(output, changed=changed), config, preprocess, inclusive)


def _finished(
    key: Array,
    image: Array,
    objects: Objects,
    placed: Placed,
    config: AugmentConfig,
    preprocess: Preprocess,
    inclusive: bool,
) -> tuple[Array, Objects, Placed]:
    """Colours and normalisation of an input (H, W, 3) float32 RGB, 0..255, and the cut of its boxes.

    key: the example's.
    """
    if config.hue or config.saturation or config.value:
        draws = draw_hsv(jax.random.fold_in(key, 3), config.hue, config.saturation, config.value)
        image = change_hsv(image, *draws)
    if config.grey:
        grey = (image * jnp.asarray(_GREY_BGR[::-1], jnp.float32)).sum(-1, keepdims=True)
        image = jnp.where(jax.random.uniform(jax.random.fold_in(key, 5), ()) < config.grey, grey, image)
    image = image / 255.0
    if preprocess.order == "BGR":
        image = image[..., ::-1]
    image = jitter_color(jax.random.split(key)[1], image, config, preprocess.order)
    image = (image - jnp.asarray(preprocess.mean, jnp.float32)) / jnp.asarray(preprocess.std, jnp.float32)
    if config.clip_boxes:
        objects = cut_boxes(objects, placed.size, float(inclusive))
    return image, objects, placed
