"""CornerNet-Saccade, trained: on one device and on eight, interrupted, and evaluated by two processes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
import kpjax.training.run
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import save_inference
from kpjax.config import Config
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.datasets import shapes
from kpjax.detectors.base import Detector
from kpjax.detectors.saccade_targets import ATTENTION
from kpjax.errors import DataError
from kpjax.training.run import run
from tests.distributed.processes import run as run_processes
from tests.programs import same_arrays, stored
from tests.tiny import TwoLayers, random_batch, random_variables, tiny_config

from .test_step import largest_difference, trained

OPTIONS: dict[str, Any] = {
    "features": (4, 4, 4, 4),
    "stem": 4,
    "stacks": 1,
    "branch": 4,
    "head_channels": 4,
    "view": 63,
    "crops": 4,
    "crops_at_once": 2,
    "distance": 9.0,
}
CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=6)
    config.model.name = "cornernet_saccade"
    config.model.options = {options!r}
    config.data.canvas = 64
    config.data.max_boxes = 6
    config.data.threads = 1
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images = {folder!r} + "/" + name
        split.annotations = {folder!r} + "/annotations/instances_" + name + ".json"
    config.augment.kind = "object"
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 63
    config.checkpoint.every = 2
    config.eval.batch = 4
    config.eval.top_k = 10
    return config
"""


class Corners(nn.Module):
    """CornerNet-Saccade's maps through one convolution, for inputs of 63 or 64 pixels."""

    classes: int
    bn_groups: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        images = jnp.pad(images, ((0, 0), *[(0, -side % 4) for side in images.shape[1:3]], (0, 0)))
        heads = [
            (f"{side}_{k}", n) for side in ("tl", "br") for k, n in (("heat", self.classes), ("tag", 1), ("off", 2))
        ]
        (maps,) = TwoLayers(self.bn_groups, self.classes, more=(*heads, *((name, 1) for name in ATTENTION)))(
            images, train
        )
        for name, ratio in ATTENTION.items():
            maps[name] = nn.avg_pool(maps[name], (ratio // 4,) * 2, (ratio // 4,) * 2)
        return [maps]


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


def small(classes: int) -> Detector:
    """The detector around a network that compiles in a second."""
    return dataclasses.replace(kpjax.build("cornernet_saccade", classes, **OPTIONS), net=Corners(classes), less=0)


def test_eight_devices_equal_one() -> None:
    config = tiny_config()
    config.optim.name, config.optim.lr, config.augment.kind = "sgd", 1e-3, "object"
    detector, batches = small(3), [random_batch(config.batch, step) for step in range(2)]
    alone, metrics = trained(config, detector, batches=batches)
    divided, of_eight = trained(config, detector, devices=8, fsdp=2, batches=batches)
    assert largest_difference(alone[-1].params, alone[0].params) > 1e-3
    assert largest_difference(alone[-1].params, divided[-1].params) < 2e-5
    for one, eight in zip(metrics, of_eight, strict=True):
        for part in ("loss", "heatmap", "offset", "attention", "pull", "push"):
            assert eight[part] == pytest.approx(one[part], rel=1e-5, abs=1e-6)


def train(folder: pathlib.Path, workdir: pathlib.Path, broken_at: int = 0) -> None:
    """Without TensorFlow.  broken_at: the step whose batch cannot be read."""
    config = config_of(folder)
    source = open_source(config.data, "train")

    def feed(start: int) -> Iterator[dict[str, Any]]:
        batches = memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)
        for number, batch in enumerate(batches, start):
            if broken_at and number == broken_at:
                raise DataError("the disk is gone")
            yield batch

    assert run(config, str(workdir), train_source=source, batches=feed).finished


def test_an_interrupted_run_ends_as_the_whole_one(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: small(classes))
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
    detector = kpjax.build("cornernet_saccade", len(shapes.CLASSES), **OPTIONS)
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
        assert a["image_id"] == b["image_id"]
        assert b["score"] == pytest.approx(a["score"], abs=2e-6)
        np.testing.assert_allclose(b["bbox"], a["bbox"], atol=2e-3)
