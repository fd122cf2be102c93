"""Reading KITTI's object data set, `KittiFolder`: images, label files and calibrations, with 3D boxes.

    ROOT/ImageSets/train.txt    the frames of a split, a name a line
    ROOT/training/image_2       NAME.png or .jpg, of the left colour camera
    ROOT/training/label_2       NAME.txt, see `kpjax.data.kitti_files`
    ROOT/training/calib         NAME.txt, whose P2 projects to that camera's pixels

Everything is read when the split is opened, of images their beginning alone, and errors are reported then, one line
each.  ROOT may be a URL (`gs://...`).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kpjax.config import DataConfig
from kpjax.data import files
from kpjax.data.image_files import read_image, require_images, stored_size
from kpjax.data.kitti_files import DONT_CARE, FIELDS, KittiObjects, objects_of_rows, read_calibration, read_objects
from kpjax.data.source import Annotations, Mistake, Source, make_source, stop
from kpjax.errors import DUPLICATE, MISSING, PASSING, ConfigError, DataError, one_line
from kpjax.images.decode import JPEG_SUFFIXES
from kpjax.objects import ALL_CLASSES

CLASSES: tuple[str, ...] = DataConfig.kitti_classes
# Types that look like a class: the authors train on them as on regions of that class to ignore.
NEIGHBOURS = {"Van": "Car", "Truck": "Car", "Person_sitting": "Pedestrian"}

_SUFFIXES = (".png", *JPEG_SUFFIXES)
_THREADS = 16  # reading small files waits for a disk or a network, not for a processor
_USUAL_SIZE = 375, 1242  # height, width of most of KITTI's images


def KittiFolder(
    root: str,
    split: str,
    classes: Sequence[str] = CLASSES,
    bad_images: str = "stop",
    mistake: Mistake = stop,
) -> Source:
    """Open a split (a function: it reads like a constructor and gives a plain Source with `cameras` and `labels3d`).

    root: the folder that holds `training`, or one that holds `image_2`, `label_2` and `calib` itself.
    split: the name of a file of `ImageSets`, without its suffix; record i is the i-th frame it names.
    classes: the types that are classes, in their order.  Objects of a type that looks like one of them (`NEIGHBOURS`)
        are regions of that class to ignore, DontCare those of all classes; other types are left out and counted.
    bad_images: "stop" or "skip" (`config.data.bad_images`); with "skip" an image that is missing or has no header is
        taken to have the size of the split's first other one.
    mistake: what to do about an entry that cannot be used; by default it raises.  Where it returns, the line is left
        out, a frame without a label file has no objects, and one without a calibration a camera of NaN.
    Image ids are the frames' numbers, or 1, 2, ... where names are no different numbers.
    Raises ConfigError for classes that cannot be, and DataError, one line: folders, images, label files or
    calibrations that are not there or cannot be used, a frame that is listed twice, a list without frames.
    """
    _check_classes(classes)
    folder, lists = _folders(files.absolute(os.path.expanduser(root)))
    path, names = _frames(lists, split)
    images, labels = _images(folder, names), _each(folder, "label_2", names)
    there = require_images(files.join(folder, "image_2"), images, path, bad_images, mistake)
    paths = [files.join(files.join(folder, "image_2"), image) for image in there]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(_read, paths, labels, _each(folder, "calib", names)))
    for frame in read:
        for error in frame.mistakes:
            mistake(error)
        bad = frame.bad_image
        if bad is not None and bad.kind == PASSING:
            mistake(bad)
        elif bad is not None and bad.kind != MISSING and bad_images == "stop":  # missing ones are counted above
            mistake(DataError(f"{bad}; or set config.data.bad_images='skip'", bad.kind))
    size = next((frame.size for frame in read if frame.size is not None), _USUAL_SIZE)
    heights, widths = np.array([frame.size or size for frame in read], np.int32).T
    objects, roles = [frame.objects for frame in read], roles_of_types(classes)
    counts = Counter(name for of_frame in objects for name in of_frame.types)
    _check_case(objects, labels, path, classes, counts, mistake)
    return make_source(
        name=path,
        classes=classes,
        category_ids=range(1, len(classes) + 1),
        image_ids=_ids(names),
        heights=heights,
        widths=widths,
        files=paths,
        annotations=_annotations(objects, roles),
        read=lambda i: read_image(paths[i]),
        on_disk=True,
        file_names=images,
        cameras=np.stack([frame.camera for frame in read]),
        labels3d=objects,
        dropped={f"of type {name}": count for name, count in counts.items() if name not in roles},
    )


def roles_of_types(classes: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """Type -> its label, and whether its objects are regions to ignore; a type that is missing is left out."""
    of_class = {name: (k, False) for k, name in enumerate(classes)}
    near = {name: (of_class[other][0], True) for name, other in NEIGHBOURS.items() if other in of_class}
    return {DONT_CARE: (ALL_CLASSES, True)} | near | of_class


def require_classes(source: Source) -> None:
    """Raise ConfigError where the labels of a training split lack one of its classes."""
    counts = Counter(name for labels in source.labels3d or () for name in labels.types)
    for name in source.classes:
        if not counts[name]:
            raise ConfigError(
                f"config.data.kitti_classes names {name!r}, of which {source.name} has no object; "
                f"its labels hold {in_words(counts) or 'nothing'}"
            )


def in_words(counts: Mapping[str, int]) -> str:
    """Numbers by type as text, the most frequent first: "206 Car, 28 Pedestrian"."""
    return ", ".join(
        f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


@dataclasses.dataclass(frozen=True)
class _Frame:
    """What the files of a frame say.  size: height, width of its image, or None with bad_image, the reason."""

    objects: KittiObjects
    camera: np.ndarray
    size: tuple[int, int] | None
    bad_image: DataError | None
    mistakes: tuple[DataError, ...]


def _read(image: str, label: str, calibration: str) -> _Frame:
    mistakes: list[DataError] = []
    objects, camera = objects_of_rows((), np.zeros((0, FIELDS - 1))), np.full((3, 4), np.nan)
    size, bad_image = None, None
    try:
        objects = read_objects(label, mistake=mistakes.append)
    except DataError as error:
        mistakes.append(error)
    try:
        camera = read_calibration(calibration)
    except DataError as error:
        mistakes.append(error)
    try:
        size = stored_size(image)
    except DataError as error:
        bad_image = error
    return _Frame(objects, camera, size, bad_image, tuple(mistakes))


def _check_classes(classes: Sequence[str]) -> None:
    names = tuple(classes)
    if not names or not all(name.replace("_", "").replace("-", "").isalnum() for name in names):
        raise ConfigError(
            f"config.data.kitti_classes is {names}; give names of types, "
            """e.g. --config.data.kitti_classes="('Car', 'Van')\""""
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"config.data.kitti_classes names {twice!r} twice; classes have to differ")
    if DONT_CARE in names:
        raise ConfigError(f"config.data.kitti_classes names {DONT_CARE!r}, which marks regions to ignore; leave it out")


def _folders(root: str) -> tuple[str, str]:
    """The folder that holds image_2, and the one that holds the lists of frames."""
    if not files.is_folder(root):
        raise DataError(f"{root}: no such folder; give KITTI's, which holds ImageSets and training")
    inside = files.join(root, "training")
    folder = next((f for f in (inside, root) if files.is_folder(files.join(f, "image_2"))), None)
    if folder is None:
        raise DataError(
            f"{root}: no folder training/image_2 or image_2; it holds {_listed(files.names_in(root))}; "
            "give the folder that holds training"
        )
    for needed in ("label_2", "calib"):
        if not files.is_folder(files.join(folder, needed)):
            raise DataError(f"{folder}: no folder {needed} beside image_2; it holds {_listed(files.names_in(folder))}")
    places = [files.join(root, "ImageSets"), files.join(folder, "ImageSets")]
    if folder == root:  # `training` itself
        places.append(files.join(root.rpartition("/")[0] if files.is_url(root) else os.path.dirname(root), "ImageSets"))
    lists = next((place for place in places if files.is_folder(place)), None)
    if lists is None:
        raise DataError(f"{root}: no folder ImageSets; make it, with a file of frames' names a split, e.g. train.txt")
    return folder, lists


def _frames(lists: str, split: str) -> tuple[str, list[str]]:
    """The path of a split's list, and the names in it."""
    path = files.join(lists, f"{split}.txt")
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        there = [name.removesuffix(".txt") for name in files.names_in(lists) if name.endswith(".txt")]
        raise DataError(
            f"{path}: no such list of frames; there are {_listed(there)}; "
            "set config.data.kitti_train and config.data.kitti_val"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of frames ({one_line(error)})") from None
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if any(letter in "/\\:\0" or letter.isspace() for letter in name):
            raise DataError(f"{path}, line {number}: {name[:60]!r} is no name of a frame; give one a line, e.g. 000123")
        names.append(name)
    if not names:
        raise DataError(f"{path}: names no frame; give one a line, e.g. 000123")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: names frame {twice[0]} twice; frames have to differ", DUPLICATE)
    return path, names


def _images(folder: str, names: list[str]) -> list[str]:
    """The frames' image files: a PNG, else a JPEG; the name of a PNG where there is none."""
    there = set(files.names_in(files.join(folder, "image_2")))
    found = []
    for name in names:
        file_names = [name + suffix for suffix in _SUFFIXES]
        found.append(next((file_name for file_name in file_names if file_name in there), file_names[0]))
    return found


def _each(folder: str, kind: str, names: list[str]) -> list[str]:
    return [files.join(files.join(folder, kind), f"{name}.txt") for name in names]


def _ids(names: list[str]) -> np.ndarray:
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 19]
    return np.array(numbers if len(set(numbers)) == len(names) else range(1, len(names) + 1), np.int64)


def _check_case(
    objects: list[KittiObjects],
    labels: list[str],
    path: str,
    classes: Sequence[str],
    counts: Mapping[str, int],
    mistake: Mistake,
) -> None:
    """Report classes and types that differ in their case alone: the one or the other is a slip."""
    for name in classes:
        near = [other for other in counts if other.casefold() == name.casefold()]
        if near and name not in near:
            raise ConfigError(
                f"config.data.kitti_classes names {name!r}, and the labels of {path} have {near[0]!r}; "
                f"did you mean {near[0]!r}?"
            )
    known = (*NEIGHBOURS, DONT_CARE, *classes)
    right = {name.casefold(): name for name in known}
    slips = {name: right[name.casefold()] for name in counts if name not in known and name.casefold() in right}
    for label, of_frame in zip(labels, objects, strict=True) if slips else ():
        for number, name in enumerate(of_frame.types, 1):
            if name in slips:
                mistake(DataError(f"{label}: object {number} is of type {name!r}; did you mean {slips[name]!r}?"))


def _listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(sorted(names)[:10]) + (" ..." if len(names) > 10 else "") or "nothing"


def _annotations(objects: list[KittiObjects], roles: Mapping[str, tuple[int, bool]]) -> Annotations:
    """The objects and regions of all frames, in the order of the files."""
    types = np.array([name for of_frame in objects for name in of_frame.types], np.str_)
    kept = np.isin(types, list(roles))
    label, region = np.array([roles[name] for name in types[kept]], np.int64).reshape(-1, 2).T
    corners, size = (np.concatenate([getattr(o, key) for o in objects])[kept] for key in ("boxes", "size"))
    depth = np.concatenate([o.location[:, 2] for o in objects])[kept]
    alpha = np.concatenate([o.alpha for o in objects])[kept]
    sides = corners[:, 2:] - corners[:, :2]
    return Annotations(
        image=np.repeat(np.arange(len(objects)), [len(o) for o in objects])[kept],
        label=label.astype(np.int32),
        bbox=np.concatenate([corners[:, :2], sides], axis=1),
        area=sides.prod(axis=1),
        crowd=np.zeros(len(label), bool),
        ids=np.arange(1, len(label) + 1),
        # KITTI writes -1000 metres where it says nothing.
        solid=np.where((label == ALL_CLASSES)[:, None], 0.0, np.column_stack([depth, size, alpha])),
        region=region.astype(bool),
    )
