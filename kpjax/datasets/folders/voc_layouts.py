"""Where are Pascal VOC's XML files and their images in a folder, and which lists divide them?"""

from __future__ import annotations

import functools
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from kpjax.datasets.folders.parts import (
    TRAIN,
    VAL,
    Look,
    Part,
    Reading,
    files_in,
    folders_in,
    holds_images,
    split_of,
)
from kpjax.datasets.voc import convert_voc
from kpjax.errors import DataError

_XML_FOLDERS = ("annotations", "annotation", "xml", "xmls", "labels", "")
_IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "")


def look(root: str) -> Look:
    """XML files in Annotations with JPEGImages (or folders of like names), or beside the images, also by split."""
    if os.path.isfile(root):
        return Look()
    own = files_in(root, ".xml")
    if own == ["annotations.xml"] and _root_tag(os.path.join(root, own[0])) == "annotations":
        return Look((), (f"{os.path.join(root, own[0])} is CVAT's own XML: export the task as COCO, with images",))
    places: list[tuple[str, str, str]] = []  # split, XML folder, image folder
    for split, place in (("", root), *((split_of(name), os.path.join(root, name)) for name in folders_in(root))):
        pair = _pair(place) if split or place == root else None
        if pair:
            places.append((split, *pair))
    if not places:
        places = _split_pairs(root)
    if not places:
        return Look()
    shown = ", ".join(os.path.relpath(xml, root) for _, xml, _ in places[:3])
    return Look((Reading("Pascal VOC", f"XML files in {shown}", functools.partial(_read, root, places)),))


def _pair(place: str) -> tuple[str, str] | None:
    """The folders of XML files and of images in `place`; None where it has none."""
    named = {name.lower(): os.path.join(place, name) for name in folders_in(place)} | {"": place}
    xml = next((named[name] for name in _XML_FOLDERS if name in named and _has_pages(named[name])), None)
    if xml is None:
        return None
    beside = ("", *_IMAGE_FOLDERS) if xml == place else _IMAGE_FOLDERS
    images = next((named[name] for name in beside if name in named and holds_images(named[name])), None)
    if images is None:
        images = xml if holds_images(xml) else None
    return None if images is None else (xml, images)


def _split_pairs(root: str) -> list[tuple[str, str, str]]:
    """Annotations/SPLIT with images/SPLIT."""
    named = {name.lower(): os.path.join(root, name) for name in folders_in(root)}
    xml = next((named[name] for name in _XML_FOLDERS if name in named), None)
    images = next((named[name] for name in _IMAGE_FOLDERS if name in named), None)
    if xml is None or images is None:
        return []
    pairs = [(split_of(name), os.path.join(xml, name), os.path.join(images, name)) for name in folders_in(xml)]
    return [pair for pair in pairs if pair[0] and _has_pages(pair[1]) and holds_images(pair[2])]


def _has_pages(folder: str) -> bool:
    first = next(iter(files_in(folder, ".xml")), None)
    return first is not None and _root_tag(os.path.join(folder, first)) in ("annotation", "")


def _root_tag(path: str) -> str:
    """The tag of an XML file's root; "" where the file is damaged, which its reader names."""
    try:
        return ElementTree.parse(path).getroot().tag
    except (OSError, ElementTree.ParseError):
        return ""


def _read(root: str, places: Sequence[tuple[str, str, str]], keypoints: bool) -> list[Part]:
    parts = []
    for split, xml, images in places:
        whole = convert_voc(root, folders=(os.path.relpath(xml, root), os.path.relpath(images, root)))
        part = Part(split, whole.images, whole.instances, notes=whole.notes)
        lists = {} if split else _lists(root, xml)
        parts += _divided(part, lists) if lists else [part]
    return parts


def _lists(root: str, xml: str) -> dict[str, tuple[str, list[str]]]:
    """Split -> its list in ImageSets/Main and the names in it."""
    place = next(
        (p for p in (os.path.join(root, "ImageSets", "Main"), os.path.join(root, "ImageSets")) if files_in(p, ".txt")),
        "",
    )
    paths = {name[:-4]: os.path.join(place, name) for name in files_in(place, ".txt")} if place else {}
    # `trainval` is both others together; lists like `cat_train` are of one class; CVAT calls its only list `default`.
    chosen = {}
    for split, names in ((TRAIN, ("train", "trainval")), (VAL, ("val", "valid", "validation")), ("test", ("test",))):
        name = next((n for n in names if n in paths), None)
        if name is None or (name == "trainval" and "val" in paths):
            continue
        with open(paths[name], encoding="utf-8-sig") as file:
            stems = [line.split()[0] for line in file if line.strip()]
        if stems:
            chosen[split] = (paths[name], stems)
    return chosen if TRAIN in chosen or VAL in chosen else {}


def _divided(part: Part, lists: dict[str, tuple[str, list[str]]]) -> list[Part]:
    by_stem = {os.path.splitext(image["file_name"])[0]: image for image in part.instances["images"]}
    parts, listed = [], set()
    for split, (path, stems) in lists.items():
        for stem in stems:
            if stem not in by_stem:
                raise DataError(
                    f"{path}: names {stem}, of which there is no XML file; remove that line, or add the file"
                )
        twice = (
            next((stem for stem in set(stems) if stems.count(stem) > 1), None) if len(set(stems)) < len(stems) else None
        )
        if twice:
            raise DataError(f"{path}: lists {twice} twice")
        images = [by_stem[stem] for stem in stems]
        ids = {image["id"] for image in images}
        listed |= ids
        rows = [row for row in part.instances["annotations"] if row["image_id"] in ids]
        parts.append(Part(split, part.images, part.instances | {"images": images, "annotations": rows}))
    rest = len(by_stem) - len(listed)
    notes = (*part.notes, f"{rest} x images that no list of ImageSets names: left out") if rest else part.notes
    first = parts[0]
    return [Part(first.split, first.images, first.instances, notes=notes), *parts[1:]]
