"""How often does an epoch show each image?  Images of rare classes more often, by LVIS's repeat factors.

An epoch is L places.  Image i has the part [end[i - 1], end[i]) of [0, L), and place p of epoch e shows the image that
has p + u(e): so each image is shown as many times as its part is long, rounded up or down, and over some epochs exactly
as often.  A place and its epoch say the image; nothing else is a state.
"""

from __future__ import annotations

import math

import numpy as np

from kpjax.data.source import Source

_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, less their whole parts, lie evenly in [0, 1)


def repeat_factors(source: Source, threshold: float) -> np.ndarray:
    """(N,) float64, at least 1: max over an image's classes c of max(1, sqrt(threshold / f(c))).

    f(c): the share of the images that have an object of class c to learn from (Gupta et al., LVIS, arXiv 1908.03195).
    """
    classes = [np.unique(objects.labels[objects.valid]) for objects in source.objects]
    counts = np.bincount(np.concatenate(classes), minlength=len(source.classes))
    of_class = np.sqrt(np.maximum(1.0, threshold * len(source) / np.maximum(counts, 1)))
    return np.array([of_class[labels].max(initial=1.0) for labels in classes])


def part_ends(source: Source, threshold: float) -> np.ndarray | None:
    """(N,) float64, ascending: where the parts of the images end, the last at L; None where each is shown once (0).

    L is the sum of the repeat factors, rounded up, so that no image is left out of an epoch.
    """
    if not threshold:
        return None
    ends = np.cumsum(repeat_factors(source, threshold))
    length = math.ceil(ends[-1])
    ends *= length / ends[-1]
    ends[-1] = length
    return ends


def shift(epoch: np.ndarray) -> np.ndarray:
    """u(e), float64 in [0, 1), of epochs (int64, any shape): 0 of the first."""
    return epoch * _GOLDEN % 1.0


def images_at(ends: np.ndarray, places: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The images, int64, that places (int64, below L) of epochs (int64, the same shape) show."""
    found = np.searchsorted(ends, places + shift(epochs), side="right")
    return np.minimum(found, len(ends) - 1)  # a sum that was rounded up to L
