"""All that a report says of an evaluated split: one evaluation of the boxes, read in every way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.metrics.analysis import Curves, confusion_matrix, curves_of
from kpjax.metrics.by_class import ClassRow, by_class
from kpjax.metrics.calibration import Reliability, Threshold, best_threshold, reliability
from kpjax.metrics.errors_by_kind import Errors, errors_by_kind
from kpjax.metrics.false_discovery import false_discovery
from kpjax.metrics.matches import Matches, evaluated, matches
from kpjax.objects import PointSet

USUAL_SCORE = 0.3  # the threshold where no detection is right


@dataclasses.dataclass(frozen=True)
class Findings:
    """Numbers of boxes at COCO's IoUs, or of keypoints at the same values of OKS.

    curves: see `analysis.Curves`.  rows: a `ClassRow` of each class, in the order of the ids.  matches: pairs at an IoU
    (OKS) of 0.5.  thresholds, calibrations: the best threshold and the calibration of each class, K of them.
    threshold, calibration: of all detections together.  false_discovery: see `false_discovery.false_discovery`.
    """

    curves: Curves
    rows: tuple[ClassRow, ...]
    matches: Matches
    thresholds: tuple[Threshold, ...]
    calibrations: tuple[Reliability, ...]
    threshold: Threshold
    calibration: Reliability
    false_discovery: dict[str, float]

    @property
    def least_score(self) -> float:
        """The score of the best F1, from which on detections are counted; USUAL_SCORE where none is right."""
        return USUAL_SCORE if np.isnan(self.threshold.score) else self.threshold.score


@dataclasses.dataclass(frozen=True)
class BoxErrors:
    """Where boxes err.  confusion: (K + 1, K + 1), see `analysis.confusion_matrix`, of detections with `least_score`.
    counts: kind -> errors with at least that score, and missed objects.  faint: (G,) bool, which objects are found by a
    detection with a lower score alone.
    """

    errors: Errors
    confusion: np.ndarray
    counts: dict[str, int]
    faint: np.ndarray
    least_score: float


def findings(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    classes: dict[int, str],
    points: PointSet | None = None,
) -> Findings:
    """Evaluate and read.  classes: category id -> name, ids ascending.  The rest: see `kpjax.metrics.coco.run_coco`."""
    run = evaluated(ground_truth, detections, image_ids, points)
    pairs, rows = matches(run), by_class(run)
    of_class = [pairs.label == k for k in range(len(rows))]
    return Findings(
        curves=curves_of(run, classes, "IoU" if points is None else "OKS"),
        rows=tuple(rows),
        matches=pairs,
        thresholds=tuple(
            best_threshold(pairs.score[own], pairs.correct[own], row.objects)
            for own, row in zip(of_class, rows, strict=True)
        ),
        calibrations=tuple(reliability(pairs.score[own], pairs.correct[own]) for own in of_class),
        threshold=best_threshold(pairs.score, pairs.correct, len(pairs.object_id)),
        calibration=reliability(pairs.score, pairs.correct),
        false_discovery=false_discovery(run),
    )


def box_errors(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    found: Findings,
) -> BoxErrors:
    """Sort the errors of boxes.  found: what `findings` said of the boxes."""
    pairs, least, categories = found.matches, found.least_score, [row.category_id for row in found.rows]
    errors = errors_by_kind(ground_truth, detections, pairs, len(categories))
    counted = errors.kind[pairs.score >= least]
    finder = np.append(pairs.score, np.inf)[pairs.found_by]  # -1, not found at all, is the last
    return BoxErrors(
        errors=errors,
        confusion=confusion_matrix(ground_truth, detections, image_ids, categories, least_score=least),
        counts=errors.count(counted),
        faint=finder < least,
        least_score=least,
    )
