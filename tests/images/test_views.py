"""Geometry of the test-time input, against arithmetic written out here and against its own inverse."""

from __future__ import annotations

import collections
import dataclasses
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR
from kpjax.images.views import affine, fixed_view, keep_view, make_view, place, share_canvases

sides = st.integers(1, 300)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


@given(sides, sides, st.sampled_from([(31, True), (127, True), (127, False)]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_keep_pads_black_around_an_untouched_image(height, width, pad, centred):
    preprocess = dataclasses.replace(COCO_BGR, pad=pad[0], pad_plus_one=pad[1], centred=centred)
    view = keep_view(preprocess, (height, width))
    image = noise(height, width)
    canvas = place(image, view, preprocess)
    assert canvas.dtype == np.uint8
    assert all((side - (not pad[1])) % 1 == 0 and side >= s for side, s in zip(canvas.shape, image.shape, strict=False))
    top = canvas.shape[0] // 2 - height // 2 if centred else 0
    left = canvas.shape[1] // 2 - width // 2 if centred else 0
    np.testing.assert_array_equal(canvas[top : top + height, left : left + width], image)
    assert int(canvas.sum()) == int(image.sum())
    box = np.array([[left, top, left + width, top + height]], np.float32)
    np.testing.assert_array_equal(view.xy_to_image(box), [[0, 0, width, height]])


def test_keep_sides_of_the_published_example():
    assert keep_view(COCO_BGR, (480, 640)).canvas == (512, 672)


@given(sides, sides, st.integers(16, 200), st.integers(16, 200), st.sampled_from([0.5, 1.0, 1.5]))
@settings(max_examples=50, deadline=None)
def test_boxes_come_back_from_a_fixed_canvas(height, width, canvas_h, canvas_w, scale):
    view = fixed_view((height, width), (canvas_h, canvas_w), scale)
    boxes = np.array([[0, 0, width, height], [width / 3, height / 4, width / 2, height / 2]])
    on_canvas = boxes * scale * view.zoom + np.array([*view.shift, *view.shift])
    np.testing.assert_allclose(view.xy_to_image(on_canvas), boxes, rtol=0, atol=1e-3)
    # the image's centre lies on the canvas's, one factor on both axes
    assert view.zoom == pytest.approx(canvas_w / max(height, width))
    middle = np.array(view.resized[::-1]) / 2 * view.zoom + view.shift
    np.testing.assert_allclose(middle, [canvas_w / 2, canvas_h / 2], atol=1e-9)


def test_fixed_moves_pixels_as_it_moves_boxes():
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:40, 50:80] = 255
    view = fixed_view((60, 100), (200, 200))
    ys, xs = np.nonzero(place(image, view, COCO_BGR)[..., 0] > 127)
    found = view.xy_to_image(np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]))
    np.testing.assert_allclose(found, [[50, 20, 80, 40]], atol=0.76)


def test_max_side_shrinks_larger_images_only():
    small, large = keep_view(COCO_BGR, (100, 50), max_side=100), keep_view(COCO_BGR, (300, 201), max_side=100)
    assert small.resized == (100, 50)
    assert large.resized == (100, 67)
    image = noise(300, 201)
    canvas = place(image, large, COCO_BGR)
    top, left = 128 // 2 - 50, 96 // 2 - 33
    np.testing.assert_array_equal(canvas[top : top + 100, left : left + 67], cv2.resize(image, (67, 100)))
    whole = np.array([[left, top, left + 67, top + 100]])
    np.testing.assert_allclose(large.xy_to_image(whole), [[0, 0, 201, 300]], rtol=1e-6)


def test_test_scale_divides_by_the_scale_itself():
    view = keep_view(COCO_BGR, (101, 203), 0.5)
    assert view.resized == (50, 101)
    left, top = view.shift
    np.testing.assert_allclose(view.xy_to_image(np.array([left, top, left + 101, top + 50])), [0, 0, 202, 100])


@pytest.mark.parametrize("rotation", [0.0, 30.0, -12.5])
def test_affine_and_its_inverse(rotation):
    forward = affine((10.0, 50.0), 70.0, (96, 128), rotation)
    back = affine((10.0, 50.0), 70.0, (96, 128), rotation, inverse=True)
    np.testing.assert_allclose(np.vstack([back, [0, 0, 1]]) @ np.vstack([forward, [0, 0, 1]]), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(forward @ [10, 50, 1], [64, 48])


def test_mean_border_fills_the_rest():
    preprocess = dataclasses.replace(COCO_BGR, border="mean")
    canvas = place(np.zeros((20, 20, 3), np.uint8), keep_view(preprocess, (20, 20)), preprocess)
    np.testing.assert_array_equal(canvas[0, 0], [round(255 * m) for m in COCO_BGR.mean[::-1]])


def test_wrong_size_and_unknown_resolution_are_one_line():
    view = keep_view(COCO_BGR, (20, 30))
    with pytest.raises(ValueError, match="40x20 pixels where 30x20 were expected"):
        place(noise(20, 40), view, COCO_BGR)
    with pytest.raises(ConfigError, match="'stretch'"):
        make_view(COCO_BGR, (20, 30), resolution="stretch")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=12), st.integers(1, 4))
def test_shared_canvases_hold_every_image(sizes: list[tuple[int, int]], most: int) -> None:
    views = [keep_view(COCO_BGR, size) for size in sizes]
    shared = share_canvases(views, most, COCO_BGR)
    canvases = {view.canvas for view in views}
    assert len({view.canvas for view in shared}) <= most
    for before, after in zip(views, shared, strict=True):
        top, left, bottom, right = after.window
        assert 0 <= top <= bottom <= after.canvas[0] and 0 <= left <= right <= after.canvas[1]
        assert (bottom - top, right - left) == after.resized == before.resized
        assert (left, top) == after.shift and all(c % 32 == 0 for c in after.canvas)
        if len(canvases) <= most:
            assert after == before


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=0, max_size=12), st.integers(1, 4))
def test_canvases_are_joined_at_the_least_cost(sizes: list[tuple[int, int]], most: int) -> None:
    """Against every pair tried at every step; of equal costs the first pair, joined canvases last."""
    views = [keep_view(COCO_BGR, size) for size in sizes]
    groups = [[canvas, [canvas]] for canvas in sorted({view.canvas for view in views})]
    count = collections.Counter(view.canvas for view in views)

    def pixels(canvas: tuple[int, int], members: list[tuple[int, int]]) -> int:
        return canvas[0] * canvas[1] * sum(count[member] for member in members)

    while len(groups) > most:
        costs = []
        for i, (a, of_a) in enumerate(groups):
            for j, (b, of_b) in enumerate(groups[:i]):
                both = (max(a[0], b[0]), max(a[1], b[1]))
                costs.append((pixels(both, of_a + of_b) - pixels(a, of_a) - pixels(b, of_b), i, j, both))
        _, i, j, both = min(costs)
        groups = [g for n, g in enumerate(groups) if n not in (i, j)] + [[both, groups[i][1] + groups[j][1]]]
    goal = {member: canvas for canvas, members in groups for member in members}
    assert [v.canvas for v in share_canvases(views, most, COCO_BGR)] == [goal[v.canvas] for v in views]


def test_a_thousand_canvases_are_joined_in_seconds() -> None:
    views = [keep_view(COCO_BGR, (32 * i, 32 * j)) for i in range(1, 33) for j in range(1, 33)]
    started = time.process_time()
    assert len({view.canvas for view in share_canvases(views, 4, COCO_BGR)}) == 4
    assert time.process_time() - started < 20  # trying every pair at every step takes many minutes
