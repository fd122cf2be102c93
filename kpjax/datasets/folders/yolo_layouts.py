"""Where are YOLO's images and label files in a folder, and which file names the classes?

A data.yaml's folders, of ultralytics, Roboflow or CVAT; without one images/SPLIT with labels/SPLIT, SPLIT/images with
SPLIT/labels, images with labels (Label Studio), or labels beside the images (darknet, CVAT's YOLO 1.1, labelImg).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

from kpjax.datasets.folders.parts import (
    TEST,
    TRAIN,
    UNDIVIDED,
    VAL,
    Look,
    Part,
    Reading,
    files_in,
    first_some,
    folders_in,
    holds_images,
    split_of,
)
from kpjax.datasets.yolo import convert_yolo_folders, images_below, mirror_pairs, read_yaml
from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES

_NAMES = ("classes.txt", "obj.names", "_darknet.labels")
_KEYS = ((TRAIN, ("train",)), (VAL, ("val", "valid", "validation")), (TEST, ("test",)))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Images of a split.  only: those to take, paths in `images`; None: all."""

    split: str
    images: str
    labels: str
    only: tuple[str, ...] | None = None


def look(root: str) -> Look:
    """A data set of YOLO in `root`, a folder or its data.yaml."""
    if os.path.isfile(root):
        if not root.lower().endswith((".yaml", ".yml")):
            return Look()
        return Look((_of_yaml(root),))
    declared = [path for path in (os.path.join(root, n) for n in files_in(root, ".yaml", ".yml")) if _is_data(path)]
    if len(declared) > 1:
        usual = [path for path in declared if os.path.basename(path) in ("data.yaml", "data.yml", "dataset.yaml")]
        declared = usual if len(usual) == 1 else declared
    if declared:
        return Look(tuple(map(_of_yaml, declared)))
    places = _usual_places(root)
    if not places:
        return Look()
    names = next(
        (
            os.path.join(folder, name)
            for folder in (root, *(place.labels for place in places))
            for name in (*_NAMES, *files_in(folder, ".names"))
            if os.path.isfile(os.path.join(folder, name))
        ),
        "",
    )
    label_folders = [os.path.relpath(place.labels, root) for place in places]
    evidence = f"label files in {first_some(label_folders)}"
    if not names:
        missing = (
            f"{root}: {evidence}, but no file names the classes; add data.yaml with `names: [...]`, or classes.txt"
        )
        return Look((), (missing,)) if places else Look()
    evidence = f"{os.path.relpath(names, root)}, {evidence}"
    return Look((Reading("YOLO", evidence, functools.partial(_read, root, names, places)),))


def _is_data(path: str) -> bool:
    try:
        data = read_yaml(path)
    except DataError:
        return os.path.basename(path) in ("data.yaml", "data.yml")  # damaged: its reader says how
    splits = any(key in data for _, keys in _KEYS for key in keys)
    return "kpt_shape" in data or ("names" in data and (splits or os.path.basename(path).startswith("data")))


def _of_yaml(path: str) -> Reading:
    def read(keypoints: bool) -> list[Part]:
        root = os.path.dirname(os.path.abspath(path))
        return _read(root, path, _declared_places(path) or _usual_places(root), keypoints)

    return Reading("YOLO", os.path.basename(path), read, mirror_pairs=functools.partial(mirror_pairs, path))


def _read(root: str, names: str, places: Sequence[_Place], keypoints: bool) -> list[Part]:
    # The keypoints stand in the lines of the boxes: they are kept, wanted or not.
    if not places:
        raise DataError(
            f"{names}: none of the folders that it names is there, and {root} has no folders images, labels"
        )
    same = [place for place in places if place.split == VAL and (TRAIN, place.images) in _folders_of(places)]
    notes: tuple[str, ...] = ()
    if same and same[0].only is None:
        # As in ultralytics' examples of a few images: what is trained on says nothing when it is evaluated.
        places = [dataclasses.replace(p, split=UNDIVIDED) for p in places if p.split == TRAIN] + [
            p for p in places if p.split == TEST
        ]
        notes = (f"{os.path.basename(names)} names one folder for training and validation: divided anew",)
    parts = []
    for place in places:
        if place.split == TEST:
            count = len(place.only) if place.only is not None else len(images_below(place.images))
            images = [{"id": n, "file_name": ""} for n in range(count)]
            parts.append(Part(TEST, place.images, {"images": images, "annotations": [], "categories": []}))
            continue
        whole = convert_yolo_folders(root, place.images, place.labels, names=names, only=place.only, keypoints=True)
        parts.append(Part(place.split, whole.images, whole.instances, notes=(*whole.notes, *notes)))
        notes = ()
    return parts


def _folders_of(places: Sequence[_Place]) -> set[tuple[str, str]]:
    return {(place.split, place.images) for place in places}


def _declared_places(path: str) -> list[_Place]:
    """The folders and lists that a data.yaml names, as far as they are there."""
    data, here = read_yaml(path), os.path.dirname(os.path.abspath(path))
    base = data.get("path") if isinstance(data.get("path"), str) else ""
    places: list[_Place] = []
    for split, keys in _KEYS:
        value = next((data[key] for key in keys if data.get(key)), None)
        entries = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        for entry in entries:
            place = _found(str(entry), str(base), here) if entry else None
            if place is None:
                continue
            if os.path.isfile(place):
                places += _listed(place, split, here)
            elif images_below(place):
                places.append(_Place(split, place, _labels_of(place)))
    return places if any(place.split != TEST for place in places) else []


def _found(entry: str, base: str, here: str) -> str | None:
    """The folder or list that an entry means: relative to `path`, to the file itself, or without the `../` before it.

    Roboflow writes ../train/images for the folder beside its data.yaml, and `path` is often that of another machine.
    """
    entry = entry.replace("\\", "/")
    inner = entry
    while inner.startswith(("../", "./")):
        inner = inner.partition("/")[2]
    tried = [os.path.join(here, base, entry), os.path.join(here, entry), os.path.join(here, inner)]
    parts = inner.strip("/").split("/")
    tried += [os.path.join(here, *parts[k:]) for k in range(1, len(parts))]  # as of another machine
    return next((os.path.normpath(p) for p in tried if os.path.exists(p)), None)


def _labels_of(images: str) -> str:
    """The folder of the labels of a folder of images: `labels` for the last `images` in its path, else the same."""
    parts = images.split(os.sep)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k].lower() == "images":
            labels = os.sep.join([*parts[:k], "labels", *parts[k + 1 :]])
            return labels if os.path.isdir(labels) else images
    inside = os.path.join(images, "labels")
    return inside if os.path.isdir(inside) and os.path.isdir(os.path.join(images, "images")) else images


def _listed(path: str, split: str, here: str) -> list[_Place]:
    """The images that a text file lists, a path a line, by their folder."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    by_folder: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        image = _found(line, "", here)
        if image is None or not os.path.isfile(image):
            raise DataError(f"{path}, line {number}: {line} is not there; give paths relative to {here}")
        by_folder.setdefault(os.path.dirname(image), []).append(os.path.basename(image))
    return [_Place(split, folder, _labels_of(folder), tuple(names)) for folder, names in by_folder.items()]


def _usual_places(root: str) -> list[_Place]:
    """Places that need no data.yaml; the first layout that is there."""
    images, labels = os.path.join(root, "images"), os.path.join(root, "labels")
    of_split = [(split_of(name), name) for name in folders_in(root) if split_of(name)]
    layouts = (
        [
            _Place(split_of(n), os.path.join(images, n), os.path.join(labels, n))
            for n in folders_in(images)
            if split_of(n)
        ],
        [_Place(split, os.path.join(root, n, "images"), os.path.join(root, n, "labels")) for split, n in of_split],
        [_Place(UNDIVIDED, images, labels)],
        _darknet_places(root),
        [_Place(split, os.path.join(root, name), os.path.join(root, name)) for split, name in of_split],
        [_Place(UNDIVIDED, root, root)],
    )
    for layout in layouts:
        there = [place for place in layout if _has_labels(place)]
        if there:
            return there
    return []


def _darknet_places(root: str) -> list[_Place]:
    """CVAT's folders obj_SPLIT_data, divided by darknet's lists train.txt and valid.txt where they are there."""
    folders = [name for name in folders_in(root) if name.startswith("obj_") and name.endswith("_data")]
    if not folders:
        return []
    places: list[_Place] = []
    for name in ("train.txt", "valid.txt", "test.txt"):
        if os.path.isfile(os.path.join(root, name)):
            places += _listed(os.path.join(root, name), split_of(name), root)
    return places or [_Place(split_of(n), os.path.join(root, n), os.path.join(root, n)) for n in folders]


def _has_labels(place: _Place) -> bool:
    """Whether one of the first images has a label file; of a folder of its own, whether there is any text file."""
    if place.labels != place.images:
        return os.path.isdir(place.images) and any(
            name.endswith(".txt") and name not in _NAMES for _, _, names in os.walk(place.labels) for name in names
        )
    stems = {os.path.splitext(name)[0] for name in files_in(place.images, *SUFFIXES)}
    texts = {name[:-4] for name in files_in(place.labels, ".txt")}
    return holds_images(place.images) and bool(stems & texts)
