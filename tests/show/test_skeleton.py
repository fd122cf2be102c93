"""Points and lines: where they are, whose side they are of, and that they are seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kpjax.objects import Detections, Objects, PointSet
from kpjax.show import drawing
from kpjax.show.drawing import class_color, draw_objects
from kpjax.show.skeleton import LEFT, MIDDLE, RIGHT, SIDE_COLORS, draw_skeleton, point_colors, sides_of

NAMES = ("person",)
BODY = PointSet(("nose", "left_hand", "right_hand", "l_foot", "r_foot"), edges=((0, 1), (0, 2), (1, 2), (1, 3), (2, 4)))
XY = np.array([[[160.0, 60], [260, 100], [60, 100], [250, 200], [70, 200]]])


def person(seen: object = None, xy: np.ndarray = XY) -> Objects:
    boxes, one = np.array([[40.0, 40, 280, 220]]), np.ones(1, np.int32)
    return Objects(boxes, 0 * one, one, xy, None if seen is None else np.array([seen]))


def at(image: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    return tuple(image[int(y), int(x)].tolist())


def test_sides_follow_from_names_and_partners() -> None:
    assert sides_of(BODY) == (MIDDLE, LEFT, RIGHT, LEFT, RIGHT)
    assert sides_of(PointSet(("hand_r", "tail", "hand_l"))) == (RIGHT, MIDDLE, LEFT)
    assert sides_of(PointSet(("a", "b", "c"), mirror=(2, 1, 0))) == (LEFT, MIDDLE, RIGHT)
    plate = PointSet(("top left", "top right", "bottom right", "bottom left"))
    assert sides_of(plate) == (LEFT, RIGHT, RIGHT, LEFT)
    assert len({*point_colors(BODY, (1, 2, 3))}) == 3
    assert point_colors(PointSet(("a", "b")), (1, 2, 3)) == [(1, 2, 3)] * 2  # a set without sides


def test_points_and_lines_have_the_colours_of_their_sides() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    drawn = draw_objects(image, person(), NAMES, points=BODY)
    for (x, y), side in zip(XY[0], (MIDDLE, LEFT, RIGHT, LEFT, RIGHT), strict=True):
        assert at(drawn, x, y) == SIDE_COLORS[side]
    assert at(drawn, 160, 100) == SIDE_COLORS[MIDDLE]  # from hand to hand
    assert at(drawn, 210, 80) == SIDE_COLORS[LEFT] and at(drawn, 110, 80) == SIDE_COLORS[RIGHT]  # nose to hands
    assert at(drawn, 255, 150) == SIDE_COLORS[LEFT] and at(drawn, 65, 150) == SIDE_COLORS[RIGHT]
    assert at(drawn, 40, 130) == class_color(0)  # the box keeps its class's colour
    np.testing.assert_array_equal(drawn[120:140, 100:220], image[120:140, 100:220])


def test_points_without_sides_have_the_class_colour() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    for points in (None, PointSet(tuple("abcde"), edges=((1, 2),))):
        drawn = draw_objects(image, person(), NAMES, points=points)
        assert all(at(drawn, x, y) == class_color(0) for x, y in XY[0])
        assert (at(drawn, 160, 100) == class_color(0)) == (points is not None)


def test_hidden_points_are_rings_and_unlabelled_ones_are_missing() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    drawn = draw_objects(image, person([2, 1, 2, 0, 2]), NAMES, points=BODY)
    assert at(drawn, 260, 100) == (0, 0, 0) and at(drawn, 262, 100) == SIDE_COLORS[LEFT]
    assert at(drawn, 60, 100) == SIDE_COLORS[RIGHT]
    np.testing.assert_array_equal(drawn[150:210, 240:270], image[150:210, 240:270])  # neither the foot nor its line
    scores = np.array([[[0.9], [0.9], [0.01], [0.9], [0.9]]])
    found = Detections(person().boxes, np.array([0.9]), np.zeros(1, int), keypoints=np.concatenate([XY, scores], -1))
    drawn = draw_objects(image, found, NAMES, points=BODY)
    assert at(drawn, 260, 100) == SIDE_COLORS[LEFT]
    np.testing.assert_array_equal(drawn[95:106, 55:66], image[95:106, 55:66])  # scored too low


@pytest.mark.parametrize("line", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("background", [*SIDE_COLORS, (0, 0, 0)])
def test_lines_at_any_angle_are_seen_on_any_background(line: int, background: tuple[int, int, int]) -> None:
    """What is drawn differs from the background on both sides of every line, or is the line itself."""
    points = PointSet(("left", "right", "middle"), edges=((0, 2),))
    for degrees in range(0, 180, 5):
        picture = Image.new("RGB", (121, 121), background)
        away = 50 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        xy = np.stack([60.5 + away, [0.0, 0.0], 60.5 - away])
        there = np.array([True, False, True])
        draw_skeleton(ImageDraw.Draw(picture), xy, there, ~there, points, (9, 9, 9), (255, 255, 255), line)
        image = np.asarray(picture)
        differs = (image != background).any(-1)
        across = np.array([-away[1], away[0]]) / 50
        profile = [differs[tuple(np.floor(60.5 + s * across).astype(int)[::-1])] for s in np.arange(-9, 9.1, 0.25)]
        runs = np.flatnonzero(np.diff([0, *profile, 0]) == 1)
        on_its_own = background == SIDE_COLORS[LEFT]
        assert len(runs) == 1 + on_its_own, (degrees, line)  # two rims, or one line with or without rims
        assert (image == SIDE_COLORS[LEFT]).all(-1).any()


def test_side_colours_stand_out() -> None:
    assert all(drawing.contrast(color) == (0, 0, 0) for color in SIDE_COLORS)  # the rim they are drawn with
    near = [np.abs(np.subtract(a, b)).sum() for k, a in enumerate(SIDE_COLORS) for b in SIDE_COLORS[:k]]
    assert min(near) > 250


def test_small_objects_have_thin_skeletons_and_little_is_covered() -> None:
    side, rows = 1500, []
    for height in (1200.0, 300.0, 60.0, 25.0):
        scale = height / 180
        objects = person(xy=XY * scale + 200)  # off the border, where labels cover what is small
        objects = objects.replace(boxes=objects.boxes * scale + 200)
        image = np.full((side, round(side * 1.4), 3), 128, np.uint8)
        with_points = draw_objects(image, objects, NAMES, points=BODY)
        without = draw_objects(image, objects.replace(points=None), NAMES, points=BODY)
        rows.append(float((with_points != without).any(-1).sum() / (240 * 180 * scale**2)))
    assert rows == sorted(rows) and rows[1] < 0.2 and rows[-1] < 0.6


def test_points_anywhere_are_no_trouble() -> None:
    image = np.full((60, 60, 3), 128, np.uint8)
    xy = np.array([[[np.nan, 3], [np.inf, 1], [-1e30, 5], [-40, 9], [5e4, 30]]])
    drawn = draw_objects(image, person(xy=xy), NAMES, points=BODY)
    plain = draw_objects(image, person().replace(points=None), NAMES, points=BODY)
    np.testing.assert_array_equal(drawn, plain)
