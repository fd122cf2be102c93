"""Which COCO JSONs are in a folder, and where are their images?  COCO's own layout and those of annotation tools."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from kpjax.data.image_files import stored_size
from kpjax.data.spellings import Spellings
from kpjax.datasets.folders.parts import (
    UNDIVIDED,
    Look,
    Part,
    Reading,
    files_in,
    first_some,
    folders_in,
    split_of,
)
from kpjax.errors import DataError, one_line
from kpjax.images.decode import SUFFIXES

_OTHER_TASKS = ("captions_", "panoptic_", "stuff_", "labels_")  # of COCO and datumaro, in the same folder
_MOST_FILES = 40  # more are one for each image
_WHOLE = 2**26  # bytes: larger files are recognised by their beginning
_SAMPLE = 200  # names that are looked for in each folder


def look(root: str) -> Look:
    """COCO JSONs in `root` (a folder or one JSON file), in its folder `annotations`, or in its other folders."""
    if os.path.isfile(root):
        if not root.lower().endswith(".json"):
            return Look()
        folder, paths = os.path.dirname(os.path.abspath(root)), [root]
        if os.path.basename(folder).lower() == "annotations":
            folder = os.path.dirname(folder)
    else:
        folder, paths = root, list(_json_files(root))
    if len(paths) > _MOST_FILES:
        hint = f"{len(paths)} JSON files, such as {os.path.relpath(paths[0], folder)}, probably one for each image"
        return Look((), (f"{hint} (LabelMe?): export or convert them to one COCO JSON",))
    known = [path for path in paths if _is_coco(path)]
    if not known:
        return Look((), tuple(filter(None, map(_what_else, paths))))
    evidence = first_some([os.path.relpath(path, folder) for path in known])
    return Look((Reading("COCO", evidence, functools.partial(_read, folder, known)),))


def _json_files(root: str) -> Iterator[str]:
    for folder in ("", *folders_in(root)):
        place = os.path.join(root, folder)
        for name in files_in(place, ".json"):
            if not name.startswith(_OTHER_TASKS):
                yield os.path.join(place, name)


@functools.lru_cache(maxsize=8)
def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({one_line(error, 120)})") from error


def _is_coco(path: str) -> bool:
    if os.path.getsize(path) > _WHOLE:
        with open(path, "rb") as file:
            begin = file.read(2**20)
        return begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(
            word in begin for word in (b'"file_name"', b'"bbox"')
        )
    try:
        data = _load(path)
    except DataError:
        return False
    lists = isinstance(data, dict) and all(isinstance(data.get(key), list) for key in ("images", "categories"))
    return lists and all(isinstance(image, dict) and "file_name" in image for image in data["images"][:1])


def _what_else(path: str) -> str:
    """What a JSON that is not COCO's seems to be; "" where that is unknown."""
    try:
        data = _load(path)
    except DataError as error:
        return str(error)
    if isinstance(data, list) and data and isinstance(data[0], dict) and {"annotations", "data"} <= data[0].keys():
        return f"{path} is Label Studio's own JSON: export the project as COCO, with images"
    if isinstance(data, dict) and {"items", "categories"} <= data.keys():
        return f"{path} is datumaro's own JSON: export the data set as coco"
    if isinstance(data, dict) and any(isinstance(v, dict) and "regions" in v for v in data.values()):
        return f"{path} is a project of VGG's annotator (VIA): export its annotations as COCO"
    if isinstance(data, dict) and "shapes" in data:
        return f"{path} is a LabelMe file, of one image: convert them to one COCO JSON"
    return ""


def _read(root: str, paths: Sequence[str], keypoints: bool) -> list[Part]:
    by_split: dict[str, list[str]] = {}
    for path in paths:
        name = os.path.basename(path)
        split = split_of(name) or (split_of(os.path.basename(os.path.dirname(path))) if _in_folder(path, root) else "")
        by_split.setdefault(split, []).append(path)
    for split, same in by_split.items():
        of_points = [path for path in same if "keypoints" in os.path.basename(path).lower()]
        if 0 < len(of_points) < len(same):
            same[:] = of_points if keypoints else [path for path in same if path not in of_points]
        if len(same) > 1:
            what = f"for the split {split}" if split else "and none says of which split it is"
            names = " and ".join(os.path.relpath(path, root) for path in same[:3])
            raise DataError(
                f"{root}: several COCO JSONs {what} ({names}); name the one to use, --data FILE, or remove the others"
            )
    if UNDIVIDED in by_split and len(by_split) > 1:
        loose, named = by_split[UNDIVIDED][0], next(same[0] for split, same in by_split.items() if split)
        raise DataError(
            f"{root}: {os.path.relpath(loose, root)} may be the whole of which {os.path.relpath(named, root)} is a "
            "split; name the one to use, --data FILE, or remove it"
        )
    return [_part(root, same[0], split) for split, same in by_split.items()]


def _in_folder(path: str, root: str) -> bool:
    return os.path.abspath(os.path.dirname(path)) != os.path.abspath(root)


def _part(root: str, path: str, split: str) -> Part:
    data = _load(path)
    _load.cache_clear()  # they can be large
    for key in ("images", "categories"):
        if not isinstance(data.get(key), list) or not all(isinstance(entry, dict) for entry in data[key]):
            raise DataError(f"{path}: not a COCO instances JSON; it has no list {key!r} of objects")
    data.setdefault("annotations", [])
    names = [image["file_name"] for image in data["images"] if isinstance(image.get("file_name"), str)]
    if not names:
        raise DataError(f"{path}: lists no image; export the data set with its images")
    if split == "test":
        return Part(split, root, data, path)
    folder, renamed = _image_folder(root, path, names, split)
    notes = []
    if renamed:
        data["images"] = [
            image | {"file_name": renamed.get(str(image.get("file_name")), image.get("file_name"))}
            for image in data["images"]
        ]
        notes.append(f"images of {os.path.basename(path)} found by their names alone, in other folders than it says")
    unsized = [image for image in data["images"] if not (image.get("width") and image.get("height"))]
    for image in unsized:
        name = str(image.get("file_name")).replace("\\", "/")
        image["height"], image["width"] = stored_size(os.path.join(folder, name))
    if unsized:
        notes.append(f"{len(unsized)} x sizes of images that the JSON lacks: read from the image files")
    return Part(split, folder, data, "" if notes else path, tuple(notes))


def _image_folder(root: str, path: str, names: list[str], split: str) -> tuple[str, dict[str, str]]:
    """The folder that the images' names are relative to, and what they are called there where that is otherwise."""
    sample = names[:: max(1, len(names) // _SAMPLE)]
    stem = os.path.splitext(os.path.basename(path))[0]
    below = [place for place in (root, os.path.join(root, "images")) if os.path.isdir(place)]
    subfolders = [os.path.join(place, name) for place in below for name in folders_in(place)]
    subfolders += [os.path.join(place, "images") for place in subfolders]
    ofsplit = [
        place
        for place in subfolders
        if (split and split_of(os.path.relpath(place, root)) == split)
        or stem.endswith(f"_{os.path.basename(place)}")  # instances_NAME.json with images/NAME
    ]
    own = os.path.dirname(os.path.abspath(path))
    for places in (ofsplit, [own, *below, os.path.join(own, "images"), *subfolders]):
        shares = {os.path.realpath(p): _share(p, sample) for p in places if os.path.isdir(p)}
        best = max(shares.values(), default=0.0)
        found = [place for place, share in shares.items() if share == best]
        if best and len(found) > 1:
            raise DataError(
                f"{path}: its images, such as {sample[0]}, are in {found[0]} and in {found[1]}; "
                "remove one of them, or name paths in the JSON that tell them apart"
            )
        if best > (0.5 if places is ofsplit else 0):
            return found[0], {}
    by_name: dict[str, list[str]] = {}
    for parent, _, there in os.walk(root):
        for name in there:
            if name.lower().endswith(SUFFIXES):
                by_name.setdefault(name, []).append(os.path.relpath(os.path.join(parent, name), root))
    found_of = {name: by_name.get(os.path.basename(name.replace("\\", "/")), []) for name in names}
    if all(len(places) == 1 for places in found_of.values()):
        return root, {name: places[0] for name, places in found_of.items()}
    lost = next(name for name in names if len(found_of[name]) != 1)
    how = "in several folders" if found_of[lost] else "nowhere in it"
    raise DataError(
        f"{path}: lists {len(names)} images, but {lost!r} is {how} ({root}); put the images beside the JSON"
    )


def _share(folder: str, names: Sequence[str]) -> float:
    spellings = Spellings(os.path.abspath(folder))
    plain = [name.replace("\\", "/") for name in names]
    there = sum(os.path.isfile(os.path.join(folder, n)) or len(spellings.fitting(n)) == 1 for n in plain)
    return there / len(names)
