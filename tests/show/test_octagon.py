"""The octagon of four extreme points, and that pictures show it."""

from __future__ import annotations

import numpy as np

from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import Detections
from kpjax.show.drawing import class_color, draw_objects
from kpjax.show.octagon import octagon

POINTS = np.array([(50, 10), (10, 40), (60, 90), (90, 30)], np.float64)


def test_an_edge_through_each_point_and_one_between_each_two() -> None:
    np.testing.assert_array_equal(
        octagon(POINTS), [(40, 10), (60, 10), (90, 20), (90, 40), (70, 90), (50, 90), (10, 50), (10, 30)]
    )


def test_edges_end_at_the_corners_of_the_box() -> None:
    corner = np.array([(12, 10), (10, 88), (88, 90), (90, 12)], np.float64)
    np.testing.assert_array_equal(
        octagon(corner), [(10, 10), (22, 10), (90, 10), (90, 22), (90, 90), (78, 90), (10, 90), (10, 78)]
    )


def test_it_is_drawn_where_all_points_are_found() -> None:
    found = Detections(
        boxes=np.array([[10, 10, 90, 90]], np.float32),
        scores=np.array([0.9], np.float32),
        labels=np.array([1]),
        keypoints=np.concatenate([POINTS, np.full((4, 1), 0.8)], axis=1)[None].astype(np.float32),
    )
    image = np.full((100, 100, 3), 128, np.uint8)
    drawn = draw_objects(image, found, ("a", "b"), points=EXTREME_POINTS)
    # Half way between the ends of two edges: inside the box, on the octagon alone.
    for x, y in ((75, 15), (25, 20), (30, 70), (80, 65)):
        near = drawn[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
        assert (near == class_color(1)).all(1).any(), (x, y)
    found.keypoints[0, 2, 2] = 0.0
    assert (draw_objects(image, found, ("a", "b"), points=EXTREME_POINTS)[70, 30] == 128).all()
