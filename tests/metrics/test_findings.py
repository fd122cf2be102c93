"""The numbers of a report against cases whose result can be counted by hand, and against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kpjax.metrics.by_class import by_class
from kpjax.metrics.calibration import best_threshold, f1_curve, f1_of, reliability
from kpjax.metrics.coco import measure
from kpjax.metrics.errors_by_kind import KINDS, RIGHT, average_precision, errors_by_kind
from kpjax.metrics.false_discovery import false_discovery
from kpjax.metrics.findings import USUAL_SCORE, box_errors, findings
from kpjax.metrics.matches import evaluated, matches

NAMES = {3: "red", 8: "green"}


def truth(*objects: tuple[int, int, list[float]], crowds: int = 0) -> dict[str, Any]:
    """objects: image id, category, bbox; the last `crowds` of them are crowds."""
    annotations = [
        {
            **{"id": n + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3]},
            "iscrowd": int(n >= len(objects) - crowds),
        }
        for n, (i, c, box) in enumerate(objects)
    ]
    images = [{"id": i, "width": 400, "height": 400, "file_name": ""} for i in (1, 2)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": _categories()}


def _categories() -> list[dict[str, Any]]:
    return [{"id": c, "name": name} for c, name in NAMES.items()]


def row(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


A, B, C, D = [10.0, 10.0, 20.0, 20.0], [100.0, 100.0, 50.0, 50.0], [200.0, 0.0, 150.0, 150.0], [20.0, 300.0, 40.0, 40.0]


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects and detections near and far, of both classes, with a crowd and scores that occur twice."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        side = float(rng.choice([12.0, 50.0, 120.0]))
        return [*rng.uniform(0, 250, 2).round(1).tolist(), side, side]

    objects = [(int(rng.integers(1, 3)), int(rng.choice([3, 8])), box()) for _ in range(14)]
    rows = []
    for image, category, near in objects:
        for _ in range(3):
            shifted = [near[0] + rng.normal(0, 0.2 * near[2]), near[1] + rng.normal(0, 0.1 * near[2]), *near[2:]]
            wrong = rng.uniform() < 0.2
            rows.append(row(image, 11 - category if wrong else category, shifted, float(rng.integers(1, 20)) / 20))
    rows += [row(1, 3, box(), float(rng.uniform())) for _ in range(6)]
    return truth(*objects, crowds=1), rows


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_cocos(seed: int) -> None:
    """AP of all, of sizes and of classes, and AP50 from the pairs, are what pycocotools says."""
    instances, rows = random_case(seed)
    stats, per_category, _ = measure(instances, rows, [1, 2])
    said = findings(instances, rows, [1, 2], NAMES)
    assert {r.category_id: r.ap for r in said.rows} == pytest.approx(per_category, nan_ok=True)
    for key, value in (
        ("AP", [r.ap for r in said.rows]),
        ("AP50", [r.ap50 for r in said.rows]),
        ("AP75", [r.ap75 for r in said.rows]),
        *((f"AP{size[0]}", [r.by_size[size] for r in said.rows]) for size in ("small", "medium", "large")),
    ):
        assert -1.0 if np.isnan(value).all() else np.nanmean(value) == pytest.approx(stats[key]), key
    errors = errors_by_kind(instances, rows, said.matches, 2)
    assert errors.ap50 == pytest.approx(stats["AP50"])
    assert said.false_discovery["FD50"] == pytest.approx(1 - stats["AP50"])
    assert np.mean(said.curves.by_threshold["IoU 0.50:0.95"]) == pytest.approx(stats["AP"])
    assert [r.objects for r in said.rows] == [
        sum(a["category_id"] == c and not a["iscrowd"] for a in instances["annotations"]) for c in NAMES
    ]
    found = said.matches
    recall = [found.correct[found.label == k].sum() / max(r.objects, 1) for k, r in enumerate(said.rows)]
    by_object = [(found.found_by >= 0)[found.object_label == k].mean() for k in range(2)]
    assert recall == pytest.approx(by_object)


def test_pairs() -> None:
    instances = truth((1, 3, A), (1, 3, B), (2, 8, C), (2, 3, [0.0, 200.0, 200.0, 150.0]), crowds=1)
    rows = [row(2, 3, [20.0, 220.0, 30.0, 30.0], 0.9), row(1, 3, A, 0.5), row(2, 8, C, 0.7), row(1, 3, A, 0.6)]
    found = matches(evaluated(instances, rows, [1, 2]))
    # the one in the crowd counts for nothing; of two the better scored one has found A
    assert found.row.tolist() == [3, 1, 2] and found.correct.tolist() == [True, False, True]
    assert found.image.tolist() == [1, 1, 2] and found.label.tolist() == [0, 0, 1]
    assert found.object_id.tolist() == [1, 2, 3] and found.found_by.tolist() == [0, -1, 2]
    nothing = matches(evaluated(instances, [], [1, 2]))
    assert len(nothing.row) == 0 and nothing.found_by.tolist() == [-1, -1, -1]


def test_calibration() -> None:
    score, correct = np.array([0.95, 0.95, 0.92, 0.15, 1.0]), np.array([True, False, True, False, True])
    found = reliability(score, correct)
    assert found.count.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 4]
    assert found.correct[9] == 0.75 and found.score[9] == pytest.approx(0.955) and found.correct[1] == 0
    assert np.isnan(found.score[0]) and found.error == pytest.approx((0.15 + 4 * 0.205) / 5)
    assert np.isnan(reliability(np.zeros(0), np.zeros(0, bool)).error)


def test_best_threshold() -> None:
    """Three objects; scores 0.9 right, 0.8 wrong, 0.7 right and wrong, 0.6 right."""
    score, correct = np.array([0.6, 0.9, 0.7, 0.8, 0.7]), np.array([True, True, True, False, False])
    thresholds, precision, recall = f1_curve(score, correct, 3)
    assert thresholds.tolist() == [0.6, 0.7, 0.8, 0.9]
    np.testing.assert_allclose(precision, [3 / 5, 2 / 4, 1 / 2, 1])
    np.testing.assert_allclose(recall, [1, 2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(f1_of(precision, recall), [6 / 8, 4 / 7, 2 / 5, 2 / 4])
    best = best_threshold(score, correct, 3)
    assert (best.score, best.f1, best.precision, best.recall) == (0.6, pytest.approx(0.75), 0.6, 1.0)
    tie = best_threshold(np.array([0.9, 0.5, 0.4, 0.3]), np.array([True, False, False, True]), 2)
    assert tie.score == 0.9  # 2/3 at both ends: the higher threshold
    assert np.isnan(best_threshold(np.array([0.9]), np.array([False]), 1).score)
    assert np.isnan(best_threshold(np.zeros(0), np.zeros(0, bool), 0).score)


def test_average_precision() -> None:
    assert average_precision(np.array([0.9, 0.8]), np.array([False, True]), 2) == pytest.approx(0.5 * 51 / 101)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 2) == 0


CASE = truth((1, 3, A), (1, 3, B), (1, 8, D), (2, 8, C), (2, 3, [0.0, 300.0, 30.0, 30.0]))
ERRORS = [
    (row(1, 3, A, 0.9), "right"),
    (row(1, 3, [11.0, 10.0, 20.0, 20.0], 0.8), "duplicate"),
    (row(1, 3, [130.0, 100.0, 50.0, 50.0], 0.7), "localisation"),  # IoU with B 0.25
    (row(1, 3, D, 0.6), "classification"),
    (row(2, 3, [300.0, 0.0, 150.0, 150.0], 0.5), "both"),  # IoU with C 0.2
    (row(2, 8, [50.0, 50.0, 9.0, 9.0], 0.4), "background"),
]


def test_errors_by_kind() -> None:
    rows = [r for r, _ in ERRORS]
    found = matches(evaluated(CASE, rows, [1, 2]))
    errors = errors_by_kind(CASE, rows, found, 2)
    kinds = {int(found.row[d]): "right" if k == RIGHT else KINDS[k] for d, k in enumerate(errors.kind.tolist())}
    assert kinds == {n: kind for n, (_, kind) in enumerate(ERRORS)}
    near = {int(found.row[d]): int(found.object_id[g]) if g >= 0 else 0 for d, g in enumerate(errors.near.tolist())}
    assert near == {0: 1, 1: 1, 2: 2, 3: 3, 4: 4, 5: 0}
    iou = dict(zip(found.row.tolist(), errors.iou.tolist(), strict=True))
    assert iou == pytest.approx({0: 1.0, 1: 19 / 21, 2: 0.25, 3: 1.0, 4: 0.2, 5: 0.0}, abs=1e-6)
    # B and the green D are explained by errors; C (both) and the red one at the bottom are missed
    assert dict(zip(found.object_id.tolist(), errors.missed.tolist(), strict=True)) == {
        **{1: False, 2: False, 5: True},
        **{3: False, 4: True},
    }
    # red: 3 objects, right at the head of 5; green: 2 objects, none found.  Precision 1 to recall 1/3: 34 of 101
    third = 34 / 101
    assert errors.ap50 == pytest.approx(third / 2)
    # localisation: red right, wrong, right: precision 2/3 from recall 1/3 to 2/3 (67 - 34 of 101)
    assert errors.cost["localisation"] == pytest.approx(33 / 101 * 2 / 3 / 2)
    # classification: green has one right before the one of background, of 2 objects
    assert errors.cost["classification"] == pytest.approx(51 / 101 / 2)
    assert errors.cost["duplicate"] == errors.cost["both"] == errors.cost["background"] == 0
    # missed: red has 2 objects left, of which 1 is found: recall 1/2
    assert errors.cost["missed"] == pytest.approx((51 - 34) / 101 / 2)
    whole = findings(CASE, rows, [1, 2], NAMES)
    counted = box_errors(CASE, rows, [1, 2], whole)
    assert whole.least_score == 0.9 and counted.counts["missed"] == 2 and counted.counts["duplicate"] == 0
    assert not counted.faint.any()


def test_an_error_of_a_found_object_goes() -> None:
    """An object of another class that its own detection found: mending the class takes the wrong one away."""
    instances = truth((1, 3, A), (1, 8, B))
    rows = [row(1, 3, B, 0.9), row(1, 8, B, 0.8), row(1, 3, A, 0.7)]
    errors = errors_by_kind(instances, rows, matches(evaluated(instances, rows, [1, 2])), 2)
    assert errors.ap50 == pytest.approx((0.5 + 1) / 2) and errors.cost["classification"] == pytest.approx(0.25)


def test_false_discovery() -> None:
    """One object found at an IoU of 1/3 exactly counts at 0.05 .. 0.30, 6 of 10 IoUs."""
    instances = truth((1, 3, B))
    rows = [row(1, 3, [125.0, 100.0, 50.0, 50.0], 0.9)]
    rates = false_discovery(evaluated(instances, rows, [1, 2]))
    assert np.isnan(rates.pop("FDs")) and np.isnan(rates.pop("FDl"))
    assert rates == pytest.approx({"FD": 0.4, "FD5": 0.0, "FD25": 0.0, "FD50": 1.0, "FDm": 0.4})


def test_faint_objects() -> None:
    instances = truth((1, 3, A), (1, 3, B), (2, 3, C))
    rows = [row(1, 3, A, 0.9), row(1, 3, D, 0.5), row(1, 3, D, 0.45), row(2, 3, D, 0.4), row(1, 3, B, 0.1)]
    whole = findings(instances, rows, [1, 2], NAMES)
    errors = box_errors(instances, rows, [1, 2], whole)
    assert whole.threshold.score == 0.9 and errors.faint.tolist() == [False, True, False]
    assert errors.counts == dict.fromkeys(KINDS, 0) | {"missed": 1}
    assert errors.confusion.tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_nothing_found() -> None:
    whole = findings(CASE, [], [1, 2], NAMES)
    assert [r.ap for r in whole.rows] == [0, 0] and np.isnan(whole.threshold.score)
    assert whole.least_score == USUAL_SCORE and whole.false_discovery["FD"] == 1
    errors = box_errors(CASE, [], [1, 2], whole)
    assert errors.counts["missed"] == 5 and errors.errors.ap50 == 0 and errors.errors.cost["missed"] == 1
    rows = by_class(evaluated(truth((1, 3, A)), [], [1, 2]))
    assert np.isnan(rows[1].ap) and rows[1].objects == 0 and rows[0].ap == 0
