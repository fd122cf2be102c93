"""Converting YOLO labels (a text file an image: class cx cy w h, as fractions) to a COCO instances dictionary."""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

from kpjax.datasets.voc import Converted
from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES, size_of

_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


def convert_yolo(root: str, split: str | None = None, *, names: str | None = None) -> Converted:
    """Convert a folder in one of the usual layouts.

    images/SPLIT with labels/SPLIT, SPLIT/images with SPLIT/labels, or without a split images with labels.
    names: file of the class names, a YAML with a `names` entry or one name a line; None: data.yaml,
        classes.txt or the like in root. Class k gets the id k + 1.
    A line with more than five numbers is an outline; its bounding box is taken. An image without a label
    file has no objects. Sizes are read from the images' headers.
    Raises DataError, one line, on what cannot be read.
    """
    images, labels = _folders(root, split)
    classes = _names(root, names)
    found = sorted(
        os.path.relpath(os.path.join(parent, name), images)
        for parent, _, files in os.walk(images)
        for name in files
        if name.lower().endswith(SUFFIXES)
    )
    if not found:
        raise DataError(f"{images}: no image with one of the suffixes {', '.join(SUFFIXES)}")
    notes: Counter[str] = Counter()
    for name, count in Counter(classes).items():
        if count > 1:
            notes[f"classes named {name!r}, each kept as a class of its own"] = count
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, file_name in enumerate(found, 1):
        height, width = _size(os.path.join(images, file_name), notes)
        entries.append({"id": image_id, "file_name": file_name.replace(os.sep, "/"), "width": width, "height": height})
        for category, box in _boxes(os.path.join(labels, os.path.splitext(file_name)[0] + ".txt"), classes, notes):
            x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return Converted(
        instances={
            "info": {"description": "converted from YOLO labels"},
            "licenses": [],
            "images": entries,
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(classes)],
        },
        images=images,
        notes=tuple(f"{count} x {text}" for text, count in notes.items()),
    )


def _folders(root: str, split: str | None) -> tuple[str, str]:
    layouts = (
        [("images", "labels")]
        if split is None
        else [(f"images/{split}", f"labels/{split}"), (f"{split}/images", f"{split}/labels")]
    )
    for images, labels in layouts:
        pair = os.path.join(root, images), os.path.join(root, labels)
        if all(os.path.isdir(folder) for folder in pair):
            return pair
    tried = " or ".join(f"{images} and {labels}" for images, labels in layouts)
    raise DataError(f"{root}: no folders {tried}; name the split with --split, or the folder above with --root")


def _names(root: str, names: str | None) -> list[str]:
    paths = [names] if names else [os.path.join(root, name) for name in _NAME_FILES]
    path = next((p for p in paths if os.path.isfile(p)), None)
    if path is None:
        raise DataError(f"{names or root}: no file of class names; give one with --names (a data.yaml or a text file)")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if path.endswith((".yaml", ".yml")):
        listed = _from_yaml(text, path)
    else:
        listed = [line.strip() for line in text.splitlines() if line.strip()]
    if not listed:
        raise DataError(f"{path}: no class names")
    return listed


def _from_yaml(text: str, path: str) -> list[str]:
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())[:120]})") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: 'names' has the keys {sorted(names)}; number the classes 0, 1, 2, ...")
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: no list of class names under 'names'")
    return [str(name) for name in names]


def _size(path: str, notes: Counter[str]) -> tuple[int, int]:
    try:
        with open(path, "rb") as file:
            height, width, orientation = size_of(file.read(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if orientation != 1:
        # Labelling tools that follow EXIF place boxes on the turned image; training reads pixels as stored.
        notes["images with an EXIF rotation, which training does not apply: check their boxes"] += 1
    return height, width


def _boxes(path: str, classes: list[str], notes: Counter[str]) -> list[tuple[int, list[float]]]:
    """(class, [x, y, w, h] as fractions, inside the image) of each line."""
    if not os.path.exists(path):
        notes["images without a label file: no objects"] += 1
        return []
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    boxes = []
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{n}"
        try:
            numbers = [float(word) for word in line.split()]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)) or not (len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2)):
            raise DataError(f"{where} is {line[:60]!r}; give class cx cy w h, or class x1 y1 x2 y2 x3 y3 ...")
        category = int(numbers[0])
        if category != numbers[0] or not 0 <= category < len(classes):
            raise DataError(f"{where} has the class {line.split()[0]}; the names give 0 to {len(classes) - 1}")
        if len(numbers) == 5:
            cx, cy, w, h = numbers[1:]
            corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        else:
            notes["outlines turned into their bounding boxes"] += 1
            corners = [f(numbers[k::2]) for f in (min, max) for k in (1, 2)]
        if max(map(abs, corners)) > 2:
            raise DataError(f"{where} is {line[:60]!r}; coordinates are fractions of the image, between 0 and 1")
        inside = [min(max(c, 0.0), 1.0) for c in corners]
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            notes["boxes dropped: no area inside the image"] += 1
            continue
        if max(abs(a - b) for a, b in zip(inside, corners, strict=True)) > 1e-5:
            notes["boxes clipped to their image"] += 1
        boxes.append((category, [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]]))
    return boxes
