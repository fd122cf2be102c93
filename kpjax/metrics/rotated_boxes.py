"""Which area do two rotated rectangles share, and which volume two boxes that are turned around y?  In NumPy.

Pairs that can touch are clipped, all at once: one rectangle against the four sides of the other (Sutherland and
Hodgman, 1974), in the frame of the other, whose sides are then parallel to the axes.  That needs no tolerance, also
where sides coincide.
"""

from __future__ import annotations

import numpy as np

_AT_ONCE = 1 << 16  # pairs that are clipped together; bounds the memory


def intersections(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The (areas in m2 on the ground, volumes in m3) that pairs of 3D boxes share, float64.

    a, b: (..., 7) x, y, z, height, width, length, yaw, as `Detections.boxes3d`; their leading axes broadcast, so that
    (n, 1, 7) and (m, 7) give all n x m pairs, and (n, 7) and (n, 7) give n.  y is the bottom and points down: a box
    lies between y - height and y.  A box of negative height has no volume.  Lengths and widths: see
    `intersection_areas`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    areas = intersection_areas(ground(a), ground(b))
    bottom = np.minimum(a[..., 1], b[..., 1])
    top = np.maximum(a[..., 1] - a[..., 3], b[..., 1] - b[..., 3])
    return areas, areas * np.maximum(bottom - top, 0)


def ground(boxes: np.ndarray) -> np.ndarray:
    """The rectangles (..., 5) x, z, length, width, yaw on which the boxes (..., 7) stand."""
    return np.asarray(boxes)[..., [0, 2, 5, 4, 6]]


def intersection_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The areas that pairs of rotated rectangles share, (...) float64.

    a, b: (..., 5) x, z of the middle, length, width in metres, yaw in radians; finite.  Leading axes broadcast.  With
    yaw 0 the length lies along x, with pi / 2 along -z.  The sign of a side does not matter: KITTI's DontCare, whose
    sides are -1, is a square of 1 m, as it is for the benchmark's program.  A rectangle without an area shares none.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # Rectangles can touch only where the circles through their corners do.
    reach = (np.hypot(a[..., 2], a[..., 3]) + np.hypot(b[..., 2], b[..., 3])) / 2
    near = np.hypot(a[..., 0] - b[..., 0], a[..., 1] - b[..., 1]) <= reach
    near &= (a[..., 2] * a[..., 3] != 0) & (b[..., 2] * b[..., 3] != 0)
    shape, near = np.shape(near), np.atleast_1d(near)
    a, b = np.broadcast_to(a, (*near.shape, 5)), np.broadcast_to(b, (*near.shape, 5))
    areas = np.zeros(near.shape)
    places = np.nonzero(near)
    for start in range(0, len(places[0]), _AT_ONCE):
        some = tuple(axis[start : start + _AT_ONCE] for axis in places)
        areas[some] = _clipped_areas(a[some], b[some])
    return areas.reshape(shape)


def _clipped_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 5), (n, 5) -> (n,)."""
    cos, sin = np.cos(b[:, 4]), np.sin(b[:, 4])
    off = a[:, :2] - b[:, :2]
    # The middle of a in the frame of b, whose first axis lies along b's length; then the corners of a.
    x, z = cos * off[:, 0] - sin * off[:, 1], sin * off[:, 0] + cos * off[:, 1]
    turn = a[:, 4] - b[:, 4]
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    length, width = a[:, 2:3] / 2 * [1, 1, -1, -1], a[:, 3:4] / 2 * [1, -1, -1, 1]
    corners = [x[:, None] + cos * length + sin * width, z[:, None] - sin * length + cos * width]
    polygons = np.stack(corners, axis=-1)
    for axis in (0, 1):
        bound = np.abs(b[:, 2 + axis, None]) / 2
        for side in (1, -1):
            polygons = _clip(polygons, axis, side, bound)
    first, second = polygons, np.roll(polygons, -1, axis=1)
    # Added in order, so that repeated corners, and with them the other pairs, change no bit.
    twice = np.cumsum(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0], axis=1)[:, -1]
    return np.abs(twice) / 2


def _clip(polygons: np.ndarray, axis: int, side: int, bound: np.ndarray) -> np.ndarray:
    """What of the polygons (n, k, 2) lies where side * coordinate <= bound (n, 1), as (n, another k, 2).

    A polygon of fewer corners than others repeats its last one.  Where nothing is left a single point is repeated.
    """
    ahead = np.roll(polygons, -1, axis=1)
    room, room_ahead = (bound - side * p[..., axis] for p in (polygons, ahead))
    inside = room >= 0
    crosses = inside != (room_ahead >= 0)
    part = room / np.where(crosses, room - room_ahead, 1)
    crossings = polygons + part[..., None] * (ahead - polygons)
    crossings[..., axis] = side * bound  # without its rounding error
    count, corners = polygons.shape[:2]
    # Behind each corner the point where its side crosses the bound; kept ones move to the front, in their order.
    points = np.stack([polygons, crossings], axis=2).reshape(count, 2 * corners, 2)
    keep = np.stack([inside, crosses], axis=2).reshape(count, 2 * corners)
    kept = keep.sum(1)
    slots = np.minimum(np.arange(max(kept.max(), 1)), np.maximum(kept - 1, 0)[:, None])
    order = np.take_along_axis(np.argsort(~keep, axis=1, kind="stable"), slots, axis=1)
    return np.take_along_axis(points, order[..., None], axis=1)
