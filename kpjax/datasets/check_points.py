"""Checking the keypoints of a data set: how many are labelled, hidden, outside their boxes, of which names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kpjax.data.source import Source, left_out
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import HIDDEN, UNLABELLED

OUTSIDE_BOX = "keypoint outside its box"
OUTSIDE_IMAGE = "keypoint outside its image"
NO_POINTS = "object without labelled keypoints"
_ROUNDING = 0.5  # pixels; the rounding of annotation tools is no oddity
_WHOLE = 1.0  # pixels; extreme points are whole ones


@dataclasses.dataclass
class PointsReport:
    """The keypoints of the objects that training uses.

    names: J names.  pairs: those that a mirror exchanges.
    labelled, hidden, outside_box: (J,) int64 counts; hidden ones are labelled too.
    of_object: (n,) int64 labelled keypoints an object.
    """

    names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    labelled: np.ndarray
    hidden: np.ndarray
    outside_box: np.ndarray
    of_object: np.ndarray

    @property
    def without(self) -> int:
        """How many objects have no labelled keypoint."""
        return int((self.of_object == 0).sum())

    def lines(self) -> list[str]:
        """The report in words, for a person."""
        labelled, objects = int(self.labelled.sum()), len(self.of_object)
        share = 100 * labelled / max(objects * len(self.names), 1)
        said = [
            f"keypoints: {labelled:,} labelled, {share:.0f}% of {len(self.names)} an object, "
            f"{self.hidden.sum():,} of them hidden, {self.outside_box.sum():,} outside their box"
        ]
        if objects:
            least, few, middle, most = np.percentile(self.of_object, (0, 10, 50, 100))
            said.append(
                f"keypoints an object: least {least:.0f}, 10% have at most {few:.0f}, median {middle:.0f}, "
                f"most {most:.0f}; {self.without:,} objects have none"
            )
        pairs = ", ".join(f"{a}:{b}" for a, b in self.pairs) or "none"
        said.append(f"keypoints that a mirror exchanges: {pairs}")
        never = [name for name, count in zip(self.names, self.labelled, strict=True) if not count]
        if never and objects:
            said.append(
                f"keypoints that are never labelled: {', '.join(never[:10])}{' ...' if len(never) > 10 else ''}"
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        counts = {"labelled": self.labelled, "hidden": self.hidden, "outside_box": self.outside_box}
        return {
            **{key: int(values.sum()) for key, values in counts.items()},
            "objects": len(self.of_object),
            "objects_without": self.without,
            "objects_by_number": np.bincount(self.of_object, minlength=len(self.names) + 1).tolist(),
            "by_name": {
                name: {key: int(values[j]) for key, values in counts.items()} for j, name in enumerate(self.names)
            },
        }


def look_at_points(source: Source, crowds: str) -> tuple[PointsReport | None, dict[str, list[str]]]:
    """What there is to say of a split's keypoints, and the odd cases by kind, a line each.

    crowds: see `config.data.crowds`.  Without keypoints: (None, {}).
    """
    a = source.annotations
    if source.points is None or a.keypoints is None:
        return None, {}
    used = np.flatnonzero(left_out(a, source.heights, source.widths, crowds) == "")
    classes = source.distinct_classes
    names, xy, seen = source.points.names, a.keypoints[used, :, :2], a.keypoints[used, :, 2]
    labelled = seen != UNLABELLED
    low, side = a.bbox[used, None, :2], a.bbox[used, None, 2:]
    image = np.stack([source.widths, source.heights], axis=1)[a.image[used]][:, None]
    rounding = _WHOLE if source.points == EXTREME_POINTS else _ROUNDING
    outside_box = labelled & _outside(xy, low, low + side, rounding)
    outside_image = labelled & _outside(xy, np.zeros_like(image), image, rounding)

    def line(n: int) -> str:
        return f"{source.files[a.image[used[n]]]}: annotation {a.ids[used[n]]}, {classes[a.label[used[n]]]}"

    def point(n: int, j: int) -> str:
        x, y = xy[n, j]
        return f"{line(n)}, {names[j]} at ({x:.6g}, {y:.6g}), bbox {[round(float(v), 2) for v in a.bbox[used[n]]]}"

    cases = {
        OUTSIDE_BOX: [point(int(n), int(j)) for n, j in np.argwhere(outside_box)],
        OUTSIDE_IMAGE: [point(int(n), int(j)) for n, j in np.argwhere(outside_image)],
        NO_POINTS: [line(int(n)) for n in np.flatnonzero(~labelled.any(1))],
    }
    report = PointsReport(
        names=names,
        pairs=tuple((names[j], names[k]) for j, k in enumerate(source.points.mirror) if j < k),
        labelled=labelled.sum(0),
        hidden=(seen == HIDDEN).sum(0),
        outside_box=outside_box.sum(0),
        of_object=labelled.sum(1),
    )
    return report, {kind: found for kind, found in cases.items() if found}


def _outside(xy: np.ndarray, low: np.ndarray, high: np.ndarray, rounding: float) -> np.ndarray:
    """(n, J) bool: which points (n, J, 2) lie more than `rounding` beyond x y from `low` to `high` (n, 1, 2)."""
    beyond = (xy < low - rounding) | (xy > high + rounding)
    return np.asarray(beyond.any(-1))
