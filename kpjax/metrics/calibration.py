"""Is a score the share of detections that are right, and which score is the best threshold?"""

from __future__ import annotations

import dataclasses

import numpy as np

BINS = 10


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Detections in bins of equal width by their score (Guo et al. 2017).

    score: (BINS,) the mean score of a bin; correct: (BINS,) the share of its detections that found an object; both nan
    in an empty bin.  count: (BINS,) int64.  error: the mean of |score - correct| weighted by count, the expected
    calibration error; nan without a detection.
    """

    score: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Threshold:
    """What is right of the detections with a score of at least `score`.

    precision, recall, f1: 0..1.  score is nan where no threshold has an F1 above 0.
    """

    score: float
    precision: float
    recall: float
    f1: float


def reliability(score: np.ndarray, correct: np.ndarray) -> Reliability:
    """score: (D,) in 0..1.  correct: (D,) bool."""
    bins = np.clip((score * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    some = np.where(count > 0, count, np.nan)
    mean, share = (np.bincount(bins, values, BINS) / some for values in (score, correct.astype(np.float64)))
    error = float(np.nansum(np.abs(mean - share) * count) / count.sum()) if count.any() else float("nan")
    return Reliability(mean, share, count, error)


def f1_curve(score: np.ndarray, correct: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds, precision, recall), each (n,): what is right from each of the n different scores on, ascending.

    score: (D,).  correct: (D,) bool.  objects: how many there are to find.
    """
    thresholds = np.unique(-score)
    kept = np.searchsorted(np.sort(-score), thresholds, side="right")  # how many have at least that score
    right = np.searchsorted(np.sort(-score[correct]), thresholds, side="right")
    precision, recall = right / np.maximum(kept, 1), right / max(objects, 1)
    return -thresholds[::-1], precision[::-1], recall[::-1]


def f1_of(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and recall; 0 where both are."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def best_threshold(score: np.ndarray, correct: np.ndarray, objects: int) -> Threshold:
    """The threshold of the best F1, the highest of several.  See `f1_curve`."""
    thresholds, precision, recall = f1_curve(score, correct, objects)
    f1 = f1_of(precision, recall)
    if not f1.size or f1.max() <= 0:
        return Threshold(float("nan"), 0.0, 0.0, 0.0)
    at = int(np.flatnonzero(f1 > f1.max() - 1e-9)[-1])
    return Threshold(float(thresholds[at]), float(precision[at]), float(recall[at]), float(f1[at]))
