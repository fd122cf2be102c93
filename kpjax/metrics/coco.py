"""COCO's average precision of boxes and of keypoints, by pycocotools (imported here only, and lazily)."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.objects import PointSet
from kpjax.person import PERSON

# pycocotools' 12 numbers of boxes and 10 of keypoints, in its order.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
MAX_DETS = (1, 10, 100)  # detections an image of COCO's table; mmdetection prints that of (100, 300, 1000)
# Of keypoints that COCO has no constants for.  Keypoints that are all 0.118 sqrt(area) off have an OKS of 0.5.
UNIFORM_SIGMA = 0.05

Table = tuple[dict[str, float], dict[int, float], str]  # numbers by name, AP by category id, COCO's own lines


def run_coco(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    max_dets: tuple[int, int, int] = MAX_DETS,
    *,
    points: PointSet | None = None,
    thresholds: Sequence[float] | None = None,
) -> Any:
    """pycocotools' COCOeval, accumulated: `.eval["precision"]` is (thresholds, 101 recalls, K, areas, max_dets).

    points: evaluate these keypoints, by object keypoint similarity (OKS), 20 detections an image; None: boxes, by IoU.
    thresholds: of OKS or IoU; None: COCO's ten.  See `measure` for the rest.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on its progress with print()
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if detections:
            results = truth.loadRes([copy.copy(row) for row in detections])
        else:  # loadRes looks at the first row
            results = COCO()
            results.dataset = {**ground_truth, "annotations": []}
            results.createIndex()
        run = COCOeval(truth, results, "bbox" if points is None else "keypoints")
        run.params.imgIds = sorted(image_ids)
        if points is None:
            run.params.maxDets = list(max_dets)
        else:
            run.params.kpt_oks_sigmas = oks_sigmas(points)
        if thresholds is not None:
            run.params.iouThrs = np.asarray(thresholds)
        run.evaluate()
        run.accumulate()
    return run


def oks_sigmas(points: PointSet) -> np.ndarray:
    """(J,) the constants of OKS: the point set's own, COCO's of its 17 joints of a person, or UNIFORM_SIGMA."""
    if points.sigmas:
        return np.array(points.sigmas)
    return np.array(PERSON.sigmas if points.names == PERSON.names else [UNIFORM_SIGMA] * len(points))


def measure(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    max_dets: tuple[int, int, int] = MAX_DETS,
) -> Table:
    """Evaluate boxes as COCO does -> (the 12 numbers by name, AP by category id, COCO's own lines).

    ground_truth: a COCO instances dict.  detections: rows in COCO's result format; they are not changed.
    image_ids: only these images count.  max_dets: most detections an image, ascending, 100 among them: recall is
    printed at each, AP at 100, the other precisions and AP of a category at the last.  AP of a category is over all ten
    IoUs and all areas; nan where the images hold none of it.  A number that does not exist is -1, COCO's own mark.
    """
    run = run_coco(ground_truth, detections, image_ids, max_dets)
    return _table(run, (*STATS[:6], *(f"AR{most}" for most in max_dets), *STATS[9:]))


def measure_keypoints(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], image_ids: Sequence[int], points: PointSet
) -> Table:
    """Evaluate keypoints as COCO does -> (the 10 numbers by name, AP by category id, COCO's own lines).

    points: what the keypoints are; see `oks_sigmas`.  See `measure` for the rest.  Objects without a labelled keypoint
    are neither missed nor found.  As in the authors' programs rows have boxes too, and a detection that matches nothing
    counts for medium or large objects by the area of its box.
    """
    return _table(run_coco(ground_truth, detections, image_ids, points=points), KEYPOINT_STATS)


def _table(run: Any, names: Sequence[str]) -> Table:
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        run.summarize()
    stats = {name: float(value) for name, value in zip(names, run.stats, strict=True)}
    per_category = {}
    for k, category in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, k, 0, -1]
        known = precision[precision > -1]
        per_category[int(category)] = float(np.mean(known)) if known.size else float("nan")
    return stats, per_category, lines.getvalue().rstrip("\n")
