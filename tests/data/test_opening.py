"""Settings of keypoints: mirrored pairs and sigmas."""

from __future__ import annotations

import json
import pathlib

import pytest

from kpjax.config import Config, DataConfig, SplitConfig
from kpjax.data.opening import mirror_of_pairs, open_source, with_settings
from kpjax.data.source import fingerprint, require_keypoints, require_same_points
from kpjax.errors import ConfigError, DataError
from kpjax.objects import PointSet
from tests import fakes

PLATE = PointSet(("top_left", "top_right", "bottom_right", "bottom_left"))


def test_pairs() -> None:
    assert PLATE.mirror == (1, 0, 3, 2)
    assert mirror_of_pairs(PLATE.names, "top_left:bottom_right", "x") == (2, 1, 0, 3)
    assert mirror_of_pairs(PLATE.names, "top_left : bottom_left, top_right:bottom_right", "x") == (3, 2, 1, 0)
    assert mirror_of_pairs(PLATE.names, "none", "x") == (0, 1, 2, 3)
    config = DataConfig(mirror_pairs="none", sigmas=(0.1, 0.2, 1, 0.4))
    found = with_settings(PLATE, config, "x")
    assert found.mirror == (0, 1, 2, 3) and found.sigmas == (0.1, 0.2, 1.0, 0.4) and found.names == PLATE.names
    assert with_settings(PLATE, DataConfig(), "x") == PLATE


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ("top_left", "mirror_pairs has 'top_left'; give pairs of names such as"),
        ("top_left:top_right,", "mirror_pairs has ''; give pairs"),
        ("top_left:top_right:foot", "give pairs"),
        ("top_left:top_rihgt", "names 'top_rihgt', which is no keypoint of plates.json; did you mean 'top_right'?"),
        ("top_left:top_left", "names 'top_left' twice"),
        ("top_left:top_right,top_right:bottom_left", "names 'top_right' twice; a keypoint is in one pair at most"),
    ],
)
def test_pairs_that_cannot_be(pairs: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        mirror_of_pairs(PLATE.names, pairs, "plates.json")
    assert text in str(error.value) and "config.data.mirror_pairs" in str(error.value) and "\n" not in str(error.value)


def test_sigmas_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"config\.data\.sigmas has 3 numbers and plates\.json 4 keypoints; give one"):
        with_settings(PLATE, DataConfig(sigmas=(0.1, 0.1, 0.1)), "plates.json")
    for wrong in ((0.1, 0.0), (0.1, float("nan")), (2.0,)):
        with pytest.raises(ConfigError, match=r"config\.data\.sigmas is .*; give numbers above 0 and at most 1"):
            Config(steps=1, data=DataConfig(sigmas=wrong)).check()


def test_splits_have_the_same_keypoints() -> None:
    item = (20, 30, [(9, 9, 6, 0)])
    train = fakes.marker_source([item], points=fakes.POINTS)
    other = PointSet(("top", "left_hand", "right_hand", "tail"))
    require_same_points(fakes.marker_source([item], points=fakes.POINTS), train)
    with pytest.raises(ConfigError, match=r"other keypoints than markers \(foot, tail\); both splits need the same"):
        require_same_points(fakes.marker_source([item], points=other), train)
    turned = PointSet(fakes.POINTS.names[::-1])
    with pytest.raises(ConfigError, match=r"\(in another order\)"):
        require_same_points(fakes.marker_source([item], points=turned), train)
    assert fingerprint(fakes.marker_source([item], points=other)) != fingerprint(train)
    require_keypoints(train)
    with pytest.raises(ConfigError, match="markers was opened without its keypoints; open it with keypoints=True"):
        require_keypoints(fakes.marker_source([item]))
    empty = fakes.marker_source([(20, 30, [])], points=fakes.POINTS)
    with pytest.raises(ConfigError, match=r"no labelled keypoint to train on; give .* in config\.data\.train"):
        require_keypoints(empty)
    with pytest.raises(ConfigError, match=r"no labelled keypoint to measure with; give .* in config\.data\.val"):
        require_keypoints(empty, "val")


def write(folder: pathlib.Path, *, named: bool, annotated: bool) -> DataConfig:
    source = fakes.marker_source([(20, 30, [(9, 9, 6, 0)])], points=fakes.POINTS)
    instances = source.ground_truth()
    (folder / instances["images"][0]["file_name"]).write_bytes(source.read(0))
    if not named:
        for category in instances["categories"]:
            del category["keypoints"], category["skeleton"]
    if not annotated:
        del instances["annotations"]
    (folder / "val.json").write_text(json.dumps(instances))
    return DataConfig(val=SplitConfig(str(folder), str(folder / "val.json")))


def test_keypoints_are_read_where_they_are_wanted(tmp_path: pathlib.Path) -> None:
    config = write(tmp_path, named=True, annotated=True)
    assert open_source(config, "val").points is None
    for keypoints in (True, None):
        assert open_source(config, "val", keypoints=keypoints).points == fakes.POINTS
    config.mirror_pairs = "none"
    assert open_source(config, "val", keypoints=True).points.mirror == (0, 1, 2, 3)  # type: ignore[union-attr]
    config = write(tmp_path, named=False, annotated=True)
    assert open_source(config, "val", keypoints=None).points is None
    with pytest.raises(DataError, match="no category has 'keypoints'"):
        open_source(config, "val", keypoints=True)
    config = write(tmp_path, named=False, annotated=False)  # what a test split's file of images has
    assert open_source(config, "val", keypoints=True).points is None
