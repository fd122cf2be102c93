"""Drawing objects into an image: boxes, labels, scores, points."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import HIDDEN, Detections, Objects, PointSet, Record, map_coordinates
from kpjax.show.octagon import octagon
from kpjax.show.skeleton import Color, draw_lines, draw_skeleton

Rect = tuple[float, float, float, float]
POINT_SCORE = 0.1  # a found point has to score more to be drawn
_LEGIBLE = 9  # pixels of text height; smaller letters cannot be read


def class_color(label: int) -> Color:
    """The RGB colour of a class: the same in every picture of every run, neighbours far apart in hue."""
    hue = (0.02 + label * 0.61803398875) % 1.0  # multiples of the golden ratio never crowd together
    value = (1.0, 0.8, 0.95)[label % 3]
    saturation = (0.85, 0.95, 0.55)[label // 3 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def contrast(color: Color) -> Color:
    """Black or white, whichever reads better on a colour (weights of Rec. 709)."""
    linear = [(c / 255) ** 2.2 for c in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)  # where both contrast ratios are equal


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class; its number where the names do not reach that far."""
    return names[label] if 0 <= label < len(names) else f"class {label}"


def line_width(side: float) -> int:
    """Pixels that lines are wide in a picture whose longer side has `side` pixels."""
    return max(1 + (side >= 200), round(side / 300))


def load_font(side: float, room: float) -> Any:
    """The font for letters in a picture whose longer side has `side` pixels; None where the shorter one, `room`, has
    too few for them."""
    size = max(_LEGIBLE + 1, round(side / 52))
    return ImageFont.load_default(size) if size * 2 <= room else None


def enlarge(image: np.ndarray, found: Record, least: int = 384) -> tuple[np.ndarray, Record]:
    """A small image (H, W, 3) and what is in it enlarged by a whole factor, so that labels leave room for objects.

    least: pixels that the longer side gets to, about; a larger image is returned as it is.
    """
    factor = max(1, round(least / max(image.shape[:2])))
    return image.repeat(factor, 0).repeat(factor, 1), map_coordinates(found, lambda xy: xy * factor)


def draw_objects(
    image: np.ndarray,
    found: Objects | Detections,
    names: Sequence[str],
    score_thr: float = 0.0,
    points: PointSet | None = None,
) -> np.ndarray:
    """Draw objects into a copy of an image: boxes with class names (and scores), and the points there are.

    image: (H, W, 3) uint8 RGB.  found: one image's `Detections`, or `Objects` (only names are written, empty slots and
    ignored regions are left out), NumPy, in the image's pixels; parts outside are cut.  names: class names; a label
    beyond them is written as its number.  Detections scored below `score_thr` are left out, and the best are drawn on
    top.  points: what the points are, see `draw_skeleton`; annotated ones that are hidden are drawn as rings, and
    extreme points with their octagon.  Lines and letters scale with the image, skeletons with their objects too; in an
    image too small for letters, there are none.

    Returns (H, W, 3) uint8.  Raises ValueError on an image of another kind, or arrays that do not match.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"draw_objects needs an (H, W, 3) uint8 image, not {image.shape} {image.dtype}")
    if isinstance(found, Objects):
        scores, least, shown, xy, point_least = found.valid, 0.5, found.seen, found.points, 0.0
    else:
        scores, least, shown, xy, point_least = found.scores, score_thr, None, None, POINT_SCORE
        if found.keypoints is not None:
            shown, xy = found.keypoints[..., 2], found.keypoints[..., :2]
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(found.labels).reshape(-1).astype(int)
    scores = np.asarray(scores, np.float64).reshape(-1)
    if not len(boxes) == len(labels) == len(scores):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels and {len(scores)} scores: give one of each a box")
    order = [i for i in np.argsort(scores, kind="stable") if scores[i] >= least and np.isfinite(boxes[i]).all()]

    height, width = image.shape[:2]
    line = line_width(max(height, width))
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    for i in order:
        _draw_box(canvas, boxes[i], class_color(labels[i]), line, width, height)
        if xy is not None:
            color, seen = class_color(labels[i]), np.full(len(xy[i]), np.inf) if shown is None else np.asarray(shown[i])
            hidden = (seen == HIDDEN) & isinstance(found, Objects)
            of_object = min(line, max(1, round(_side(boxes[i]) / 50)))
            if points == EXTREME_POINTS and (seen > point_least).all():
                corners = np.floor(octagon(np.asarray(xy[i], np.float64)))
                edges = np.concatenate([corners, np.roll(corners, -1, axis=0)], axis=1).tolist()
                draw_lines(canvas, [(edge, color) for edge in edges], contrast(color), of_object)
            # Extreme points have no sides of a body: they have their object's colour.
            sided = None if points == EXTREME_POINTS else points
            draw_skeleton(canvas, xy[i], seen > point_least, hidden, sided, color, contrast(color), of_object)
    font = load_font(max(height, width), min(height, width))
    if font is not None:
        taken: list[Rect] = []
        for i in reversed(order):  # the best one gets its place first
            name = class_name(names, labels[i])
            text = name if isinstance(found, Objects) else f"{name} {scores[i]:.2f}"
            draw_label(canvas, boxes[i], text, class_color(labels[i]), font, line, width, height, taken)
    return np.array(picture)


def _side(box: np.ndarray) -> float:
    """The side of the square that has a box's area."""
    return float(np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0)))


def _draw_box(canvas: ImageDraw.ImageDraw, box: np.ndarray, color: Color, line: int, width: int, height: int) -> None:
    x1, y1, x2, y2 = np.round(box).astype(np.int64)
    # xyxy are edges between pixels; the last pixel inside is one less
    x1, x2 = (int(min(max(v, 0), width - 1)) for v in (x1, x2 - 1))
    y1, y2 = (int(min(max(v, 0), height - 1)) for v in (y1, y2 - 1))
    x2, y2 = max(x1, x2), max(y1, y2)
    # a rim of the opposite brightness keeps the line visible on a background of its own colour
    canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=contrast(color))
    canvas.rectangle((x1, y1, x2, y2), outline=color, width=line)


def draw_label(
    canvas: ImageDraw.ImageDraw,
    box: Sequence[float] | np.ndarray,
    text: str,
    color: Color,
    font: Any,
    line: int,
    width: int,
    height: int,
    taken: list[Rect],
) -> None:
    """Write `text` at the first free place around the box that lies inside the image, and note it in `taken`.

    box: x1 y1 x2 y2 in pixels.  line: width of the box's lines.  width, height: of the image.
    """
    pad = 1 + line
    while len(text) > 1 and canvas.textlength(text, font) + 2 * pad > width:
        text = text.removesuffix("…")[:-1] + "…"
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    w, h = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, x2, y2 = box
    places = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x1, y2 - h), (x2 - w, y2 - h)]
    places += [(x1, y1 - 2 * h), (x1, y1 - 3 * h)]  # above the labels of others, with a line to the box
    places = [(min(max(x, 0), max(0, width - w)), min(max(y, 0), max(0, height - h))) for x, y in places]
    free = [(x, y) for x, y in places if not any(_overlap((x, y, x + w, y + h), other) for other in taken)]
    x, y = (round(float(v)) for v in (free or places)[0])
    taken.append((x, y, x + w, y + h))
    if y + h < y1 - 1:
        down = min(max(x1, x), x + w - 1)
        canvas.line((down, y + h, down, y1), fill=color)
    canvas.rectangle((x, y, x + w - 1, y + h - 1), fill=color)
    canvas.text((x + pad - left, y + pad - top), text, font=font, fill=contrast(color))


def _overlap(a: Rect, b: Rect) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
