"""Making a data set of drawn shapes (`make demo`), in COCO's format: JPEG files and instances JSON.

Five classes that differ by outline alone; colour, texture, size and place do not
depend on the class.  Image `index` of a split is a pure function of
(seed, split, index, size), so that a longer set begins with the shorter one and any
seed gives a set of its own.

An image holds one to six objects, or none (every tenth image).  Box sides lie between
1/8 and 1/2 of the image's side, objects may overlap, and later ones cover earlier ones.
A box is the tight extent of the whole outline, hidden parts included; at least
`MIN_VISIBLE` of every object's area can be seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil

import numpy as np
from PIL import Image, ImageDraw

from kpjax.errors import ConfigError

CLASSES = ("ellipse", "rectangle", "triangle", "star", "cross")
SPLITS = ("train", "val")
MAX_OBJECTS = 6
EMPTY_EVERY = 10  # the last of every ten images has no object
MIN_VISIBLE = 0.5
MAX_ROTATION = math.radians(15)
MIN_CONTRAST = 80.0  # distance, in RGB grey levels, of an object's mean colour from what lies under it
SUB = 4  # subpixels a pixel side: outlines are rasterised this fine, boxes are exact to 1 / SUB pixel
_TRIES = 30
_VERSION = 1  # of the drawing: raise it whenever an image of a given seed changes


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn image: image (S, S, 3) uint8 RGB; boxes (n, 4) float32 xyxy in pixels; labels (n,)
    int32 into `CLASSES`; areas (n,) float32, pixels inside the whole outline; visible (n,) float32,
    the share of each object that no later one covers."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    visible: np.ndarray


def render(seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Draw image `index` of a split, `size` pixels square.  Raises ConfigError on settings out of range."""
    _check(seed, size)
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; choose one of {', '.join(map(repr, SPLITS))}")
    # spawn_key keeps the three numbers separate: no two (seed, split, index) share a stream of random numbers
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index)))
    canvas = _surface(rng, size, size, _colour(rng), strength=45.0)
    owner = np.full((size, size), -1, np.int8)  # which object a pixel shows
    full: list[int] = []  # pixels of each object, covered or not
    boxes: list[list[int]] = []
    labels: list[int] = []
    areas: list[float] = []
    count = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        for _ in range(_TRIES):
            mask, x0, y0 = _place(rng, label, size)
            coverage, left, top = _to_pixels(mask, x0, y0)
            window = np.s_[top : top + coverage.shape[0], left : left + coverage.shape[1]]
            solid = coverage >= 0.5
            covered = np.bincount(owner[window][solid & (owner[window] >= 0)], minlength=len(full))
            shown = [int(np.count_nonzero(owner == k)) for k in range(len(full))]
            if all(s - c >= MIN_VISIBLE * f for s, c, f in zip(shown, covered, full, strict=True)):
                break
        else:
            continue  # no room left: the image keeps the objects it has; the first one always fits
        _paint(rng, canvas[window], coverage)
        owner[window][solid] = len(full)
        full.append(int(np.count_nonzero(solid)))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1])
        areas.append(float(np.count_nonzero(mask)) / SUB**2)
        labels.append(label)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)  # a camera's noise, over everything alike
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4) / SUB,
        labels=np.asarray(labels, np.int32),
        areas=np.asarray(areas, np.float32),
        visible=np.asarray([np.count_nonzero(owner == k) / f for k, f in enumerate(full)], np.float32),
    )


def write(out_dir: str, train: int = 1000, val: int = 200, size: int = 128, seed: int = 0) -> bool:
    """Write both splits: `train/*.jpg`, `val/*.jpg` and `annotations/instances_{train,val}.json`.

    A complete set of the same settings is left as it is: returns False then, True where it was
    written.  A set of other settings made by this function is replaced.  Raises ConfigError on
    settings out of range, and where `out_dir` holds anything else.
    """
    _check(seed, size)
    for name, number in (("train", train), ("val", val)):
        if number < 1:
            raise ConfigError(f"the {name} split would have {number} images; give at least 1")
    settings: dict[str, object] = {"generator": "kpjax shapes", "version": _VERSION}
    settings |= {"seed": seed, "size": size, "train": train, "val": val}
    marker = os.path.join(out_dir, "shapes.json")
    if os.path.isdir(out_dir) and os.listdir(out_dir):
        if not os.path.exists(marker):
            raise ConfigError(f"{out_dir}: not empty, and not a shapes data set; choose another folder")
        if _complete(out_dir, marker, settings):
            return False
        for name in (*SPLITS, "annotations"):
            shutil.rmtree(os.path.join(out_dir, name), ignore_errors=True)
    os.makedirs(os.path.join(out_dir, "annotations"), exist_ok=True)
    _write_json(marker, settings)  # first, so that an interrupted run can be taken up again
    for split, number in zip(SPLITS, (train, val), strict=True):
        os.makedirs(os.path.join(out_dir, split), exist_ok=True)
        _write_json(_annotations(out_dir, split), _write_split(out_dir, split, number, size, seed, settings))
    return True


def _write_split(out_dir: str, split: str, number: int, size: int, seed: int, settings: dict) -> dict:
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(number):
        scene = render(seed, split, index, size)
        name = f"{index:06d}.jpg"
        Image.fromarray(scene.image).save(os.path.join(out_dir, split, name), quality=92)
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for (x1, y1, x2, y2), label, area in zip(scene.boxes.tolist(), scene.labels, scene.areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k + 1, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES)]
    return {"info": settings, "images": images, "annotations": annotations, "categories": categories}


def _annotations(out_dir: str, split: str) -> str:
    return os.path.join(out_dir, "annotations", f"instances_{split}.json")


def _complete(out_dir: str, marker: str, settings: dict) -> bool:
    try:
        with open(marker, encoding="utf-8") as file:
            same = json.load(file) == settings
    except ValueError:  # cut off while it was written
        return False
    # a split's JSON is put in place after its images
    return same and all(os.path.exists(_annotations(out_dir, split)) for split in SPLITS)


def _write_json(path: str, content: dict) -> None:
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(path + ".part", path)


def _check(seed: int, size: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be at least 0")
    if not 64 <= size <= 4096:
        raise ConfigError(f"size is {size}; it must lie between 64 and 4096 pixels")


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


def _place(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, int, int]:
    """Draw an object's size, turn and place: (mask (h, w) bool in subpixels, x0, y0 in subpixels)."""
    least, most = math.ceil(size * SUB / 8), size * SUB // 2
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
    return np.asarray(picture), x0, y0


def _to_pixels(mask: np.ndarray, x0: int, y0: int) -> tuple[np.ndarray, int, int]:
    """Subpixel mask at (x0, y0) -> (coverage (h, w) float32 in 0..1, left, top) in whole pixels."""
    (left, dx), (top, dy) = divmod(x0, SUB), divmod(y0, SUB)
    h, w = mask.shape
    padded = np.pad(mask, ((dy, -(dy + h) % SUB), (dx, -(dx + w) % SUB)))
    blocks = padded.reshape(padded.shape[0] // SUB, SUB, padded.shape[1] // SUB, SUB)
    return blocks.mean((1, 3), dtype=np.float32), left, top


def _paint(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> None:
    """Blend a textured surface into `under` (h, w, 3), in place, by `coverage`."""
    h, w = coverage.shape
    below = (under * coverage[..., None]).sum((0, 1)) / coverage.sum()
    colour = _colour(rng)
    while np.linalg.norm(colour - below) < MIN_CONTRAST:
        colour = _colour(rng)
    under += coverage[..., None] * (_surface(rng, h, w, colour, strength=30.0) - under)


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(15.0, 240.0, 3)


def _surface(rng: np.random.Generator, h: int, w: int, colour: np.ndarray, strength: float) -> np.ndarray:
    """A textured surface (h, w, 3) float around a colour: two patterns of any kinds, each with a tint."""
    surface = np.broadcast_to(colour.astype(np.float32), (h, w, 3)).copy()
    for _ in range(2):
        pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, h, w)
        tint = rng.uniform(-1.0, 1.0, 3).astype(np.float32) + rng.choice([-0.6, 0.6])
        surface += pattern.astype(np.float32)[..., None] * (strength * rng.uniform(0.2, 0.7) * tint).astype(np.float32)
    return surface


def _slope(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Pixels' distances along a random direction, (h, w)."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.arange(h)[:, None] * math.sin(angle) + np.arange(w) * math.cos(angle)


def _gradient(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    along = _slope(rng, h, w)
    return 2 * (along - along.min()) / (np.ptp(along) + 1e-6) - 1


def _stripes(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    waves = np.sin(_slope(rng, h, w) * (2 * np.pi / rng.uniform(4.0, 16.0)) + rng.uniform(0, 2 * np.pi))
    return np.clip(waves * rng.uniform(1.0, 4.0), -1, 1)


def _checks(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    step = int(rng.integers(3, 10))
    return ((np.arange(h)[:, None] // step + np.arange(w) // step) % 2) * 2.0 - 1.0


def _blotches(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    step = rng.uniform(4.0, 20.0)
    coarse = rng.uniform(-1, 1, (int(h / step) + 2, int(w / step) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


def _speckle(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    return rng.uniform(-1, 1, (h, w))


_PATTERNS = (_gradient, _stripes, _checks, _blotches, _speckle)
