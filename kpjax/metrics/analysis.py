"""Where a detector errs, beyond one number: precision against recall, classes taken for others, keypoints."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.metrics.coco import run_coco
from kpjax.objects import PointSet, distinct_names

RECALLS = np.linspace(0, 1, 101)  # COCO's
SAME_OBJECT = 0.1  # least OKS of a detection and the object whose keypoints its own are compared with
PCK = 0.1  # of the longer side of the object's box: a keypoint no further off is correct


@dataclasses.dataclass(frozen=True)
class Curves:
    """Precision at the 101 `RECALLS`, by the curve's name; nan where the images hold no object of the kind.

    by_threshold: mean over the classes, at IoU (of keypoints: OKS) 0.5, 0.75 and over all ten.  by_size: the same over
    all ten of small, medium and large objects (COCO's limits of 32 and 96 pixels squared; its keypoints have no small
    ones).  by_class: of each class at 0.5, named as `kpjax.objects.distinct_names` does.
    """

    by_threshold: dict[str, np.ndarray]
    by_size: dict[str, np.ndarray]
    by_class: dict[str, np.ndarray]


def precision_recall(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    classes: dict[int, str],
    points: PointSet | None = None,
) -> Curves:
    """COCO's own precisions, of boxes with 100 detections an image, or of keypoints with 20.

    classes: category id -> name.  points: what the keypoints are; None: boxes.  The rest: see `coco.measure`.
    """
    run = run_coco(ground_truth, detections, image_ids, points=points)
    return curves_of(run, classes, "IoU" if points is None else "OKS")


def curves_of(run: Any, classes: dict[int, str], measure: str) -> Curves:
    """The curves of a `run_coco` whose thresholds hold COCO's ten.  measure: "IoU" or "OKS", for the names."""
    names, thresholds = distinct_names(classes), run.params.iouThrs
    precision = np.where(run.eval["precision"] > -1, run.eval["precision"], np.nan)[..., -1]  # (T, R, K, A)
    precision, thresholds = precision[thresholds > 0.499], thresholds[thresholds > 0.499]
    half, three_quarters = (int(np.flatnonzero(np.isclose(thresholds, value))[0]) for value in (0.5, 0.75))

    def mean(part: np.ndarray) -> np.ndarray:
        """Over IoUs and classes, (T, R, K) -> (R,)."""
        known = ~np.isnan(part)
        total, count = np.where(known, part, 0).sum((0, 2)), known.sum((0, 2))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    return Curves(
        by_threshold={
            f"{measure} 0.50": mean(precision[[half], :, :, 0]),
            f"{measure} 0.75": mean(precision[[three_quarters], :, :, 0]),
            f"{measure} 0.50:0.95": mean(precision[:, :, :, 0]),
        },
        by_size={name: mean(precision[:, :, :, a]) for a, name in enumerate(run.params.areaRngLbl) if a},
        by_class={names[int(c)]: precision[half, :, k, 0] for k, c in enumerate(run.params.catIds)},
    )


@dataclasses.dataclass(frozen=True)
class KeypointErrors:
    """How many keypoints of the detections are where they should be.

    pck: (J,) the share of correct ones: those at most PCK of the longer side of the object's box off; nan where none is
    labelled.  count: (J,) labelled ones that were compared.  objects, missed: how many objects have a labelled
    keypoint, and of them those that no detection is of.
    """

    pck: np.ndarray
    count: np.ndarray
    objects: int
    missed: int


def keypoint_errors(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], image_ids: Sequence[int], points: PointSet
) -> KeypointErrors:
    """Compare objects' keypoints with those of the detections that COCO pairs them with at an OKS of SAME_OBJECT.

    Crowds and objects without a labelled keypoint are left out.  The rest: see `coco.measure_keypoints`.
    """
    run = run_coco(ground_truth, detections, image_ids, points=points, thresholds=[SAME_OBJECT])
    close, count = (np.zeros(len(points), np.int64) for _ in range(2))
    objects = missed = 0
    widest = run.params.areaRng[0]
    for pairs in (one for one in run.evalImgs if one and one["aRng"] == widest):
        for truth_id, found_id, ignored in zip(pairs["gtIds"], pairs["gtMatches"][0], pairs["gtIgnore"], strict=True):
            if ignored:
                continue
            objects += 1
            if not found_id:
                missed += 1
                continue
            truth, found = run.cocoGt.anns[truth_id], run.cocoDt.anns[int(found_id)]
            wanted, given = (np.reshape(row["keypoints"], (-1, 3)) for row in (truth, found))
            labelled = wanted[:, 2] > 0
            squares = ((wanted - given)[:, :2] ** 2).sum(-1)
            close += labelled & (squares <= (PCK * max(truth["bbox"][2:])) ** 2)
            count += labelled
    return KeypointErrors(close / np.where(count > 0, count, np.nan), count, objects, missed)


def confusion_matrix(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    least_score: float = 0.3,
    least_iou: float = 0.5,
) -> np.ndarray:
    """(K + 1, K + 1) int64: [i, j] objects of class i that were detected as class j.

    The last column counts objects that were missed, the last row detections of nothing.  Detections scored at least
    `least_score` and objects of an image are paired, also across classes, in the order of their IoU, of at least
    `least_iou`; of equal ones a pair of one class comes first.  Crowds are no objects, and a detection
    that lies in one with more than `least_iou` of its area is left out unless it found an object.
    """
    label_of = {category: k for k, category in enumerate(category_ids)}
    counts = np.zeros((len(category_ids) + 1, len(category_ids) + 1), np.int64)
    objects, found = (collections.defaultdict(list) for _ in range(2))
    for row in ground_truth["annotations"]:
        objects[row["image_id"]].append(row)
    for row in detections:
        if row["score"] >= least_score:
            found[row["image_id"]].append(row)
    for image_id in image_ids:
        crowds, theirs = ([r for r in objects[image_id] if bool(r["iscrowd"]) == crowd] for crowd in (True, False))
        ours = found[image_id]
        truth = np.array([label_of[r["category_id"]] for r in theirs], int)
        said = np.array([label_of[r["category_id"]] for r in ours], int)
        overlap, _ = overlaps(theirs, ours)
        order = np.lexsort(((truth[:, None] != said).reshape(-1), -overlap.reshape(-1)))
        missed, unmatched = np.ones(len(theirs), bool), np.ones(len(ours), bool)
        for i, j in zip(*np.unravel_index(order, overlap.shape), strict=True):
            if overlap[i, j] < least_iou:
                break
            if missed[i] and unmatched[j]:
                counts[truth[i], said[j]] += 1
                missed[i] = unmatched[j] = False
        np.add.at(counts[:, -1], truth[missed], 1)
        in_crowd = (overlaps(crowds, ours)[1] > least_iou).any(0) if crowds else np.zeros(len(ours), bool)
        np.add.at(counts[-1], said[unmatched & ~in_crowd], 1)
    return counts


def overlaps(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """IoU of every box of `one` with every box of `other`, (n, m), and the part of the other's area that they share."""
    a, b = (np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4) for rows in (one, other))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = a[:, 2:].prod(-1)[:, None], b[:, 2:].prod(-1)[None]
    return shared / np.maximum(area_a + area_b - shared, 1e-9), shared / np.maximum(area_b, 1e-9)
