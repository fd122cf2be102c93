"""ExtremeNet, trained on outlines: on one device and on eight, interrupted, and evaluated by two processes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kpjax
import kpjax.training.run
from kpjax.__main__ import main
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import save_inference
from kpjax.config import Config
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.datasets import shapes
from kpjax.detectors.base import Detector
from kpjax.detectors.extreme_targets import KEYPOINTS
from kpjax.errors import ConfigError, DataError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.training.run import run
from tests.distributed.processes import run as run_processes
from tests.programs import same_arrays, stored
from tests.tiny import TwoLayers, random_batch, random_variables, tiny_config

from .test_step import largest_difference, trained

OPTIONS: dict[str, Any] = {"features": (4, 4), "blocks": (1, 1), "stem": 4, "stacks": 1, "head_channels": 4}
CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=6)
    config.model.name = "extremenet_hg104"
    config.model.options = {options!r}
    config.data.canvas = 64
    config.data.max_boxes = 6
    config.data.threads = 1
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images = {folder!r} + "/" + name
        split.annotations = {folder!r} + "/annotations/instances_" + name + ".json"
    config.augment.kind = "none"
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 63
    config.checkpoint.every = 2
    config.eval.batch = 4
    config.eval.resolution = "fixed"
    config.eval.top_k = 10
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(str(folder), train=11, val=5, size=64)
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder), options=OPTIONS))
    return folder


def config_of(folder: pathlib.Path) -> Config:
    names: dict[str, Any] = {}
    exec(compile((folder / "config.py").read_text(), "config.py", "exec"), names)
    return names["get_config"]()


def two_layers(classes: int) -> Detector:
    """ExtremeNet around a network that compiles in a second, for inputs of 64 pixels."""
    detector = kpjax.build("extremenet_hg104", classes, peaks=6, groups=50, **OPTIONS)
    heads = [(f"{name}_heat", classes) for name in KEYPOINTS] + [(f"{name}_off", 2) for name in EXTREME_POINTS.names]
    return dataclasses.replace(detector, net=TwoLayers(classes=classes, more=tuple(heads)), less=0)


def test_eight_devices_equal_one() -> None:
    config = tiny_config()
    config.optim.name, config.optim.lr = "sgd", 1e-3
    detector = two_layers(3)
    rng, batches = np.random.default_rng(0), []
    for step in range(2):
        batch = random_batch(config.batch, step)
        shape = (*batch["objects"].labels.shape, 4)
        points = rng.uniform(0, 64, (*shape, 2)).astype(np.float32)
        seen = np.broadcast_to(rng.integers(0, 3, shape[:-1], np.int32)[..., None], shape)
        objects = dataclasses.replace(batch["objects"], points=points, seen=seen)
        batches.append(batch | {"objects": objects})
    alone, metrics = trained(config, detector, batches=batches)
    divided, of_eight = trained(config, detector, devices=8, fsdp=2, batches=batches)
    assert largest_difference(alone[-1].params, alone[0].params) > 1e-3
    assert largest_difference(alone[-1].params, divided[-1].params) < 2e-5
    for one, eight in zip(metrics, of_eight, strict=True):
        for part in ("loss", "heatmap", "offset"):
            assert eight[part] == pytest.approx(one[part], rel=1e-5)


def train(folder: pathlib.Path, workdir: pathlib.Path, broken_at: int = 0) -> None:
    """Without TensorFlow.  broken_at: the step whose batch cannot be read."""
    config = config_of(folder)
    config.augment.height = config.augment.width = 64
    source = open_source(config.data, "train", outlines=True)

    def feed(start: int) -> Iterator[dict[str, Any]]:
        batches = memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)
        for number, batch in enumerate(batches, start):
            if broken_at and number == broken_at:
                raise DataError("the disk is gone")
            yield batch

    assert run(config, str(workdir), train_source=source, batches=feed).finished


@pytest.mark.slow
def test_an_interrupted_run_ends_as_the_whole_one(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it measures on the way are boxes."""
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: two_layers(classes))
    train(folder, tmp_path / "whole")
    with pytest.raises(DataError, match="the disk is gone"):
        train(folder, tmp_path / "parts", broken_at=3)
    train(folder, tmp_path / "parts")
    assert same_arrays(stored(tmp_path / "whole"), stored(tmp_path / "parts"))
    for name in ("whole", "parts"):
        (line,) = [line for line in read_metrics(str(tmp_path / name)) if line["kind"] == "eval"]
        assert {"AP", "AP50", "ARl"} <= set(line) and "box_AP" not in line


def test_data_without_outlines_stop_the_run(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(folder)
    path = pathlib.Path(config.data.train.annotations)
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        del row["segmentation"]
    config.data.train.annotations = str(tmp_path / "boxes.json")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"boxes\.json has no object with an outline"):
        run(config, str(tmp_path / "run"))


def test_checking_the_data_looks_at_the_points(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert main(["check-data", "--config", str(folder / "config.py"), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())["splits"][0]
    assert set(report["keypoints"]["by_name"]) == set(EXTREME_POINTS.names)
    assert not any("keypoint" in oddity["kind"] for oddity in report["oddities"]), report["oddities"]
    assert "training would run" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_find_the_same(folder: pathlib.Path) -> None:
    detector = kpjax.build("extremenet_hg104", len(shapes.CLASSES), **OPTIONS)
    save_inference(str(folder / "model"), detector, random_variables(detector.net, 63, 63), shapes.CLASSES)
    rows = {}
    for count in (1, 2):
        out = folder / f"detections{count}.json"
        command = ["--config", str(folder / "config.py"), "--checkpoint", str(folder / "model"), "--out", str(out)]
        first, *_ = run_processes(count, "eval.py", *command)
        assert any(line.startswith("5 images in") for line in first.out), (first.out, first.err)
        rows[count] = json.loads(out.read_text())
    assert len(rows[1]) == len(rows[2]) >= 5
    for a, b in zip(rows[1], rows[2], strict=True):
        assert a["image_id"] == b["image_id"] and len(a["keypoints"]) == 3 * 4
        assert b["score"] == pytest.approx(a["score"], abs=2e-6)
        np.testing.assert_allclose(b["bbox"], a["bbox"], atol=2e-3)
        np.testing.assert_allclose(b["keypoints"], a["keypoints"], atol=2e-2)
