"""How good is each class?  COCO's AP of a class over all IoUs, at single ones and by size."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class.  objects: to find in the images.  ap, ap50, ap75: 0..1.  by_size: AP of its small, medium and large
    objects, by these names.  nan where the images hold no object of the kind."""

    category_id: int
    objects: int
    ap: float
    ap50: float
    ap75: float
    by_size: dict[str, float]


def by_class(run: Any) -> list[ClassRow]:
    """A row of each class, ids ascending.  run: a `run_coco` whose thresholds hold COCO's ten."""
    thresholds, precision = run.params.iouThrs, run.eval["precision"][..., -1]  # (T, R, K, A)
    ten = np.flatnonzero(thresholds > 0.499)
    half, three_quarters = (int(np.flatnonzero(np.isclose(thresholds, iou))[0]) for iou in (0.5, 0.75))
    counts: collections.Counter[int] = collections.Counter()
    for one in run.evalImgs:
        if one and one["aRng"] == run.params.areaRng[0]:
            counts[int(one["category_id"])] += int(np.count_nonzero(np.asarray(one["gtIgnore"]) == 0))
    return [
        ClassRow(
            category_id=int(category),
            objects=counts[int(category)],
            ap=mean_precision(precision[ten, :, k, 0]),
            ap50=mean_precision(precision[half, :, k, 0]),
            ap75=mean_precision(precision[three_quarters, :, k, 0]),
            by_size={
                name: mean_precision(precision[ten, :, k, a]) for a, name in enumerate(run.params.areaRngLbl) if a
            },
        )
        for k, category in enumerate(run.params.catIds)
    ]


def mean_precision(precision: np.ndarray) -> float:
    """The mean of COCO's precisions, of which -1 stands for none; nan where there is none."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
