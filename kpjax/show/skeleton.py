"""Drawing an object's points and the lines between them, its left and its right side in colours of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import ImageDraw

from kpjax.objects import PointSet

Color = tuple[int, int, int]
LEFT, RIGHT, MIDDLE = 0, 1, 2
# Told apart by any sort of colour vision, and each bright enough for a black rim.
SIDE_COLORS: tuple[Color, ...] = ((255, 140, 0), (70, 170, 255), (245, 245, 245))
_RIM = (0, 0, 0)
_FARTHEST = 1e5  # pixels; points beyond are no place that a picture could show


def sides_of(points: PointSet) -> tuple[int, ...]:
    """(J,) LEFT, RIGHT or MIDDLE: points that a mirror exchanges are of a side, which their names say.

    Where they do not, the first of two is LEFT.
    """

    def side(j: int, partner: int) -> int:
        if j == partner:
            return MIDDLE
        own, other = _is_left(points.names[j]), _is_left(points.names[partner])
        return LEFT if (own if own != other else j < partner) else RIGHT

    return tuple(side(j, partner) for j, partner in enumerate(points.mirror))


def point_colors(points: PointSet, color: Color) -> list[Color]:
    """The colours of J points: those of their sides, or `color` for all where a mirror exchanges none."""
    sides = sides_of(points)
    return [SIDE_COLORS[s] if set(sides) != {MIDDLE} else color for s in sides]


def draw_skeleton(
    canvas: ImageDraw.ImageDraw,
    xy: np.ndarray,
    there: np.ndarray,
    hidden: np.ndarray,
    points: PointSet | None,
    color: Color,
    rim: Color,
    line: int,
) -> None:
    """Draw an object's points, those that are `there`, as discs, those of them that are `hidden` as rings.

    xy: (J, 2) pixels.  there, hidden: (J,) bool.  points: what they are, and which are joined by lines.  A line
    between the sides, or from the middle to the middle, has the middle's colour, any other that of its side.  color,
    rim: of points that have no sides.  line: width in pixels; everything has a rim of the opposite brightness, so that
    it is seen on any background.
    """
    xy = np.asarray(xy, np.float64)
    there = there & (np.abs(xy) < _FARTHEST).all(-1)  # False for nan too
    colors, edges = [color] * len(xy), []
    if points is not None:
        colors, sides = point_colors(points, color), sides_of(points)
        sided = set(sides) != {MIDDLE}
        for a, b in points.edges:
            if there[a] and there[b]:
                side = sides[b] if sides[a] == MIDDLE else sides[a] if sides[b] in (MIDDLE, sides[a]) else MIDDLE
                edges.append((np.floor(xy[[a, b]]).ravel().tolist(), SIDE_COLORS[side] if sided else color))
        rim = _RIM if sided else rim
    draw_lines(canvas, edges, rim, line)
    disc = line + (line > 1)
    for j in np.flatnonzero(there):
        x, y = np.floor(xy[j]).tolist()
        radius = max(disc, 2) if hidden[j] else disc  # a smaller ring has no hole
        circles = [(radius + 1, rim), (radius, colors[j]), (radius // 2, rim)]
        for r, fill in circles if hidden[j] else circles[:2]:
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def draw_lines(
    canvas: ImageDraw.ImageDraw, lines: Sequence[tuple[Sequence[float], Color]], rim: Color, width: int
) -> None:
    """Draw lines, x1 y1 x2 y2 in whole pixels and a colour each, `width` pixels wide and with a rim of a pixel."""
    for (x1, y1, x2, y2), _ in lines:  # all rims first: lines that meet are not cut by them
        for dx, dy in itertools.product((-1, 0, 1), repeat=2):  # Pillow's wider line is at some angles no wider
            canvas.line((x1 + dx, y1 + dy, x2 + dx, y2 + dy), fill=rim, width=width)
    for ends, own in lines:
        canvas.line(ends, fill=own, width=width)


def _is_left(name: str) -> bool:
    name = name.casefold()
    return "left" in name or name.startswith("l_") or name.endswith("_l")
