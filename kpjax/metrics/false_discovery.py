"""How many detections are of nothing, even with little overlap?  The false discovery rate of Keypoint Triplets."""

from __future__ import annotations

from typing import Any

import numpy as np

FD_IOUS = tuple(round(0.05 * k, 2) for k in range(1, 11))
FD_ALONE = (0.05, 0.25, 0.5)  # IoUs whose own rate the paper's Table 1 gives


def false_discovery(run: Any) -> dict[str, float]:
    """The rates of the paper's Table 1, 0..1: "FD", "FD5", "FD25", "FD50", and by size "FDs", "FDm", "FDl".

    FD is 1 - AP, AP being the mean over the IoUs 0.05, 0.10, ..., 0.50 (Keypoint Triplets, section 3.1, "Baseline and
    Motivation").  run: what `kpjax.metrics.matches.evaluated` returns.  nan where there is no object of the kind.
    """
    precision = run.eval["precision"][..., -1]  # (T, R, K, A)
    at = [int(np.flatnonzero(np.isclose(run.params.iouThrs, iou))[0]) for iou in FD_IOUS]

    def rate(part: np.ndarray) -> float:
        known = part[part > -1]
        return 1.0 - float(known.mean()) if known.size else float("nan")

    rates = {"FD": rate(precision[at, :, :, 0])}
    rates |= {f"FD{round(100 * iou)}": rate(precision[at[FD_IOUS.index(iou)], :, :, 0]) for iou in FD_ALONE}
    sizes = {name: a for a, name in enumerate(run.params.areaRngLbl) if a}
    return rates | {f"FD{name[0]}": rate(precision[at][..., a]) for name, a in sizes.items()}
