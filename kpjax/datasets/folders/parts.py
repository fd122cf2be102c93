"""What looking at a folder gives: the ways to read it, each of which gives parts of labelled images."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from kpjax.images.decode import SUFFIXES

TRAIN, VAL, TEST, UNDIVIDED = "train", "val", "test", ""
_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval", "trainset"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), VAL),
    **dict.fromkeys(("test", "testing", "testset"), TEST),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Labelled images of a folder that belong to one split.

    split: TRAIN, VAL, TEST, or UNDIVIDED where the folder does not say.  images: the folder that the file names are
    relative to.  instances: a COCO instances dictionary.  file: the JSON that holds just these instances; "" where
    they were converted or changed.  notes: what was dropped, changed or looks wrong, a line each.
    """

    split: str
    images: str
    instances: dict[str, Any]
    file: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """A way to read a folder.

    kind: of data set, "COCO", "Pascal VOC", "YOLO" or "KITTI".  evidence: the files that say so, for messages.
    read: whether keypoints are wanted where both kinds of labels are there -> the parts; raises DataError.
    mirror_pairs: of the keypoints, see `config.data.mirror_pairs`.  calibrated: the folder that holds KITTI's image_2,
    label_2 and calib; "" where the objects are not known in 3D.
    """

    kind: str
    evidence: str
    read: Callable[[bool], list[Part]]
    mirror_pairs: Callable[[], str] = lambda: ""
    calibrated: str = ""


@dataclasses.dataclass(frozen=True)
class Look:
    """What one format finds in a folder.  hints: what looks like its data and cannot be read, with the way out."""

    readings: tuple[Reading, ...] = ()
    hints: tuple[str, ...] = ()


def split_of(name: str) -> str:
    """The split that a file or folder is named after: "instances_train2017.json" -> TRAIN; UNDIVIDED for none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), UNDIVIDED)


def folders_in(folder: str) -> list[str]:
    """The names of the folders in a folder, hidden ones and those of macOS' archives left out, in order."""
    return [name for name in _names(folder) if os.path.isdir(os.path.join(folder, name))]


def files_in(folder: str, *suffixes: str) -> list[str]:
    """The names of a folder's files with one of the suffixes (lower case), in order; none: all."""
    names = (name for name in _names(folder) if not suffixes or name.lower().endswith(suffixes))
    return [name for name in names if os.path.isfile(os.path.join(folder, name))]


def holds_images(folder: str) -> bool:
    """Whether an image lies in the folder itself."""
    return any(name.lower().endswith(SUFFIXES) for name in _names(folder))


def first_some(names: Sequence[str], most: int = 4) -> str:
    """Names for a message: the first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # no folder, or one that may not be read
        return []
    return sorted(name for name in names if not name.startswith((".", "__MACOSX")))
