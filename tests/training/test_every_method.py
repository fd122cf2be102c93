"""Each method trains on eight devices as on one, goes on where it was interrupted, and is evaluated by two processes.

That of boxes from a centre has these tests, and more, in test_step.py, test_run.py and tests/distributed.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kpjax.training.run
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import save_inference
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.errors import DataError
from kpjax.training.run import run
from tests.distributed.processes import run as run_processes
from tests.programs import same_arrays, stored
from tests.tiny import CLASSES, random_batch, random_variables, tiny_config

from .methods import METHODS, Method, config_of
from .test_step import largest_difference, trained


@pytest.fixture
def folder(name: str, tmp_path: pathlib.Path) -> pathlib.Path:
    METHODS[name].write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_equal_one(name: str) -> None:
    method, config = METHODS[name], tiny_config()
    config.optim.name, config.optim.lr = "sgd", 1e-3
    config.augment.kind, config.augment.shift_probability = method.kind, 0.5
    detector, rng, batches = method.two_layers(CLASSES), np.random.default_rng(0), []
    for step in range(2):
        batch = random_batch(config.batch, step)
        batches.append(batch | {"objects": method.batch(rng, batch["objects"])})
    alone, metrics = trained(config, detector, batches=batches)
    divided, of_eight = trained(config, detector, devices=8, fsdp=2, batches=batches)
    assert largest_difference(alone[-1].params, alone[0].params) > 1e-3
    assert largest_difference(alone[-1].params, divided[-1].params) < 2e-5
    for one, eight in zip(metrics, of_eight, strict=True):
        for part in method.parts:
            assert eight[part] == pytest.approx(one[part], rel=method.close, abs=1e-6), part


def train(method: Method, folder: pathlib.Path, workdir: pathlib.Path, broken_at: int = 0) -> None:
    """Without TensorFlow.  broken_at: the step whose batch cannot be read."""
    config = config_of(folder)
    config.augment.height, config.augment.width = method.sides
    source = open_source(config.data, "train", **method.needs)

    def feed(start: int) -> Iterator[dict[str, Any]]:
        batches = memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)
        for number, batch in enumerate(batches, start):
            if broken_at and number == broken_at:
                raise DataError("the disk is gone")
            yield batch

    assert run(config, str(workdir), train_source=source, batches=feed).finished


QUICK = ("pose", "saccade")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS])
def test_an_interrupted_run_ends_as_the_whole_one(
    name: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it measures on the way are the method's figures."""
    method = METHODS[name]
    monkeypatch.setattr(
        kpjax.training.run, "from_config", lambda config, classes, points=None: method.two_layers(classes, points)
    )
    train(method, folder, folder / "whole")
    with pytest.raises(DataError, match="the disk is gone"):
        train(method, folder, folder / "parts", broken_at=3)
    train(method, folder, folder / "parts")
    assert same_arrays(stored(folder / "whole"), stored(folder / "parts"))
    for run_name in ("whole", "parts"):
        (line,) = [line for line in read_metrics(str(folder / run_name)) if line["kind"] == "eval"]
        assert set(method.measured) <= set(line)
        assert ("box_AP" in line) == ("box_AP" in method.measured)


# 3D boxes, with their result files: test_box3d_run.py
@pytest.mark.parametrize(
    "name", ["pose", *(pytest.param(n, marks=pytest.mark.slow) for n in ("extreme", "squeeze", "saccade"))]
)
def test_two_processes_find_the_same(name: str, folder: pathlib.Path) -> None:
    method = METHODS[name]
    source = open_source(config_of(folder).data, "train", **method.needs)
    detector = method.detector(len(method.classes), source.points)
    variables = random_variables(detector.net, *(side - detector.less for side in method.sides), seed=method.seed)
    for head, bias in method.biases.items():
        variables["params"]["heads"][head]["bias"] += bias
    save_inference(str(folder / "model"), detector, variables, method.classes, config_of(folder))
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
        for field, most in method.found.items():
            np.testing.assert_allclose(b[field], a[field], rtol=1e-3, atol=most)
