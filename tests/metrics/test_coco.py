"""The keypoint metric: COCO's numbers of detections whose errors are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kpjax.metrics.coco import KEYPOINT_STATS, UNIFORM_SIGMA, measure_keypoints, oks_sigmas
from kpjax.objects import PointSet
from kpjax.person import PERSON

HAND = PointSet(("thumb", "little_finger", "wrist"))
SIDES = (50, 150)  # of the two objects in each image: COCO's medium and large


def truth(points: PointSet, images: int = 6) -> dict[str, Any]:
    """Two objects an image; their points are drawn within their boxes, and every third one is not labelled."""
    rng = np.random.default_rng(0)
    annotations = []
    for n in range(2 * images):
        side = SIDES[n % 2]
        xy = (10 + 200 * (n % 2) + side * rng.uniform(size=(len(points), 2))).round(2)
        seen = np.where((np.arange(len(points)) + n) % 3 == 0, 0, 1 + (np.arange(len(points)) + n) % 2)
        keypoints = np.concatenate([xy * (seen > 0)[:, None], seen[:, None]], axis=1)
        annotations.append(
            {
                "id": n + 1,
                "image_id": 1 + n // 2,
                "category_id": 1 + n // 2 % 2,
                "bbox": [10.0 + 200 * (n % 2)] * 2 + [float(side)] * 2,
                "area": 0.6 * side * side,  # of a mask, smaller than the box
                "iscrowd": 0,
                "keypoints": keypoints.reshape(-1).tolist(),
                "num_keypoints": int((seen > 0).sum()),
            }
        )
    return {
        "info": {},
        "images": [{"id": i + 1, "width": 400, "height": 400, "file_name": ""} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c), "keypoints": list(points.names)} for c in (1, 2)],
    }


def rows(instances: dict[str, Any], off: Any = 0.0) -> list[dict[str, Any]]:
    """The annotations as detections, each keypoint moved by off(annotation) or by `off` pixels in x."""
    found = []
    for annotation in instances["annotations"]:
        xy = np.reshape(annotation["keypoints"], (-1, 3))[:, :2]
        xy = xy + off(annotation) if callable(off) else xy + [off, 0]
        keypoints = np.concatenate([xy, np.ones((len(xy), 1))], axis=1).reshape(-1).tolist()
        row = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        found.append(row | {"score": 0.9 - annotation["id"] / 100, "keypoints": keypoints})
    return found


def distance(annotation: dict[str, Any], points: PointSet, similarity: float) -> np.ndarray:
    """(J, 2) moves of each keypoint after which its similarity, and so the object's OKS, is `similarity`."""
    sigmas = oks_sigmas(points)[:, None]
    return np.sqrt(-2 * np.log(similarity) * annotation["area"]) * 2 * sigmas * [0.6, 0.8]


IDS = list(range(1, 7))
SETS = [PERSON, HAND, PointSet(HAND.names, sigmas=(0.02, 0.1, 0.3))]


@pytest.mark.parametrize("points", SETS, ids=["person", "uniform", "own sigmas"])
def test_the_ground_truth_is_perfect_and_noise_costs_what_it_should(points: PointSet) -> None:
    instances = truth(points)
    stats, per_category, lines = measure_keypoints(instances, rows(instances), IDS, points)
    assert tuple(stats) == KEYPOINT_STATS and set(stats.values()) == {1.0}
    assert per_category == {1: 1.0, 2: 1.0}
    assert len(lines.splitlines()) == 10 and "maxDets= 20 ] = 1.000" in lines

    # An object of OKS 0.72 is found at the thresholds 0.5, 0.55, 0.6, 0.65, 0.7 of ten.
    for similarity, thresholds in ((0.96, 10), (0.72, 5), (0.51, 1), (0.49, 0)):
        moved = rows(instances, lambda one, s=similarity: distance(one, points, s))
        stats, _, _ = measure_keypoints(instances, moved, IDS, points)
        assert stats["AP"] == pytest.approx(thresholds / 10) and stats["AR"] == pytest.approx(thresholds / 10)
        assert (stats["AP50"], stats["AP75"]) == (thresholds >= 1, thresholds >= 6)


def test_ap_falls_as_noise_grows() -> None:
    instances, rng = truth(PERSON), np.random.default_rng(1)
    noise = rng.normal(size=(len(instances["annotations"]), len(PERSON), 2))
    ap = []
    for pixels in (0, 2, 4, 8, 16, 64):
        moved = rows(instances, lambda one, p=pixels: p * noise[one["id"] - 1])
        ap.append(measure_keypoints(instances, moved, IDS, PERSON)[0]["AP"])
    assert ap[0] == 1 and ap[-1] == 0 and all(np.diff(ap) <= 0) and len(set(ap)) >= 5, ap


def test_what_does_not_count() -> None:
    """Keypoints that are not labelled, objects without any, the third column, and the boxes."""
    instances = truth(HAND)
    last = instances["annotations"][-1]
    last["keypoints"], last["num_keypoints"] = [0.0] * 9, 0
    found = rows(instances)
    for row, annotation in zip(found, instances["annotations"], strict=True):
        keypoints = np.reshape(row["keypoints"], (-1, 3))
        keypoints[np.reshape(annotation["keypoints"], (-1, 3))[:, 2] == 0, :2] = 1e4
        keypoints[:, 2] = 0
        row["keypoints"], row["bbox"] = keypoints.reshape(-1).tolist(), [0.0, 0.0, 50.0, 50.0]
    assert measure_keypoints(instances, found[:-1], IDS, HAND)[0]["AP"] == 1
    assert measure_keypoints(instances, found[1:-1], IDS, HAND)[0]["AP"] < 1
    assert measure_keypoints(instances, [], IDS, HAND)[0]["AP"] == 0


def test_sigmas() -> None:
    from pycocotools.cocoeval import Params

    np.testing.assert_allclose(oks_sigmas(PERSON), Params("keypoints").kpt_oks_sigmas)
    np.testing.assert_allclose(oks_sigmas(PointSet(PERSON.names)), oks_sigmas(PERSON))  # as read from a JSON
    assert oks_sigmas(HAND).tolist() == [UNIFORM_SIGMA] * 3
    assert oks_sigmas(PointSet(HAND.names, sigmas=(0.1, 0.2, 0.3))).tolist() == [0.1, 0.2, 0.3]
    assert np.exp(-(0.118**2) / (2 * (2 * UNIFORM_SIGMA) ** 2)) == pytest.approx(0.5, abs=2e-3)  # as its comment says
