"""COCO's segmentations: polygons, masks in run lengths, and what cannot be read."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kpjax.config import DataConfig
from kpjax.data.coco import CocoFolder
from kpjax.data.opening import open_source
from kpjax.data.outlines import decode_mask, extreme_keypoints, outline_of
from kpjax.data.source import require_outlines
from kpjax.errors import ConfigError, DataError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import UNLABELLED, VISIBLE


@pytest.mark.parametrize("seed", range(5))
def test_masks_as_pycocotools_reads_them(seed: int) -> None:
    """Compressed by pycocotools, and as plain counts."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 60, 2))
    mask = rng.random((height, width)) < rng.random()
    mask[: height // 2] = rng.random() < 0.5  # long runs too
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    np.testing.assert_array_equal(decode_mask(text, "here"), mask)
    flat = mask.T.reshape(-1)
    cuts = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *cuts, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    np.testing.assert_array_equal(decode_mask({"size": [height, width], "counts": runs}, "here"), mask)


def test_polygons_are_one_outline() -> None:
    outline = outline_of([[1, 2, 3, 4.5], [5, 6]], "here")
    np.testing.assert_array_equal(outline, [(1, 2), (3, 4.5), (5, 6)])
    found = extreme_keypoints([[10, 0, 20, 30, 0, 30]], "here")
    np.testing.assert_array_equal(found, [(10, 0, 2), (0, 30, 2), (0, 30, 2), (20, 30, 2)])


@pytest.mark.parametrize("nothing", [None, [], {}, [[]], {"size": [2, 3], "counts": [6]}])
def test_no_outline(nothing: Any) -> None:
    assert np.all(extreme_keypoints(nothing, "here") == 0)


@pytest.mark.parametrize(
    "bad",
    [
        [[1, 2, 3]],
        [1, 2, 3, 4],
        [["a", 2]],
        [[[1], 2]],
        [[float("nan"), 2]],
        [[1e12, 2]],
        "abc",
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [-1, 7]},
        {"size": [2], "counts": [2]},
        {"size": [2, 3]},
        {"size": [2, 3], "counts": "~"},
        {"size": [2, 3], "counts": "o" * 40},
        {"size": [10**6, 10**6], "counts": [10**12]},
    ],
)
def test_what_cannot_be_read(bad: Any) -> None:
    with pytest.raises(DataError, match=r"^here has [^\n]+$"):
        extreme_keypoints(bad, "here")


@pytest.fixture
def data(tmp_path: pathlib.Path) -> DataConfig:
    """An image with a polygon, a mask of a crowd and a box without an outline."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png")
    mask = {"size": [30, 40], "counts": [30 * 20 + 5, 10, 1200 - 615]}
    outlines: list[Any] = [[[4, 2, 12, 9, 6, 20, 2, 8]], mask, []]
    annotations = [
        {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 18], "area": 9, "iscrowd": int(n == 1)}
        | {"segmentation": outline}
        for n, outline in enumerate(outlines)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "leaf", "keypoints": ["stem"]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    config = DataConfig()
    config.train.images, config.train.annotations = str(tmp_path / "images"), str(tmp_path / "instances.json")
    return config


def test_a_source_with_outlines(data: DataConfig) -> None:
    data.crowds = "train"
    source = open_source(data, "train", outlines=True)
    assert source.points is EXTREME_POINTS
    (objects,) = source.objects
    np.testing.assert_array_equal(objects.points[0], [(4, 2), (2, 8), (6, 20), (12, 9)])
    np.testing.assert_array_equal(objects.points[1], [(20, 5), (20, 9), (20, 14), (20, 9)])
    np.testing.assert_array_equal(objects.seen, [[VISIBLE] * 4, [VISIBLE] * 4, [UNLABELLED] * 4])
    require_outlines(source)
    assert open_source(data, "train", outlines=None).points is EXTREME_POINTS
    with pytest.raises(ConfigError, match="opened without its outlines"):
        require_outlines(open_source(data, "train"))


def test_where_there_are_none(data: DataConfig) -> None:
    path = pathlib.Path(data.train.annotations)
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        del row["segmentation"]
    path.write_text(json.dumps(content))
    assert CocoFolder(data.train.images, data.train.annotations, outlines=None).points is None
    with pytest.raises(ConfigError, match="no object with an outline"):
        require_outlines(open_source(data, "train", outlines=True))
    data.source = "tfds"
    with pytest.raises(ConfigError, match="'tfds', whose objects have no outlines"):
        open_source(data, "train", outlines=True)


def test_one_that_cannot_be_read_is_a_mistake_of_its_annotation(data: DataConfig) -> None:
    path = pathlib.Path(data.train.annotations)
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    assert len(open_source(data, "train").objects[0].labels) == 3  # a model of boxes does not read outlines
    with pytest.raises(DataError, match="annotation 1 has a segmentation that is no list of polygons"):
        open_source(data, "train", outlines=True)
    mistakes: list[DataError] = []
    assert len(open_source(data, "train", mistakes.append, outlines=True).objects[0].labels) == 2
    assert len(mistakes) == 1
