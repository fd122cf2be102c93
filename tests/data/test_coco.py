from __future__ import annotations

import contextlib
import copy
import io
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from kpjax.config import DataConfig
from kpjax.data.coco import CocoFolder
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.source import count_over
from kpjax.errors import ConfigError, DataError


def test_order_classes_boxes_and_files(folder):
    config = folder()
    source = open_source(config, "train")
    assert source.image_ids.tolist() == [50, 49, 48, 47, 46, 45, 44]
    assert source.classes == ("three", "seven", "none") and source.category_ids == (3, 7, 90)
    assert [len(o) for o in source.objects] == [0, 1, 2, 3, 0, 1, 2]
    np.testing.assert_array_equal(source.objects[3].boxes, [[1.5, 2, 11.5, 9], [2.5, 2, 12.5, 10], [3.5, 2, 13.5, 11]])
    assert source.objects[3].labels.tolist() == [1, 0, 1] and source.objects[3].labels.dtype == np.int32
    assert source.objects[0].boxes.shape == (0, 4) and source.objects[3].boxes.dtype == np.float32
    assert (source.heights[1], source.widths[1]) == (64, 48)
    assert source.dropped == {} and source.on_disk
    assert source.read(1) == Path(config.train.images, "sub", "1.jpg").read_bytes()
    assert count_over(source, 1) == 4 and count_over(source, 3) == 0


def test_annotations_out_of_order_stay_with_their_images(folder):
    plain = open_source(folder(), "train")
    shuffled = open_source(folder(lambda d: d["annotations"].sort(key=lambda a: a["id"] % 10)), "train")
    for a, b in zip(*(jax.tree.leaves(source.objects) for source in (plain, shuffled)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_training_leaves_out_is_counted_and_stays_in_the_ground_truth(folder):
    def edit(d):
        boxes = [a for a in d["annotations"] if a["image_id"] in (47, 44)]
        boxes[0]["iscrowd"] = 1
        boxes[1]["bbox"] = [5, 5, 0, 8]
        boxes[2]["bbox"] = [64, 3, 10, 10]  # starts where the 64 columns end
        boxes[3]["bbox"] = [-20, 3, 20, 10]
        boxes[4]["bbox"] = [60, -5, 10, 10]  # partly outside: trained on as it stands

    source = open_source(folder(edit), "train")
    assert source.dropped == {"crowd": 1, "no area": 1, "outside the image": 2}
    assert not source.objects[3].valid.any()
    np.testing.assert_array_equal(source.objects[6].boxes, [[60, -5, 70, 5]])
    assert len(source.ground_truth()["annotations"]) == 9
    assert sum(a["iscrowd"] for a in source.ground_truth()["annotations"]) == 1


def test_ground_truth_scores_itself_perfectly(folder):
    def edit(d):  # the id 0 is what pycocotools cannot match
        for n, a in enumerate(d["annotations"]):
            a["id"] = n

    truth = open_source(folder(edit), "val").ground_truth()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        results = [
            {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth["annotations"]
        ]
        scores = COCOeval(gt, gt.loadRes(results), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_whole_paths_into_the_folder_are_read(folder):
    data = folder()
    names = open_source(data, "train").files
    data = folder(lambda d: [image.update(file_name=name) for image, name in zip(d["images"], names, strict=True)])
    assert open_source(data, "train").files == names


def test_an_area_of_null_is_that_of_the_box(folder):
    def edit(d):
        for a in d["annotations"]:
            a.update(area=None, iscrowd=None, segmentation=None)

    source = open_source(folder(edit), "train")
    assert source.annotations.area.tolist() == source.annotations.bbox[:, 2:].prod(1).tolist()
    assert not source.annotations.crowd.any()


def test_ids_and_areas_may_be_missing(folder):
    def edit(d):
        for a in d["annotations"]:
            del a["id"], a["area"], a["iscrowd"]

    truth = open_source(folder(edit), "train").ground_truth()
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 10))
    assert truth["annotations"][0]["area"] == 70.0


BAD = {
    "unlisted category": (lambda d: d["annotations"][2].update(category_id=4), r"annotation 22 .*category id 4"),
    "unlisted image": (lambda d: d["annotations"][2].update(image_id=999), r"annotation 22 .*image id 999"),
    "image twice": (lambda d: d["images"][3].update(id=50), r"image id 50 .*twice \(0\.jpg, 3\.jpg\)"),
    "annotation twice": (lambda d: d["annotations"][4].update(id=11), r"annotation id 11 .*twice"),
    "category twice": (lambda d: d["categories"][1].update(id=7), r"category id 7 .*twice"),
    "up and out": (lambda d: d["images"][0].update(file_name="sub/../../secret.jpg"), r"secret\.jpg.*outside"),
    "absolute": (lambda d: d["images"][0].update(file_name="/etc/passwd"), r"/etc/passwd.*outside"),
    "windows drive": (lambda d: d["images"][0].update(file_name="C:\\x.jpg"), r"outside"),
    "backslashes": (lambda d: d["images"][0].update(file_name="..\\x.jpg"), r"outside"),
    "no file name": (lambda d: d["images"][0].update(file_name=""), r"images\[0\].*file_name"),
    "missing": (lambda d: d["images"][2].update(file_name="nowhere/2.jpg"), r"nowhere/2\.jpg: image not found"),
    "nan": (lambda d: d["annotations"][0].update(bbox=[0, 0, math.nan, 3]), r"annotation 11 .*nan"),
    "negative": (lambda d: d["annotations"][0].update(bbox=[0, 0, -2, 3]), r"annotation 11 .*negative"),
    "three numbers": (lambda d: d["annotations"][0].update(bbox=[0, 0, 2]), r"annotation 11 .*four numbers"),
    "beyond float32": (
        lambda d: d["annotations"][0].update(bbox=[0, 0, 1e30, 3]),
        r"annotation 11 .*1e\+30.*four numbers",
    ),
    "beyond float64": (lambda d: d["annotations"][0].update(bbox=[0, 0, 10**400, 3]), r"annotation 11 .*four numbers"),
    "area beyond int64": (lambda d: d["annotations"][0].update(area=1e25), r"annotation 11 .*area 1e\+25"),
    "crowd in words": (lambda d: d["annotations"][0].update(iscrowd="0"), r"annotation 11 .*'0' as 'iscrowd'"),
    "half a surrogate": (lambda d: d["images"][0].update(file_name="\ud800.jpg"), r"images\[0\].*\\ud800\.jpg"),
    "words": (lambda d: d["annotations"][0].update(bbox=["0", "0", "2", "2"]), r"annotation 11 .*four numbers"),
    "nan area": (lambda d: d["annotations"][0].update(area=math.nan), r"annotation 11 .*area"),
    "no width": (lambda d: d["images"][0].pop("width"), r"0\.jpg.*'width'"),
    "zero height": (lambda d: d["images"][0].update(height=0), r"0\.jpg.*60 x 0"),
    "true as id": (lambda d: d["images"][0].update(id=True), r"images\[0\].*'id'"),
    "nameless": (lambda d: d["categories"][0].pop("name"), r"categories\[0\].*no name"),
    "no categories": (lambda d: d.pop("categories"), r"not a COCO.*'categories'"),
    "empty categories": (lambda d: d["categories"].clear(), r"'categories' is empty"),
    "empty images": (lambda d: (d["images"].clear(), d["annotations"].clear()), r"'images' is empty"),
    "annotations an object": (lambda d: d.update(annotations={}), r"not a COCO.*'annotations'"),
    "list of numbers": (lambda d: d["annotations"].append(3), r"annotations\[9\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_one_line(folder, case):
    edit, pattern = BAD[case]
    with pytest.raises(DataError, match=pattern) as bad:
        open_source(folder(edit), "train")
    assert "\n" not in str(bad.value) and len(str(bad.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\x00\x01", '{"images": 3}', "[" * 100_000])
def test_files_that_are_not_coco_json(folder, text):
    config = folder()
    Path(config.train.annotations).write_text(text)
    with pytest.raises(DataError, match=r"instances\.json") as bad:
        open_source(config, "train")
    assert "\n" not in str(bad.value)


def test_binary_and_missing_annotation_files(folder, tmp_path):
    config = folder()
    Path(config.train.annotations).write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="not a JSON file"):
        open_source(config, "train")
    with pytest.raises(DataError, match=r"nothing\.json"):
        CocoFolder(config.train.images, str(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="no such image folder"):
        CocoFolder(str(tmp_path / "nofolder"), folder().train.annotations)


def test_a_byte_order_mark_is_no_mistake(folder):
    config = folder()
    path = Path(config.train.annotations)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(open_source(config, "train")) == 7


@pytest.mark.parametrize(
    "name", ["Gr\u00f6\u00dfe \u65e5\u672c.jpg", "gr\udcf6\udcdfe.jpg"], ids=["UTF-8", "bytes that are not UTF-8"]
)
def test_file_names_in_any_encoding(folder, name):
    config = folder()
    (Path(config.train.images) / "2.jpg").rename(Path(config.train.images) / name)
    config = folder(lambda d: d["images"][2].update(file_name=name))
    source = open_source(config, "train")
    assert next(train_batches(source, config, batch=7, seed=0))["canvas"].any(axis=(1, 2, 3)).all()


def test_all_missing_files_are_counted(folder):
    config = folder()
    for name in ("2.jpg", "sub/1.jpg", "5.jpg"):
        Path(config.train.images, name).unlink()
    with pytest.raises(DataError, match=r"sub/1\.jpg: image not found and 2 more of 7"):
        open_source(config, "train")


def test_missing_files_may_be_skipped(folder):
    config = folder(bad_images="skip")
    Path(config.train.images, "5.jpg").unlink()
    source = open_source(config, "train")
    assert len(source) == 7
    with pytest.raises(DataError, match=r"5\.jpg"):
        source.read(5)
    for batches in (memory_batches, train_batches):
        feed = batches(source, config, batch=7, seed=0)
        batch = next(feed)
        own = batch["index"] == 5
        assert not batch["canvas"][own].any() and not batch["objects"].valid[own].any()
        assert len(feed.bad_files) == 1 and "5.jpg" in feed.bad_files[0]


def test_a_folder_without_any_of_the_images_is_a_mistake(folder, tmp_path):
    config = folder(bad_images="skip")
    (tmp_path / "elsewhere").mkdir()
    config.train.images = str(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"0\.jpg: image not found and 6 more of 7; .*correct the folder"):
        open_source(config, "train")


def test_settings_that_are_missing_are_named():
    with pytest.raises(ConfigError, match=r"config\.data\.val\.images is empty"):
        open_source(DataConfig(), "val")
    with pytest.raises(ConfigError, match="'train' or 'val'"):
        open_source(DataConfig(), "test")
    with pytest.raises(ConfigError, match=r"config\.data\.source"):
        open_source(DataConfig(source="zip"), "train")
