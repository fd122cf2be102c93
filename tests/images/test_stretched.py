"""Images stretched to the input, in training and at test time, and SSD's windows, against NumPy and OpenCV."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.config import AugmentConfig
from kpjax.data.augment import augment
from kpjax.detectors.ttf_config import STRETCHED
from kpjax.images.geometry import draw_crop, draw_patch, stretched_crop, whole_crop
from kpjax.images.preprocess import Preprocess
from kpjax.images.resample import resample
from kpjax.images.views import keep_view, make_view, place
from kpjax.objects import Detections
from tests.records import objects_of

PLAIN = dataclasses.replace(STRETCHED, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
OUTPUT = (40, 56)


def test_the_view_is_a_resize() -> None:
    """The pixels are those of `cv2.resize`, and a box of the canvas is found again in the image."""
    image = np.random.default_rng(0).integers(0, 256, (33, 90, 3), np.uint8)
    view = make_view(STRETCHED, (33, 90), resolution="fixed", fixed=(64, 96))
    np.testing.assert_array_equal(place(image, view, STRETCHED), cv2.resize(image, (96, 64)))
    boxes = np.array([[0, 0, 96, 64], [48, 16, 72, 32]], np.float32)
    moved = view.to_image(Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int32)))
    np.testing.assert_allclose(moved.boxes, [[0, 0, 90, 33], [45, 8.25, 67.5, 16.5]], atol=1e-5)
    np.testing.assert_allclose(view.to_canvas(moved).boxes, boxes, atol=1e-5)


def test_an_image_that_keeps_its_resolution_is_padded() -> None:
    view = make_view(STRETCHED, (33, 90), resolution="keep", fixed=(64, 96))
    assert view == keep_view(STRETCHED, (33, 90)) and view.canvas == (64, 96) and view.window == (0, 0, 33, 90)


@jax.jit
def cropped(canvas: Any, size: Any, boxes: Any, start: Any, sides: Any, flip: Any) -> Any:
    crop = stretched_crop(start, sides, flip, size, OUTPUT)
    image = resample(canvas, crop.extent, crop.ys, crop.xs, jnp.full(3, 128.0))
    return image, crop.geometry.move(objects_of(boxes, jnp.zeros(len(boxes), jnp.int32))).boxes


def test_training_sees_what_the_test_sees() -> None:
    """Windows in the image and around it, within OpenCV's rounding; boxes are mirrored to W - 1 - x."""
    rng = np.random.default_rng(0)
    height, width = 61, 83
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (3, 3), 0)
    canvas = np.full((100, 100, 3), 255, np.uint8)  # what lies outside the image must not be seen
    canvas[:height, :width] = image
    boxes = rng.uniform(0, 60, (4, 4))
    around = np.full((300, 300, 3), 128, np.uint8)
    around[100 : 100 + height, 100 : 100 + width] = image
    for n in range(12):
        start, sides = rng.integers((-80, -80), (60, 40)), rng.integers(20, 130, 2)
        if n == 0:
            start, sides = np.array([0, 0]), np.array([width, height])
        flip = n % 2 == 1
        found, moved = cropped(canvas, np.array([height, width]), boxes, np.float32(start), np.float32(sides), flip)
        (x, y), (w, h) = start + 100, sides
        expected = cv2.resize(around[y : y + h, x : x + w], OUTPUT[::-1])
        np.testing.assert_allclose(found, expected[:, ::-1] if flip else expected, atol=1.01, err_msg=str(n))
        wanted = (boxes - np.tile(start, 2)) * np.tile([OUTPUT[1] / w, OUTPUT[0] / h], 2)
        if flip:
            wanted[:, [0, 2]] = OUTPUT[1] - 1 - wanted[:, [2, 0]]
        np.testing.assert_allclose(moved, wanted, atol=1e-3)


def test_crops_of_stretched_images_keep_the_images_shape() -> None:
    size = jnp.asarray([50, 100], jnp.int32)
    whole = whole_crop(size, OUTPUT, "both")
    np.testing.assert_allclose(whole.geometry.move_points(jnp.asarray([[0.0, 0], [100, 50]])), [[0, 0], [56, 40]])
    for kind in ("crop", "shift", "none"):
        config = AugmentConfig(kind=kind, height=OUTPUT[0], width=OUTPUT[1])
        keys = jax.random.split(jax.random.key(0), 50)
        crops = jax.jit(jax.vmap(lambda key, config=config: draw_crop(key, size, config, "both")))(keys)
        sides = np.abs(np.array(OUTPUT[::-1]) / np.asarray(crops.geometry.scale))
        np.testing.assert_allclose(sides[:, 0], 2 * sides[:, 1], rtol=1e-5)
        assert (sides[:, 0].std() > 1) == (kind != "none"), kind
        if kind != "none":
            middle = np.asarray(crops.geometry.source) + sides / 2
            assert (np.ptp(middle, axis=0) > 3).all() and (abs(middle - [50, 25]) <= [50, 50]).all()


def test_windows_of_ssd() -> None:
    """Every window is the whole (expanded) image, or one of the allowed shapes that holds a centre; boxes overlap."""
    extent = jnp.asarray([90.0, 60.0])
    boxes = jnp.asarray([[10, 10, 39, 49], [30, 20, 79, 55], [0, 0, 0, 0]], jnp.float32)
    valid = jnp.asarray([True, True, False])
    draw = jax.jit(jax.vmap(lambda key: draw_patch(key, extent, boxes, valid, 4.0)))
    start, sides = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_array_equal(start, np.round(start))
    np.testing.assert_array_equal(sides, np.round(sides))
    assert (sides > 0).all() and (sides <= [360, 240]).all()
    end = start + sides
    unchanged = (start == 0).all(1) & (sides == [90, 60]).all(1)
    # A seventh shows the whole of an image that is not expanded in half of the cases, and some drawn overlaps fail.
    assert 1 / 14 - 0.02 < unchanged.mean() < 0.2
    beyond = ((start < 0) | (end > [90, 60])).any(1)
    assert 0.3 < beyond.mean() < 0.5
    shape = sides[:, 1] / sides[:, 0]
    assert shape.min() > 0.45 and shape.max() < 2.2
    middle = np.array([[24.5, 29.5], [54.5, 37.5]])
    inside = ((middle > start[:, None]) & (middle < end[:, None])).all(-1)
    assert inside.any(1).all()
    corners = np.asarray(boxes)[:2]
    low, high = np.maximum(start[:, None], corners[:, :2]), np.minimum(end[:, None], corners[:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    assert shared.min() >= 0 and (shared > 0).all(1).mean() > 0.8  # but where any window with a centre is taken
    # Without objects only the whole is shown.
    start, sides = (
        np.asarray(x)
        for x in jax.jit(jax.vmap(lambda key: draw_patch(key, extent, boxes, jnp.zeros(3, bool), 1.0)))(
            jax.random.split(jax.random.key(1), 20)
        )
    )
    assert not start.any() and (sides == [90, 60]).all()


@pytest.mark.parametrize("inclusive", [False, True])
def test_boxes_follow_the_pixels(inclusive: bool) -> None:
    """Through `augment` itself: a white rectangle's bright pixels are where its box says, and no box lies outside."""
    left, top, right, bottom = 30, 25, 86, 61  # the pixels after the last ones
    canvas = jnp.zeros((128, 128, 3), jnp.uint8).at[top:bottom, left:right].set(255)
    objects = objects_of(jnp.asarray([[left, top, right, bottom]], jnp.float32), jnp.zeros(1, jnp.int32))
    size = jnp.asarray([90, 120], jnp.int32)
    black: Preprocess = dataclasses.replace(PLAIN, border="black")
    config = AugmentConfig(kind="patch", height=96, width=96, color=0.0, lighting=0.0, clip_boxes=True)
    run = jax.jit(jax.vmap(lambda key: augment(key, canvas, size, objects, config, black, inclusive=inclusive)))
    images, moved, _ = run(jax.random.split(jax.random.key(1), 40))
    for image, box, valid in zip(np.asarray(images), np.asarray(moved.boxes), np.asarray(moved.valid), strict=True):
        assert valid[0], "every window holds the centre of its only box"
        columns, rows = (np.flatnonzero(image[..., 0].max(axis) > 0.5) for axis in (0, 1))
        limits = np.array([columns[0], rows[0], columns[-1] + 1 - inclusive, rows[-1] + 1 - inclusive])
        # A pixel of the canvas is up to 96 / 27 of the input; half of one is the edge's uncertainty.
        np.testing.assert_allclose(box[0], limits, atol=3.6)
        assert box[0].min() >= 0 and box[0].max() <= 96 - inclusive
