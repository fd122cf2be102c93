"""Checking the 3D boxes of a data set: how many of which type, how far and how large, and whether cameras fit them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from kpjax.data.kitti import in_words, roles_of_types
from kpjax.data.source import Source

BEHIND = "object behind the camera"
NO_SIZE = "object without a positive size in 3D"
AWAY = "object in 3D far from its box"
NO_CLASS = "object of a type that is no class"
_FAR = 0.25  # of a box's side, by which the projected middle of a 3D box lies outside
_SUSPICIOUS = 0.1  # of the objects


@dataclasses.dataclass
class SolidsReport:
    """The objects in 3D of a split, and what else its label files hold.

    objects: class -> number, in the order of the classes.  regions, no_class: type -> number of those that are regions
    to ignore, and of those that are left out.
    depths: (n,) float64 metres.  sizes: class -> (3,) medians of height, width, length in metres.
    behind, no_size, away: how many objects are BEHIND, NO_SIZE, AWAY.
    without: frames without an object.  cameras: different projection matrices.
    """

    objects: dict[str, int]
    regions: dict[str, int]
    no_class: dict[str, int]
    depths: np.ndarray
    sizes: dict[str, np.ndarray]
    behind: int
    no_size: int
    away: int
    without: int
    cameras: int

    def lines(self) -> list[str]:
        """The report in words, for a person."""
        said = [f"in 3D: {', '.join(f'{count:,} {name}' for name, count in self.objects.items())}"]
        for what, counts in (("regions to ignore", self.regions), ("left out, of no class", self.no_class)):
            if counts:
                said.append(f"{what}: {in_words(counts)}")
        if len(self.depths):
            least, middle, most = np.percentile(self.depths, (0, 50, 100))
            said.append(f"depth: least {least:.1f} m, median {middle:.1f} m, most {most:.1f} m")
        for name, (height, width, length) in self.sizes.items():
            said.append(f"median size of {name}: height {height:.2f} m, width {width:.2f} m, length {length:.2f} m")
        said.append(f"different cameras: {self.cameras:,}; images without an object: {self.without:,}")
        if self.away > _SUSPICIOUS * len(self.depths):
            said.append(
                f"{self.away:,} of {len(self.depths):,} objects lie far from their boxes when projected; "
                "are the calibrations those of these images?"
            )
        return said

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        quantiles = np.percentile(self.depths, (0, 50, 100)).tolist() if len(self.depths) else []
        return {
            "objects": self.objects,
            "regions": self.regions,
            "left_out": self.no_class,
            "depth": dict(zip(("least", "median", "most"), quantiles, strict=False)),
            "median_size": {
                name: dict(zip(("height", "width", "length"), size.tolist(), strict=True))
                for name, size in self.sizes.items()
            },
            "behind_camera": self.behind,
            "without_size": self.no_size,
            "far_from_box": self.away,
            "images_without_objects": self.without,
            "cameras": self.cameras,
        }


def look_at_solids(source: Source) -> tuple[SolidsReport | None, dict[str, list[str]]]:
    """What there is to say of a split's 3D boxes, and the odd cases by kind, a line each.

    Without 3D boxes: (None, {}).
    """
    if source.labels3d is None or source.cameras is None:
        return None, {}
    roles = roles_of_types(source.classes)
    counts = Counter(name for labels in source.labels3d for name in labels.types)
    cases: dict[str, list[str]] = {kind: [] for kind in (NO_CLASS, BEHIND, NO_SIZE, AWAY)}
    depths: list[float] = []
    sizes: dict[str, list[np.ndarray]] = {name: [] for name in source.classes}
    without = 0
    for i, labels in enumerate(source.labels3d):
        of_class = np.array([name in source.classes for name in labels.types], bool)
        without += not of_class.any()
        outside = beyond_box(
            source.cameras[i], labels.location, labels.size, labels.boxes, source.heights[i], source.widths[i]
        )
        for n, name in enumerate(labels.types):
            line, depth = f"{source.files[i]}: object {n + 1}, {name}", float(labels.location[n, 2])
            if name not in roles:
                cases[NO_CLASS].append(line)
            if not of_class[n]:
                continue
            depths.append(depth)
            sizes[name].append(labels.size[n])
            if depth <= 0:
                cases[BEHIND].append(f"{line}, {depth:g} m before it")
            if (labels.size[n] <= 0).any():
                cases[NO_SIZE].append(f"{line}, height, width, length {' '.join(f'{v:g}' for v in labels.size[n])} m")
            if outside[n] > _FAR:
                cases[AWAY].append(f"{line}, {depth:g} m away: {outside[n]:.1f} times its box's side beyond it")
    report = SolidsReport(
        objects={name: counts[name] for name in source.classes},
        regions={name: count for name, count in counts.items() if name in roles and name not in source.classes},
        no_class={name: count for name, count in counts.items() if name not in roles},
        depths=np.array(depths, np.float64),
        sizes={name: np.median(found, axis=0) for name, found in sizes.items() if found},
        behind=len(cases[BEHIND]),
        no_size=len(cases[NO_SIZE]),
        away=len(cases[AWAY]),
        without=without,
        cameras=len({camera.tobytes() for camera in source.cameras if np.isfinite(camera).all()}),
    )
    return report, {kind: found for kind, found in cases.items() if found}


def beyond_box(
    camera: np.ndarray, location: np.ndarray, size: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> np.ndarray:
    """How far the projected middles of 3D boxes lie outside their 2D boxes, (n,) in sides of these; 0 inside.

    camera: (3, 4).  location: (n, 3), the middles of the bottoms.  size: (n, 3) height, width, length.  boxes: (n, 4).
    height, width: of the image, to which a middle is brought first, as boxes are cut to it.  0 where an object is
    behind the camera or the camera is not known (NaN).
    """
    middle = location - size[:, :1] * (0, 0.5, 0)
    x, y, z = (np.column_stack([middle, np.ones(len(middle))]) @ camera.T).T
    front = z > 0
    z = np.where(front, z, 1.0)
    xy = np.clip(np.stack([x / z, y / z], axis=1), 0, (width, height))
    low, high = boxes[:, :2], boxes[:, 2:]
    outside = np.maximum(low - xy, xy - high) / np.maximum(high - low, 1.0)
    return np.where(front, np.maximum(outside.max(axis=1, initial=0.0), 0.0), 0.0)
