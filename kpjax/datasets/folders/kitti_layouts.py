"""Is a folder KITTI's: image_2 with label_2, and calib for 3D boxes?"""

from __future__ import annotations

import functools
import os
from typing import Any

from kpjax.data.image_files import stored_size
from kpjax.data.kitti_files import DONT_CARE, read_objects
from kpjax.datasets.folders.parts import TEST, TRAIN, UNDIVIDED, VAL, Look, Part, Reading, files_in
from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES


def look(root: str) -> Look:
    """KITTI's `training`, in `root` or `root` itself.  Its parts are boxes; the reader of 3D boxes is another one."""
    folder = next((f for f in (os.path.join(root, "training"), root) if os.path.isdir(os.path.join(f, "image_2"))), "")
    if not folder:
        return Look()
    if not files_in(os.path.join(folder, "label_2"), ".txt"):
        return Look((), (f"{folder}: image_2 without label files; add label_2, KITTI's labels of these images",))
    calibrated = bool(files_in(os.path.join(folder, "calib"), ".txt"))
    where = "" if folder == root else "training/"
    evidence = f"{where}image_2, label_2" + (", calib" if calibrated else "")
    lists = next((p for p in (os.path.join(root, "ImageSets"), os.path.join(folder, "ImageSets")) if files_in(p)), "")
    read = functools.partial(_read, folder, lists)
    return Look((Reading("KITTI", evidence, read, calibrated=folder if calibrated else ""),))


def _read(folder: str, lists: str, keypoints: bool) -> list[Part]:
    images = {os.path.splitext(name)[0]: name for name in files_in(os.path.join(folder, "image_2"), *SUFFIXES)}
    labelled = {name[:-4] for name in files_in(os.path.join(folder, "label_2"), ".txt")}
    frames = {split: _frames(os.path.join(lists, f"{split}.txt")) for split in (TRAIN, VAL) if lists}
    frames = {split: names for split, names in frames.items() if names} or {UNDIVIDED: sorted({*images} & labelled)}
    for split, names in frames.items():
        for name in names:
            if name not in images or name not in labelled:
                what = "image_2" if name not in images else "label_2"
                raise DataError(f"{folder}: the split {split} names {name}, which is not in {what}")
    rows = {name: read_objects(os.path.join(folder, "label_2", f"{name}.txt")) for n in frames.values() for name in n}
    classes = sorted({kind for objects in rows.values() for kind in objects.types} - {DONT_CARE})
    if not classes:
        raise DataError(f"{folder}: its label files have no object")
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    parts = []
    for split, names in frames.items():
        data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        ignored = 0
        for n, name in enumerate(names, 1):
            height, width = stored_size(os.path.join(folder, "image_2", images[name]))
            data["images"].append({"id": n, "file_name": images[name], "height": height, "width": width})
            for kind, (x1, y1, x2, y2) in zip(rows[name].types, rows[name].boxes.tolist(), strict=True):
                if kind == DONT_CARE:
                    ignored += 1
                    continue
                box = [x1, y1, x2 - x1, y2 - y1]
                row = {"id": len(data["annotations"]) + 1, "image_id": n, "category_id": classes.index(kind) + 1}
                data["annotations"].append(row | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        notes = (f"{ignored} x regions of {DONT_CARE}: left out of a data set of boxes",) if ignored else ()
        parts.append(Part(split, os.path.join(folder, "image_2"), data, notes=notes))
    testing = os.path.join(os.path.dirname(folder), "testing", "image_2")
    unlabelled = [{"id": n, "file_name": name} for n, name in enumerate(files_in(testing, *SUFFIXES))]
    if os.path.basename(folder) == "training" and unlabelled:
        parts.append(Part(TEST, testing, {"images": unlabelled, "annotations": [], "categories": []}))
    return parts


def _frames(path: str) -> list[str]:
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8-sig") as file:
        return [line.strip() for line in file if line.strip()]
