"""Reading a COCO data set, `CocoFolder`: a folder of images and an instances JSON, COCO's or your own.

Classes are the JSON's categories in ascending order of their ids. Errors that
would otherwise surface after hours of training are reported when the split is opened, one line each.
Both may be URLs (`gs://...`).
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from typing import Any

import numpy as np

from kpjax.data import files
from kpjax.data.image_files import read_image, require_images
from kpjax.data.outlines import extreme_keypoints
from kpjax.data.source import LARGEST, Annotations, Mistake, Source, make_source, stop
from kpjax.errors import DUPLICATE, UNKNOWN_CATEGORY, UNKNOWN_IMAGE, DataError, one_line
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import PointSet


def CocoFolder(
    images: str,
    annotations: str,
    bad_images: str = "stop",
    mistake: Mistake = stop,
    *,
    crowds: str = "ignore",
    keypoints: bool | None = False,
    outlines: bool | None = False,
) -> Source:
    """Open a split (a function: it reads like a constructor and gives a plain Source).

    images: folder that the JSON's `file_name`s are relative to.  annotations: path of the JSON.
    bad_images: "stop" or "skip" (`config.data.bad_images`); with "skip" a missing image is
        noticed when it is read.
    mistake: what to do about an entry that cannot be used; by default it raises. Where it returns, the entry is
        left out (a missing image is kept), so that all mistakes of a file can be counted.
    crowds: "ignore" or "train", see `config.data.crowds`.  keypoints: read the objects' keypoints; their names and
        skeleton are those of `categories`, and left and right are exchanged in a mirror by their names.  None: where
        a category names any.  Without annotations (image-info files of test splits) no category has to name them.
    outlines: instead of them read the extreme points of the objects' outlines ("segmentation"); an object without an
    outline has none.  None: where any object has an outline.
    Raises DataError, one line: a file that is not COCO JSON, ids that repeat or are unknown, sizes and
    boxes that are not numbers, file names that lead outside the folder, images that are not there ("skip":
    none of them).
    """
    images, annotations = os.path.expanduser(images), os.path.expanduser(annotations)
    data = _load(annotations)
    folder = files.absolute(images)
    if not files.is_folder(folder):
        raise DataError(f"{images}: no such image folder; give the folder that holds the images of {annotations}")

    category_ids, classes = _categories(data["categories"], annotations, mistake)
    image_ids, heights, widths, names = _images(data["images"], annotations, mistake, folder)
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    numbers = {category_id: k for k, category_id in enumerate(category_ids)}
    needed = keypoints and data["annotations"]
    named = keypoints is not False and any(category.get("keypoints") for category in data["categories"])
    points = point_set(data["categories"], annotations) if needed or named else None
    if outlines or (outlines is None and any(entry.get("segmentation") for entry in data["annotations"])):
        points = EXTREME_POINTS
    objects = _annotations(data["annotations"], annotations, index, numbers, mistake, points)
    there = require_images(folder, names, annotations, bad_images, mistake)
    paths = [files.join(folder, name) for name in there]
    return make_source(
        name=annotations,
        classes=classes,
        category_ids=category_ids,
        image_ids=np.asarray(image_ids, np.int64),
        heights=np.asarray(heights, np.int32),
        widths=np.asarray(widths, np.int32),
        files=paths,
        annotations=objects,
        read=lambda i: read_image(paths[i]),
        on_disk=True,
        file_names=names,
        crowds=crowds,
        points=points,
    )


def _load(path: str) -> dict[str, Any]:
    try:
        data = json.loads(files.read_bytes(path).decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a COCO instances JSON") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({one_line(error, 120)}); give a COCO instances JSON") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: not a COCO instances JSON; the top level is a {type(data).__name__}, not an object")
    if {"images", "categories"} <= data.keys():  # COCO's image-info files of test splits have nothing else
        data.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            what = "no" if key not in data else "something else than a list as"
            raise DataError(f"{path}: not a COCO instances JSON; it has {what} {key!r}")
        for n, entry in enumerate(data[key]):
            if not isinstance(entry, dict):
                raise DataError(f"{path}: {key}[{n}] is a {type(entry).__name__}, not an object")
    return data


def _categories(entries: list[dict[str, Any]], path: str, mistake: Mistake) -> tuple[list[int], list[str]]:
    names: dict[int, str] = {}
    first_mistake: DataError | None = None
    for n, entry in enumerate(entries):
        try:
            category_id = _whole(entry, "id", f"{path}: categories[{n}]")
            name = entry.get("name")
            if not isinstance(name, str) or not name:
                raise DataError(f"{path}: categories[{n}] (id {category_id}) has no name")
            if category_id in names:
                both = f"({names[category_id]!r}, {name!r})"
                raise DataError(f"{path}: category id {category_id} is listed twice {both}", DUPLICATE)
        except DataError as error:
            mistake(error)
            first_mistake = first_mistake or error
            continue
        names[category_id] = name
    if not names:
        raise first_mistake or DataError(f"{path}: 'categories' is empty; list at least one class")
    ids = sorted(names)
    return ids, [names[i] for i in ids]


def _images(
    entries: list[dict[str, Any]], path: str, mistake: Mistake, folder: str
) -> tuple[list[int], list[int], list[int], list[str]]:
    ids: list[int] = []
    heights: list[int] = []
    widths: list[int] = []
    names: list[str] = []
    first: dict[int, str] = {}
    first_mistake: DataError | None = None
    for n, entry in enumerate(entries):
        where = f"{path}: images[{n}]"
        try:
            image_id = _whole(entry, "id", where)
            name = _inside(entry.get("file_name"), f"{where} (id {image_id})", folder)
            if image_id in first:
                both = f"({first[image_id]}, {name})"
                raise DataError(f"{path}: image id {image_id} is listed twice {both}", DUPLICATE)
            height, width = (_whole(entry, key, f"{where} ({name})") for key in ("height", "width"))
            if not (0 < height < 2**16 and 0 < width < 2**16):
                raise DataError(
                    f"{where} ({name}) is {width} x {height} pixels; give the image's true width and height"
                )
        except DataError as error:
            mistake(error)
            first_mistake = first_mistake or error
            continue
        first[image_id] = name
        ids.append(image_id)
        heights.append(height)
        widths.append(width)
        names.append(name)
    if not ids:
        raise first_mistake or DataError(f"{path}: 'images' is empty; list at least one image")
    return ids, heights, widths, names


def _annotations(
    entries: list[dict[str, Any]],
    path: str,
    index: dict[int, int],
    classes: dict[int, int],
    mistake: Mistake,
    points: PointSet | None,
) -> Annotations:
    count = len(entries)
    image, label, ids = np.zeros(count, np.int64), np.zeros(count, np.int32), np.zeros(count, np.int64)
    bbox, area, crowd = np.zeros((count, 4)), np.zeros(count), np.zeros(count, bool)
    keypoints = None if points is None else np.zeros((count, len(points), 3))
    good = np.ones(count, bool)
    seen: set[int] = set()
    numbered = all("id" in entry for entry in entries)  # some exporters leave the ids out: number them in order
    for n, entry in enumerate(entries):
        where = f"{path}: annotations[{n}]"
        try:
            ids[n] = n + 1
            if numbered:
                ids[n] = _whole(entry, "id", where)
                where = f"{path}: annotation {ids[n]}"
                if int(ids[n]) in seen:
                    raise DataError(f"{path}: annotation id {ids[n]} is used twice; ids have to be unique", DUPLICATE)
                seen.add(int(ids[n]))
            image_id, category_id = _whole(entry, "image_id", where), _whole(entry, "category_id", where)
            if image_id not in index:
                raise DataError(f"{where} is of image id {image_id}, which 'images' does not list", UNKNOWN_IMAGE)
            if category_id not in classes:
                raise DataError(
                    f"{where} has category id {category_id}, which 'categories' does not list", UNKNOWN_CATEGORY
                )
            image[n], label[n] = index[image_id], classes[category_id]
            bbox[n], area[n] = _box_and_area(entry, where)
            crowd[n] = _crowd(entry.get("iscrowd"), where)
            if keypoints is not None and points is EXTREME_POINTS:
                keypoints[n] = extreme_keypoints(entry.get("segmentation"), where)
            elif keypoints is not None:
                keypoints[n] = _keypoints(entry.get("keypoints"), keypoints.shape[1], where)
        except DataError as error:
            mistake(error)
            good[n] = False
    kept = None if keypoints is None else keypoints[good]
    return Annotations(image[good], label[good], bbox[good], area[good], crowd[good], ids[good], kept)


def point_set(categories: list[dict[str, Any]], path: str) -> PointSet:
    """The points that the categories of a COCO JSON name ("keypoints", "skeleton"), the same in all that have any.

    "sigmas", which COCO's own files lack, are the points' constants of the object keypoint similarity.

    Raises DataError, one line, where none has any, where they differ, or where a skeleton joins what is not there.
    """
    found: PointSet | None = None
    first = ""
    for n, category in enumerate(categories):
        names, edges, where = category.get("keypoints"), category.get("skeleton") or [], f"{path}: categories[{n}]"
        if not names:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"{where} has the keypoints {_short(names)}; give a list of names")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{where} names the keypoint {twice[0]!r} twice; names have to differ")
        pairs = [edge if isinstance(edge, list) else [] for edge in edges] if isinstance(edges, list) else [[]]
        if not all(len(e) == 2 and all(type(j) is int and 1 <= j <= len(names) for j in e) for e in pairs):
            raise DataError(
                f"{where} has a skeleton that joins keypoints which are not there ({_short(edges)}); "
                f"give pairs of numbers from 1 to {len(names)}"
            )
        sigmas = category.get("sigmas") or []
        if not isinstance(sigmas, list) or not all(_number(v, 1) and v > 0 for v in sigmas):
            raise DataError(f"{where} has the sigmas {_short(sigmas)}; give a list of numbers above 0 and at most 1")
        if sigmas and len(sigmas) != len(names):
            raise DataError(f"{where} has {len(sigmas)} sigmas and {len(names)} keypoints; give one for each")
        edges_from_0 = tuple((a - 1, b - 1) for a, b in pairs)
        points = PointSet(tuple(names), edges=edges_from_0, sigmas=tuple(map(float, sigmas)))
        if found is not None and points.names != found.names:
            raise DataError(
                f"{where} has {len(points)} keypoints and {first} {len(found)}, or others; all classes need the same"
            )
        found, first = found or points, first or f"categories[{n}]"
    if found is None:
        raise DataError(
            f"{path}: no category has 'keypoints'; give a COCO keypoints JSON, e.g. person_keypoints_*.json"
        )
    return found


def _keypoints(value: Any, count: int, where: str) -> np.ndarray | float:
    """(J, 3) x, y, visibility; 0 where there is nothing."""
    if not value:
        return 0.0
    if not isinstance(value, list) or len(value) != 3 * count:
        given = f"keypoints of {len(value)} numbers" if isinstance(value, list) else f"the keypoints {_short(value)}"
        raise DataError(f"{where} has {given}; give x, y, visibility of each of the {count} points")
    for n, number in enumerate(value):
        if not _number(number, LARGEST):
            raise DataError(f"{where} has {_short(number)} at keypoint {n // 3 + 1}; give numbers of pixels")
    points = np.array(value, np.float64).reshape(count, 3)
    odd = ~np.isin(points[:, 2], (0, 1, 2))
    if odd.any():
        j = int(odd.argmax())
        raise DataError(
            f"{where} has the visibility {points[j, 2]:g} at keypoint {j + 1}; give 0 unlabelled, 1 hidden or 2 visible"
        )
    return points


def _box_and_area(entry: dict[str, Any], where: str) -> tuple[list[float], float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(v, LARGEST) for v in box):
        raise DataError(f"{where} has the bbox {_short(box)}; give four numbers of pixels: x, y, width, height")
    if box[2] < 0 or box[3] < 0:
        raise DataError(f"{where} has the bbox {box} of negative size; COCO's bbox is x, y, width, height")
    size = entry.get("area")
    size = box[2] * box[3] if size is None else size  # as pycocotools does of boxes: some tools leave it out, or null
    if not _number(size, LARGEST**2) or size < 0:
        raise DataError(f"{where} has the area {_short(size)}; give a number of square pixels")
    return box, size


def _crowd(value: Any, where: str) -> bool:
    if value is not None and not isinstance(value, (int, float)):  # "0" would count as true
        raise DataError(f"{where} has {_short(value)} as 'iscrowd'; give 0 or 1")
    return bool(value)


def _inside(name: Any, where: str, folder: str) -> str:
    """The file name as a path relative to the folder, with forward slashes; DataError where it leads out of it."""
    if not isinstance(name, str) or not name or not _encodable(name):
        raise DataError(f"{where} has the file_name {_short(name)}; give the image's path inside the image folder")
    name = name.removeprefix(f"{folder.rstrip('/')}/")  # some tools write whole paths
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path in (".", "..") or re.match(r"[A-Za-z]:", path):
        raise DataError(f"{where} has the file_name {name!r}, which leads outside the image folder; make it relative")
    # Where a backslash is part of a real name (POSIX), the name itself is right and the rewriting is not.
    return path if os.sep == "\\" or "\\" not in name else posixpath.normpath(name)


def _encodable(name: str) -> bool:
    """Whether a file may have the name.  Names that are not UTF-8 have their bytes as half surrogates, as in Python."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _whole(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f"{where} has {_short(value)} as {key!r}; give a whole number")
    return value


def _number(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
