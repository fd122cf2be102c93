"""CornerNet's crop against its sequence of operations in NumPy and OpenCV: paste a window, resize, mirror."""

from __future__ import annotations

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.config import AugmentConfig
from kpjax.data.augment import augment
from kpjax.images.geometry import draw_crop, window_crop
from kpjax.images.preprocess import Preprocess
from kpjax.images.resample import resample
from tests.records import objects_of

PLAIN = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OUTPUT = (40, 56)


def original(
    image: np.ndarray, boxes: np.ndarray, center: Any, sides: Any, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    (x, y), (width, height) = (int(v) for v in center), (int(v) for v in sides)
    left, right = min(x, width // 2), min(image.shape[1] - x, width // 2)
    top, bottom = min(y, height // 2), min(image.shape[0] - y, height // 2)
    window = np.zeros((height, width, 3), np.uint8)
    rows = slice(height // 2 - top, height // 2 + bottom)
    window[rows, width // 2 - left : width // 2 + right] = image[y - top : y + bottom, x - left : x + right]
    boxes = boxes + np.tile([width // 2 - x, height // 2 - y], 2)
    found = cv2.resize(window, OUTPUT[::-1], interpolation=cv2.INTER_LINEAR)
    boxes = boxes * np.tile([OUTPUT[1] / width, OUTPUT[0] / height], 2)
    if flip:
        found = found[:, ::-1]
        boxes[:, [0, 2]] = OUTPUT[1] - boxes[:, [2, 0]] - 1
    return found, boxes


@jax.jit
def ours(canvas: Any, size: Any, boxes: Any, center: Any, sides: Any, flip: Any) -> Any:
    crop = window_crop(center, sides, flip, size, OUTPUT)
    image = resample(canvas, crop.extent, crop.ys, crop.xs, jnp.zeros(3))
    return image, crop.geometry.move(objects_of(boxes, jnp.zeros(len(boxes), jnp.int32))).boxes


def test_window_is_the_originals() -> None:
    """Within OpenCV's rounding, for windows inside, across and around the image, of odd and even sides."""
    rng = np.random.default_rng(0)
    height, width = 61, 83
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (3, 3), 0)
    canvas = np.full((100, 100, 3), 255, np.uint8)  # what lies outside the image must not be seen
    canvas[:height, :width] = image
    boxes = rng.uniform(0, 60, (4, 4))
    for n in range(24):
        center, sides = rng.integers((0, 0), (width, height)), rng.integers(20, 130, 2)
        window = (np.float32(center), np.float32(sides), n % 2 == 1)
        found, moved = ours(canvas, np.array([height, width], np.int32), boxes.astype(np.float32), *window)
        expected, expected_boxes = original(image, boxes, center, sides, n % 2 == 1)
        assert np.abs(np.asarray(found) - expected).max() <= 1.01, (center, sides)
        np.testing.assert_allclose(moved, expected_boxes, atol=1e-3)


@pytest.mark.parametrize("size", [(480, 640), (100, 300)])
def test_draws(size: tuple[int, int]) -> None:
    config = AugmentConfig(kind="window", height=511, width=511)
    keys = jax.random.split(jax.random.key(0), 3000)
    crops = jax.jit(jax.vmap(lambda key: draw_crop(key, jnp.asarray(size, jnp.int32), config)))(keys)
    sides = np.round(511 / np.abs(np.asarray(crops.geometry.scale)), 2)
    center = np.asarray(crops.geometry.source) + np.floor(sides / 2)
    assert set(sides[:, 0]) == {float(int(511 * scale + 1e-9)) for scale in config.scales}
    np.testing.assert_array_equal(sides[:, 0], sides[:, 1])
    np.testing.assert_array_equal(center, np.round(center))
    for axis, extent in ((0, size[1]), (1, size[0])):
        border = 128 if extent > 256 else 64 if extent > 128 else 32
        assert center[:, axis].min() >= border and center[:, axis].max() < extent - border
    assert abs(np.asarray(crops.geometry.mirrored).mean() - 0.5) < 0.05


def test_boxes_follow_the_pixels() -> None:
    """Through `augment` itself: a white rectangle's bright pixels are where its box says."""
    corners = (30, 25, 85, 60)
    canvas = jnp.zeros((128, 128, 3), jnp.uint8)
    canvas = canvas.at[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1].set(255)
    size, objects = jnp.asarray([90, 120], jnp.int32), objects_of(jnp.asarray([corners], jnp.float32), jnp.zeros(1))
    config = AugmentConfig(kind="window", height=95, width=95, color=0.0, lighting=0.0)
    run = jax.jit(jax.vmap(lambda key: augment(key, canvas, size, objects, config, PLAIN)))
    seen = 0
    images, moved_objects, _ = run(jax.random.split(jax.random.key(1), 24))
    for image, moved in zip(np.asarray(images), np.asarray(moved_objects.boxes), strict=True):
        columns, rows = (np.flatnonzero(image[..., 0].max(axis) > 0.5) for axis in (0, 1))
        if len(columns) and len(rows):
            limits = np.clip(moved[0], 0, 94)
            np.testing.assert_allclose([columns[0], rows[0], columns[-1], rows[-1]], limits, atol=1.51)
            seen += 1
    assert seen > 12
