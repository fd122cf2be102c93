"""Making a data set of drawn figures (`make demo MODEL=pose`), in COCO's keypoint format.

A figure is an articulated puppet (`kpjax.datasets.puppet`) with eleven named joints; colours, textures, build, pose,
size and place are random.  As in `kpjax.datasets.shapes`, image `index` of a split is a pure function of
(seed, split, index, size).

An image holds one to three figures, or none (every tenth image).  Later figures cover earlier ones, and some images
have an object without joints in front of a figure; at least `MIN_VISIBLE` of every figure can be seen.  Few figures
are cut by the border.  A box is the tight extent of the figure within the image, and an area its pixels there, both
with hidden parts.  A joint is hidden (1) where something else is drawn over it, an arm or a leg of the same figure
too, and unlabelled (0) where it lies outside the image.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kpjax.datasets.drawn_set import EMPTY_EVERY, image_rng, write_set
from kpjax.datasets.puppet import (
    CARRIERS,
    EDGES,
    EYES,
    JOINTS,
    SHIRT,
    SHOES,
    SKIN,
    SLEEVES,
    TROUSERS,
    Puppet,
    random_puppet,
)
from kpjax.datasets.surfaces import (
    SUB,
    blend,
    contrasting_colour,
    mean_under,
    paint,
    random_colour,
    surface,
    to_pixels,
)
from kpjax.objects import HIDDEN, UNLABELLED, VISIBLE

CLASSES = ("figure",)
MAX_FIGURES = 3
MIN_VISIBLE = 0.7
HEIGHTS = (0.55, 0.95)  # of a standing figure, as a share of the image's side
CUT = 0.1  # share of the figures that may be cut by the border
OCCLUDED = 0.25  # share of the images with figures that have an object in front of one
_MOST_CUT = 0.25  # of a figure's width or height that lies outside then
_TRIES = 30
_LIMBS = 5  # owners of pixels that a figure has: BODY and the four limbs
# COCO's constants of a person's like joints; of the head CrowdPose's
_SIGMAS = {"head": 0.079, "shoulder": 0.079, "elbow": 0.072, "hand": 0.062, "hip": 0.107, "foot": 0.089}
_VERSION = 2  # of the drawing: raise it whenever an image of a given seed changes


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn image.

    image: (S, S, 3) uint8 RGB.  boxes: (n, 4) float32 xyxy in pixels.  areas: (n,) float32 pixels.  points: (n, J, 2)
    float32 x y in pixels, 0 where unlabelled.  seen: (n, J) int32 as in COCO.  visible: (n,) float32, the share of each
    figure that nothing covers.
    """

    image: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    points: np.ndarray
    seen: np.ndarray
    visible: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A part of a figure as pixels.  window: where in the image; coverage: (h, w) float32 in 0..1."""

    limb: int
    look: int
    window: tuple[slice, slice]
    coverage: np.ndarray


def render(seed: int, split: str, index: int, size: int = 128) -> Scene:
    """Draw image `index` of a split, `size` pixels square.  Raises ConfigError on settings out of range."""
    rng = image_rng(seed, split, index, size)
    canvas = surface(rng, size, size, random_colour(rng), strength=35.0)
    owner = np.full((size, size), -1, np.int8)  # which limb of which figure a pixel shows
    puppets: list[Puppet] = []
    full: list[int] = []  # pixels of each figure, covered or not
    boxes: list[np.ndarray] = []
    areas: list[float] = []
    count = 0 if index % EMPTY_EVERY == EMPTY_EVERY - 1 else int(rng.integers(1, MAX_FIGURES + 1))
    for _ in range(count):
        for _ in range(_TRIES):
            puppet = _place(rng, size)
            mask, layers = _rasterise(puppet, size)
            solid = to_pixels(mask, 0, 0)[0] >= 0.5
            if _enough_visible(owner, solid, full):
                break
        else:
            continue  # no room left: the image keeps the figures it has; the first one always fits
        _dress(rng, canvas, layers)
        for layer in layers:
            owner[layer.window][layer.coverage >= 0.5] = _LIMBS * len(full) + layer.limb
        puppets.append(puppet)
        full.append(int(np.count_nonzero(solid)))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append(np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUB)
        areas.append(float(np.count_nonzero(mask)) / SUB**2)
    if puppets and rng.random() < OCCLUDED:
        _occlude(rng, canvas, owner, puppets, full)
    canvas += rng.normal(0.0, rng.uniform(2.0, 8.0), canvas.shape)  # a camera's noise, over everything alike
    joints = np.asarray([puppet.joints for puppet in puppets], np.float32).reshape(-1, len(JOINTS), 2)
    seen = _seen(joints, owner)
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        areas=np.asarray(areas, np.float32),
        points=np.where(seen[..., None] == UNLABELLED, np.float32(0), joints),
        seen=seen,
        visible=np.asarray([_shown(owner, k) / f for k, f in enumerate(full)], np.float32),
    )


def write(out_dir: str, train: int = 1000, val: int = 200, size: int = 128, seed: int = 0) -> bool:
    """Write both splits; see `write_set` for the files, for what is returned, and for what is raised."""
    skeleton = [[JOINTS.index(a) + 1, JOINTS.index(b) + 1] for a, b in EDGES]
    category = {"id": 1, "name": CLASSES[0], "supercategory": "figure", "keypoints": list(JOINTS), "skeleton": skeleton}
    category["sigmas"] = [_SIGMAS[joint.removeprefix("left_").removeprefix("right_")] for joint in JOINTS]
    generator = {"generator": "kpjax shapes --kind figures", "version": _VERSION}
    return write_set(out_dir, "figures", generator, _draw, [category], train=train, val=val, size=size, seed=seed)


def _draw(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image and its annotations in COCO's terms."""
    scene = render(seed, split, index, size)
    keypoints = np.concatenate([scene.points, scene.seen[..., None]], axis=-1).reshape(-1, 3 * len(JOINTS))
    rows = zip(scene.boxes.tolist(), scene.areas.tolist(), keypoints.tolist(), scene.seen, strict=True)
    return scene.image, [
        {
            "category_id": 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": 0,
            "keypoints": xyv,
            "num_keypoints": int(np.count_nonzero(seen)),
        }
        for (x1, y1, x2, y2), area, xyv, seen in rows
    ]


def _place(rng: np.random.Generator, size: int) -> Puppet:
    """A random puppet somewhere in the image, in pixels."""
    least, most = HEIGHTS
    height = size * least * (most / least) ** rng.random()  # log-uniform: as many small figures as large ones
    puppet = random_puppet(rng).moved(height, np.zeros(2))
    low, high = puppet.extent()
    room = np.maximum(size - (high - low), 0)
    corner = rng.uniform(0, 1, 2) * room
    if rng.random() < CUT:
        axis, side = int(rng.integers(2)), int(rng.integers(2))
        beyond = rng.uniform(0, _MOST_CUT) * (high - low)[axis]
        corner[axis] = room[axis] + beyond if side else -beyond
    return puppet.moved(1.0, corner - low)


def _rasterise(puppet: Puppet, size: int) -> tuple[np.ndarray, list[_Layer]]:
    """All of a puppet as a mask (S * SUB, S * SUB) bool, and its parts, those outside the image left out."""
    everything = np.zeros((size * SUB, size * SUB), bool)
    layers = []
    for part in puppet.parts:
        corners = np.concatenate(part.polygons)
        left, top = np.clip(np.floor(corners.min(0)), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(0)), 0, size).astype(int)
        if left >= right or top >= bottom:
            continue
        picture = Image.new("1", ((right - left) * SUB, (bottom - top) * SUB))
        canvas = ImageDraw.Draw(picture)
        for polygon in part.polygons:
            # Pillow's coordinates are those of the subpixels' centres
            canvas.polygon([(float(x), float(y)) for x, y in (polygon - (left, top)) * SUB - 0.5], fill=1)
        mask = np.asarray(picture)
        everything[top * SUB : bottom * SUB, left * SUB : right * SUB] |= mask
        coverage, _, _ = to_pixels(mask, 0, 0)
        layers.append(_Layer(part.limb, part.look, np.s_[top:bottom, left:right], coverage))
    return everything, layers


def _dress(rng: np.random.Generator, canvas: np.ndarray, layers: list[_Layer]) -> None:
    """Paint a figure's parts, from the back to the front: one surface for each look, the same on both sides."""
    size = len(canvas)
    covered = np.zeros((size, size), np.float32)
    for layer in layers:
        covered[layer.window] = np.maximum(covered[layer.window], layer.coverage)
    below = mean_under(canvas, covered)
    shirt = contrasting_colour(rng, [below])
    colours = {
        SHIRT: shirt,
        SLEEVES: contrasting_colour(rng, [below, shirt]),
        TROUSERS: contrasting_colour(rng, [below]),
        SKIN: contrasting_colour(rng, [below, shirt]),
        SHOES: contrasting_colour(rng, [below]),
    }
    looks = {look: surface(rng, size, size, colour, strength=20.0) for look, colour in colours.items()}
    looks[EYES] = np.full((size, size, 3), 10.0 if colours[SKIN].mean() > 110 else 245.0, np.float32)
    for layer in layers:
        blend(canvas[layer.window], layer.coverage, looks[layer.look][layer.window])


def _occlude(
    rng: np.random.Generator, canvas: np.ndarray, owner: np.ndarray, puppets: list[Puppet], full: list[int]
) -> None:
    """Put a bar or a disc in front of some joint, where enough of all figures stays visible; else nothing."""
    size = len(canvas)
    for _ in range(_TRIES):
        joint = puppets[int(rng.integers(len(puppets)))].joints[int(rng.integers(len(JOINTS)))]
        middle = joint + rng.normal(0, 0.02 * size, 2)
        long, short = size * rng.uniform(0.12, 0.4), size * rng.uniform(0.05, 0.1)
        picture = Image.new("1", (size * SUB, size * SUB))
        if rng.random() < 0.4:
            ImageDraw.Draw(picture).circle(tuple(middle * SUB), (short + 0.04 * size) * SUB, fill=1)
        else:
            turn = rng.uniform(0, math.pi)
            along = np.array([math.cos(turn), math.sin(turn)]) * long / 2
            across = np.array([-math.sin(turn), math.cos(turn)]) * short / 2
            ends = (middle + a * along + b * across for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1)))
            ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in (end * SUB for end in ends)], fill=1)
        coverage, _, _ = to_pixels(np.asarray(picture), 0, 0)
        solid = coverage >= 0.5
        if solid.any() and _enough_visible(owner, solid, full):
            paint(rng, canvas, coverage)
            owner[solid] = -1
            return


def _enough_visible(owner: np.ndarray, solid: np.ndarray, full: list[int]) -> bool:
    """Whether what covers the pixels `solid` leaves enough of all figures."""
    left = np.where(solid, -1, owner)
    return all(_shown(left, k) >= MIN_VISIBLE * f for k, f in enumerate(full))


def _shown(owner: np.ndarray, figure: int) -> int:
    """How many pixels show a figure."""
    return int(np.count_nonzero(owner // _LIMBS == figure))


def _seen(joints: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """COCO's visibility (n, J) int32 of joints (n, J, 2)."""
    size = len(owner)
    seen = np.zeros(joints.shape[:2], np.int32)
    for figure, xy in enumerate(joints):
        for j, name in enumerate(JOINTS):
            x, y = math.floor(xy[j, 0]), math.floor(xy[j, 1])
            if 0 <= x < size and 0 <= y < size:
                carriers = [_LIMBS * figure + limb for limb in CARRIERS[name]]
                seen[figure, j] = VISIBLE if owner[y, x] in carriers else HIDDEN
    return seen
