"""mmdetection's colour augmentation against NumPy with OpenCV's own HSV."""

from __future__ import annotations

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.config import AugmentConfig, Config
from kpjax.data.augment import augment
from kpjax.data.photometric import Distortion, change_hsv, distort, draw_distortion, draw_hsv
from kpjax.errors import ConfigError
from kpjax.images.preprocess import IMAGENET_RGB
from tests.records import objects_of


def oracle(image: np.ndarray, d: Distortion) -> np.ndarray:
    """Step by step in the order of mmdetection, with cv2's conversions of float pixels."""
    image = (image.astype(np.float32) + np.float32(d.brightness)) * np.float32(d.contrast_first)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] *= np.float32(d.saturation)
    hsv[..., 0] = (hsv[..., 0] + np.float32(d.hue)) % np.float32(360)
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(d.contrast_last))[..., np.asarray(d.channels)]


def change(brightness=0.0, first=1.0, last=1.0, saturation=1.0, hue=0.0, channels=(0, 1, 2)) -> Distortion:
    numbers = (jnp.float32(x) for x in (brightness, first, last, saturation, hue))
    return Distortion(*numbers, jnp.asarray(channels))


@pytest.fixture
def image() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    # Black, white, grey, pure and two equal channels: where hue is undefined or changes its branch.
    pixels[0, :9] = [
        [0] * 3,
        [255] * 3,
        [9] * 3,
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [7, 7, 0],
        [0, 7, 7],
        [7, 0, 7],
    ]
    return pixels


@pytest.mark.parametrize(
    "d",
    [
        change(),
        change(brightness=-32.0),  # takes dark pixels below 0, where OpenCV's saturation divides by |value|
        change(first=1.5),
        change(saturation=1.5, last=0.5),
        change(hue=-18.0),
        change(hue=18.0, channels=(2, 0, 1)),
        change(20.0, 0.7, 1.0, 0.5, 11.0, (0, 2, 1)),
    ],
)
def test_as_opencv(image: np.ndarray, d: Distortion) -> None:
    np.testing.assert_allclose(distort(jnp.asarray(image), d), oracle(image, d), rtol=0, atol=2e-3)


def test_nothing_changes_nothing(image: np.ndarray) -> None:
    np.testing.assert_allclose(distort(jnp.asarray(image), change()), image, rtol=0, atol=1e-3)


def test_draws() -> None:
    draws = jax.vmap(draw_distortion)(jax.random.split(jax.random.key(0), 4000))
    first, last = np.asarray(draws.contrast_first), np.asarray(draws.contrast_last)
    assert ((first == 1) | (last == 1)).all()
    assert abs((first != 1).mean() - 0.25) < 0.03 and abs((last != 1).mean() - 0.25) < 0.03
    for values, low, high, still in (
        (draws.brightness, -32, 32, 0),
        (np.where(first != 1, first, last), 0.5, 1.5, 1),
        (draws.saturation, 0.5, 1.5, 1),
        (draws.hue, -18, 18, 0),
    ):
        values = np.asarray(values)
        changed = values[values != still]
        assert abs(len(changed) / len(values) - 0.5) < 0.03
        assert low <= changed.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < changed.max() <= high
    order, counts = np.unique(np.asarray(draws.channels), axis=0, return_counts=True)
    assert len(order) == 6 and (np.sort(order, axis=1) == [0, 1, 2]).all()
    # the six permutations of half the images; the identity also of the other half
    np.testing.assert_allclose(counts / counts.sum(), [1 / 2 + 1 / 12, *[1 / 12] * 5], atol=0.02)


def test_augment_distorts_the_image_and_not_its_border(image: np.ndarray) -> None:
    canvas = np.zeros((32, 32, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    plain = AugmentConfig(kind="none", height=32, width=32, flip=0.0, color=0.0, lighting=0.0)
    photometric = AugmentConfig(**(vars(plain) | {"photometric": True}))
    size, boxes = jnp.asarray(image.shape[:2]), objects_of(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32))
    changed = 0
    for seed in range(4):
        arguments = (jax.random.key(seed), jnp.asarray(canvas), size, boxes)
        before, *_ = augment(*arguments, plain, IMAGENET_RGB)
        after, *_ = augment(*arguments, photometric, IMAGENET_RGB)
        outside = np.asarray(IMAGENET_RGB.normalise(jnp.zeros(3)))
        border = np.abs(np.asarray(before) - outside).max(-1) < 1e-6
        border &= np.arange(32)[None, :] < 2  # the columns left of the 20 wide image that stands in the middle
        assert border.any() and np.abs(np.asarray(after)[border] - outside).max() < 1e-5
        changed += bool(np.abs(np.asarray(after) - np.asarray(before)).max() > 0.05)
    assert changed >= 3


@pytest.mark.parametrize("turn, saturation, value", [(0, 1, 1), (20, 1.7, 1.4), (-25, 0.3, 0.6), (5, 1.3, 1)])
def test_yolos_jitter_is_opencvs_hsv(image: np.ndarray, turn: float, saturation: float, value: float) -> None:
    """Saturation is at most 1 and value at most 255, as of the originals' bytes."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(turn)) % np.float32(360)
    hsv[..., 1] = np.minimum(hsv[..., 1] * np.float32(saturation), 1)
    hsv[..., 2] = np.minimum(hsv[..., 2] * np.float32(value), 255)
    found = jax.jit(change_hsv)(image.astype(np.float32), turn, saturation, value)
    np.testing.assert_allclose(found, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), atol=0.02)
    assert np.asarray(found).min() > -1e-3 and np.asarray(found).max() < 255 + 1e-3


def test_draws_of_yolos_jitter() -> None:
    draws = jax.vmap(lambda key: draw_hsv(key, 0.1, 0.5, 0.25))(jax.random.split(jax.random.key(0), 500))
    for drawn, middle, reach in zip(draws, (0, 1, 1), (36, 0.5, 0.25), strict=True):
        part = (np.asarray(drawn) - middle) / reach
        assert -1 <= part.min() < -0.95 and 0.95 < part.max() <= 1 and abs(part.mean()) < 0.1


def test_grey_inputs(image: np.ndarray) -> None:
    config = AugmentConfig(kind="none", height=32, width=32, color=0.0, lighting=0.0, flip=0.0)
    canvas = np.zeros((32, 32, 3), np.uint8)
    canvas[:24, :20] = image

    def run(key: jax.Array, grey: float) -> jax.Array:
        setting = dataclasses.replace(config, grey=grey)
        objects = objects_of(jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32))
        plain = dataclasses.replace(IMAGENET_RGB, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return augment(key, jnp.asarray(canvas), jnp.asarray([32, 32]), objects, setting, plain)[0]

    every = jax.random.split(jax.random.key(0), 40)
    images = np.asarray(jax.jit(jax.vmap(lambda key: run(key, 0.5)))(every))
    coloured = np.asarray(jax.jit(run, static_argnums=1)(every[0], 0.0))
    wanted = cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY)
    is_grey = [np.allclose(x, wanted[..., None], atol=1e-5) for x in images]
    assert 10 < sum(is_grey) < 30
    for x, grey in zip(images, is_grey, strict=True):
        assert grey or np.allclose(x, coloured, atol=1e-6)


def test_colours_of_yolo_and_of_mmdetection_exclude_each_other() -> None:
    config = Config(steps=1)
    config.augment.photometric = True
    config.check()
    config.augment.value = 0.4
    with pytest.raises(ConfigError, match="photometric is True"):
        config.check()
