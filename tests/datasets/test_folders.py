"""Folders as annotation tools export them are understood by looking, or refused with what was seen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kpjax.data.coco import CocoFolder
from kpjax.datasets.folders import Joined, in_validation, join, open_folder
from kpjax.errors import DataError
from tests import layouts
from tests.layouts import BOXES, LAYOUTS, POSE, SOLID, blank, coco, dump, make, write, xml, yolo


def joined_of(*folders: Path, keypoints: bool = False) -> Joined:
    return join({str(folder): open_folder(str(folder)).parts(keypoints) for folder in folders})


@pytest.mark.parametrize("name", [*LAYOUTS, *POSE, *SOLID])
def test_every_layout_gives_the_boxes_that_were_drawn(name: str, tmp_path: Path) -> None:
    kind, val = (LAYOUTS | POSE | SOLID)[name][1:]
    root = make(tmp_path, name)
    folder = open_folder(str(root))
    parts = folder.parts(False)
    assert folder.reading.kind == kind
    assert folder.describe(parts).startswith(f"took {folder.root} for a {kind} data set (")
    joined = join({str(root): parts})
    assert joined.val is not None
    assert len(joined.val.instances["images"]) == val or not val
    said = any("no validation split" in line for line in joined.lines)
    assert said == (not val)
    test = any("test split" in line and "not used" in line for line in joined.lines)
    assert test == any(part.split == "test" for part in parts)
    for part in (joined.train, joined.val):
        ids = {c["id"]: c["name"] for c in part.instances["categories"]}
        assert len(ids) == 2 or name == "kitti"
        assert part.instances["images"]
        for image in part.instances["images"]:
            assert os.path.isfile(os.path.join(part.images, image["file_name"]))
            rows = [row for row in part.instances["annotations"] if row["image_id"] == image["id"]]
            if name != "kitti":
                assert [list(ids).index(row["category_id"]) for row in rows] == [box[4] for box in BOXES]
                for row, box in zip(rows, BOXES, strict=True):
                    assert row["bbox"] == pytest.approx(box[:4], abs=1e-3)


def test_what_the_layouts_say_of_themselves(tmp_path: Path) -> None:
    folder = open_folder(str(make(tmp_path, "roboflow_yolo")))
    line = folder.describe(folder.parts(False))
    assert line.endswith("a YOLO data set (data.yaml): 2 classes, train 6 images, val 2 images, test 1 images")
    zipped = open_folder(str(make(tmp_path, "zipped_yolo")))
    assert zipped.root.endswith("project-7-at-2026-11-30") and zipped.path.endswith("zipped_yolo")
    notes = joined_of(make(tmp_path, "ultralytics_obb")).lines
    assert "12 x outlines turned into their bounding boxes" in notes
    notes = joined_of(make(tmp_path, "voc_without_lists")).lines
    assert any("sizes of images that their XML lacks: read from the image files" in line for line in notes)
    roboflow = joined_of(make(tmp_path, "roboflow_coco"))
    assert any("the class 'animals' has no object" in line for line in roboflow.lines)
    assert [c["name"] for c in roboflow.train.instances["categories"]] == ["cat", "dog"]


def test_files_that_need_no_change_are_used_as_they_are(tmp_path: Path) -> None:
    root = make(tmp_path, "coco2017")
    joined = joined_of(root)
    assert joined.train.file == str(root / "annotations" / "instances_train2017.json")
    assert joined.val is not None and joined.val.file.endswith("instances_val2017.json")
    with_points = joined_of(root, keypoints=True)
    assert with_points.train.file.endswith("person_keypoints_train2017.json")
    one = open_folder(str(root / "annotations" / "instances_val2017.json"))
    assert [part.split for part in one.parts(False)] == ["val"]


def test_keypoints_of_yolo(tmp_path: Path) -> None:
    root = make(tmp_path, "ultralytics_pose")
    folder = open_folder(str(root))
    assert folder.reading.mirror_pairs() == "0:1"
    train = joined_of(root, keypoints=True).train
    x, y, w, h, _ = BOXES[0]
    assert train.instances["annotations"][0]["keypoints"] == pytest.approx(
        [x + 1.92, y + 1.92, 2, x + w - 1.92, y + h - 1.92, 1], abs=1e-3
    )
    path = tmp_path / "written.json"
    path.write_text(json.dumps(train.instances))
    source = CocoFolder(train.images, str(path), keypoints=True)
    assert source.points is not None and source.points.names == ("0", "1")
    (root / "pets.yaml").write_text((root / "pets.yaml").read_text() + "kpt_names:\n  0: [nose, tail]\n")
    named = joined_of(root, keypoints=True).train.instances["categories"][0]
    assert named["keypoints"] == ["nose", "tail"]


def _two_formats(root: Path) -> None:
    names = write(root / "images", 2)
    dump(root / "labels.json", coco(names))
    for name in names:
        dump(root / "labels" / f"{name[:-4]}.txt", yolo())
    dump(root / "classes.txt", "cat\ndog\n")


def _two_jsons(root: Path) -> None:
    for name in ("ann.json", "bob.json"):
        dump(root / name, coco(write(root / "images", 2)))


def _whole_and_split(root: Path) -> None:
    names = write(root / "images", 4)
    for name, some in (("all.json", names), ("train.json", names[:3]), ("val.json", names[3:])):
        dump(root / name, coco(some))


def _two_yamls(root: Path) -> None:
    layouts._ultralytics(root)
    dump(root / "birds.yaml", "train: images/train\nval: images/val\nnames: [a, b]\n")


def _images_twice(root: Path) -> None:
    dump(root / "labels.json", coco(write(root / "a", 2)))
    write(root / "b", 2)


def _label_studio_json(root: Path) -> None:
    write(root / "images", 1)
    dump(root / "project.json", [{"id": 1, "annotations": [], "data": {"image": "x.jpg"}}])


def _no_names(root: Path) -> None:
    layouts._label_studio_yolo(root)
    (root / "classes.txt").unlink()


def _images_alone(root: Path) -> None:
    write(root / "photos", 3)


def _labelme(root: Path) -> None:
    for name in write(root, 3):
        dump(root / f"{name[:-4]}.json", {"shapes": [], "imagePath": name})


def _cvat_xml(root: Path) -> None:
    write(root / "images", 1)
    dump(root / "annotations.xml", "<annotations><version>1.1</version></annotations>")


def _lost_images(root: Path) -> None:
    dump(root / "labels.json", coco([f"nowhere_{n}.jpg" for n in range(3)]))
    blank(root / "images" / "other.jpg")


def _test_alone(root: Path) -> None:
    dump(root / "test" / "_annotations.coco.json", coco(write(root / "test", 2)))


def _listed_image_without_xml(root: Path) -> None:
    layouts._voc(root)
    dump(root / "ImageSets" / "Main" / "train.txt", "frame_000\nframe_777\n")


def _broken_json(root: Path) -> None:
    write(root / "images", 1)
    dump(root / "labels.json", '{"images": [')


def _kitti_without_labels(root: Path) -> None:
    write(root / "training" / "image_2", 2, suffix=".png")


def _broken_yaml(root: Path) -> None:
    layouts._roboflow_yolo(root)
    dump(root / "data.yaml", "names: [")


def _yaml_of_nothing(root: Path) -> None:
    write(root / "pictures", 2)
    dump(root / "data.yaml", "train: /home/me/photos\nval: /home/me/photos\nnames: [cat]\n")


@pytest.mark.parametrize(
    ("make_it", "pattern"),
    [
        (_two_formats, r"more than one way, as COCO \(labels\.json\) and YOLO \(classes\.txt, label files in labels\)"),
        (_two_jsons, r"several COCO JSONs and none says .* \(ann\.json and bob\.json\); name the one to use"),
        (_whole_and_split, r"all\.json may be the whole of which train\.json is a split"),
        (_two_yamls, r"more than one way, as YOLO \(birds\.yaml\) and YOLO \(pets\.yaml\)"),
        (_images_twice, r"labels\.json: its images, such as frame_000\.jpg, are in .*/a and in .*/b"),
        (_label_studio_json, r"project\.json is Label Studio's own JSON: export the project as COCO"),
        (_no_names, r"label files in labels, but no file names the classes"),
        (_images_alone, r"no labels in a layout of COCO, Pascal VOC, YOLO or KITTI; it holds 3 \.jpg in photos"),
        (_labelme, r"frame_000\.json is a LabelMe file"),
        (_cvat_xml, r"annotations\.xml is CVAT's own XML: export the task as COCO"),
        (_lost_images, r"lists 3 images, but 'nowhere_0\.jpg' is nowhere in it"),
        (_test_alone, r"holds a test split alone"),
        (_listed_image_without_xml, r"train\.txt: names frame_777, of which there is no XML file"),
        (_broken_json, r"labels\.json: not a JSON file"),
        (_kitti_without_labels, r"image_2 without label files"),
        (_broken_yaml, r"data\.yaml: not a YAML file"),
        (_yaml_of_nothing, r"data\.yaml: none of the folders that it names is there"),
        (lambda root: None, r"it holds no file"),
        (lambda root: root.rmdir(), r"no such folder"),
    ],
)
def test_what_is_ambiguous_or_broken_is_one_line(make_it: Callable[[Path], Any], pattern: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    make_it(root)
    with pytest.raises(DataError, match=pattern) as caught:
        joined_of(root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450


def test_naming_the_file_settles_what_is_ambiguous(tmp_path: Path) -> None:
    for n, (make_it, name, kind) in enumerate(
        ((_two_formats, "labels.json", "COCO"), (_two_yamls, "pets.yaml", "YOLO"), (_two_jsons, "bob.json", "COCO"))
    ):
        root = tmp_path / str(n)
        root.mkdir()
        make_it(root)
        folder = open_folder(str(root / name))
        assert folder.reading.kind == kind and folder.parts(False)


def test_the_split_follows_from_names_alone() -> None:
    names = [f"img_{n}.jpg" for n in range(1000)]
    chosen = dict(zip(names, in_validation(names), strict=True))
    assert 150 < sum(chosen.values()) < 250
    more = [f"extra/{n}.png" for n in range(300)] + names[::-1]
    again = dict(zip(more, in_validation(more), strict=True))
    assert all(again[name] == chosen[name] for name in names)
    moved = [f"elsewhere/deep/{name[:-4]}.png" for name in names]
    assert in_validation(moved) == list(chosen.values())
    large = in_validation([*names, *(f"l{n}.jpg" for n in range(10_000))])
    assert all(flag <= chosen[name] for name, flag in zip(names, large[:1000], strict=True))
    assert 400 < sum(large) < 700
    copies = [f"photo{n}_jpg.rf.{k:032x}.jpg" for n in range(40) for k in range(3)]
    flags = in_validation(copies)
    assert all(len(set(flags[n : n + 3])) == 1 for n in range(0, 120, 3)) and any(flags)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_small_sets_have_an_image_on_each_side(count: int) -> None:
    for n in range(50):
        flags = in_validation([f"{n}_{k}.jpg" for k in range(count)])
        assert 0 < sum(flags) < count


def test_a_single_image_has_no_validation_split(tmp_path: Path) -> None:
    dump(tmp_path / "a.json", coco(write(tmp_path, 1)))
    joined = joined_of(tmp_path)
    assert joined.val is None and any("single image: no validation split" in line for line in joined.lines)


def test_folders_are_joined_by_the_names_of_their_classes(tmp_path: Path) -> None:
    one, other = make(tmp_path, "roboflow_yolo"), tmp_path / "more"
    data = coco(write(other / "images", 5, 50))
    data["categories"] = [{"id": 9, "name": "dog"}, {"id": 4, "name": "Cat"}]
    for row in data["annotations"]:
        row["category_id"] = {1: 4, 2: 9}[row["category_id"]]
    dump(other / "labels.json", data)
    joined = joined_of(one, other)
    assert joined.val is not None
    assert [c["name"] for c in joined.train.instances["categories"]] == ["cat", "dog", "Cat"]
    assert joined.train.instances["categories"] == joined.val.instances["categories"]
    assert "the classes 'cat' and 'Cat' differ in spelling: taken as 2 classes" in joined.lines
    assert any(line.startswith("the class 'cat' is labelled in") and "background" in line for line in joined.lines)
    images = [*joined.train.instances["images"], *joined.val.instances["images"]]
    assert len(images) == 6 + 2 + 5
    for part in (joined.train, joined.val):
        ids = [image["id"] for image in part.instances["images"]]
        assert len(set(ids)) == len(ids)
        path = tmp_path / "joined.json"
        path.write_text(json.dumps(part.instances))
        source = CocoFolder(part.images, str(path))
        of_dog = source.classes.index("dog")
        for objects in source.objects:
            assert (objects.labels == of_dog).sum() == 1 and len(objects.labels) == 2


def test_a_split_a_file_is_not_divided_again(tmp_path: Path) -> None:
    root = make(tmp_path, "coco2017") / "annotations"
    joined = joined_of(root / "instances_train2017.json", root / "instances_val2017.json")
    assert joined.val is not None
    assert [len(part.instances["images"]) for part in (joined.train, joined.val)] == [6, 2]
    with pytest.raises(DataError, match="no image to train on"):
        joined_of(root / "instances_val2017.json")


def test_one_image_in_both_splits_is_said(tmp_path: Path) -> None:
    names = write(tmp_path / "images", 3)
    dump(tmp_path / "train.json", coco(names))
    dump(tmp_path / "val.json", coco(names[:1]))
    assert any(line.startswith("1 images, such as") and "says less" in line for line in joined_of(tmp_path).lines)


def test_one_folder_for_both_splits_of_yolo_is_divided_anew(tmp_path: Path) -> None:
    layouts._yolo_pairs(tmp_path, "images", "labels", "train")
    dump(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    joined = joined_of(tmp_path)
    assert joined.val is not None
    assert len(joined.train.instances["images"]) + len(joined.val.instances["images"]) == 6
    assert any("names one folder for training and validation: divided anew" in line for line in joined.lines)


def test_images_that_the_json_places_elsewhere_are_found_by_their_names(tmp_path: Path) -> None:
    names = write(tmp_path / "images" / "deep", 3)
    dump(tmp_path / "labels.json", coco(names, prefix="/label-studio/data/upload/1/"))
    joined = joined_of(tmp_path)
    assert all(
        os.path.isfile(os.path.join(joined.train.images, i["file_name"])) for i in joined.train.instances["images"]
    )
    assert any("found by their names alone" in line for line in joined.lines)


def test_names_with_the_separators_of_windows(tmp_path: Path) -> None:
    write(tmp_path / "images", 3)
    dump(tmp_path / "result.json", coco([f"frame_{n:03d}.jpg" for n in range(3)], prefix="images\\"))
    train = joined_of(tmp_path).train
    path = tmp_path / "train.json"
    path.write_text(json.dumps(train.instances))
    assert all(map(os.path.isfile, CocoFolder(train.images, str(path)).files))


def test_sizes_that_a_coco_json_lacks_are_the_images(tmp_path: Path) -> None:
    data = coco(write(tmp_path / "images", 3))
    for image in data["images"]:
        image["width"] = None
    dump(tmp_path / "labels.json", data)
    joined = joined_of(tmp_path)
    assert all(image["width"] == layouts.SIDE for image in joined.train.instances["images"])
    assert any("sizes of images that the JSON lacks" in line for line in joined.lines)


def test_lists_leave_the_rest_out(tmp_path: Path) -> None:
    root = make(tmp_path, "voc")
    blank(root / "JPEGImages" / "more.jpg")
    dump(root / "Annotations" / "more.xml", xml("more.jpg"))
    assert "1 x images that no list of ImageSets names: left out" in joined_of(root).lines
