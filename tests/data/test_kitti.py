"""KITTI's folders as a split: every frame, object, region and camera in its place, and every bad input one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax import config as configs
from kpjax.commands.flags import config_of
from kpjax.config import Config, DataConfig
from kpjax.data import opening
from kpjax.data.kitti import KittiFolder, roles_of_types
from kpjax.data.kitti_files import write_objects
from kpjax.data.memory import memory_batches
from kpjax.data.pipeline import train_batches
from kpjax.data.source import (
    CROWD,
    REGION,
    Source,
    count_over,
    fingerprint,
    object_counts,
    require_same_classes,
    without_empty_images,
)
from kpjax.datasets.records import write_records
from kpjax.errors import DUPLICATE, INCOMPLETE, MISSING, ConfigError, DataError
from kpjax.images.decode import decode
from kpjax.objects import ALL_CLASSES, IGNORE, OBJECT
from kpjax.training.step import batch_shapes
from tests.golden.cases import DATA
from tests.kitti_folder import KINDS, project, write_kitti

SIZE = (96, 320)
CARE = "DontCare -1 -1 -10 1 2 30 40 -1 -1 -1 -1000 -1000 -1000 -10"

open_source = functools.partial(opening.open_source, solid=None)  # with what there is in 3D


def label(config: DataConfig, frame: int) -> Path:
    return Path(config.kitti_dir, "training", "label_2", f"{frame:06d}.txt")


def change(path: Path, edit: Callable[[list[str]], object]) -> None:
    """Change the lines of a file."""
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("".join(f"{line}\n" for line in lines))


def test_frames_objects_regions_and_cameras(tmp_path: Path) -> None:
    config, labels = write_kitti(tmp_path)
    source = open_source(config, "train")
    assert source.image_ids.tolist() == [0, 1, 2] and source.on_disk
    assert open_source(config, "val").image_ids.tolist() == [3]
    assert source.classes == ("Pedestrian", "Car", "Cyclist") and source.category_ids == (1, 2, 3)
    assert source.heights.tolist() == [96] * 3 and source.widths.tolist() == [320] * 3
    assert source.read(1) == Path(tmp_path, "training/image_2/000001.png").read_bytes()
    assert source.files[1] == str(tmp_path / "training/image_2/000001.png")
    assert source.cameras is not None and source.cameras.shape == (3, 3, 4) and source.cameras.dtype == np.float64
    assert source.labels3d is not None and source.dropped == {REGION: 6}
    for i, objects in enumerate(source.objects):
        of_file = source.labels3d[i]
        assert of_file.types == labels[i].types == (*KINDS, "DontCare")
        # As in the file, objects before regions: Pedestrian, Car, Cyclist, then Van as of Car, DontCare of all.
        assert objects.labels.tolist() == [0, 1, 2, 1, ALL_CLASSES] and objects.labels.dtype == np.int32
        assert objects.role.tolist() == [OBJECT] * 3 + [IGNORE] * 2
        np.testing.assert_array_equal(objects.boxes, labels[i].boxes.astype(np.float32))
        solid = objects.solid
        assert solid.depth.dtype == solid.size.dtype == solid.orientation.dtype == np.float32
        np.testing.assert_array_equal(solid.depth[:4], labels[i].location[:4, 2].astype(np.float32))
        np.testing.assert_array_equal(solid.size[:4], labels[i].size[:4].astype(np.float32))
        np.testing.assert_array_equal(solid.orientation[:4], labels[i].alpha[:4].astype(np.float32))
        assert not solid.depth[4] and not solid.size[4].any() and not solid.orientation[4]
        # The camera is that of the frame: the middles of the boxes' bottoms lie in the 2D boxes where nothing is cut.
        whole = (labels[i].truncation == 0) & np.array([name != "DontCare" for name in labels[i].types])
        xy = project(source.cameras[i], of_file.location[whole])
        low, high = of_file.boxes[whole, :2], of_file.boxes[whole, 2:]
        assert whole.any() and (xy > low - 0.1).all() and (xy < high + 0.1).all()
    assert not np.array_equal(source.cameras[0], source.cameras[1])
    np.testing.assert_array_equal(source.cameras[0], source.cameras[2])


def test_objects_come_before_regions_and_the_order_of_frames_is_the_lists(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    change(label(config, 2), lambda lines: lines.reverse())
    (tmp_path / "ImageSets" / "train.txt").write_text("000002\n\n000000 \r\n")
    source = open_source(config, "train")
    assert source.image_ids.tolist() == [2, 0]
    assert source.objects[0].labels.tolist() == [2, 1, 0, ALL_CLASSES, 1]
    assert source.objects[0].role.tolist() == [OBJECT] * 3 + [IGNORE] * 2
    assert count_over(source, 2) == 2


def test_types_are_classes_neighbours_or_left_out(tmp_path: Path) -> None:
    assert roles_of_types(("Pedestrian", "Car", "Cyclist")) == {
        "Pedestrian": (0, False),
        "Car": (1, False),
        "Cyclist": (2, False),
        "Van": (1, True),
        "Truck": (1, True),
        "Person_sitting": (0, True),
        "DontCare": (ALL_CLASSES, True),
    }
    assert roles_of_types(("Van", "Cyclist")) == {
        "Van": (0, False),
        "Cyclist": (1, False),
        "DontCare": (ALL_CLASSES, True),
    }
    config, _ = write_kitti(tmp_path)
    change(label(config, 0), lambda lines: lines.append(lines[1].replace("Car", "Tram")))
    change(label(config, 1), lambda lines: lines.append(lines[1].replace("Car", "Person_sitting")))
    source = open_source(config, "train")
    assert source.dropped == {REGION: 7, "of type Tram": 1}
    assert source.objects[1].labels.tolist() == [0, 1, 2, 1, ALL_CLASSES, 0]
    config.kitti_classes = ("Van", "Cyclist")
    source = open_source(config, "train")
    assert source.classes == ("Van", "Cyclist") and source.objects[0].labels.tolist() == [1, 0, ALL_CLASSES]
    dropped = {"of type Car": 3, "of type Pedestrian": 3, "of type Person_sitting": 1, "of type Tram": 1}
    assert source.dropped == {REGION: 3} | dropped
    require_same_classes(open_source(config, "val"), source)


def test_boxes_without_place_are_left_out_regions_too(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)

    def edit(lines: list[str]) -> None:
        for n, box in ((0, "5 5 5 9"), (1, "400 5 420 9"), (3, "5 200 9 300")):
            parts = lines[n].split()
            lines[n] = " ".join([*parts[:4], *box.split(), *parts[8:]])

    change(label(config, 0), edit)
    source = open_source(config, "train")
    assert source.objects[0].labels.tolist() == [2, ALL_CLASSES]
    assert source.dropped == {REGION: 6, "no area": 1, "outside the image": 1}
    assert CROWD not in source.dropped


def test_ground_truth_has_regions_as_crowds_of_their_classes(tmp_path: Path) -> None:
    config, labels = write_kitti(tmp_path)
    source = open_source(config, "train")
    truth = source.ground_truth()
    assert [c["name"] for c in truth["categories"]] == list(source.classes)
    assert [i["file_name"] for i in truth["images"]] == ["000000.png", "000001.png", "000002.png"]
    ids = [a["id"] for a in truth["annotations"]]
    assert len(set(ids)) == len(ids) == 3 * (3 + 1 + 3) and min(ids) > 0
    for i in range(3):
        rows = [a for a in truth["annotations"] if a["image_id"] == i]
        assert Counter((a["category_id"], a["iscrowd"]) for a in rows) == {
            (1, 0): 1,
            (2, 0): 1,
            (3, 0): 1,
            (2, 1): 2,  # Van and DontCare
            (1, 1): 1,
            (3, 1): 1,
        }
        cares = [a["bbox"] for a in rows if a["iscrowd"] and a["category_id"] == 3]
        corners = labels[i].boxes[4]
        np.testing.assert_allclose(cares, [[*corners[:2], *(corners[2:] - corners[:2])]])


def test_detections_on_regions_count_neither_way(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    truth = open_source(config, "train").ground_truth()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        # Every object, and with a higher score something in every region.
        keys = ("image_id", "category_id", "bbox")
        rows = [{k: a[k] for k in keys} | {"score": 0.8 + 0.1 * a["iscrowd"]} for a in truth["annotations"]]
        scores = COCOeval(gt, gt.loadRes(rows), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_frames_without_objects(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    label(config, 0).write_text("")
    label(config, 2).write_text(f"{CARE}\n")
    source = open_source(config, "train")
    assert object_counts(source).tolist() == [0, 3, 0] and len(source.objects[2]) == 1
    assert source.objects[0].solid.size.shape == (0, 3)
    less = without_empty_images(source)
    assert less.image_ids.tolist() == [1] and less.read(0) == source.read(1)
    assert less.cameras is not None and less.labels3d is not None and source.cameras is not None
    np.testing.assert_array_equal(less.cameras, source.cameras[1:2])
    assert [o.types for o in less.labels3d] == [(*KINDS, "DontCare")]
    assert less.annotations.region is not None and less.annotations.region.sum() == 2
    assert less.annotations.solid is not None and len(less.annotations.solid) == 5
    assert {a["image_id"] for a in less.ground_truth()["annotations"]} == {1}
    for frame in (1, 3):
        label(config, frame).write_text("")
    assert not object_counts(open_source(config, "val")).any()


def test_the_fingerprint_knows_cameras_and_3d(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    source = open_source(config, "train")
    first = fingerprint(source)
    shutil.copytree(tmp_path, tmp_path / "copy")
    config.kitti_dir = str(tmp_path / "copy")
    assert fingerprint(open_source(config, "train")) == first
    assert source.cameras is not None
    assert fingerprint(dataclasses.replace(source, cameras=source.cameras + 1e-9)) != first
    for column in (3, 8, 11, 13, 14, 1):  # alpha, height, x, z, rotation_y, truncation

        def edit(lines: list[str], column: int = column) -> None:
            parts = lines[1].split()
            lines[1] = " ".join([*parts[:column], "0.77", *parts[column + 1 :]])

        before = label(config, 1).read_text()
        change(label(config, 1), edit)
        assert fingerprint(open_source(config, "train")) != first, column
        label(config, 1).write_text(before)


def leaves_with_names(tree: object) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("canvas", [320, 160])
def test_batches_keep_metres_where_pixels_shrink(tmp_path: Path, canvas: int) -> None:
    config, labels = write_kitti(tmp_path)
    config.canvas = canvas
    source = open_source(config, "train")
    batch = next(train_batches(source, config, batch=3, seed=0, shuffle=False))
    other = leaves_with_names(next(memory_batches(source, config, batch=3, seed=0, shuffle=False)))
    for name, leaf in leaves_with_names(batch).items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    objects, scale = batch["objects"], canvas / 320
    assert batch["size"].tolist() == [[96 * scale, canvas]] * 3
    assert objects.solid.depth.shape == objects.solid.orientation.shape == (3, 8)
    assert objects.solid.size.shape == (3, 8, 3) and objects.labels.shape == (3, 8)
    for i in range(3):
        np.testing.assert_allclose(objects.boxes[i, :5], labels[i].boxes * scale, rtol=1e-6)
        np.testing.assert_array_equal(objects.solid.depth[i, :4], labels[i].location[:4, 2].astype(np.float32))
        np.testing.assert_array_equal(objects.solid.size[i, :4], labels[i].size[:4].astype(np.float32))
        np.testing.assert_array_equal(objects.solid.orientation[i, :4], labels[i].alpha[:4].astype(np.float32))
    assert not any(leaf[:, 5:].any() for leaf in jax.tree.leaves(objects))
    shapes = batch_shapes(Config(steps=1, batch=3, data=config), kpjax.build("centernet_r18_3d", 3))[
        "objects"
    ]  # what a step is compiled for
    assert jax.tree.map(lambda x: (x.shape, x.dtype), objects) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    if canvas == 320:
        np.testing.assert_array_equal(batch["canvas"][0, :96], decode(source.read(0), ""))


def test_jpegs_and_other_sizes(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    folder = tmp_path / "training" / "image_2"
    for frame, suffix, size in ((0, ".jpg", (310, 90)), (1, ".jpeg", (320, 96))):
        with Image.open(folder / f"{frame:06d}.png") as image:
            # A long profile moves the header's size beyond the file's first bytes.
            image.convert("RGB").resize(size).save(folder / f"{frame:06d}{suffix}", icc_profile=bytes(40_000))
        (folder / f"{frame:06d}.png").unlink()
    source = open_source(config, "train")
    assert [Path(file).name for file in source.files] == ["000000.jpg", "000001.jpeg", "000002.png"]
    assert source.heights.tolist() == [90, 96, 96] and source.widths.tolist() == [310, 320, 320]
    assert next(train_batches(source, config, batch=3, seed=0))["canvas"].any(axis=(1, 2, 3)).all()


def test_names_that_are_no_numbers(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    for kind, suffix in (("image_2", "png"), ("label_2", "txt"), ("calib", "txt")):
        Path(tmp_path, "training", kind, f"000001.{suffix}").rename(tmp_path / "training" / kind / f"rear-1.{suffix}")
        shutil.copy(
            Path(tmp_path, "training", kind, f"000002.{suffix}"), Path(tmp_path, "training", kind, f"2.{suffix}")
        )
    for names, ids in ((["000002", "rear-1"], [1, 2]), (["000002", "2"], [1, 2]), (["000003", "2"], [3, 2])):
        (tmp_path / "ImageSets" / "train.txt").write_text("\n".join(names))
        assert open_source(config, "train").image_ids.tolist() == ids


def test_the_folder_may_be_the_inner_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = write_kitti(tmp_path / "kitti")
    whole = fingerprint(open_source(config, "train"))
    config.kitti_dir = str(tmp_path / "kitti" / "training")
    assert fingerprint(open_source(config, "train")) == whole
    monkeypatch.setenv("HOME", str(tmp_path))
    config.kitti_dir = "~/kitti/"
    assert fingerprint(open_source(config, "train")) == whole
    config.kitti_dir = str(tmp_path / "kitti" / "training")
    (tmp_path / "kitti" / "ImageSets").rename(tmp_path / "kitti" / "training" / "ImageSets")
    assert fingerprint(open_source(config, "train")) == whole


def line_of(config: DataConfig, split: str = "train") -> str:
    """The one line with which opening ends."""
    with pytest.raises((ConfigError, DataError)) as caught:
        open_source(config, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_folders_and_lists(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path / "kitti")
    lists, inner = tmp_path / "kitti" / "ImageSets", tmp_path / "kitti" / "training"
    (lists / "train.txt").write_text("000000\n000001\n000000\n")
    with pytest.raises(DataError, match=r"train\.txt: names frame 000000 twice") as caught:
        open_source(config, "train")
    assert caught.value.kind == DUPLICATE
    for text in ("", "\n \n"):
        (lists / "train.txt").write_text(text)
        assert line_of(config).endswith("train.txt: names no frame; give one a line, e.g. 000123")
    for name in ("000000 1", "../label_2/000000", "a\\b"):
        (lists / "train.txt").write_text(f"000001\n{name}\n")
        assert f"train.txt, line 2: {name!r} is no name of a frame" in line_of(config)
    (lists / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert "train.txt: cannot be read as a list of frames" in line_of(config)
    config.kitti_train = "trian"
    text = line_of(config)
    assert "trian.txt: no such list of frames; there are train, val; set config.data.kitti_train" in text
    shutil.rmtree(lists)
    assert "kitti: no folder ImageSets; make it" in line_of(config)
    shutil.rmtree(inner / "calib")
    assert "training: no folder calib beside image_2; it holds image_2, label_2" in line_of(config)
    shutil.rmtree(inner / "image_2")
    text = line_of(config)
    assert f"{tmp_path}/kitti: no folder training/image_2 or image_2; it holds training; give the folder" in text
    config.kitti_dir = str(tmp_path / "kiti")
    assert "kiti: no such folder; give KITTI's" in line_of(config)


def test_missing_files_of_a_frame(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    for kind, what in (("label_2", "label"), ("calib", "calibration")):
        path = tmp_path / "training" / kind / "000001.txt"
        content = path.read_text()
        path.unlink()
        with pytest.raises(DataError) as caught:
            open_source(config, "train")
        assert str(caught.value) == f"{path}: no such {what} file" and caught.value.kind == INCOMPLETE
        mistakes: list[DataError] = []
        source = open_source(config, "train", mistakes.append)
        assert [str(m) for m in mistakes] == [str(caught.value)] and len(source) == 3 and source.cameras is not None
        if kind == "label_2":
            assert len(source.objects[1]) == 0 and len(source.objects[0]) == 5
        else:
            assert np.isnan(source.cameras[1]).all() and np.isfinite(source.cameras[0]).all()
        path.write_text(content)


def test_bad_label_files_and_calibrations(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    path = label(config, 1)
    content = path.read_text()
    for edit, text in (
        (lambda lines: lines.__setitem__(2, lines[2].rsplit(" ", 1)[0]), "line 3: 14 fields where a label line"),
        (lambda lines: lines.__setitem__(0, lines[0].replace("Pedestrian 0", "Pedestrian x")), "line 1: truncation is"),
    ):
        change(path, edit)
        assert line_of(config).startswith(f"{path}, {text}")
        path.write_text(content)
    change(tmp_path / "training" / "calib" / "000002.txt", lambda lines: lines.__setitem__(2, "P2: 1 2 3"))
    assert line_of(config).endswith("000002.txt: P2 has 3 numbers; a projection matrix of 3 x 4 has 12")


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    images = tmp_path / "training" / "image_2"
    (images / "000000.png").write_bytes(b"no picture")
    assert "000000.png: not an image" in line_of(config) and "config.data.bad_images='skip'" in line_of(config)
    (images / "000001.png").unlink()
    with pytest.raises(DataError, match=r"000001\.png: image not found; .*train\.txt lists it; or set") as caught:
        open_source(config, "train")
    assert caught.value.kind == MISSING
    config.bad_images = "skip"
    source = open_source(config, "train")
    assert source.heights.tolist() == [96] * 3 and source.widths.tolist() == [320] * 3
    feed = train_batches(source, config, batch=3, seed=0, shuffle=False)
    batch = next(feed)
    assert batch["canvas"].any(axis=(1, 2, 3)).tolist() == [False, False, True] and len(feed.bad_files) == 2
    assert batch["objects"].valid.any(axis=1).tolist() == [False, False, True]
    shutil.rmtree(images)
    images.mkdir()
    assert "000000.png: image not found and 2 more of 3" in line_of(config)


def test_classes_that_cannot_be(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    for classes, text in (
        (("Car", "Tram"), "config.data.kitti_classes names 'Tram', of which "),
        (("car",), "names 'car', and the labels of .*train.txt have 'Car'; did you mean 'Car'?"),
        (("van", "Car"), "names 'van', .* did you mean 'Van'?"),
        ((), "kitti_classes is (); give names of types"),
        (("Car,Van",), "kitti_classes is ('Car,Van',); give names of types, e.g. --config"),
        (("Car", "Van", "Car"), "names 'Car' twice"),
        (("Car", "DontCare"), "names 'DontCare', which marks regions to ignore"),
    ):
        config.kitti_classes = classes
        found = line_of(config)
        assert all(part in found for part in text.split(".*")), found
    config.kitti_classes = ("Car", "Tram")
    assert line_of(config).endswith("its labels hold 3 Car, 3 Cyclist, 3 DontCare, 3 Pedestrian, 3 Van")
    assert object_counts(open_source(config, "val")).tolist() == [1]  # a split to measure with may lack a class


def test_types_that_differ_in_their_case(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    for name in ("car", "VAN", "dontcare"):
        change(label(config, 1), lambda lines, name=name: lines.append(lines[1].replace("Car", name)))
        right = {"car": "Car", "VAN": "Van", "dontcare": "DontCare"}[name]
        text = f"{label(config, 1)}: object 6 is of type {name!r}; did you mean {right!r}?"
        assert line_of(config) == text
        change(label(config, 1), lambda lines: lines.pop())


def test_settings(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    assert opening.has_validation(config) and not opening.has_validation(dataclasses.replace(config, kitti_val=""))
    assert opening.has_validation(DataConfig(source="tfds")) and not opening.has_validation(DataConfig())
    assert "config.data.kitti_dir is empty" in line_of(dataclasses.replace(config, kitti_dir=""))
    assert "config.data.kitti_train is empty" in line_of(dataclasses.replace(config, kitti_train=""))
    assert "config.data.kitti_val is empty" in line_of(dataclasses.replace(config, kitti_val=""), "val")
    assert "config.data.crowds is 'train', but KITTI" in line_of(dataclasses.replace(config, crowds="train"))
    with pytest.raises(ConfigError, match=r"config\.data\.source is 'kitti', whose objects have no keypoints"):
        open_source(config, "train", keypoints=True)
    assert open_source(config, "train", keypoints=None).points is None
    whole = Config(steps=1, data=config).check()
    assert "config.data.kitti_dir" not in configs.shared(whole)
    assert configs.shared(whole)["config.data.kitti_classes"] == ["Pedestrian", "Car", "Cyclist"]
    assert configs.from_json(configs.to_json(whole)) == whole
    for wrong in (("Car", 3), ["Car"], (1.0,)):
        with pytest.raises(ConfigError, match=r"config\.data\.kitti_classes is .*; it must be a tuple of names"):
            Config(steps=1, data=dataclasses.replace(config, kitti_classes=wrong)).check()
    recipe = str(Path(__file__).parents[2] / "configs" / "shapes_r18.py")
    for text, wanted in (("('Car','Van')", ("Car", "Van")), ("Car", ("Car",))):
        settings = ["--config.data.source=kitti", f"--config.data.kitti_classes={text}"]
        assert config_of(recipe, settings).data.kitti_classes == wanted


def test_records_refuse_3d(tmp_path: Path) -> None:
    config, _ = write_kitti(tmp_path)
    with pytest.raises(DataError, match=r"train\.txt has 3D boxes, which are not kept in records; train on the folder"):
        write_records({"train": open_source(config, "train")}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_drawn_labels_are_consistent(tmp_path: Path) -> None:
    config, labels = write_kitti(tmp_path, frames=6, seed=3)
    again, same = write_kitti(tmp_path / "again", frames=6, seed=3)
    for one, other in zip(labels, same, strict=True):
        np.testing.assert_array_equal(one.location, other.location)
    assert open_source(again, "train").read(2) == open_source(config, "train").read(2)
    for n, of_frame in enumerate(labels):
        real = np.arange(4)
        turned = of_frame.yaw[real] - np.arctan2(of_frame.location[real, 0], of_frame.location[real, 2])
        away = (of_frame.alpha[real] - turned + np.pi) % (2 * np.pi) - np.pi
        assert (np.abs(away) < 0.011).all() and (np.abs(of_frame.alpha[real]) <= 3.15).all()
        write_objects(str(tmp_path / "one.txt"), of_frame)
        assert (tmp_path / "one.txt").read_text() == label(config, n).read_text()
    sizes = [open_source(write_kitti(tmp_path / f"{n}", frames=n)[0], "train").image_ids for n in (1, 2, 8)]
    assert [ids.tolist() for ids in sizes] == [[0], [0], [0, 1, 2, 3, 4, 5]]


KITTI = DATA / "kitti_tiny"


@pytest.mark.skipif(not KITTI.is_dir(), reason=f"no {KITTI.name} in {DATA.name}: set KPJAX_DATA")
def test_frames_of_kitti_itself() -> None:
    counts: dict[str, list[int]] = {}
    for split, frames in (("train", 50), ("val", 22)):
        mistakes: list[DataError] = []
        source: Source = KittiFolder(str(KITTI), split, mistake=mistakes.append)
        assert not mistakes and len(source) == frames and source.labels3d is not None
        assert source.cameras is not None and source.cameras.shape == (frames, 3, 4)
        assert {Path(file).suffix for file in source.files} == {".jpg"}
        for i in (0, frames - 1):
            assert decode(source.read(i), "").shape == (source.heights[i], source.widths[i], 3)
        labels = np.concatenate([objects.labels[objects.valid] for objects in source.objects])
        counts[split] = np.bincount(labels, minlength=3).tolist()
        types = Counter(itertools.chain.from_iterable(objects.types for objects in source.labels3d))
        assert counts[split] == [types[name] for name in source.classes]
        assert source.dropped[REGION] == sum(types[t] for t in ("Van", "Truck", "Person_sitting", "DontCare"))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(source.objects))
    assert counts == {"train": [23, 147, 7], "val": [5, 59, 5]}
