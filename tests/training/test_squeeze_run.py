"""CornerNet-Squeeze trains on eight devices as on one, resumes, and is evaluated by two processes."""

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
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import save_inference
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.datasets import shapes
from kpjax.detectors.base import Detector
from kpjax.errors import DataError
from kpjax.training.run import run
from tests.distributed.processes import run as run_processes
from tests.programs import same_arrays, stored
from tests.tiny import CLASSES, TwoLayers, random_variables, tiny_config

from .test_step import largest_difference, trained

OPTIONS: dict[str, Any] = {
    "features": (4, 4),
    "blocks": (1, 1),
    "stem": 4,
    "stacks": 1,
    "branch": 4,
    "head_channels": 4,
    "distance": 9.0,  # any two corners may be a pair
}
CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=4)
    config.model.name = "cornernet_squeeze"
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


def two_layers(classes: int) -> Detector:
    """CornerNet-Squeeze around a network that compiles in a second, for inputs of 64 pixels."""
    detector = kpjax.build("cornernet_squeeze", classes, **OPTIONS)
    heads = (("heat", classes), ("tag", 1), ("off", 2))
    more = tuple((f"{side}_{head}", channels) for side in ("tl", "br") for head, channels in heads)
    return dataclasses.replace(detector, net=TwoLayers(classes=classes, more=more, stride=8), less=0)


def test_eight_devices_equal_one() -> None:
    config = tiny_config()
    config.optim.name, config.optim.lr = "sgd", 1e-3
    detector = two_layers(CLASSES)
    (alone, metrics), (divided, of_eight) = (trained(config, detector, devices=n, fsdp=f) for n, f in ((1, 1), (8, 2)))
    assert largest_difference(alone[-1].params, alone[0].params) > 1e-3
    assert largest_difference(alone[-1].params, divided[-1].params) < 2e-5
    for one, eight in zip(metrics, of_eight, strict=True):
        for part in ("loss", "heatmap", "pull", "push", "offset"):
            assert eight[part] == pytest.approx(one[part], rel=1e-4), part


def train(folder: pathlib.Path, workdir: pathlib.Path, broken_at: int = 0) -> None:
    """Without TensorFlow.  broken_at: the step whose batch cannot be read."""
    names: dict[str, Any] = {}
    exec(compile((folder / "config.py").read_text(), "config.py", "exec"), names)
    config = names["get_config"]()
    config.augment.height = config.augment.width = 64
    source = open_source(config.data, "train")

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
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: two_layers(classes))
    train(folder, tmp_path / "whole")
    with pytest.raises(DataError, match="the disk is gone"):
        train(folder, tmp_path / "parts", broken_at=3)
    train(folder, tmp_path / "parts")
    assert same_arrays(stored(tmp_path / "whole"), stored(tmp_path / "parts"))
    for name in ("whole", "parts"):
        (line,) = [line for line in read_metrics(str(tmp_path / name)) if line["kind"] == "eval"]
        assert {"AP", "AP50", "ARl"} <= set(line)


@pytest.mark.slow
def test_two_processes_find_the_same(folder: pathlib.Path) -> None:
    detector = kpjax.build("cornernet_squeeze", len(shapes.CLASSES), **OPTIONS)
    save_inference(str(folder / "model"), detector, random_variables(detector.net, 63, 63, seed=2), shapes.CLASSES)
    rows = {}
    for count in (1, 2):
        out = folder / f"detections{count}.json"
        command = ["--config", str(folder / "config.py"), "--checkpoint", str(folder / "model"), "--out", str(out)]
        first, *_ = run_processes(count, "eval.py", *command)
        assert any(line.startswith("5 images in") for line in first.out), (first.out, first.err)
        rows[count] = json.loads(out.read_text())
    assert len(rows[1]) == len(rows[2]) >= 5
    for a, b in zip(rows[1], rows[2], strict=True):
        assert a["image_id"] == b["image_id"] and b["score"] == pytest.approx(a["score"], abs=2e-6)
        np.testing.assert_allclose(b["bbox"], a["bbox"], atol=2e-3)
