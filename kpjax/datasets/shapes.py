"""Making a data set of drawn shapes (`make demo`), in COCO's format: JPEG files and instances JSON.

Five classes that differ by outline alone; colour, texture, size and place do not
depend on the class.  Image `index` of a split is a pure function of
(seed, split, index, size, sides), so that a longer set begins with the shorter one and any
seed gives a set of its own.

An image holds one to six objects, or none (every tenth image).  Box sides lie between two
fractions of the image's side, 1/8 and 1/2 if nothing else is asked for; objects may overlap,
and later ones cover earlier ones.  Where large objects leave no room, an image holds fewer.
A box is the tight extent of the whole outline, hidden parts included, and the outline
is there as a polygon; at least `MIN_VISIBLE` of every object's area can be seen.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kpjax.datasets.drawn_set import EMPTY_EVERY, image_rng, write_set
from kpjax.datasets.surfaces import SUB, paint, random_colour, surface, to_pixels
from kpjax.errors import ConfigError

CLASSES = ("ellipse", "rectangle", "triangle", "star", "cross")
SIDES = (1 / 8, 1 / 2)  # of a box, as fractions of the image's side
MAX_OBJECTS = 6
MIN_VISIBLE = 0.5
MAX_ROTATION = math.radians(15)
_TRIES = 30
_LEAST = 4  # pixels of a side; smaller outlines cannot be told apart
_VERSION = 1  # of the drawing: raise it whenever an image of a given seed changes


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn image: image (S, S, 3) uint8 RGB; boxes (n, 4) float32 xyxy in pixels; labels (n,)
    int32 into `CLASSES`; areas (n,) float32, pixels inside the whole outline; outlines n polygons
    (V, 2) float64 x y in pixels; visible (n,) float32, the share of each object that no later one
    covers."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    outlines: tuple[np.ndarray, ...]
    visible: np.ndarray


def render(seed: int, split: str, index: int, size: int = 128, sides: tuple[float, float] = SIDES) -> Scene:
    """Draw image `index` of a split, `size` pixels square.

    sides: the least and the largest side of a box, as fractions of the image's side.
    Raises ConfigError on settings out of range.
    """
    _check_sides(sides, size)
    rng = image_rng(seed, split, index, size)
    canvas = surface(rng, size, size, random_colour(rng), strength=45.0)
    owner = np.full((size, size), -1, np.int8)  # which object a pixel shows
    full: list[int] = []  # pixels of each object, covered or not
    boxes: list[list[int]] = []
    labels: list[int] = []
    areas: list[float] = []
    outlines: list[np.ndarray] = []
    count = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        for _ in range(_TRIES):
            mask, x0, y0, outline = _place(rng, label, size, sides)
            coverage, left, top = to_pixels(mask, x0, y0)
            window = np.s_[top : top + coverage.shape[0], left : left + coverage.shape[1]]
            solid = coverage >= 0.5
            covered = np.bincount(owner[window][solid & (owner[window] >= 0)], minlength=len(full))
            shown = [int(np.count_nonzero(owner == k)) for k in range(len(full))]
            if all(s - c >= MIN_VISIBLE * f for s, c, f in zip(shown, covered, full, strict=True)):
                break
        else:
            continue  # no room left: the image keeps the objects it has; the first one always fits
        paint(rng, canvas[window], coverage)
        owner[window][solid] = len(full)
        full.append(int(np.count_nonzero(solid)))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1])
        areas.append(float(np.count_nonzero(mask)) / SUB**2)
        labels.append(label)
        outlines.append(outline)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)  # a camera's noise, over everything alike
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4) / SUB,
        labels=np.asarray(labels, np.int32),
        areas=np.asarray(areas, np.float32),
        outlines=tuple(outlines),
        visible=np.asarray([np.count_nonzero(owner == k) / f for k, f in enumerate(full)], np.float32),
    )


def write(
    out_dir: str,
    train: int = 1000,
    val: int = 200,
    size: int = 128,
    seed: int = 0,
    sides: tuple[float, float] = SIDES,
) -> bool:
    """Write both splits; see `write_set` for the files, for what is returned, and for what is raised, `render` for
    the sides."""
    _check_sides(sides, size)
    categories = [{"id": k + 1, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES)]
    generator: dict[str, Any] = {"generator": "kpjax shapes", "version": _VERSION, "outlines": "polygons"}
    if sides != SIDES:  # a set of the usual sides stays complete
        generator["sides"] = list(sides)

    def draw(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
        return _draw(render(seed, split, index, size, sides))

    return write_set(out_dir, "shapes", generator, draw, categories, train=train, val=val, size=size, seed=seed)


def _draw(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image and its annotations in COCO's terms."""
    rows = zip(scene.boxes.tolist(), scene.labels.tolist(), scene.areas.tolist(), scene.outlines, strict=True)
    return scene.image, [
        {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "segmentation": [np.round(outline, 2).reshape(-1).tolist()],
        }
        for (x1, y1, x2, y2), label, area, outline in rows
    ]


def _outline(label: int) -> np.ndarray:
    """Vertices (V, 2) of a class's outline, upright, y down."""
    if CLASSES[label] == "rectangle":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    if CLASSES[label] == "cross":
        a = 0.36  # half the width of an arm
        return np.array(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    corners = {"ellipse": 72, "triangle": 3, "star": 10}[CLASSES[label]]
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    radius = np.where(np.arange(corners) % 2, 0.42, 1.0) if CLASSES[label] == "star" else np.ones(corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _check_sides(sides: tuple[float, float], size: int) -> None:
    least, most = sides
    if not (0 < least <= most <= 1 and least * size >= _LEAST):
        raise ConfigError(
            f"sides are {least:g} to {most:g} of the image's side; give two fractions, the larger at "
            f"most 1, the smaller at least {_LEAST} of {size} pixels ({_LEAST / size:.3g})"
        )


def _place(
    rng: np.random.Generator, label: int, size: int, sides: tuple[float, float]
) -> tuple[np.ndarray, int, int, np.ndarray]:
    """Draw an object's size, turn and place: its mask (h, w) bool, x0 and y0, in subpixels; its outline in pixels."""
    least, most = math.ceil(size * SUB * sides[0]), int(size * SUB * sides[1])
    width = least * (most / least) ** rng.random()  # log-uniform: as many small objects as large ones
    height = width * math.exp(rng.uniform(-0.3, 0.3))
    w, h = (int(min(max(round(side), least), most)) for side in (width, height))
    turn = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = _outline(label) @ rotation
    low, high = points.min(0), points.max(0)
    points = (points - low) / (high - low) * (w - 1, h - 1)
    picture = Image.new("1", (w, h))
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in points], fill=1)
    x0 = int(rng.integers(0, size * SUB - w + 1))
    y0 = int(rng.integers(0, size * SUB - h + 1))
    outline = (points + (x0 + 0.5, y0 + 0.5)) / SUB  # a vertex is the middle of the subpixel that is drawn there
    return np.asarray(picture), x0, y0, outline
