"""Curves and confusion matrices of detections whose errors are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from kpjax.metrics.analysis import RECALLS, confusion_matrix, keypoint_errors, precision_recall
from kpjax.objects import PointSet

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
    np.testing.assert_allclose(curves.by_threshold["IoU 0.50"], np.where(RECALLS <= 0.5, 0.75, 0.5))
    # C is large; A is small, and B, of medium size, was not found
    np.testing.assert_allclose(curves.by_size["large"], 1.0)
    np.testing.assert_allclose(curves.by_size["medium"], 0.0)
    nothing = precision_recall(truth((1, 3, A, False)), rows, [1], NAMES)
    assert np.isnan(nothing.by_class["green"]).all() and np.isnan(nothing.by_size["large"]).all()


def test_two_classes_of_one_name_have_a_curve_each() -> None:
    curves = precision_recall(TRUTH, [row(2, 8, C)], [1, 2], {3: "other", 8: "other"}).by_class
    np.testing.assert_allclose(curves["other (id 8)"], 1.0)
    np.testing.assert_allclose(curves["other (id 3)"], 0.0)


BAR = PointSet(("low", "middle", "high"), sigmas=(0.05, 0.05, 0.05))


def bars() -> dict[str, Any]:
    """Three objects of class 3, 100 pixels a side; the second's `high` is not labelled, nothing of the third is."""
    instances = truth(*((1, 3, [10.0 + 110 * n, 10.0, 100.0, 100.0], False) for n in range(3)))
    for n, annotation in enumerate(instances["annotations"]):
        seen = ((2, 1, 2), (2, 2, 0), (0, 0, 0))[n]
        x = 60 + 110 * n
        annotation["keypoints"] = [v for y, s in zip((20, 60, 100), seen, strict=True) for v in (x * (s > 0), y, s)]
        annotation["num_keypoints"] = sum(s > 0 for s in seen)
    return instances


def bar(n: int, off: tuple[float, float, float], score: float) -> dict[str, Any]:
    """A detection of object n whose points are so many pixels off, in y."""
    x = 60.0 + 110 * n
    keypoints = [v for y, o in zip((20, 60, 100), off, strict=True) for v in (x, y + o, 0.5)]
    return row(1, 3, [10.0 + 110 * n, 10.0, 100.0, 100.0], score) | {"keypoints": keypoints}


def test_keypoint_errors() -> None:
    found = [bar(0, (0, 10, 10.5), 0.9), bar(1, (0, 0, 99), 0.8), bar(2, (50, 50, 50), 0.7)]
    errors = keypoint_errors(bars(), found, [1, 2], BAR)
    assert (errors.objects, errors.missed) == (2, 0) and errors.count.tolist() == [2, 2, 1]
    np.testing.assert_allclose(errors.pck, [1, 1, 0])  # 10.5 is more than 0.1 of the box's longer side
    one = keypoint_errors(bars(), found[1:], [1, 2], BAR)
    assert (one.objects, one.missed) == (2, 1) and np.isnan(one.pck[2]) and one.pck[:2].tolist() == [1, 1]


def test_curves_of_keypoints() -> None:
    """Of two objects one is found at an OKS of 1, the other at one of exp(-1/2) = 0.61, three of ten thresholds."""
    found = [bar(0, (0, 0, 0), 0.9), bar(1, (10, 10, 0), 0.8)]
    curves = precision_recall(bars(), found, [1, 2], NAMES, BAR)
    assert list(curves.by_threshold) == ["OKS 0.50", "OKS 0.75", "OKS 0.50:0.95"]
    np.testing.assert_allclose(curves.by_threshold["OKS 0.50"], 1)
    np.testing.assert_allclose(curves.by_threshold["OKS 0.75"], RECALLS <= 0.5)
    np.testing.assert_allclose(curves.by_threshold["OKS 0.50:0.95"], np.where(RECALLS <= 0.5, 1, 0.3))
    assert list(curves.by_size) == ["medium", "large"]
    np.testing.assert_allclose(curves.by_class["red"], 1)
