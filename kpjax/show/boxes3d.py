"""Drawing 3D boxes: their wireframes in the image, and the scene seen from above (a bird's-eye view).

Boxes are (N, 7) x, y, z, h, w, l, yaw in metres and radians, in KITTI's frame, see `kpjax.objects.Detections`: x right,
y down, z forward, and x y z is the middle of the bottom.  Cameras are (3, 4) matrices that project metres to pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kpjax.data.kitti_files import KittiObjects
from kpjax.objects import Detections
from kpjax.show.drawing import Rect, class_color, class_name, contrast, draw_label, enlarge, line_width, load_font
from kpjax.show.skeleton import Color, draw_lines

NEAR = 0.1  # metres; what is nearer to the camera's plane, or behind it, is cut off
FARTHEST_REACH = 80  # metres that a bird's-eye view shows at most
_RING = 10  # metres between the rings of a bird's-eye view
_NO_PLACE = 1e3  # metres; larger or farther boxes are nothing that a picture could show
_OUTSIDE = 16  # pixels outside the image at which lines are cut
_FILL = 90  # of 255: how strongly faces are tinted
_PAPER, _INK, _GRID, _NEUTRAL = (250, 250, 250), (40, 40, 40), (205, 205, 205), (110, 110, 110)
_ANNOTATED = (225, 225, 225)  # in the image

# Of `corners`: pairs that an edge joins, and the front face.
_EDGES = tuple(e for k in range(4) for e in ((k, (k + 1) % 4), (k + 4, (k + 1) % 4 + 4), (k, k + 4)))
_FRONT = (0, 1, 5, 4)
_Line = tuple[np.ndarray, np.ndarray]  # its ends (2,) in pixels


def corners(boxes3d: Any) -> np.ndarray:
    """The corners of boxes (N, 7) in metres, (N, 8, 3) float64.

    The first four are those of the bottom: front left and right, rear right and left, as the object itself has its
    sides; the other four lie above them.
    """
    boxes = np.asarray(boxes3d, np.float64).reshape(-1, 7)
    height, width, length, yaw = boxes[:, 3:].T[..., None]
    ahead = length / 2 * np.array([1, 1, -1, -1] * 2)
    right = width / 2 * np.array([-1, 1, 1, -1] * 2)
    up = height * np.array([0] * 4 + [1] * 4)
    # In x z the front points to (cos yaw, -sin yaw), and the right side, which is towards -z at yaw 0, a quarter on.
    x = ahead * np.cos(yaw) - right * np.sin(yaw)
    z = -ahead * np.sin(yaw) - right * np.cos(yaw)
    return np.stack([x, -up, z], axis=-1) + boxes[:, None, :3]


def project(points: Any, camera: Any) -> np.ndarray:
    """Points (..., 3) in metres -> (..., 2) x y in pixels, float64; nan for those nearer than `NEAR`, or behind."""
    seen = _homogeneous(points, camera)
    ahead = seen[..., 2:] >= NEAR
    return np.where(ahead, seen[..., :2] / np.where(ahead, seen[..., 2:], 1), np.nan)


def boxes_of(annotated: KittiObjects) -> np.ndarray:
    """The 3D boxes (n, 7) float64 of a label file's objects; those without a size, as DontCare, are left out."""
    boxes = np.concatenate([annotated.location, annotated.size, annotated.yaw[:, None]], axis=1)
    return boxes[(annotated.size > 0).all(-1)]


def draw_boxes3d(
    image: np.ndarray,
    boxes3d: Any,
    labels: Any,
    camera: Any,
    names: Sequence[str],
    scores: Any = None,
    *,
    annotated: KittiObjects | None = None,
) -> np.ndarray:
    """Draw 3D boxes into a copy of an image, farther ones first, with class name, score and distance.

    image: (H, W, 3) uint8 RGB.  boxes3d: (N, 7).  labels: (N,) int.  camera: (3, 4).  names: class names; a label
    beyond them is written as its number.  scores: (N,); None: none are written.  annotated: drawn below, thin and
    grey, without text.  The front face is tinted.  Boxes are cut where they leave the image or come too near to the
    camera; those behind it are left out, and those with a value that is not finite, or of more than a kilometre.
    Lines and letters scale with the image.

    Returns (H, W, 3) uint8.  Raises ValueError on an image of another kind, or arrays that do not match.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"draw_boxes3d needs an (H, W, 3) uint8 image, not {image.shape} {image.dtype}")
    boxes, labels = _checked(boxes3d, labels)
    scores = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    if scores is not None and len(scores) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes and {len(scores)} scores: give one a box")
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture, "RGBA")  # blends colours that are not opaque
    if annotated is not None:
        truth = boxes_of(annotated)
        for i in _far_to_near(truth):
            _draw_wires(canvas, truth[i], camera, None, 1, width, height)
    line, font = _line_and_font(width, height)
    order = _far_to_near(boxes)
    around = {i: _draw_wires(canvas, boxes[i], camera, class_color(labels[i]), line, width, height) for i in order}
    if font is not None:
        taken: list[Rect] = []
        nearest = order[::-1]
        for i in nearest if scores is None else sorted(nearest, key=lambda i: -scores[i]):
            rectangle = around[i]
            if rectangle is not None:
                score = "" if scores is None else f" {scores[i]:.2f}"
                text = f"{class_name(names, labels[i])}{score} {_distances(boxes)[i]:.0f} m"
                draw_label(canvas, rectangle, text, class_color(labels[i]), font, line, width, height, taken)
    return np.array(picture)


def _checked(boxes3d: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = np.asarray(boxes3d, np.float64).reshape(-1, 7), np.asarray(labels).reshape(-1).astype(int)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels: give one a box")
    return boxes, labels


def _line_and_font(width: int, height: int) -> tuple[int, Any]:
    """The width of lines, and a font or None: smaller ones in wide images, where many objects stand side by side."""
    side = (width + height) / 2
    return line_width(side), load_font(side, min(width, height))


def _distances(boxes: np.ndarray) -> np.ndarray:
    """(N,) metres from the camera along the ground, as the rings of the bird's-eye view are."""
    return np.hypot(boxes[:, 0], boxes[:, 2])


def _far_to_near(boxes: np.ndarray) -> list[int]:
    """The numbers of the boxes that can be drawn, the farthest first."""
    with np.errstate(invalid="ignore"):
        drawn = (np.abs(boxes) < _NO_PLACE).all(-1)  # False for nan too
        return [i for i in np.argsort(-_distances(boxes), kind="stable").tolist() if drawn[i]]


def _homogeneous(points: Any, camera: Any) -> np.ndarray:
    """(..., 3) metres -> (..., 3): x and y in pixels, both times the depth, and the depth."""
    camera = np.asarray(camera, np.float64)
    return np.asarray(points, np.float64) @ camera[:, :3].T + camera[:, 3]


def _clipped(polygon: np.ndarray, camera: Any, width: int, height: int) -> np.ndarray:
    """The part (m, 2), in pixels, of a flat convex polygon (n, 3) in metres that lies before the camera and within
    `_OUTSIDE` pixels of the image; none: (0, 2).  Of two points, a line, both ends are returned.

    Each side of the view in turn cuts it, before the division by the depth (Sutherland and Hodgman).
    """
    points, closed = _homogeneous(polygon, camera), len(polygon) > 2
    sides = (
        (0, 0, 1, -NEAR),
        (1, 0, _OUTSIDE, 0),
        (-1, 0, width + _OUTSIDE, 0),
        (0, 1, _OUTSIDE, 0),
        (0, -1, height + _OUTSIDE, 0),
    )
    for *normal, offset in sides:
        within = points @ np.array(normal, np.float64) + offset
        if (within >= 0).all():
            continue
        kept = []
        for k, (point, a) in enumerate(zip(points, within, strict=True)):
            before, b = points[k - 1], within[k - 1]
            if (a >= 0) != (b >= 0) and (closed or k > 0):
                kept.append(before + (point - before) * (b / (b - a)))
            if a >= 0:
                kept.append(point)
        points = np.array(kept).reshape(-1, 3)
    return points[:, :2] / points[:, 2:]


def _draw_wires(
    canvas: ImageDraw.ImageDraw, box: np.ndarray, camera: Any, color: Color | None, line: int, width: int, height: int
) -> Rect | None:
    """Draw one box, without a colour grey and not tinted.

    Returns the rectangle x1 y1 x2 y2 around what is seen of it, None where that is nothing.
    """
    (points,) = corners(box)
    edges = [edge for a, b in _EDGES if len(edge := _clipped(points[[a, b]], camera, width, height))]
    if not edges:
        return None
    every = np.concatenate(edges)
    (x1, y1), (x2, y2) = np.maximum(every.min(0), 0), np.minimum(every.max(0), (width, height))
    if x1 >= x2 or y1 >= y2:
        return None
    front = _clipped(points[list(_FRONT)], camera, width, height)
    if len(front) > 2 and color is not None:
        canvas.polygon(np.floor(front).ravel().tolist(), fill=(*color, _FILL))
    own = min(line, max(1, round(math.sqrt((x2 - x1) * (y2 - y1)) / 40)))
    color = color or _ANNOTATED
    draw_lines(canvas, [(np.floor(edge).ravel().tolist(), color) for edge in edges], contrast(color), own)
    return float(x1), float(y1), float(x2), float(y2)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A bird's-eye view.  x, y: the camera's place in pixels.  scale: pixels a metre.  line: width of lines."""

    canvas: ImageDraw.ImageDraw
    width: int
    height: int
    x: float
    y: float
    scale: float
    line: int
    font: Any

    def at(self, xz: Any) -> np.ndarray:
        """(..., 2) x z in metres -> pixels."""
        return np.asarray(xz, np.float64) * (self.scale, -self.scale) + (self.x, self.y)


def birds_eye_view(
    boxes3d: Any,
    labels: Any,
    names: Sequence[str],
    size: tuple[int, int],
    reach: float | None = None,
    *,
    annotated: KittiObjects | None = None,
    camera: Any = None,
    image_width: int = 0,
) -> np.ndarray:
    """Draw the scene from above: the camera at the bottom in the middle, its axis upward, objects as rectangles.

    boxes3d: (N, 7).  labels: (N,) int, names: class names, for colours and legend.  size: (H, W) of the picture.
    reach: metres from the camera to the upper border; None: what all boxes need, see `reach_of`.  annotated: dashed
    and grey, below what was found.  camera, image_width: (3, 4), and the pixels that its image is wide: its field of
    view lies between two lines.  Rings are 10 m apart.  A line from the middle of a rectangle leaves it at the front.

    Returns (H, W, 3) uint8.  Raises ValueError where the arrays do not match.
    """
    boxes, labels = _checked(boxes3d, labels)
    truth = np.zeros((0, 7)) if annotated is None else boxes_of(annotated)
    reach = reach_of(np.concatenate([boxes, truth]), size) if reach is None else reach
    height, width = size
    picture = Image.new("RGB", (width, height), _PAPER)
    y = height - _foot(height)
    line, font = _line_and_font(width, height)
    panel = _Panel(ImageDraw.Draw(picture, "RGBA"), width, height, width / 2, y, y / reach, (line + 1) // 2, font)
    _draw_ground(panel, camera, image_width)
    for i in _far_to_near(truth):
        _draw_above(panel, truth[i], None)
    order = _far_to_near(boxes)
    for i in order:
        _draw_above(panel, boxes[i], class_color(labels[i]))
    if font is not None:
        what = "" if annotated is None else ", found"
        rows: list[tuple[str, Color | None]] = [
            (class_name(names, k) + what, class_color(k)) for k in sorted({int(labels[i]) for i in order})
        ]
        _draw_legend(panel, rows if annotated is None else [*rows, ("annotated", None)])
    return np.array(picture)


def reach_of(boxes3d: Any, size: tuple[int, int]) -> int:
    """Metres that a bird's-eye view of `size` (H, W) has to reach for these boxes: a multiple of 10, at most 80.

    Boxes behind the camera, or farther than 80, do not count; 40 where there are no others.
    """
    boxes = np.asarray(boxes3d, np.float64).reshape(-1, 7)
    ahead = boxes[[i for i in _far_to_near(boxes) if 0 < boxes[i, 2] <= FARTHEST_REACH]]
    if not len(ahead):
        return 4 * _RING
    points, (height, width) = corners(ahead), size
    aside = np.abs(points[..., 0]).max() * (height - _foot(height)) / (width / 2)
    return min(max(1, math.ceil(max(points[..., 2].max(), aside) / _RING)) * _RING, FARTHEST_REACH)


def _foot(height: int) -> float:
    """Pixels below the camera's place in a bird's-eye view."""
    return height / 25


def _draw_ground(panel: _Panel, camera: Any, image_width: int) -> None:
    """Rings with their distances, the lines between which the camera sees, and the camera."""
    farthest = math.hypot(panel.width / 2, panel.height) / panel.scale
    rings = range(_RING, math.ceil(farthest), _RING)
    for ring in rings:
        r = ring * panel.scale
        panel.canvas.arc((panel.x - r, panel.y - r, panel.x + r, panel.y + r), 180, 360, fill=_GRID)
    right = 0.0  # the angle from the axis at which distances are written
    if camera is not None:
        p, far = np.asarray(camera, np.float64), 2 * farthest
        for column in (0, image_width):
            # (p00 x + p02 z + p03) / (p20 x + p22 z + p23) is the column of a point at x 0 z
            a, _, b, c = column * p[2] - p[0]
            start, end = (-(b * z + c) / a for z in (0, far))
            panel.canvas.line((*panel.at((start, 0)), *panel.at((end, far))), fill=_NEUTRAL)
        right = math.atan2(end, far)
    if panel.font is not None:
        for ring in rings:
            text = f"{ring} m"
            most = (panel.width / 2 - panel.canvas.textlength(text, panel.font) - 4) / panel.scale
            x = min(ring * math.sin(right), most)
            if x > -ring:
                place = panel.at((x, math.sqrt(ring**2 - x**2)))
                panel.canvas.text((place[0] + 4, place[1]), text, font=panel.font, fill=_INK, anchor="lm")
    foot = panel.height - panel.y
    bottom = (panel.x - foot / 2, panel.height - 1, panel.x + foot / 2, panel.height - 1)
    panel.canvas.polygon((panel.x, panel.y, *bottom), fill=_INK)


def _draw_above(panel: _Panel, box: np.ndarray, color: Color | None) -> None:
    """Draw a box's rectangle on the ground and a line to its front and a little on; dashed where it has no colour."""
    ground = panel.at(corners(box)[0, :4, [0, 2]].T)
    middle, front = ground.mean(0), ground[:2].mean(0)
    ahead = (front - middle) / max(math.hypot(*(front - middle)), 1e-6)
    _draw_outline(panel, ground, [(middle, front + ahead * (2 + 3 * panel.line))], color)


def _draw_outline(panel: _Panel, polygon: np.ndarray, more: Sequence[_Line], color: Color | None) -> None:
    """Draw a polygon (n, 2) in pixels, tinted, and more lines; without a colour dashed, grey and not tinted."""
    lines = [*zip(polygon, np.roll(polygon, -1, axis=0), strict=True), *more]
    if color is None:
        lines = [part for a, b in lines for part in _dashes(a, b, 2 * panel.line + 1)]
    else:
        panel.canvas.polygon(np.floor(polygon).ravel().tolist(), fill=(*color, _FILL))
    whole = [(np.floor([*a, *b]).tolist(), color or _NEUTRAL) for a, b in lines]
    draw_lines(panel.canvas, whole, _PAPER if color is None else contrast(color), panel.line)


def _dashes(a: np.ndarray, b: np.ndarray, length: int) -> list[_Line]:
    """The line from a to b as dashes of `length` pixels, gaps as long as they; the ends are drawn."""
    count = 2 * max(1, round(math.hypot(*(b - a)) / length / 2)) - 1
    ends = a + (b - a) * np.linspace(0, 1, count + 1)[:, None]
    return [(ends[k], ends[k + 1]) for k in range(0, count, 2)]


def _draw_legend(panel: _Panel, rows: Sequence[tuple[str, Color | None]]) -> None:
    """Write what the colours mean at the bottom left, as many rows as half the height has room for."""
    side, step = panel.font.size, round(1.4 * panel.font.size)
    rows = rows[-max(1, panel.height // 2 // step) :]
    for k, (text, color) in enumerate(rows):
        x, y = side, panel.height - side - step * (len(rows) - k - 0.5)
        swatch = np.array([(x, y - side / 2), (x + side, y - side / 2), (x + side, y + side / 2), (x, y + side / 2)])
        _draw_outline(panel, swatch, [], color)
        panel.canvas.text((x + 1.6 * side, y), text, font=panel.font, fill=_INK, anchor="lm")


def draw_scene(
    image: np.ndarray,
    found: Detections,
    camera: Any,
    names: Sequence[str],
    score_thr: float = 0.0,
    annotated: KittiObjects | None = None,
) -> np.ndarray:
    """One picture of an image with its 3D boxes and of the scene from above, (H', W', 3) uint8.

    image: (H, W, 3) uint8 RGB; a small one is enlarged.  found: one image's detections with boxes3d, NumPy; those that
    score less than `score_thr` are left out.  camera: (3, 4), to pixels of the image.  annotated: what is there.
    The view from above is on the right, as high as the image, or below it and as wide, where the image is twice as wide
    as high.  H' and W' follow from H and W alone.
    """
    large, shown = enlarge(image, found)
    to_large = np.array([large.shape[1] / image.shape[1], large.shape[0] / image.shape[0], 1])
    camera = np.asarray(camera, np.float64) * to_large[:, None]
    keep = np.asarray(shown.scores) >= score_thr
    boxes, labels, scores = (np.asarray(x)[keep] for x in (shown.boxes3d, shown.labels, shown.scores))
    drawn = draw_boxes3d(large, boxes, labels, camera, names, scores, annotated=annotated)
    height, width = drawn.shape[:2]
    below = width >= 2 * height
    size = (width // 2, width) if below else (height, min(height, max(width, height // 2)))
    view = birds_eye_view(boxes, labels, names, size, annotated=annotated, camera=camera, image_width=width)
    return np.concatenate([drawn, view], axis=0 if below else 1)
