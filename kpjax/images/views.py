"""Geometry of the test-time input: which canvas an image gets, how it is placed there, and back.

A `View` is the whole recipe of one image: image -> (resize) -> (zoom and shift) -> canvas.
Points are (x, y), sizes (height, width), matrices 2x3 as OpenCV takes them: x' = m (x, y, 1).
All of it runs on the host, in NumPy, on uint8 pixels; the device gets finished canvases.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kpjax.errors import ConfigError
from kpjax.images.preprocess import Preprocess
from kpjax.objects import Record, map_coordinates

Size = tuple[int, int]  # (height, width)


@dataclasses.dataclass(frozen=True)
class View:
    """How one image reaches its canvas.

    image: size of the image.  resized: size after `cv2.resize` (equal to image: no resize).
    canvas: size of the network's input.
    zoom, shift: canvas x = zoom * resized x + shift[0], and y with shift[1].
    shrink: (x, y): resized pixels an image pixel, which divides the boxes on the way back.
    window: (top, left, bottom, right) of the canvas that the image may cover; the rest is border.
    """

    image: Size
    resized: Size
    canvas: Size
    zoom: float
    shift: tuple[float, float]
    shrink: tuple[float, float]
    window: tuple[int, int, int, int]

    def to_image(self, record: Record) -> Record:
        """The record (`Detections`, ...; NumPy) with its boxes and points in the image's own pixels, float32.

        Boxes are not clipped to the image: the original CenterNet does not clip, and neither its published AP nor
        the golden cases do.
        """
        return map_coordinates(record, self.xy_to_image)

    def to_canvas(self, record: Record) -> Record:
        """The inverse of `to_image`: from the image's pixels to the canvas's."""
        return map_coordinates(record, self.xy_to_canvas)

    def xy_to_image(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) x y, or (..., 4) two of them, in canvas pixels -> float32 in the image's own pixels."""
        shift, shrink = (np.tile(np.asarray(v, np.float64), xy.shape[-1] // 2) for v in (self.shift, self.shrink))
        return ((np.asarray(xy, np.float64) - shift) / self.zoom / shrink).astype(np.float32)

    def xy_to_canvas(self, xy: np.ndarray) -> np.ndarray:
        """The inverse of `xy_to_image`."""
        shift, shrink = (np.tile(np.asarray(v, np.float64), xy.shape[-1] // 2) for v in (self.shift, self.shrink))
        return (np.asarray(xy, np.float64) * shrink * self.zoom + shift).astype(np.float32)


def keep_view(preprocess: Preprocess, image: Size, scale: float = 1.0, max_side: int = 0) -> View:
    """The view that keeps an image's resolution: a padded canvas and a whole-pixel shift.

    The canvas is `preprocess.canvas` of each side, and the image's middle pixel `side // 2` lies
    on the canvas's `canvas // 2` (top left corner where `preprocess.centred` is false).

    scale: the test scale; sides become int(side * scale), as in the originals, which divide boxes
        by `scale` itself and not by the ratio of the rounded sides (kept: published multi-scale AP).
    max_side: an image whose longer side is larger is first shrunk to it; 0: never.
    """
    resized, shrink = _resized(image, scale, max_side)
    canvas = (preprocess.canvas(resized[0]), preprocess.canvas(resized[1]))
    top, left = (c // 2 - r // 2 if preprocess.centred else 0 for c, r in zip(canvas, resized, strict=True))
    return View(
        image=image,
        resized=resized,
        canvas=canvas,
        zoom=1.0,
        shift=(float(left), float(top)),
        shrink=shrink,
        window=(top, left, top + resized[0], left + resized[1]),
    )


def fixed_view(image: Size, canvas: Size, scale: float = 1.0, side: int = 0, max_side: int = 0) -> View:
    """The view that warps an image onto one canvas, aspect ratio kept (the originals' fix_res).

    The square of `side` pixels (0: of the longer side of the image) around the image's centre fills the canvas's width.
    With a test scale the image is resized first, the square is not (golden: fn_ctnet_affine_preprocess).
    max_side: as in `keep_view`.
    """
    resized, shrink = _resized(image, scale, max_side)
    matrix = affine((resized[1] / 2, resized[0] / 2), float(side or max(image)), canvas)
    return View(
        image=image,
        resized=resized,
        canvas=canvas,
        zoom=float(matrix[0, 0]),
        shift=(float(matrix[0, 2]), float(matrix[1, 2])),
        shrink=shrink,
        window=(0, 0, *canvas),
    )


def stretched_view(image: Size, canvas: Size) -> View:
    """The view that resizes an image to the canvas, each side by itself, its aspect ratio not kept."""
    return View(
        image=image,
        resized=canvas,
        canvas=canvas,
        zoom=1.0,
        shift=(0.0, 0.0),
        shrink=(canvas[1] / image[1], canvas[0] / image[0]),
        window=(0, 0, *canvas),
    )


def make_view(
    preprocess: Preprocess,
    image: Size,
    *,
    resolution: str = "keep",
    fixed: Size = (512, 512),
    max_side: int = 0,
    scale: float = 1.0,
) -> View:
    """The view of `config.eval.resolution`; `fixed` is the size of the fixed canvas.

    An image that is stretched to it (`preprocess.fills`) has no test scale.
    """
    if resolution == "keep":
        if preprocess.one_canvas and preprocess.fills != "both":
            return fixed_view(image, fixed, scale, side=fixed[1], max_side=max_side)
        return keep_view(preprocess, image, scale, max_side)
    if resolution == "fixed" and preprocess.fills == "both":
        return stretched_view(image, fixed)
    if resolution == "fixed":
        return fixed_view(image, fixed, scale, side=image[1] if preprocess.fills == "width" else 0)
    raise ConfigError(f"resolution is {resolution!r}; choose one of 'keep', 'fixed'")


def share_canvases(views: Sequence[View], most: int, preprocess: Preprocess) -> list[View]:
    """The views on at most `most` canvases, some larger than their own: fewer programs, slightly different detections.

    Canvases are joined two at a time, each time those that add the fewest pixels over all views.
    Views of a fixed resolution share one canvas as they are.
    """
    if not views:
        return []
    counted = sorted(collections.Counter(v.canvas for v in views).items())
    count = len(counted)
    # One row a canvas (height, width, views); a joined one is appended, and the two it was made of are retired.
    table = np.zeros((2 * count, 3), np.int64)
    table[:count] = [(*canvas, number) for canvas, number in counted]
    used, became = np.arange(2 * count) < count, np.arange(2 * count)
    never = np.iinfo(np.int64).max
    # For each row, the earlier one that is cheapest to join it with.  Most stay valid after a step, so that all steps
    # together cost about the square of the number of canvases, of which evaluations have thousands.
    cost, partner = np.full(2 * count, never), np.zeros(2 * count, np.int64)

    def look(row: int) -> None:
        others = np.flatnonzero(used[:row])
        cost[row] = never
        if others.size:
            sides = np.maximum(table[others, :2], table[row, :2])
            number = table[others, 2] + table[row, 2]
            added = sides.prod(1) * number - table[others].prod(1) - table[row].prod()
            cost[row], partner[row] = added.min(), others[added.argmin()]

    for row in range(count):
        look(row)
    for new in range(count, 2 * count - max(most, 1)):
        late = int(cost.argmin())
        pair = [late, int(partner[late])]
        table[new] = (*table[pair, :2].max(0), table[pair, 2].sum())
        used[pair], used[new], became[pair] = False, True, new
        cost[late] = cost[pair[1]] = never
        for row in np.flatnonzero(used & np.isin(partner, pair)).tolist():
            look(row)
        look(new)
    for row in range(2 * count - 1, -1, -1):  # rows are joined into later ones only
        became[row] = became[became[row]]
    goal = {
        canvas: (int(table[last, 0]), int(table[last, 1])) for (canvas, _), last in zip(counted, became, strict=False)
    }
    return [_on_canvas(view, goal[view.canvas], preprocess) for view in views]


def _on_canvas(view: View, canvas: Size, preprocess: Preprocess) -> View:
    if canvas == view.canvas:
        return view
    height, width = view.resized
    top, left = (c // 2 - r // 2 if preprocess.centred else 0 for c, r in zip(canvas, view.resized, strict=True))
    window = (top, left, top + height, left + width)
    return dataclasses.replace(view, canvas=canvas, shift=(float(left), float(top)), window=window)


def place(image: np.ndarray, view: View, preprocess: Preprocess) -> np.ndarray:
    """(H, W, 3) uint8 image -> its canvas, uint8, in the same channel order (of a border: RGB).

    Raises ValueError where the image is not of the size that the view was made for.
    """
    if image.shape[:2] != view.image:
        got, want = image.shape[:2], view.image
        raise ValueError(f"the image is {got[1]}x{got[0]} pixels where {want[1]}x{want[0]} were expected")
    if view.resized != view.image:
        import cv2  # only where pixels are interpolated: a plain canvas needs NumPy alone

        image = cv2.resize(image, view.resized[::-1], interpolation=cv2.INTER_LINEAR)
    border = tuple(round(v) for v in preprocess.border_rgb())
    top, left, bottom, right = view.window
    if view.zoom == 1.0 and view.shift == (left, top) and view.resized == (bottom - top, right - left):
        canvas = np.zeros((*view.canvas, 3), np.uint8)
        if any(border):
            canvas[:] = border
        canvas[top:bottom, left:right] = image
        return canvas
    import cv2

    matrix = np.array([[view.zoom, 0, view.shift[0]], [0, view.zoom, view.shift[1]]])
    return cv2.warpAffine(
        image, matrix, view.canvas[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )


def affine(
    center: tuple[float, float], scale: float, canvas: Size, rotation: float = 0.0, inverse: bool = False
) -> np.ndarray:
    """The 2x3 float64 matrix that brings a square of side `scale` around `center` onto a canvas's width.

    center: (x, y) in image pixels; it lands on the canvas's middle.  rotation: degrees.  One factor,
    canvas width / scale, serves both axes (as in xingyizhou's get_affine_transform).
    inverse: from the canvas to the image.
    """
    height, width = canvas
    k = width / scale
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    turn = k * np.array([[cos, sin], [-sin, cos]])
    middle = np.array([width / 2, height / 2])
    if inverse:
        turn = turn.T / k**2
        return np.column_stack([turn, np.asarray(center, np.float64) - turn @ middle])
    return np.column_stack([turn, middle - turn @ np.asarray(center, np.float64)])


def _resized(image: Size, scale: float, max_side: int) -> tuple[Size, tuple[float, float]]:
    height, width = image
    if max_side and max(image) > max_side:
        factor = max_side / max(image)
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
    new = (max(1, int(height * scale)), max(1, int(width * scale)))
    return new, (scale * width / image[1], scale * height / image[0])
