"""One training and one validation split from the parts of one or more folders: classes matched by name, all said."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kpjax.datasets.folders.parts import TEST, TRAIN, VAL, Part
from kpjax.datasets.folders.splitting import in_validation
from kpjax.errors import DataError

Category = tuple[str, int]  # a name, and the how-manieth of that name in its file


@dataclasses.dataclass(frozen=True)
class Joined:
    """Two splits, as parts, and what a person should know about how they came about, a line each.

    val is None where there is a single image.
    """

    train: Part
    val: Part | None
    lines: tuple[str, ...]


def join(folders: Mapping[str, Sequence[Part]]) -> Joined:
    """Join the parts of folders, path -> parts.

    A folder without a validation split gives some of its images to it, by `in_validation`, unless it is called a
    training split and another folder has one for validation.  Test splits are left alone.  Classes of one name are one
    class; ids are those of the first folder as long as they agree.
    Raises DataError, one line, where there is nothing to train on.
    """
    lines: list[str] = []
    chosen: list[tuple[str, Part]] = []
    for path, parts in folders.items():
        others = any(part.split == VAL for other, its in folders.items() if other != path for part in its)
        chosen += [(path, part) for part in _with_validation(path, parts, others, lines)]
    if not any(part.split == TRAIN for _, part in chosen):
        raise DataError(
            f"{next(iter(folders))}: no image to train on; add a split train, or name its folder with --data"
        )
    chosen = [(path, _without_roots(part, [p for _, p in chosen], lines)) for path, part in chosen]
    ids = _class_ids([part for _, part in chosen], lines)
    if len(folders) > 1:
        lines += _labelled_in_some(chosen)
    train, val = (_joined([part for _, part in chosen if part.split == split], ids) for split in (TRAIN, VAL))
    assert train is not None
    both = _files(train) & _files(val) if val else set()
    if both:
        lines.append(
            f"{len(both)} images, such as {sorted(both)[0]}, are in training and in validation: its AP says less"
        )
    lines += [note for _, part in chosen for note in part.notes]
    return Joined(train, val, tuple(dict.fromkeys(lines)))


def _with_validation(path: str, parts: Sequence[Part], others: bool, lines: list[str]) -> list[Part]:
    """The parts of a folder that are used, each of TRAIN or VAL.  others: whether other folders have VAL."""
    for part in parts:
        if part.split == TEST:
            count = len(part.instances["images"])
            lines.append(f"the test split of {path} ({count:,} images) is kept apart and not used")
    used = [part for part in parts if part.split != TEST]
    if not used:
        raise DataError(f"{path}: holds a test split alone; name a folder with images to train on")
    if any(part.split == VAL for part in used):
        return [part if part.split else dataclasses.replace(part, split=TRAIN) for part in used]
    if others and all(part.split == TRAIN for part in used):
        return used
    names = [_name(image) for part in used for image in part.instances["images"]]
    if len(names) < 2:
        lines.append(f"{path} has a single image: no validation split")
        return [dataclasses.replace(part, split=TRAIN) for part in used]
    flags, divided, held = in_validation(names), list[Part](), sum(in_validation(names))
    if not held or held == len(names):
        lines.append(f"{path} has copies of a single image: no validation split")
        return [dataclasses.replace(part, split=TRAIN) for part in used]
    lines.append(
        f"{path} has no validation split: {held:,} of its {len(names):,} images, chosen by a hash of their names, are "
        f"kept for it, and {len(names) - held:,} are trained on"
    )
    for part in used:
        images = part.instances["images"]
        here, flags = flags[: len(images)], flags[len(images) :]
        for split, wanted in ((TRAIN, False), (VAL, True)):
            kept = [image for image, flag in zip(images, here, strict=True) if flag == wanted]
            if kept:
                divided.append(_some_images(part, split, kept, here, wanted))
    return divided


def _some_images(part: Part, split: str, kept: list[dict[str, Any]], flags: list[bool], wanted: bool) -> Part:
    ids = {_id(image) for image, flag in zip(part.instances["images"], flags, strict=True) if flag}
    # An annotation of no image stays with those to train on, where it is refused.
    rows = [row for row in part.instances["annotations"] if (_id(row, "image_id") in ids) == wanted]
    notes = () if wanted else part.notes
    return Part(split, part.images, part.instances | {"images": kept, "annotations": rows}, notes=notes)


def _without_roots(part: Part, parts: Sequence[Part], lines: list[str]) -> Part:
    """The part without Roboflow's class of no objects, whose name is that of the others' group."""
    used = {_id(row, "category_id") for p in parts for row in p.instances["annotations"]}
    groups = {c.get("supercategory") for c in part.instances["categories"]}
    roots = [
        c
        for c in part.instances["categories"]
        if c.get("name") in groups and c.get("supercategory") in (None, "none", "") and _id(c) not in used
    ]
    if not roots or len(roots) == len(part.instances["categories"]):
        return part
    for root in roots:
        lines.append(f"the class {root.get('name')!r} has no object and is the name of the others' group: left out")
    kept = [c for c in part.instances["categories"] if c not in roots]
    return dataclasses.replace(part, instances=part.instances | {"categories": kept}, file="")


def _keys(part: Part) -> list[tuple[Category, dict[str, Any]]]:
    """The categories in the order of their ids, each with its key."""
    seen: Counter[str] = Counter()
    found = []
    for category in sorted(part.instances["categories"], key=lambda c: (not isinstance(c.get("id"), int), _number(c))):
        name = str(category.get("name", "")).strip()
        found.append(((name, seen[name]), category))
        seen[name] += 1
    return found


def _number(category: dict[str, Any]) -> float:
    value = category.get("id")
    return value if isinstance(value, (int, float)) else 0


def _class_ids(parts: Sequence[Part], lines: list[str]) -> dict[Category, dict[str, Any]]:
    """Key -> the category of the joined splits.  The ids of the first part stay."""
    joined: dict[Category, dict[str, Any]] = {}
    for part in parts:
        for key, category in _keys(part):
            old = joined.get(key)
            if old is None:
                taken = {c.get("id") for c in joined.values()}
                free = max((int(_number(c)) for c in joined.values()), default=0) + 1
                new = category.get("id") if category.get("id") not in taken else free
                joined[key] = category | {"id": new}
            elif category.get("keypoints") and not old.get("keypoints"):
                joined[key] = category | {"id": old["id"]}
    alike: dict[str, list[str]] = defaultdict(list)
    for name, _ in joined:
        same = alike[name.casefold().replace("_", " ").replace("-", " ")]
        if name not in same:
            same.append(name)
    for names in alike.values():
        if len(names) > 1:
            lines.append(
                f"the classes {' and '.join(map(repr, names))} differ in spelling: taken as {len(names)} classes"
            )
    return joined


def _labelled_in_some(chosen: Sequence[tuple[str, Part]]) -> list[str]:
    """A line for each class that some folders label and others do not."""
    labelled: dict[str, set[str]] = defaultdict(set)
    for path, part in chosen:
        used = {_id(row, "category_id") for row in part.instances["annotations"]}
        for (name, _), category in _keys(part):
            if _id(category) in used:
                labelled[name].add(path)
    paths = list(dict.fromkeys(path for path, _ in chosen))
    return [
        f"the class {name!r} is labelled in {', '.join(p for p in paths if p in where)} alone: in the images of "
        f"{', '.join(p for p in paths if p not in where)} its objects would count as background"
        for name, where in labelled.items()
        if len(where) < len(paths)
    ]


def _joined(parts: Sequence[Part], ids: dict[Category, dict[str, Any]]) -> Part | None:
    """One part of several; as it is where it is alone and has the joined classes."""
    if not parts:
        return None
    categories = list(ids.values())
    if len(parts) == 1 and [c for _, c in _keys(parts[0])] == sorted(categories, key=_number):
        return parts[0]
    folders = {os.path.abspath(part.images) for part in parts}
    root = os.path.commonpath(folders)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for part in parts:
        place = os.path.relpath(os.path.abspath(part.images), root)
        prefix = "" if place == "." else place.replace(os.sep, "/") + "/"
        renumbered = {_id(image): len(images) + n for n, image in enumerate(part.instances["images"], 1)}
        if len(renumbered) < len(part.instances["images"]):
            raise DataError(f"{part.file or part.images}: images of one id; give each its own before joining folders")
        to_class = {_id(category): ids[key]["id"] for key, category in _keys(part)}
        images += [
            image | {"id": renumbered[_id(image)], "file_name": prefix + _name(image)}
            for image in part.instances["images"]
        ]
        for row in part.instances["annotations"]:
            # What is unknown stays so, below all ids: it is refused when the split is opened.
            image_id, category_id = renumbered.get(_id(row, "image_id"), -1), to_class.get(_id(row, "category_id"), -1)
            rows.append(row | {"id": len(rows) + 1, "image_id": image_id, "category_id": category_id})
    return Part(parts[0].split, root, {"images": images, "annotations": rows, "categories": categories})


def _files(part: Part) -> set[str]:
    return {os.path.realpath(os.path.join(part.images, _name(image))) for image in part.instances["images"]}


def _name(image: dict[str, Any]) -> str:
    name = image.get("file_name")
    return name if isinstance(name, str) else ""


def _id(entry: Any, key: str = "id") -> Any:
    """An id that can be looked up, whatever the file has there."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, (int, float, str)) else repr(value)
