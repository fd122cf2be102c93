"""A run that learns joints: its numbers, its best checkpoint, its evaluation, and data that do not fit."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import load_inference
from kpjax.commands import evaluate as eval_program
from kpjax.commands import flags
from kpjax.config import Config
from kpjax.datasets import figures
from kpjax.errors import UserError
from kpjax.metrics.coco import KEYPOINT_STATS, STATS
from kpjax.training.run import run
from tests.tiny import tiny_config

HEADS = "heatmap,wh,offset,keypoint_offset,joint_heatmap,joint_offset"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("figures")
    figures.write(str(folder), train=8, val=5, size=64, seed=1)
    return folder


def pose_config(data: pathlib.Path) -> Config:
    config = tiny_config(steps=2)
    config.model.name = "centernet_r18_pose"
    config.model.options = {"width": 4, "deconv": (4,), "head_channels": 4}
    config.data.max_boxes, config.data.threads = 6, 1
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images, split.annotations = str(data / name), str(data / "annotations" / f"instances_{name}.json")
    config.eval.resolution, config.eval.every = "fixed", 1
    return config


@pytest.fixture(scope="module")
def trained(data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run")
    assert run(pose_config(data), str(workdir)).finished
    return workdir


def test_a_run_measures_keypoints(trained: pathlib.Path) -> None:
    lines = read_metrics(str(trained))
    for line in (one for one in lines if one["kind"] == "eval"):
        assert tuple(line)[2:] == (*KEYPOINT_STATS, *(f"box_{name}" for name in STATS))
    losses = [line for line in lines if line["kind"] == "train"]
    assert losses and all(np.isfinite(line["keypoint_offset"]) for line in losses)
    points = load_inference(str(trained / "model")).detector.points
    assert points is not None and points.names == figures.JOINTS


def test_the_oracle_of_all_heads_finds_what_the_network_does_not(
    trained: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    """All but figures whose centres are neighbours on the map, which hide one another."""
    out = tmp_path / "found.json"
    argv = ["eval.py", "--workdir", str(trained), "--best", "--oracle", HEADS, "--out", str(out)]
    assert eval_program.main(flags.parse(argv, eval_program.define)) == 0
    keypoints, boxes = capsys.readouterr().out.split("boxes, by IoU:")
    rows = json.loads(out.read_text())
    assert rows and all(len(row["keypoints"]) == 3 * len(figures.JOINTS) for row in rows)
    ap = float(keypoints.split("maxDets= 20 ] = ")[1][:5]), float(boxes.split("maxDets=100 ] = ")[1][:5])
    assert min(ap) > 0.8, ap
    assert all(line["AP"] < 0.1 for line in read_metrics(str(trained)) if line["kind"] == "eval")


def rename_a_joint(instances: dict[str, Any]) -> None:
    instances["categories"][0]["keypoints"][0] = "tail"


def drop_joints(instances: dict[str, Any]) -> None:
    del instances["categories"][0]["keypoints"]


def label_nothing(instances: dict[str, Any]) -> None:
    for annotation in instances["annotations"]:
        annotation["keypoints"][2::3] = [0] * len(figures.JOINTS)


@pytest.mark.parametrize(
    ("split", "edit", "match"),
    [
        ("val", rename_a_joint, "val.json lists other keypoints than .*train.json"),
        ("val", drop_joints, "val.json: no category has 'keypoints'; give a COCO keypoints JSON"),
        ("train", drop_joints, "train.json: no category has 'keypoints'; give a COCO keypoints JSON"),
        ("train", label_nothing, "train.json has no labelled keypoint to train on"),
        ("val", label_nothing, "val.json has no labelled keypoint to measure with"),
    ],
)
def test_data_that_do_not_fit_are_one_line(
    data: pathlib.Path, tmp_path: pathlib.Path, split: str, edit: Callable[[dict[str, Any]], None], match: str
) -> None:
    config = pose_config(data)
    files = getattr(config.data, split)
    instances = json.loads(pathlib.Path(files.annotations).read_text())
    edit(instances)
    files.annotations = str(tmp_path / f"{split}.json")
    pathlib.Path(files.annotations).write_text(json.dumps(instances))
    with pytest.raises(UserError, match=match) as error:
        run(config, str(tmp_path / "work"))
    assert "\n" not in str(error.value) and not (tmp_path / "work" / "config.json").exists()


def test_settings_that_do_not_fit_are_one_line(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for key, value, match in (
        ("sigmas", (0.1, 0.2), rf"config\.data\.sigmas has 2 numbers and .* {len(figures.JOINTS)} keypoints"),
        ("mirror_pairs", "head:tail", r"config\.data\.mirror_pairs names 'tail'"),
    ):
        config = pose_config(data)
        setattr(config.data, key, value)
        with pytest.raises(UserError, match=match):
            run(config, str(tmp_path / "work"))
