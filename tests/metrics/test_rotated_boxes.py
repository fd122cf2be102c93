"""Areas and volumes that rotated boxes share: shapely's, and those that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from kpjax.metrics import rotated_boxes
from kpjax.metrics.rotated_boxes import ground, intersection_areas, intersections


def polygons(rectangles: np.ndarray) -> np.ndarray:
    """Shapely's polygons of rectangles (n, 5), by rotating the four corners."""

    def polygon(x: float, z: float, length: float, width: float, yaw: float) -> shapely.Polygon:
        along, across = np.array([math.cos(yaw), -math.sin(yaw)]), np.array([math.sin(yaw), math.cos(yaw)])
        signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
        return shapely.Polygon([(x, z) + s * length / 2 * along + t * width / 2 * across for s, t in signs])

    return np.array([polygon(*row) for row in rectangles])


def shapely_areas(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) of rectangles (n, 5) and (m, 5)."""
    return shapely.area(shapely.intersection(polygons(a)[:, None], polygons(b)[None]))


def random_rectangles(rng: np.random.Generator, count: int, spread: float = 3.0) -> np.ndarray:
    places, sides = rng.uniform(-spread, spread, (count, 2)), rng.uniform(0.1, 5, (count, 2))
    return np.concatenate([places, sides, rng.uniform(-7, 7, (count, 1))], axis=1)


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
def test_areas_are_shapelys(spread: float) -> None:
    rng = np.random.default_rng(0)
    a, b = random_rectangles(rng, 60, spread), random_rectangles(rng, 50, spread)
    expected = shapely_areas(a, b)
    assert (expected > 0).any() and (spread < 10 or (expected == 0).any())
    np.testing.assert_allclose(intersection_areas(a[:, None], b), expected, rtol=0, atol=1e-12)


def test_areas_of_rectangles_whose_sides_coincide_are_shapelys() -> None:
    """On a grid of half metres and eighths of a turn, where sides lie on each other and corners on sides."""
    rng = np.random.default_rng(1)
    a, b = (
        np.concatenate(
            [
                rng.integers(-2, 3, (60, 2)) / 2,
                rng.integers(1, 5, (60, 2)) / 2,
                rng.integers(-8, 9, (60, 1)) * np.pi / 4,
            ],
            axis=1,
        )
        for _ in range(2)
    )
    np.testing.assert_allclose(intersection_areas(a[:, None], b), shapely_areas(a, b), rtol=0, atol=1e-12)


def test_pairs_far_from_the_origin_and_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    a, b = random_rectangles(rng, 30), random_rectangles(rng, 30)
    expected = intersection_areas(a[:, None], b)
    monkeypatch.setattr(rotated_boxes, "_AT_ONCE", 7)
    np.testing.assert_array_equal(intersection_areas(a[:, None], b), expected)
    np.testing.assert_array_equal(intersection_areas(a, b), expected.diagonal())
    np.testing.assert_allclose(intersection_areas(b[:, None], a), expected.T, rtol=0, atol=1e-12)
    far = np.array([4096.0, -1024.0, 0, 0, 0])
    np.testing.assert_allclose(intersection_areas((a + far)[:, None], b + far), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("yaw", [0.0, 0.3, np.pi / 2, -2.0, 100.0])
def test_known_areas(yaw: float) -> None:
    def area(b: list[float], a: tuple[float, ...] = (0, 0, 4, 2, 0)) -> float:
        """Shared by a and b, both moved by a turn of `yaw` around (3, -7)."""
        rows = np.array([a, b], np.float64)
        cos, sin = math.cos(yaw), math.sin(yaw)
        x, z = rows[:, 0].copy(), rows[:, 1].copy()
        rows[:, 0], rows[:, 1], rows[:, 4] = 3 + cos * x + sin * z, -7 - sin * x + cos * z, rows[:, 4] + yaw
        return float(intersection_areas(rows[0], rows[1]))

    assert area([0, 0, 4, 2, 0]) == 8  # itself, to the last bit
    assert area([0, 0, 4, 2, np.pi]) == pytest.approx(8, abs=1e-13)
    assert area([0, 0, 4, 2, 1e-13]) == pytest.approx(8, abs=1e-11)
    assert area([0.5, 0.2, 1, 0.5, 0.7]) == pytest.approx(0.5, abs=1e-13)  # nested
    assert area([0, 0, 9, 9, 0.7]) == pytest.approx(8, abs=1e-13)  # nested the other way round
    assert area([0, 0, 4, 2, np.pi / 2]) == pytest.approx(4, abs=1e-13)  # a cross
    assert area([1, 0.5, 4, 2, 0]) == pytest.approx(4.5, abs=1e-13)
    assert area([0, 0, 2, 2, np.pi / 4], a=(0, 0, 2, 2, 0)) == pytest.approx(8 * (math.sqrt(2) - 1))  # an octagon
    assert area([4, 0, 4, 2, 0]) == pytest.approx(0, abs=1e-13)  # touches along a side
    assert area([4, 2, 4, 2, 0]) == pytest.approx(0, abs=1e-13)  # touches with a corner
    assert area([4.001, 0, 4, 2, 0]) == 0 and area([100, 0, 4, 2, 0]) == 0
    assert area([0, 0, 0, 2, 0]) == 0 and area([0, 0, 4, 0, 0.5]) == 0 and area([0, 0, 0, 0, 0]) == 0
    assert area([0, 0, -4, -2, 0]) == 8 and area([1, 0, -4, 2, 0]) == pytest.approx(6, abs=1e-13)


def test_rectangles_without_an_area_share_none() -> None:
    rng = np.random.default_rng(3)
    a, b = random_rectangles(rng, 50), random_rectangles(rng, 50)
    a[:, 2] = 0
    for areas in (intersection_areas(a[:, None], b), intersection_areas(b[:, None], a)):
        np.testing.assert_array_equal(areas, np.zeros((50, 50)))


def test_the_length_lies_along_minus_z_after_a_quarter_turn() -> None:
    turned = np.array([0, 0, 10, 1, 0.25])
    ahead = np.array([[4 * math.cos(0.25), -4 * math.sin(0.25)], [4 * math.cos(0.25), 4 * math.sin(0.25)]])
    probes = np.concatenate([ahead, np.full((2, 2), 0.1), np.zeros((2, 1))], axis=1)
    np.testing.assert_allclose(intersection_areas(turned, probes), [0.01, 0], atol=1e-15)


def test_shapes() -> None:
    assert intersection_areas(np.zeros(5), np.zeros(5)).shape == ()
    assert intersection_areas(np.zeros((0, 1, 5)), np.zeros((3, 5))).shape == (0, 3)
    areas, volumes = intersections(np.zeros((2, 1, 7)), np.zeros((3, 7)))
    assert areas.shape == volumes.shape == (2, 3)


def test_volumes_are_areas_times_the_common_height() -> None:
    box = np.array([1.0, 1.5, 20.0, 1.5, 2.0, 4.0, 0.3])  # from y = 0 to y = 1.5, 8 m2

    def shared(y: float, height: float) -> tuple[float, float]:
        other = box.copy()
        other[1], other[3] = y, height
        area, volume = intersections(box, other)
        return float(area), float(volume)

    assert shared(1.5, 1.5) == (8, 12)
    assert shared(2.0, 1.0) == (8, 4)  # from 1 to 2
    assert shared(1.0, 0.5) == (8, 4)  # inside
    assert shared(0.0, 1.0) == (8, 0) and shared(-5.0, 1.0) == (8, 0)  # above
    assert shared(1.0, -0.5) == (8, 0)  # of negative height
    np.testing.assert_array_equal(ground(box), [1, 20, 4, 2, 0.3])
