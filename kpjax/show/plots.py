"""`eval.py --plots`: curves and the confusion matrix of an evaluated split, as PNG."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from kpjax.data.source import Source
from kpjax.inference.evaluate import Evaluation
from kpjax.metrics.analysis import PCK, Curves, confusion_matrix, keypoint_errors, precision_recall
from kpjax.show import figures


def write_plots(folder: str, evaluation: Evaluation, source: Source, least_score: float) -> list[str]:
    """Write precision_recall.png, precision_recall_classes.png and confusion_matrix.png; returns their paths.

    Where keypoints are the metric these are the boxes', and the keypoints' own stand beside them:
    keypoints_precision_recall.png, keypoints_precision_recall_classes.png and keypoints_correct.png.
    least_score: of a detection that the confusion matrix counts.
    """
    truth, found = source.ground_truth(), evaluation.detections
    image_ids = [int(i) for i in source.image_ids[: evaluation.images]]
    classes = dict(zip(source.category_ids, source.classes, strict=True))
    counts = confusion_matrix(truth, found, image_ids, source.category_ids, least_score=least_score)
    drawn = _curves(precision_recall(truth, found, image_ids, classes), "boxes", "IoU")
    title = f"objects (rows) as detected (columns), score from {least_score:g}, IoU from 0.5"
    drawn["confusion_matrix.png"] = figures.matrix(counts, source.distinct_classes, title)
    if evaluation.metric == "keypoints":
        assert source.points is not None
        curves = precision_recall(truth, found, image_ids, classes, source.points)
        own = _curves(curves, "keypoints", "OKS")
        errors = keypoint_errors(truth, found, image_ids, source.points)
        own["correct.png"] = figures.bars(
            [round(100 * share) for share in np.nan_to_num(errors.pck).tolist()],
            [n if c else f"{n}: none" for n, c in zip(source.points.names, errors.count.tolist(), strict=True)],
            f"keypoints at most {PCK:g} of the box's longer side off (PCK@{PCK:g}), % of those labelled; "
            f"{errors.objects - errors.missed} of {errors.objects} objects found",
            "keypoint",
        )
        drawn |= {f"keypoints_{name}": figure for name, figure in own.items()}
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, figure in drawn.items():
        paths.append(os.path.join(folder, name))
        figures.save_png(paths[-1], figure)
    return paths


def _curves(curves: Curves, what: str, measure: str) -> dict[str, Any]:
    """what: "boxes" or "keypoints".  measure: what is compared with a threshold, "IoU" or "OKS"."""
    title = f"precision against recall of {what}"
    sizes = {f"{name}, {measure} 0.50:0.95": curve for name, curve in curves.by_size.items()}
    by_threshold = curves.by_threshold | sizes
    return {
        "precision_recall.png": figures.precision_recall(by_threshold, f"{title}, mean over the classes"),
        "precision_recall_classes.png": figures.precision_recall(curves.by_class, f"{title}, {measure} 0.50"),
    }
