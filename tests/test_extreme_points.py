"""The extreme points of an outline: corners, flat edges, masks."""

from __future__ import annotations

import numpy as np
import pytest

from kpjax.extreme_points import EXTREME_POINTS, extreme_points


def test_a_mirror_exchanges_left_and_right() -> None:
    assert EXTREME_POINTS.names == ("top", "left", "bottom", "right") and EXTREME_POINTS.mirror == (0, 3, 2, 1)


@pytest.mark.parametrize(
    ("outline", "points"),
    [
        # A diamond has one point on each side.
        ([(50, 10), (90, 40), (60, 80), (20, 30)], [(50, 10), (20, 30), (60, 80), (90, 40)]),
        # Of a rectangle's flat edges the middle is taken, and fractions are dropped.  The bottom ends with the last
        # vertex, which the walk meets twice, first without the one before.
        ([(10.6, 20.4), (51.2, 20.4), (51.2, 90.7), (10.6, 90.7)], [(30, 20), (10, 55), (10, 90), (51, 55)]),
        ([(51.2, 90.7), (10.6, 90.7), (10.6, 20.4), (51.2, 20.4)], [(51, 20), (10, 55), (30, 90), (51, 55)]),
        # An edge that rises by less than 2% of the height is flat; one that rises by more is not.
        ([(0, 1), (60, 0), (60, 99), (30, 98)], [(30, 0), (0, 1), (45, 99), (60, 49)]),
        ([(0, 3), (60, 0), (60, 99), (30, 98)], [(60, 0), (0, 3), (45, 99), (60, 49)]),
    ],
)
def test_corners_and_flat_edges(outline: list[tuple[float, float]], points: list[tuple[int, int]]) -> None:
    np.testing.assert_array_equal(extreme_points(np.array(outline, np.float64)), points)


@pytest.mark.parametrize("start", range(5))
def test_the_walk_may_begin_anywhere(start: int) -> None:
    """Even within a flat edge; but for one that ends with the last vertex, of which this vertex is taken."""
    outline = np.array([(20, 0), (40, 0), (50, 30), (30, 60), (10, 25)], np.float64)
    turned = np.roll(outline, start, axis=0)
    top = (40, 0) if turned[-1].tolist() == [40, 0] else (30, 0)
    np.testing.assert_array_equal(extreme_points(turned), [top, (10, 25), (30, 60), (50, 30)])


def test_only_the_edge_next_to_the_first_extreme_vertex_counts() -> None:
    """Of two peaks of one height the first is taken, and the flat edge ends where the outline leaves it."""
    outline = np.array([(0, 50), (10, 0), (20, 40), (30, 0), (40, 50)], np.float64)
    assert extreme_points(outline)[0].tolist() == [10, 0]


def brute(outline: np.ndarray) -> list[list[float]]:
    """The rule, a vertex at a time."""
    walk = [*outline[-1:].tolist(), *outline.tolist(), *outline[:1].tolist()]
    found = []
    for axis, sign in ((1, 1), (0, 1), (1, -1), (0, -1)):
        along = [sign * vertex[axis] for vertex in walk]
        at, near = along.index(min(along)), 0.02 * (np.ptp(outline[:, axis]) + 1)
        edge = [at]
        for step in (1, -1):
            n = at + step
            while 0 <= n < len(walk) and along[n] - along[at] <= near:
                edge.append(n)
                n += step
        across = [walk[n][1 - axis] for n in edge]
        point = [0.0, 0.0]
        point[axis], point[1 - axis] = walk[at][axis], (max(across) + min(across)) // 2
        found.append([float(int(v)) for v in point])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_as_a_vertex_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for count in (1, 2, 3, 9, 60):
        outline = np.round(rng.uniform(0, 40, (count, 2)), int(rng.integers(0, 3)))
        np.testing.assert_array_equal(extreme_points(outline), brute(outline))
        mask = rng.random((12, 15)) < 0.3
        mask[5, 7] = True
        ys, xs = np.nonzero(mask)
        pixels = np.stack([xs, ys], 1).astype(np.float64)
        np.testing.assert_array_equal(extreme_points(pixels), brute(pixels))
