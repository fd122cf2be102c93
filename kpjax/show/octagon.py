"""The octagon that four extreme points span: a coarse outline of the object (ExtremeNet, section 4.4)."""

from __future__ import annotations

import numpy as np

from kpjax.extreme_points import BOTTOM, LEFT, RIGHT, TOP

REACH = 1 / 8  # of the box's side: how far the octagon's edge goes from the extreme point, either way


def octagon(points: np.ndarray) -> np.ndarray:
    """The vertices (8, 2) of the octagon of extreme points (4, 2) x y, one after another around the object.

    Through each extreme point goes an edge along the side of the box, a quarter of that side long, cut at the box's
    corners.  The other four edges join the ends of these.
    """
    left, top = points[LEFT, 0], points[TOP, 1]
    right, bottom = points[RIGHT, 0], points[BOTTOM, 1]
    x, y = (right - left) * REACH, (bottom - top) * REACH
    (t1, t2), (b1, b2) = (np.clip([points[k, 0] - x, points[k, 0] + x], left, right) for k in (TOP, BOTTOM))
    (l1, l2), (r1, r2) = (np.clip([points[k, 1] - y, points[k, 1] + y], top, bottom) for k in (LEFT, RIGHT))
    return np.array(
        [(t1, top), (t2, top), (right, r1), (right, r2), (b2, bottom), (b1, bottom), (left, l2), (left, l1)],
        np.float64,
    )
