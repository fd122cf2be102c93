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


def measure(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], image_ids: Sequence[int]
) -> tuple[dict[str, float], dict[int, float], str]:
    """Evaluate boxes as COCO does -> (the 12 numbers by name, AP by category id, COCO's own lines).

    ground_truth: a COCO instances dict.  detections: rows in COCO's result format; they are not changed.
    image_ids: only these images count.  AP of a category is over all ten IoUs, all areas, 100 detections
    an image; nan where the images hold none of it.  A number that does not exist is -1, COCO's own mark.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    lines = io.StringIO()
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
        run.evaluate()
        run.accumulate()
        with contextlib.redirect_stdout(lines):
            run.summarize()
    stats = {name: float(value) for name, value in zip(STATS, run.stats, strict=True)}
    per_category = {}
    for k, category in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, k, 0, -1]
        known = precision[precision > -1]
        per_category[int(category)] = float(np.mean(known)) if known.size else float("nan")
    return stats, per_category, lines.getvalue().rstrip("\n")
