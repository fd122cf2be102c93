"""COCO's box average precision, by pycocotools (imported here only, and lazily)."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

# The 12 numbers in pycocotools' order.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETS = (1, 10, 100)  # detections an image of COCO's table; mmdetection prints that of (100, 300, 1000)


def run_coco(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    max_dets: tuple[int, int, int] = MAX_DETS,
) -> Any:
    """pycocotools' COCOeval of boxes, accumulated: `.eval["precision"]` is (10 IoUs, 101 recalls, K, 4 areas, 3).

    See `measure` for the arguments.
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
        run = COCOeval(truth, results, "bbox")
        run.params.imgIds = sorted(image_ids)
        run.params.maxDets = list(max_dets)
        run.evaluate()
        run.accumulate()
    return run


def measure(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    max_dets: tuple[int, int, int] = MAX_DETS,
) -> tuple[dict[str, float], dict[int, float], str]:
    """Evaluate boxes as COCO does -> (the 12 numbers by name, AP by category id, COCO's own lines).

    ground_truth: a COCO instances dict.  detections: rows in COCO's result format; they are not changed.
    image_ids: only these images count.  max_dets: most detections an image, ascending, 100 among them: recall is
    printed at each, AP at 100, the other precisions and AP of a category at the last.  AP of a category is over all ten
    IoUs and all areas; nan where the images hold none of it.  A number that does not exist is -1, COCO's own mark.
    """
    run = run_coco(ground_truth, detections, image_ids, max_dets)
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        run.summarize()
    names = (*STATS[:6], *(f"AR{most}" for most in max_dets), *STATS[9:])
    stats = {name: float(value) for name, value in zip(names, run.stats, strict=True)}
    per_category = {}
    for k, category in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, k, 0, -1]
        known = precision[precision > -1]
        per_category[int(category)] = float(np.mean(known)) if known.size else float("nan")
    return stats, per_category, lines.getvalue().rstrip("\n")
