"""Curves and confusion matrices of detections whose errors are known, and their pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kpjax.metrics.analysis import RECALLS, confusion_matrix, precision_recall
from kpjax.show.drawing import class_color
from kpjax.show.plots import draw_curves, draw_matrix

CATEGORIES = (3, 8)
NAMES = {3: "red", 8: "green"}


def truth(*objects: tuple[int, int, list[float], bool]) -> dict[str, Any]:
    """objects: image id, category, bbox, crowd."""
    annotations = [
        {"id": n + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}
        for n, (i, c, box, crowd) in enumerate(objects)
    ]
    images = [{"id": i, "width": 400, "height": 400, "file_name": ""} for i in (1, 2)]
    categories = [{"id": c, "name": NAMES[c]} for c in CATEGORIES]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def row(image: int, category: int, box: list[float], score: float = 0.9) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


A, B, C = [10.0, 10.0, 20.0, 20.0], [100.0, 100.0, 50.0, 50.0], [200.0, 0.0, 150.0, 150.0]
TRUTH = truth((1, 3, A, False), (1, 3, B, False), (2, 8, C, False), (2, 3, [0.0, 200.0, 200.0, 150.0], True))


def test_confusion() -> None:
    rows = [
        row(1, 3, [11.0, 10.0, 20.0, 20.0]),  # found
        row(1, 8, A, 0.95),  # of equal place and another class, though its IoU is the best: this one is the object's
        row(1, 8, [300.0, 300.0, 9.0, 9.0]),  # of nothing
        row(1, 3, B, 0.2),  # scored too low: B is missed
        row(2, 8, C),
        row(2, 3, C),  # the same box of another class: the class decides between equals
        row(2, 3, [20.0, 220.0, 30.0, 30.0]),  # in the crowd: neither right nor wrong
    ]
    found = confusion_matrix(TRUTH, rows, [1, 2], CATEGORIES)
    np.testing.assert_array_equal(found, [[0, 1, 1], [0, 1, 0], [2, 1, 0]])
    only_second = confusion_matrix(TRUTH, rows, [2], CATEGORIES)
    np.testing.assert_array_equal(only_second, [[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    everything = confusion_matrix(TRUTH, rows, [1, 2], CATEGORIES, least_score=0.0)
    assert everything[0, 0] == 1 and everything[0, 2] == 0
    np.testing.assert_array_equal(confusion_matrix(TRUTH, [], [1, 2], CATEGORIES), [[0, 0, 2], [0, 0, 1], [0, 0, 0]])


def test_curves() -> None:
    """Class 3: the better of two detections is wrong, the other right, an object is missed.  Class 8: perfect."""
    rows = [row(1, 3, [300.0, 300.0, 9.0, 9.0], 0.9), row(1, 3, A, 0.8), row(2, 8, C)]
    curves = precision_recall(TRUTH, rows, [1, 2], NAMES)
    np.testing.assert_allclose(curves.by_class["green"], 1.0)
    np.testing.assert_allclose(curves.by_class["red"], np.where(RECALLS <= 0.5, 0.5, 0.0))
    np.testing.assert_allclose(curves.by_iou["IoU 0.50"], np.where(RECALLS <= 0.5, 0.75, 0.5))
    # C is large; A is small, and B, of medium size, was not found
    np.testing.assert_allclose(curves.by_size["large"], 1.0)
    np.testing.assert_allclose(curves.by_size["medium"], 0.0)
    nothing = precision_recall(truth((1, 3, A, False)), rows, [1], NAMES)
    assert np.isnan(nothing.by_class["green"]).all() and np.isnan(nothing.by_size["large"]).all()


def test_pictures_show_what_they_are_given() -> None:
    half = np.where(RECALLS <= 0.5, 1.0, 0.0)
    curves = {"steps": half, "none": np.full(101, np.nan)}
    picture = draw_curves(curves, "title", side=200)
    at = np.array(class_color(0))
    assert (picture[59:62, 60 + 10 : 60 + 90] == at).all(-1).any(0).all(), "precision 1 up to a recall of a half"
    assert (picture[259:262, 60 + 110 : 60 + 190] == at).all(-1).any(0).all(), "then 0"
    assert draw_curves({f"class {k}": half for k in range(80)}, "many").shape[0] < 700

    counts = np.array([[3, 0, 1], [0, 0, 0], [0, 2, 0]])
    shown = draw_matrix(counts, ["red", "green"], "title")
    shades = np.unique(shown.reshape(-1, 3), axis=0).tolist()
    assert [20, 80, 160] in shades, "a row that is all in one cell"
    assert [79, 124, 184] in shades, "three quarters"
    large = draw_matrix(np.eye(81, dtype=int), [f"class {k}" for k in range(80)], "title")
    assert large.shape[0] > 81 * 16 and large.dtype == np.uint8


@pytest.mark.parametrize("count", [0, 1])
def test_empty_curves(count: int) -> None:
    curves = {f"class {k}": np.full(101, np.nan) for k in range(count)}
    assert draw_curves(curves, "title").ndim == 3
