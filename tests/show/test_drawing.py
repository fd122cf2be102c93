"""Drawn boxes and the grid of training images."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kpjax.objects import Detections, PointSet
from kpjax.show import drawing as draw
from kpjax.show.batch import show_batch
from kpjax.show.drawing import class_color, draw_objects, enlarge
from tests.records import objects_of

NAMES = ("cat", "dog", "a class with a very long name that no small image can hold")


def draw_detections(
    image: np.ndarray, boxes: Any, labels: Any, scores: Any, names: Any, score_thr: float = 0.0
) -> np.ndarray:
    """Found objects, or annotated ones where they have no scores."""
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int32)
    found = objects_of(boxes, labels) if scores is None else Detections(boxes, np.asarray(scores), labels)
    return draw_objects(image, found, names, score_thr)


def test_colors_are_stable_and_distinct() -> None:
    colors = [class_color(k) for k in range(80)]
    assert colors == [class_color(k) for k in range(80)]
    assert len(set(colors)) == 80
    assert colors[0] == (255, 64, 38)  # those of every run
    near = [np.abs(np.subtract(a, b)).sum() for k, a in enumerate(colors[:10]) for b in colors[:k]]
    assert min(near) > 60
    ratios = []
    for color in [*colors, (0, 0, 0), (255, 255, 255)]:
        light = [
            0.2126 * r + 0.7152 * g + 0.0722 * b
            for r, g, b in (((np.asarray(c) / 255) ** 2.2) for c in (color, draw.contrast(color)))
        ]
        ratios.append((max(light) + 0.05) / (min(light) + 0.05))
    assert min(ratios) >= 4.5  # what WCAG asks of text


@pytest.mark.parametrize("background", [0, 255, "noise", "own"])
def test_a_box_is_seen_on_any_background(background: int | str) -> None:
    if background == "noise":
        image = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    elif background == "own":
        image = np.broadcast_to(np.uint8(class_color(0)), (240, 320, 3)).copy()
    else:
        image = np.full((240, 320, 3), background, np.uint8)
    before = image.copy()
    drawn = draw_detections(image, [[50, 60, 200, 180]], [0], [0.9], NAMES)
    np.testing.assert_array_equal(image, before)  # a copy is drawn on
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[120, 50], class_color(0))  # edges are where the box says
    np.testing.assert_array_equal(drawn[120, 199], class_color(0))
    np.testing.assert_array_equal(drawn[179, 120], class_color(0))
    np.testing.assert_array_equal(drawn[120, 49], draw.contrast(class_color(0)))
    np.testing.assert_array_equal(drawn[100:150, 60:190], image[100:150, 60:190])  # the inside stays
    assert (drawn[:60, 50:120] == class_color(0)).all(-1).sum() > 100  # the label's field, above the box


def test_threshold_order_and_missing_names() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    boxes, labels = [[20, 40, 80, 90], [20, 40, 80, 90]], [0, 1]
    drawn = draw_detections(image, boxes, labels, [0.9, 0.2], NAMES)
    np.testing.assert_array_equal(drawn[70, 20], class_color(0))  # the better one on top
    np.testing.assert_array_equal(draw_detections(image, boxes, labels, [0.1, 0.2], NAMES, score_thr=0.5), image)
    unnamed = draw_detections(image, [[20, 40, 80, 90]], [7], None, ())
    np.testing.assert_array_equal(unnamed[70, 20], class_color(7))
    np.testing.assert_array_equal(draw_detections(image, np.zeros((0, 4)), [], [], NAMES), image)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3), (20, 20), (30, 12), (700, 500)])
def test_any_size_and_boxes_that_leave_the_image(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    boxes = [[0, 0, size[1], size[0]], [-50, -50, 1e6, 1e6], [2, 2, 2, 2], [9, 9, 1, 1], [np.nan, 0, 1, np.inf]]
    drawn = draw_detections(image, boxes, [0, 1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6, 0.5], NAMES)
    assert drawn.shape == image.shape
    np.testing.assert_array_equal(drawn[-1, -1], class_color(0))


def test_labels_stay_inside_and_apart() -> None:
    for box in ([0, 0, 30, 30], [290, 0, 320, 30], [290, 210, 320, 240], [0, 210, 30, 240], [0, 0, 320, 240]):
        image = np.full((240, 320, 3), 128, np.uint8)
        drawn = draw_detections(image, [box, box], [0, 1], [0.9, 0.8], NAMES)
        fields = [(drawn == class_color(k)).all(-1).sum() for k in (0, 1)]
        assert min(fields) > 150  # both labels are there, neither hidden behind the other


def test_many_labels_of_one_place_can_all_be_read() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    drawn = draw_detections(image, [[80, 100, 240, 180]] * 9, range(9), np.linspace(0.9, 0.5, 9), ())
    assert min((drawn == class_color(k)).all(-1).sum() for k in range(9)) > 150
    # the last ones are above those of others, and lines lead down to the box
    assert (drawn[30:60] == class_color(8)).all(-1).any() and tuple(drawn[99, 80]) == class_color(8)


def test_lines_and_letters_grow_with_the_picture() -> None:
    widths, heights = [], []
    for side in (320, 1280, 2560):
        drawn = draw_detections(
            np.zeros((side, side, 3), np.uint8), np.array([[0.2, 0.2, 0.8, 0.8]]) * side, [0], [0.9], NAMES
        )
        own = (drawn == class_color(0)).all(-1)
        widths.append(int(own[side // 2, : side // 2].sum()))  # the left edge
        heights.append(int(own[: side // 5, round(0.2 * side) + widths[-1]].sum()))  # the label's field above the box
    assert widths == [2, 4, 9] and 1.5 * heights[0] < heights[1] < heights[2] / 1.5
    assert heights[0] >= 12


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_detections(np.zeros((4, 4, 3), np.float32), [], [], [], NAMES)
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        draw_detections(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4)), [0], [0.5, 0.5], NAMES)


def test_show_batch(tmp_path: pathlib.Path) -> None:
    images = np.full((3, 64, 96, 3), 200, np.uint8)
    boxes = np.zeros((3, 4, 4), np.float32)
    boxes[0, 0], boxes[0, 1] = (16, 20, 48, 60), (50, 5, 90, 60)
    valid = np.zeros((3, 4), bool)
    valid[0, 0] = True  # the second box is padding and must not be drawn
    labels = np.ones((3, 4), np.int32)
    heatmaps = np.zeros((3, 16, 24, 2), np.float32)
    heatmaps[0, 10, 8, 1] = 1.0
    path = tmp_path / "deep" / "batch.png"
    show_batch(str(path), images, objects_of(boxes, labels, valid), heatmaps, NAMES)
    with Image.open(path) as file:
        grid = np.asarray(file.convert("RGB"))
    scale, gap = 2, 4
    tile = grid[gap : gap + 64 * scale, gap : gap + 2 * 96 * scale]
    np.testing.assert_array_equal(tile[40 * scale, 16 * scale], class_color(1))
    assert not (tile[: 64 * scale, 60 * scale : 96 * scale] == class_color(1)).all(-1).any()
    heat = tile[:, 96 * scale :].astype(int)
    peak = heat[10 * 4 * scale + 3, 8 * 4 * scale + 3]
    assert np.abs(peak - class_color(1)).max() < 30
    np.testing.assert_array_equal(heat[0, 0], [90, 90, 90])  # grey, darkened
    with pytest.raises(ValueError, match="heatmaps"):
        show_batch(str(path), images, objects_of(boxes, labels, valid), heatmaps[:2], NAMES)
    with pytest.raises(ValueError, match="point_heatmaps"):
        show_batch(
            str(path),
            images,
            objects_of(boxes, labels, valid),
            heatmaps,
            NAMES,
            points=PointSet(("a", "b", "c")),
            point_heatmaps=heatmaps,
        )


def test_small_images_are_enlarged_with_their_boxes() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    large, found = enlarge(image, objects_of(np.array([[0, 0, 1, 2]]), np.zeros(1, np.int32)), least=6)
    assert large.shape == (4, 6, 3) and (large[::2, ::2] == image).all() and (large[1::2, 1::2] == image).all()
    np.testing.assert_array_equal(found.boxes, [[0, 0, 2, 4]])
    same, _ = enlarge(np.zeros((400, 300, 3), np.uint8), found)
    assert same.shape == (400, 300, 3)
