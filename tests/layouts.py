"""Small data sets as annotation tools export them: eight pictures or so with cats and dogs, in each tool's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.folders import picture
from tests.kitti_folder import write_kitti

SIDE = 64
NAMES = ("cat", "dog")
BOXES = ((8, 10, 20, 24, 0), (30, 6, 24, 40, 1))  # x, y, width, height, class: the same in all pictures
SPLIT = {"train": 6, "val": 2, "test": 1}


def write(folder: Path, count: int, first: int = 0, suffix: str = ".jpg") -> list[str]:
    """Write pictures; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"frame_{first + n:03d}{suffix}" for n in range(count)]
    for n, name in enumerate(names):
        picture(first + n, SIDE, SIDE).save(folder / name)
    return names


def coco(names: list[str], prefix: str = "", root_class: bool = False, points: bool = False) -> dict[str, Any]:
    """A COCO dictionary of the pictures.  root_class: Roboflow's class 0 of no objects."""
    ids = [1, 2]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in zip(ids, NAMES, strict=True)]
    if root_class:
        for category in categories:
            category["supercategory"] = "animals"
        categories.insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    data: dict[str, Any] = {"info": {}, "licenses": [], "categories": categories, "images": [], "annotations": []}
    for n, name in enumerate(names):
        data["images"].append({"id": n, "file_name": prefix + name, "width": SIDE, "height": SIDE})
        for x, y, w, h, k in BOXES:
            row = {"id": len(data["annotations"]), "image_id": n, "category_id": ids[k], "bbox": [x, y, w, h]}
            row |= {"area": w * h, "iscrowd": 0, "segmentation": []}
            if points:
                row["keypoints"] = [x + 2, y + 2, 2, x + w - 2, y + h - 2, 2]
            data["annotations"].append(row)
    for category in categories if points else ():
        category |= {"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
    return data


def dump(path: Path, data: Any) -> None:
    """Write JSON, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def xml(name: str, size: str = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>") -> str:
    """A page of Pascal VOC with the boxes."""
    objects = "".join(
        f"<object><name>{NAMES[k]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for x, y, w, h, k in BOXES
    )
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def yolo(kind: str = "box") -> str:
    """A label file with the boxes.  kind: "box", "outline" (4 corners), "outline6" or "pose"."""
    lines = []
    for x, y, w, h, k in BOXES:
        x1, y1, x2, y2 = x / SIDE, y / SIDE, (x + w) / SIDE, (y + h) / SIDE
        box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        corners = [x1, y1, x2, y1, x2, y2, x1, y2]
        numbers = {"box": box, "outline": corners, "outline6": [*corners, x1, (y1 + y2) / 2]}.get(kind)
        numbers = numbers or [*box, x1 + 0.03, y1 + 0.03, 2, x2 - 0.03, y2 - 0.03, 1]
        lines.append(" ".join([str(k), *(f"{v:.6f}" if v != int(v) else str(int(v)) for v in numbers)]))
    return "\n".join(lines) + "\n"


def _coco2017(root: Path) -> None:
    for n, (split, folder) in enumerate((("train", "train2017"), ("val", "val2017"))):
        names = write(root / folder, SPLIT[split], 10 * n)
        dump(root / "annotations" / f"instances_{folder}.json", coco(names))
        dump(root / "annotations" / f"captions_{folder}.json", {"images": [], "annotations": []})
        dump(root / "annotations" / f"person_keypoints_{folder}.json", coco(names, points=True))
    dump(root / "annotations" / "image_info_test2017.json", {**coco(["elsewhere.jpg"]), "annotations": []})


def _roboflow_coco(root: Path) -> None:
    for n, (split, folder) in enumerate((("train", "train"), ("val", "valid"), ("test", "test"))):
        names = write(root / folder, SPLIT[split], 10 * n)
        dump(root / folder / "_annotations.coco.json", coco(names, root_class=True))
    dump(root / "README.roboflow.txt", "exported")


def _cvat_coco(root: Path) -> None:
    dump(root / "annotations" / "instances_default.json", coco(write(root / "images" / "default", 8)))


def _cvat_skeletons(root: Path) -> None:
    names = write(root / "images" / "default", 8)
    dump(root / "annotations" / "person_keypoints_default.json", coco(names, points=True))


def _label_studio_coco(root: Path) -> None:
    dump(root / "result.json", coco(write(root / "images", 8), prefix="images/"))


def _datumaro(root: Path) -> None:
    for split in SPLIT:
        names = write(root / "images" / split, SPLIT[split])  # the same names in each
        dump(root / "annotations" / f"instances_{split}.json", coco(names))


def _plain_json(root: Path) -> None:
    dump(root / "labels.json", coco(write(root / "photos", 8, suffix=".png")))


def _voc(root: Path) -> None:
    names = write(root / "JPEGImages", 9)
    for name in names:
        dump(root / "Annotations" / f"{name[:-4]}.xml", xml(name))
    stems = [name[:-4] for name in names]
    for split, some in (("train", stems[:6]), ("val", stems[6:8]), ("trainval", stems[:8]), ("test", stems[8:])):
        dump(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(some) + "\n")
    dump(root / "ImageSets" / "Main" / "cat_train.txt", f"{stems[0]}  1\n")


def _voc_without_lists(root: Path) -> None:
    for n, name in enumerate(write(root / "images", 8)):
        size = "" if n % 2 else "<size><width>0</width><height>0</height><depth>3</depth></size>"
        dump(root / "annotations" / f"{name[:-4]}.xml", xml(name, size))


def _roboflow_voc(root: Path) -> None:
    for n, (split, folder) in enumerate((("train", "train"), ("val", "valid"), ("test", "test"))):
        for name in write(root / folder, SPLIT[split], 10 * n):
            dump(root / folder / f"{name[:-4]}.xml", xml(name))


def _yolo_pairs(root: Path, images: str, labels: str, split: str, first: int = 0, kind: str = "box") -> None:
    for name in write(root / images, SPLIT[split], first):
        dump(root / labels / f"{name[:-4]}.txt", yolo(kind))


def _roboflow_yolo(root: Path, kind: str = "box", more: str = "") -> None:
    for n, (split, folder) in enumerate((("train", "train"), ("val", "valid"), ("test", "test"))):
        _yolo_pairs(root, f"{folder}/images", f"{folder}/labels", split, 10 * n, kind)
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    dump(root / "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'dog']\n{more}\nroboflow:\n  version: 1\n")


def _ultralytics(root: Path, kind: str = "box", more: str = "") -> None:
    for n, split in enumerate(("train", "val")):
        _yolo_pairs(root, f"images/{split}", f"labels/{split}", split, 10 * n, kind)
    paths = "path: ../datasets/pets  # dataset root dir\ntrain: images/train\nval: images/val\ntest:\n"
    dump(root / "pets.yaml", f"{paths}names:\n  0: cat\n  1: dog\n{more}\n")


def _cvat_ultralytics(root: Path) -> None:
    _yolo_pairs(root, "images/train", "labels/train", "train")
    dump(root / "train.txt", "".join(f"images/train/frame_{n:03d}.jpg\n" for n in range(6)))
    dump(root / "data.yaml", "path: ./\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n")


def _cvat_yolo(root: Path) -> None:
    _yolo_pairs(root, "obj_train_data", "obj_train_data", "train")
    dump(root / "train.txt", "".join(f"data/obj_train_data/frame_{n:03d}.jpg\n" for n in range(6)))
    dump(root / "obj.names", "cat\ndog\n")
    dump(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def _label_studio_yolo(root: Path) -> None:
    _yolo_pairs(root, "images", "labels", "train")
    dump(root / "classes.txt", "cat\ndog\n")
    dump(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {}})


def _kitti(root: Path) -> None:
    write_kitti(root, frames=8, size=(64, 192))


def _kitti_without_calib(root: Path) -> None:
    for name in write(root / "training" / "image_2", 8, suffix=".png"):
        lines = [
            f"{('Car', 'Cyclist')[k]} 0 0 0 {x} {y} {x + w} {y + h} -1 -1 -1 -1000 -1000 -1000 -10\n"
            for x, y, w, h, k in BOXES
        ]
        dump(root / "training" / "label_2" / f"{name[:-4]}.txt", "".join(lines))
    write(root / "testing" / "image_2", 3, suffix=".png")


def _zipped(root: Path) -> None:
    _label_studio_coco(root / "project-7-at-2026-11-30")
    (root / "__MACOSX").mkdir()


def _zipped_yolo(root: Path) -> None:
    _label_studio_yolo(root / "project-7-at-2026-11-30")


# name -> (writer, kind, images of its validation split, 0: it has none)
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "coco2017": (_coco2017, "COCO", 2),
    "roboflow_coco": (_roboflow_coco, "COCO", 2),
    "cvat_coco": (_cvat_coco, "COCO", 0),
    "label_studio_coco": (_label_studio_coco, "COCO", 0),
    "datumaro": (_datumaro, "COCO", 2),
    "plain_json": (_plain_json, "COCO", 0),
    "zipped": (_zipped, "COCO", 0),
    "zipped_yolo": (_zipped_yolo, "YOLO", 0),
    "voc": (_voc, "Pascal VOC", 2),
    "voc_without_lists": (_voc_without_lists, "Pascal VOC", 0),
    "roboflow_voc": (_roboflow_voc, "Pascal VOC", 2),
    "roboflow_yolo": (_roboflow_yolo, "YOLO", 2),
    "ultralytics": (_ultralytics, "YOLO", 2),
    "ultralytics_obb": (lambda root: _ultralytics(root, "outline", "task: obb"), "YOLO", 2),
    "roboflow_segments": (lambda root: _roboflow_yolo(root, "outline6"), "YOLO", 2),
    "cvat_ultralytics": (_cvat_ultralytics, "YOLO", 0),
    "cvat_yolo": (_cvat_yolo, "YOLO", 0),
    "label_studio_yolo": (_label_studio_yolo, "YOLO", 0),
    "kitti_without_calib": (_kitti_without_calib, "KITTI", 0),
}
# of other models
POSE: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "ultralytics_pose": (lambda root: _ultralytics(root, "pose", "kpt_shape: [2, 3]\nflip_idx: [1, 0]"), "YOLO", 2),
    "cvat_skeletons": (_cvat_skeletons, "COCO", 0),
}
SOLID: dict[str, tuple[Callable[[Path], None], str, int]] = {"kitti": (_kitti, "KITTI", 2)}


def make(root: Path, name: str) -> Path:
    """Write a layout into a new folder of its name."""
    folder = root / name
    folder.mkdir()
    (LAYOUTS | POSE | SOLID)[name][0](folder)
    return folder


def blank(path: Path) -> None:
    """A small black picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE)).save(path)
