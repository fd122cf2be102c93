"""Which of the formats is a folder's?  Each one looks; exactly one has to find its files."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter

from kpjax.datasets.folders import coco_layouts, kitti_layouts, voc_layouts, yolo_layouts
from kpjax.datasets.folders.parts import TEST, Look, Part, Reading, folders_in
from kpjax.errors import DataError

_LOOKS = (coco_layouts.look, voc_layouts.look, yolo_layouts.look, kitti_layouts.look)
_DEEPEST = 3  # folders that hold nothing but another one, as zip files make them


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that one format explains.

    path: as given.  root: where the data set begins, perhaps in a folder of it.  reading: how it is read.
    """

    path: str
    root: str
    reading: Reading

    def parts(self, keypoints: bool) -> list[Part]:
        """Its parts.  keypoints: whether those are wanted where labels of both kinds are there.  Raises DataError."""
        return self.reading.read(keypoints)

    def describe(self, parts: list[Part]) -> str:
        """What it was taken for, e.g. "took DATA for a YOLO data set (data.yaml): 3 classes, train 205 images"."""
        counts: Counter[str] = Counter()
        for part in parts:
            counts[part.split] += len(part.instances["images"])
        named = (f"{split or 'undivided'} {count:,} images" for split, count in counts.items())
        classes = max((len(part.instances["categories"]) for part in parts if part.split != TEST), default=0)
        return f"took {self.root} for a {self.reading.kind} data set ({self.reading.evidence}): {classes} " + (
            f"class{'es' if classes != 1 else ''}, {', '.join(named)}"
        )


def open_folder(path: str) -> Folder:
    """What a folder is: one that one of the formats explains, also a zip's single folder in it, or a JSON or YAML.

    Raises DataError, one line, with what was seen where no format explains it or more than one does.
    """
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        near = os.path.dirname(os.path.abspath(path))
        beside = ", ".join(folders_in(near)[:8])
        raise DataError(f"--data {path}: no such folder" + (f"; {near} holds {beside}" if beside else ""))
    if os.path.isfile(path) and path.lower().endswith((".zip", ".tar", ".tgz", ".gz", ".rar", ".7z")):
        raise DataError(f"--data {path}: an archive; unpack it, and name the folder")
    root, hints = path, list[str]()
    for _ in range(_DEEPEST):
        looks = [look(root) for look in _LOOKS]
        found = [reading for one in looks for reading in one.readings]
        hints += [hint for one in looks for hint in one.hints]
        if len(found) == 1:
            return Folder(path, root, found[0])
        if found:
            raise DataError(_ambiguous(root, found))
        inner = folders_in(root) if os.path.isdir(root) else []
        if len(inner) != 1:
            break
        root = os.path.join(root, inner[0])
    raise DataError(_unknown(path, looks, hints))


def _ambiguous(root: str, found: list[Reading]) -> str:
    ways = " and ".join(f"{one.kind} ({one.evidence})" for one in found)
    return (
        f"{root}: can be read in more than one way, as {ways}; name the file to use, --data {root}/FILE, "
        "or move the others away"
    )


def _unknown(path: str, looks: list[Look], hints: list[str]) -> str:
    if hints:
        more = f" (and {len(hints) - 1} more)" if len(hints) > 1 else ""
        return f"{hints[0]}{more}"
    if os.path.isfile(path):
        return f"--data {path}: neither a COCO JSON nor a YOLO data.yaml; name the folder of the data set"
    counts: Counter[str] = Counter()
    for _, _, names in os.walk(path):
        counts.update(os.path.splitext(name)[1].lower() or "files without a suffix" for name in names)
    seen = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(5)) or "no file"
    folders = f" in {', '.join(folders_in(path)[:6])}" if folders_in(path) else ""
    return (
        f"{path}: no labels in a layout of COCO, Pascal VOC, YOLO or KITTI; it holds {seen}{folders}; "
        "docs/data.md lists them"
    )
