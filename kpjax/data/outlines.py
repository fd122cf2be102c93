"""Reading the outlines of objects, COCO's "segmentation": polygons, and masks in run lengths (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from kpjax.data.source import LARGEST
from kpjax.errors import DataError
from kpjax.extreme_points import EXTREME_POINTS, extreme_points
from kpjax.objects import VISIBLE


def extreme_keypoints(segmentation: Any, where: str) -> np.ndarray | float:
    """The extreme points of an object as keypoints, (4, 3) x, y, VISIBLE, in whole pixels; 0 where it has no outline.

    segmentation: as the JSON has it.  where: which annotation it is, for messages.
    Raises DataError, one line, for what is neither polygons nor a mask.
    """
    outline = outline_of(segmentation, where)
    if not len(outline):
        return 0.0
    return np.concatenate([extreme_points(outline), np.full((len(EXTREME_POINTS), 1), float(VISIBLE))], axis=1)


def outline_of(segmentation: Any, where: str) -> np.ndarray:
    """The vertices of all polygons one after another, or all pixels of a mask row by row: (V, 2) float64 x y.

    No vertex where there is no outline.  Raises DataError as `extreme_keypoints`.
    """
    if not segmentation:
        return np.zeros((0, 2))
    if isinstance(segmentation, dict):
        ys, xs = np.nonzero(decode_mask(segmentation, where))
        return np.stack([xs, ys], axis=1).astype(np.float64)
    polygons = segmentation if isinstance(segmentation, list) else [segmentation]
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
        raise DataError(f"{where} has a segmentation that is no list of polygons x1, y1, x2, y2, ... and no RLE mask")
    try:
        numbers = np.array([number for polygon in polygons for number in polygon], np.float64)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not (np.abs(numbers) <= LARGEST).all():  # False for nan too
        raise DataError(f"{where} has a polygon with something else than numbers of pixels")
    return numbers.reshape(-1, 2)


def decode_mask(rle: dict[str, Any], where: str) -> np.ndarray:
    """A mask in COCO's run lengths, (h, w) bool: "size" [h, w] and "counts", a list or COCO's compressed text.

    Runs go down the columns and alternate between background, with which they begin, and object.
    """
    size, counts = rle.get("size"), rle.get("counts")
    size = size if isinstance(size, list) else []
    whole = len(size) == 2 and all(type(v) is int and 0 < v < 2**16 for v in size)
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not whole or size is None or not isinstance(runs, list) or not all(type(v) is int and v >= 0 for v in runs):
        raise DataError(f"{where} has an RLE mask that cannot be read; give its size [height, width] and its counts")
    if sum(runs) != size[0] * size[1]:
        raise DataError(f"{where} has an RLE mask of {sum(runs)} pixels, and its size is {size[0]} x {size[1]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _uncompressed(text: str) -> list[int] | None:
    """The run lengths in COCO's text: six bits a letter from "0" on, of which the highest says that more follow.

    From the fourth on a run is stored as its difference from the one before the last.  None where the text is another.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - ord("0")
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                return None
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return None if shift else runs
