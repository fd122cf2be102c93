"""What a split says that can be used as it stands, and is hardly meant so: boxes, ids and names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpjax.data.source import Source, left_out
from kpjax.objects import ALL_CLASSES, UNLABELLED

TINY = "box smaller than a pixel of the network's input"
BELOW_CELL = "box smaller than a cell of the detector's map"
FRACTIONS = "box whose coordinates look like fractions of the image"
POINT_FRACTIONS = "object whose keypoints look like fractions of the image"
CORNERS = "box that fits its image as x1 y1 x2 y2, not as x y width height"
TWICE = "box annotated twice"
TWO_IDS = "image file under several ids"
OTHERWISE = "image whose name the disk spells otherwise"
ONE_NAME = "class of the name of another one"

_SLACK = 2  # pixels that a box may reach beyond its image through rounding


def line_of(source: Source) -> Callable[[Any], str]:
    """A function that says which annotation number n is."""
    a, names = source.annotations, source.distinct_classes

    def line(n: Any) -> str:
        image, box = int(a.image[n]), [round(float(v), 2) for v in a.bbox[n]]
        name = "all classes" if a.label[n] == ALL_CLASSES else names[a.label[n]]
        return f"{source.files[image]}: annotation {a.ids[n]}, {name}, bbox {box}"

    return line


def too_small(source: Source, crowds: str, on_input: np.ndarray, stride: int) -> Iterator[tuple[str, list[str]]]:
    """Boxes to learn from that are smaller than a pixel in a direction, or than a cell in both.

    on_input: what `_on_input` returns.  stride: pixels a cell; 0: not known.
    """
    a, line = source.annotations, line_of(source)
    used = np.flatnonzero(left_out(a, source.heights, source.widths, crowds) == "")
    order = used[np.argsort(a.image[used], kind="stable")]  # that of `all_objects`
    sides = on_input[:, 2:]
    tiny = sides.min(1, initial=np.inf) < 1
    for kind, which in ((TINY, tiny), (BELOW_CELL, ~tiny & (sides.max(1, initial=0) < stride))):
        there = np.flatnonzero(which)
        yield from _some(kind, [f"{line(order[i])}, {sides[i, 0]:.2g} x {sides[i, 1]:.2g} on the input" for i in there])


def probable_mistakes(source: Source) -> Iterator[tuple[str, list[str]]]:
    """What can be used as it stands, and is hardly meant so."""
    a, line = source.annotations, line_of(source)
    objects = ~a.crowd & (a.bbox[:, 2:] > 0).all(1) & (np.minimum(source.heights, source.widths)[a.image] > 2)
    small = objects & _fractions(a.bbox).all(1)
    # where all boxes of an image are: one box alone may be a slip of the mouse in the corner
    count = len(source)
    whole = np.bincount(a.image[objects], minlength=count) == np.bincount(a.image[small], minlength=count)
    yield from _some(FRACTIONS, [line(n) for n in np.flatnonzero(small & whole[a.image])])
    yield from _some(CORNERS, [line(n) for n in _corners(source, objects)])
    if a.keypoints is not None:
        labelled = a.keypoints[..., 2] != UNLABELLED
        points = labelled.any(1) & (_fractions(a.keypoints[..., :2]).all(2) | ~labelled).all(1)
        yield from _some(POINT_FRACTIONS, [line(n) for n in np.flatnonzero(points & objects & ~small)])
    first: dict[tuple[float, ...], int] = {}
    twice = []
    rows = np.concatenate([a.image[:, None], a.label[:, None], np.round(a.bbox, 2)], axis=1)
    for n in np.flatnonzero(objects):
        same = first.setdefault(tuple(rows[n].tolist()), int(n))
        if same != n:
            twice.append(f"{line(n)}, as annotation {a.ids[same]}")
    yield from _some(TWICE, twice)
    if source.on_disk:
        ids: dict[str, list[str]] = {}
        for path, image_id in zip(source.files, source.image_ids.tolist(), strict=True):
            ids.setdefault(path, []).append(str(image_id))
        yield from _some(TWO_IDS, [f"{path}: ids {', '.join(its)}" for path, its in ids.items() if len(its) > 1])
    yield from _some(ONE_NAME, _of_one_name(source))
    yield from _some(OTHERWISE, _spelt_otherwise(source))


def _corners(source: Source, objects: np.ndarray) -> np.ndarray:
    """The numbers of boxes that reach beyond their image, where all boxes of the split are inside as two corners."""
    a = source.annotations
    right, bottom = source.widths[a.image] + _SLACK, source.heights[a.image] + _SLACK
    x, y, w, h = a.bbox.T
    as_corners = (w > x) & (h > y) & (w <= right) & (h <= bottom)
    outside = objects & ((x + w > right) | (y + h > bottom))
    return np.flatnonzero(outside) if as_corners[objects].all() and outside.sum() > 1 else np.zeros(0, np.int64)


def _fractions(numbers: np.ndarray) -> np.ndarray:
    return (numbers >= 0) & (numbers <= 1.01)


def _some(kind: str, found: list[str]) -> Iterator[tuple[str, list[str]]]:
    if found:
        yield kind, found


def _of_one_name(source: Source) -> list[str]:
    """Classes whose names are those of others, but for the case of letters and spaces around them."""
    pairs = [(name.strip().casefold(), name, k) for name, k in zip(source.classes, source.category_ids, strict=True)]
    counts = Counter(key for key, _, _ in pairs)
    return [f"{source.name}: category {k}, {name!r}" for key, name, k in pairs if counts[key] > 1]


def _spelt_otherwise(source: Source) -> list[str]:
    """Images on the disk that the list names in another spelling."""
    if not source.on_disk:
        return []
    names = [image["file_name"] for image in source.ground_truth()["images"]]
    pairs = zip(source.files, names, strict=True)
    return [
        f"{path}: {source.name} has {name!r}"
        for path, name in pairs
        if not path.endswith((f"/{name}", f"{os.sep}{name}"))
    ]
