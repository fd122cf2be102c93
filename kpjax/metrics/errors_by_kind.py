"""What is wrong with the wrong detections, and what does each kind of error cost?  After TIDE (Bolya et al. 2020).

A detection that COCO's evaluation pairs with no object at an IoU of 0.5 is, the first that fits:

    localisation    of an object of its class, with an IoU of 0.1 to 0.5
    classification  of an object of another class, with an IoU from 0.5
    duplicate       of an object of its class that another detection found, with an IoU from 0.5
    background      of nothing: no object with an IoU above 0.1
    both            of an object of another class, with an IoU of 0.1 to 0.5

An object that is not found is "missed" where no error of localisation or classification is of it.

The cost of a kind is the AP at an IoU of 0.5 that mending it alone would add: an error of classification or
localisation becomes right where its object is still to be found (the best scored one of several, the others go), a
duplicate, one of background or of both goes, and missed objects need no longer be found.  Costs do not add up to
1 - AP: errors hide each other.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.metrics.analysis import RECALLS, overlaps
from kpjax.metrics.matches import Matches

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
RIGHT = -1
BACKGROUND_IOU, OBJECT_IOU = 0.1, 0.5


@dataclasses.dataclass(frozen=True)
class Errors:
    """The D detections and G objects of a `Matches`, by kind.

    kind: (D,) int64 index of KINDS, or RIGHT.  near: (D,) int64 the object (of the G) that an error is of; of a right
    detection the one it found; -1: none.  iou: (D,) with it; 0 where there is none.
    missed: (G,) bool.  ap50: AP at an IoU of 0.5, mean over the classes with an object.  cost: kind -> AP50 that
    mending it would add.  Both are nan without an object.
    """

    kind: np.ndarray
    near: np.ndarray
    iou: np.ndarray
    missed: np.ndarray
    ap50: float
    cost: dict[str, float]

    def count(self, kinds: np.ndarray) -> dict[str, int]:
        """How many of some detections, whose `kind` is given, are of each kind; of objects, how many are missed."""
        counts = {name: int(np.count_nonzero(kinds == k)) for k, name in enumerate(KINDS)}
        return counts | {KINDS[MISSED]: int(self.missed.sum())}


def errors_by_kind(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], found: Matches, classes: int
) -> Errors:
    """Sort the errors of `found`, the pairs at an IoU of 0.5.

    ground_truth, detections: what was evaluated.  classes: K.  Crowds are no objects.
    """
    kind, near, iou = _kinds(ground_truth, detections, found)
    open_object = found.found_by < 0
    explained = np.zeros(len(found.object_id), bool)
    explained[near[np.isin(kind, (CLASSIFICATION, LOCALISATION))]] = True
    missed = open_object & ~explained
    count = np.bincount(found.object_label, minlength=classes)
    plain = (found.label, found.score, found.correct)
    ap50 = _mean_ap(*plain, count, classes)
    cost = {}
    for k, name in enumerate(KINDS):
        if k == MISSED:
            left = count - np.bincount(found.object_label[missed], minlength=classes)
            mended = _mean_ap(*plain, left, classes, of=count > 0)
        else:
            mended = _mean_ap(*_mended(found, kind, near, k), count, classes)
        cost[name] = mended - ap50
    return Errors(kind, near, iou, missed, ap50, cost)


def average_precision(score: np.ndarray, correct: np.ndarray, objects: int) -> float:
    """COCO's AP of one class at one IoU: the mean of the precisions, made never rising, at the 101 `RECALLS`.

    score: (n,).  correct: (n,) bool.  Of equal scores the order counts, as in COCO's program.
    """
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(correct[order])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(hits / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(at, len(precision))].mean())


def _mean_ap(
    label: np.ndarray,
    score: np.ndarray,
    correct: np.ndarray,
    count: np.ndarray,
    classes: int,
    of: np.ndarray | None = None,
) -> float:
    """The mean AP of the classes that have an object (`of`: of these), 1 for one that has none left to find."""
    known = np.flatnonzero(count > 0 if of is None else of)
    aps = [average_precision(score[label == k], correct[label == k], int(count[k])) if count[k] else 1.0 for k in known]
    return float(np.mean(aps)) if len(aps) else float("nan")


def _mended(found: Matches, kind: np.ndarray, near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels, scores and correctness of the detections with the errors of one kind mended."""
    wrong = np.flatnonzero(kind == k)
    label, correct, keep = found.label.copy(), found.correct.copy(), kind != k
    if k in (CLASSIFICATION, LOCALISATION):
        taken: set[int] = set()
        for d in wrong[np.argsort(-found.score[wrong], kind="stable")]:
            of = int(near[d])
            if found.found_by[of] < 0 and of not in taken:
                taken.add(of)
                label[d], correct[d], keep[d] = found.object_label[of], True, True
    return label[keep], found.score[keep], correct[keep]


def _kinds(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], found: Matches
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row_of = {int(row["id"]): row for row in ground_truth["annotations"]}
    kind = np.full(len(found.row), BACKGROUND)
    near, iou = np.full(len(kind), -1), np.zeros(len(kind))
    ours, theirs = (collections.defaultdict(list) for _ in range(2))
    for number, image in enumerate(found.image.tolist()):
        ours[image].append(number)
    for number, image in enumerate(found.object_image.tolist()):
        theirs[image].append(number)
    for image, numbers in ours.items():
        d, g = np.array(numbers), np.array(theirs.get(image, ()), np.int64)
        if not len(g):
            continue
        pairs, _ = overlaps(
            [detections[int(found.row[n])] for n in numbers], [row_of[int(found.object_id[n])] for n in g]
        )
        same = found.label[d][:, None] == found.object_label[g]
        used = found.found_by[g] >= 0
        own, other = np.where(same, pairs, -1.0), np.where(same, -1.0, pairs)
        of_used = np.where(same & used, pairs, -1.0)
        # from the last choice to the first one, which overwrites
        for k, values, fits in (
            (BOTH, pairs, pairs.max(1) > BACKGROUND_IOU),
            (DUPLICATE, of_used, of_used.max(1) >= OBJECT_IOU),
            (CLASSIFICATION, other, other.max(1) >= OBJECT_IOU),
            (LOCALISATION, own, (own.max(1) >= BACKGROUND_IOU) & (own.max(1) <= OBJECT_IOU)),
        ):
            best = values.argmax(1)
            kind[d[fits]], near[d[fits]] = k, g[best[fits]]
            iou[d[fits]] = values[fits, best[fits]]
        for row, number in enumerate(numbers):
            if found.correct[number]:
                (of,) = np.flatnonzero(found.found_by[g] == number)
                kind[number], near[number], iou[number] = RIGHT, g[of], pairs[row, of]
    return kind, near, iou
