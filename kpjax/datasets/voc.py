"""Converting Pascal VOC annotations (one XML an image) to a COCO instances dictionary.

VOC counts pixels from 1 and includes the last one: a box from xmin to xmax covers the COCO interval that
starts at xmin - 1 and is xmax - xmin + 1 wide.  Tools that write VOC files with pixels from 0 exist as well;
for theirs, `zero_based=True` takes the corners as they are: x = xmin, width = xmax - xmin.
"""

from __future__ import annotations

import dataclasses
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kpjax.data.image_files import stored_size
from kpjax.data.spellings import Spellings, hint
from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES

DIFFICULT = ("keep", "ignore", "drop")
FOLDERS = ("Annotations", "JPEGImages")


@dataclasses.dataclass(frozen=True)
class Converted:
    """A COCO instances dictionary, where its images lie, and what a person should know about it.

    images: folder that the file names are relative to.
    notes: what was dropped, changed or looks wrong, one line each.
    """

    instances: dict[str, Any]
    images: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclasses.dataclass(frozen=True)
class _Page:
    """An XML file.  sized: whether it states the image's size, which is else that of the image file."""

    path: str
    file_name: str
    width: int
    height: int
    objects: tuple[_Object, ...]
    sized: bool


def convert_voc(
    root: str,
    list_file: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
    difficult: str = "keep",
    folders: tuple[str, str] = FOLDERS,
) -> Converted:
    """Convert the folder `root` with Annotations/ and JPEGImages/.

    list_file: text file of image names without suffix, one a line, as in ImageSets/Main (a path as it is, or
        relative to root); None: every XML file. A second column (VOC's per-class lists) is not read.
    classes: names in the order of their ids 1, 2, ...; None: all names that occur anywhere in Annotations/,
        sorted, so that every split of one root gets the same ids.
    difficult: objects marked difficult are ordinary ("keep"), not trained on and ignored in evaluation, as a COCO
        crowd ("ignore"), or left out ("drop").
    folders: names of the two folders in root, where they are called otherwise; both may be one.
    The size of an image is that of its XML file; where that has none, or 0, it is read from the image.
    Raises DataError, one line, on what cannot be read.
    """
    if difficult not in DIFFICULT:
        raise DataError(f"difficult is {difficult!r}; choose one of {', '.join(DIFFICULT)}")
    folder, images = (os.path.normpath(os.path.join(root, name)) for name in folders)
    for needed in (folder, images):
        if not os.path.isdir(needed):
            raise DataError(f"{needed}: no such folder; a VOC root holds {' and '.join(folders)}")
    there = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".xml"))
    stems = there if list_file is None else _read_list(root, list_file)
    if not stems:
        raise DataError(f"{list_file or folder}: lists no image")
    notes: Counter[str] = Counter()
    pictures, wanted = Spellings(images), [f"{stem}.xml" for stem in stems]
    meant = Spellings(folder).meant(wanted, sorted({*wanted} - {f"{stem}.xml" for stem in there}))
    named = {stem: meant.get(f"{stem}.xml", f"{stem}.xml") for stem in stems}
    pages = {stem: _parse(os.path.join(folder, name), images, pictures) for stem, name in named.items()}
    if classes is None:
        rest = [
            _parse(os.path.join(folder, f"{s}.xml"), images, pictures)
            for s in there
            if f"{s}.xml" not in set(named.values())
        ]
        classes = sorted({o.name for page in [*pages.values(), *rest] for o in page.objects})
    twice = [name for name, n in Counter(classes).items() if n > 1]
    if twice:
        raise DataError(f"the class {twice[0]!r} is named twice; name each once, in the order of their ids")
    if not classes:
        raise DataError(f"{folder}: no object has a class name; there is nothing to learn")
    ids = {name: k + 1 for k, name in enumerate(classes)}

    annotations: list[dict[str, Any]] = []
    for image_id, page in enumerate(pages.values(), 1):
        if not page.sized:
            notes["sizes of images that their XML lacks: read from the image files"] += 1
        for thing in page.objects:
            if thing.name not in ids:
                notes[f"objects of class {thing.name!r} dropped: not among the classes given"] += 1
                continue
            if thing.difficult:
                notes[f"difficult objects: {difficult}"] += 1
                if difficult == "drop":
                    continue
            box = _box(thing, page, zero_based, notes)
            if box is None:
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[thing.name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(thing.difficult and difficult == "ignore"),
                }
            )
    return Converted(
        instances={
            "info": {"description": f"converted from Pascal VOC, {'corners' if zero_based else 'pixels from 1'}"},
            "licenses": [],
            "images": [
                {"id": n, "file_name": page.file_name, "width": page.width, "height": page.height}
                for n, page in enumerate(pages.values(), 1)
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in ids.items()],
        },
        images=images,
        notes=tuple(f"{count} x {text}" for text, count in notes.items()),
    )


def _read_list(root: str, list_file: str) -> list[str]:
    path = list_file if os.path.exists(list_file) else os.path.join(root, list_file)
    try:
        with open(path, encoding="utf-8") as file:
            stems = [line.split()[0] for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    twice = [stem for stem, n in Counter(stems).items() if n > 1]
    if twice:
        raise DataError(f"{path}: lists {twice[0]} twice")
    return stems


def _parse(path: str, images: str, pictures: Spellings) -> _Page:
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not an XML file ({error})") from error
    stem = os.path.basename(path)[:-4]
    file_name = _image_file(root, stem, images, path, pictures)
    width, height = (
        int(_number(root, f"size/{side}", path)) if (root.findtext(f"size/{side}") or "").strip() else 0
        for side in ("width", "height")
    )
    sized = bool(width and height)
    if not sized:
        height, width = stored_size(os.path.join(images, file_name))
    if width <= 0 or height <= 0:
        raise DataError(f"{path}: the size is {width} x {height} pixels; give the image's true width and height")
    objects = []
    for n, thing in enumerate(root.findall("object")):
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {n + 1} has no name")
        xmin, ymin, xmax, ymax = (_number(thing, f"bndbox/{c}", path) for c in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (thing.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(_Object(name, (xmin, ymin, xmax, ymax), difficult))
    return _Page(path, file_name, width, height, tuple(objects), sized)


def _number(node: ElementTree.Element, key: str, path: str) -> float:
    text = node.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: <{key}> is {text!r}; give a number")
    return value


def _image_file(root: ElementTree.Element, stem: str, images: str, path: str, pictures: Spellings) -> str:
    # <filename> is often that of another machine: the name of the XML file decides, <filename> only its suffix.
    named = os.path.splitext((root.findtext("filename") or "").strip())[1]
    for suffix in (named, *SUFFIXES, *(s.upper() for s in SUFFIXES)):
        if suffix and os.path.exists(os.path.join(images, stem + suffix)):
            return stem + suffix
    fits = {name for suffix in (named, *SUFFIXES) if suffix for name in pictures.fitting(stem + suffix)}
    xml_of = {name: os.path.join(os.path.dirname(path), os.path.splitext(name)[0] + ".xml") for name in fits}
    if len(fits) == 1 and not any(map(os.path.exists, xml_of.values())):  # else it is another XML file's
        return fits.pop()
    name = stem + (named or SUFFIXES[0])
    like = hint(sorted(fits) or pictures.like(name) or pictures.fitting(root.findtext("filename") or stem))
    raise DataError(f"{os.path.join(images, name)}: image not found; {path} describes it{like}")


def _box(thing: _Object, page: _Page, zero_based: bool, notes: Counter[str]) -> list[float] | None:
    """x, y, width, height inside the image, or None where nothing is left."""
    xmin, ymin, xmax, ymax = thing.corners
    where = f"in {os.path.basename(page.path)} ({thing.name} {xmin:g},{ymin:g},{xmax:g},{ymax:g})"
    if xmax < xmin or ymax < ymin:
        notes[f"box dropped {where}: its corners are the wrong way round"] += 1
        return None
    if xmax == xmin or ymax == ymin:
        if zero_based:
            notes[f"box dropped {where}: it has no area"] += 1
            return None
        notes[f"box kept {where}: a single pixel wide or high, probably a slip of the mouse"] += 1
    first = 0.0 if zero_based else 1.0
    left, top, right, bottom = xmin - first, ymin - first, xmax, ymax
    inside = max(left, 0.0), max(top, 0.0), min(right, page.width), min(bottom, page.height)
    if inside != (left, top, right, bottom):
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            notes[f"box dropped {where}: outside the image of {page.width} x {page.height}"] += 1
            return None
        notes["boxes clipped to their image"] += 1
    return [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]]
