"""The extreme points of an object: the topmost, leftmost, bottommost and rightmost point of its outline."""

from __future__ import annotations

import numpy as np

from kpjax.objects import PointSet

TOP, LEFT, BOTTOM, RIGHT = range(4)
EXTREME_POINTS = PointSet(names=("top", "left", "bottom", "right"))  # a mirror exchanges left and right

FLAT = 0.02  # of the object's side: an outline that stays as near to its extreme is a flat edge there


def extreme_points(outline: np.ndarray) -> np.ndarray:
    """The four extreme points of an outline, (4, 2) float64 x y in whole pixels, in the order of `EXTREME_POINTS`.

    outline: (V, 2) x y in pixels, V >= 1: vertices in the order of a walk around the object, or all pixels of a mask,
    row by row.  Where the outline stays within `FLAT` of the object's height (width) from its extreme, before and
    after the vertex that is the first extreme one, the point is the middle of that edge: half way between its least
    and its greatest coordinate.

    ExtremeNet's own rule, kept with two oddities: it drops fractions; and its walk, which begins with a copy of the
    last vertex and ends with one of the first, takes a flat edge that ends with the last vertex for that vertex alone.
    """
    low, high = outline.min(0), outline.max(0)
    near = FLAT * (high - low + 1)
    walk = np.concatenate([outline[-1:], outline, outline[:1]])
    points = np.empty((4, 2))
    for number, axis, first in ((TOP, 1, True), (LEFT, 0, True), (BOTTOM, 1, False), (RIGHT, 0, False)):
        along, extreme = walk[:, axis], (low if first else high)[axis]
        away = along - extreme if first else extreme - along
        at = int(away.argmin())
        beyond = np.flatnonzero(away > near[axis])
        split = int(np.searchsorted(beyond, at))
        start = beyond[split - 1] + 1 if split else 0
        end = beyond[split] if split < len(beyond) else len(walk)
        across = walk[start:end, 1 - axis]
        points[number, axis] = extreme
        points[number, 1 - axis] = (across.max() + across.min()) // 2
    return np.trunc(points)
