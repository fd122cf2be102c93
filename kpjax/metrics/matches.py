"""Which detection found which object?  The pairs that COCO's evaluation makes at one IoU, as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.metrics.coco import run_coco
from kpjax.objects import PointSet

# One evaluation for all of a report: the IoUs of the false discovery rate below 0.5, then COCO's ten.
THRESHOLDS = np.array([*np.round(np.arange(1, 10) * 0.05, 2), *np.linspace(0.5, 0.95, 10)])


@dataclasses.dataclass(frozen=True)
class Matches:
    """The D detections that count and the G objects to find, with what found what.

    row: (D,) int64, each detection's number in the list that was evaluated.  image: (D,) int64 image id.  label: (D,)
    int64 class index, in the order of the ascending category ids.  score: (D,) float64.  correct: (D,) bool, whether it
    found an object of its class.  object_id, object_image, object_label: (G,) int64, the annotation's id, its image's
    id and its class.  found_by: (G,) int64 number of the detection that found it, into these D; -1: none did.

    Detections paired with a crowd or with another ignored object are left out, and so are those beyond the 100 best of
    a class in an image.  The D are sorted as COCO sorts them: classes ascending, images ascending, scores descending.
    """

    row: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    correct: np.ndarray
    object_id: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    found_by: np.ndarray


def evaluated(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    points: PointSet | None = None,
) -> Any:
    """`run_coco` at all of THRESHOLDS: what `matches`, `false_discovery` and `by_class` read."""
    return run_coco(ground_truth, detections, image_ids, points=points, thresholds=THRESHOLDS.tolist())


def matches(run: Any, threshold: float = 0.5) -> Matches:
    """The pairs of a `run_coco`, of objects of any size, at one of its thresholds of IoU (of keypoints: OKS)."""
    (at,) = np.flatnonzero(np.isclose(run.params.iouThrs, threshold))
    label_of = {int(category): k for k, category in enumerate(run.params.catIds)}
    found: list[tuple[int, int, int, float, bool]] = []
    objects: list[tuple[int, int, int, int]] = []
    for one in run.evalImgs:
        if not one or one["aRng"] != run.params.areaRng[0]:
            continue
        image, label, number_of = int(one["image_id"]), label_of[int(one["category_id"])], {0: -1}
        rows = zip(one["dtIds"], one["dtScores"], one["dtMatches"][at], one["dtIgnore"][at], strict=True)
        for number, score, truth, ignored in rows:
            if not ignored:
                number_of[int(number)] = len(found)
                found.append((int(number) - 1, image, label, float(score), truth > 0))
        for number, finder, ignored in zip(one["gtIds"], one["gtMatches"][at], one["gtIgnore"], strict=True):
            if not ignored:
                objects.append((int(number), image, label, number_of[int(finder)]))
    row, images, labels, scores, correct = zip(*found, strict=True) if found else ((),) * 5
    ids, object_images, object_labels, found_by = zip(*objects, strict=True) if objects else ((),) * 4
    whole: dict[str, Any] = {
        **{"row": row, "image": images, "label": labels, "object_id": ids, "object_image": object_images},
        **{"object_label": object_labels, "found_by": found_by},
    }
    return Matches(
        score=np.array(scores, np.float64),
        correct=np.array(correct, bool),
        **{name: np.array(values, np.int64) for name, values in whole.items()},
    )
