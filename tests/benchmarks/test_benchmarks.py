"""The benchmarks that compile in processes of their own, at a small size, and what accelerator.py counts."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import kpjax
from kpjax.nn.deform_conv import deform_conv
from tests.tiny import two_layer_detector

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import accelerator
import accelerator_part
import accelerator_steps
import compile_time
import network_floor
from compile_time import HOURGLASS, model_config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("again, from_cache, code", [(1.9, True, 0), (2.1, True, 1), (1.9, False, 1)])
def test_a_second_compilation_that_is_not_five_times_faster_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], again: float, from_cache: bool, code: int
) -> None:
    same = {"trace_s": 1.0, "process_s": 12.0, "device": "cpu", "jax": "0"}
    starts = iter([{"compile_s": 10.0, "from_cache": False}, {"compile_s": again, "from_cache": from_cache}])
    monkeypatch.setattr(compile_time, "start", lambda *_: {**same, **next(starts)})
    monkeypatch.setattr(sys, "argv", ["compile_time.py", "--models", "centernet_r18"])
    assert compile_time.main() == code
    assert f"{10 / again:.1f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_start_compiles_at_least_five_times_faster(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "compile.json"
    program = [sys.executable, "benchmarks/compile_time.py", "--tiny", "--models", "centernet_r18,cornernet_hg104"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*program, "--json", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"centernet_r18", "cornernet_hg104"}
    for name, result in results.items():
        assert result["second"]["from_cache"] and not result["first"]["from_cache"]
        assert result["compile_ratio"] >= 5, name


def multiply_adds(detector: kpjax.Detector, side: int, training: bool = False, batch: int = 1) -> int:
    return sum(p.multiply_adds for p in network_floor.network_products(detector, batch, (side, side), training))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])  # float32 has forms for the CPU, which do less or more
def test_multiply_adds_of_r18_are_those_of_its_layers(dtype: str) -> None:
    def layer(cells: int, taps: int, channels: int, features: int) -> int:
        return cells**2 * taps * channels * features

    stem_and_stage = layer(256, 7 * 7, 3, 64) + 4 * layer(128, 9, 64, 64)
    stages = sum(
        layer(cells, 9, c // 2, c) + 3 * layer(cells, 9, c, c) + layer(cells, 1, c // 2, c)
        for cells, c in ((64, 128), (32, 256), (16, 512))
    )
    # Each cell of a transposed convolution's input goes through all taps.
    deconvolutions = layer(16, 4 * 4, 512, 256) + layer(32, 4 * 4, 256, 256) + layer(64, 4 * 4, 256, 256)
    heads = 3 * layer(128, 9, 256, 64) + layer(128, 1, 64, 80 + 2 + 2)
    detector = kpjax.build("centernet_r18", 80, dtype=dtype)
    assert multiply_adds(detector, 512) == stem_and_stage + stages + deconvolutions + heads


def test_heads_of_inner_stacks_count_in_training_alone() -> None:
    detector = kpjax.build("centernet_hg104", 3, **{**HOURGLASS, "stacks": 2})
    heads = 16**2 * (3 * 9 * 8 * 8 + 8 * (3 + 2 + 2))
    assert multiply_adds(detector, 64, training=True, batch=2) == multiply_adds(detector, 64, batch=2) + 2 * heads


def test_a_deformable_convolution_is_one_product_without_its_columns() -> None:
    shapes = [(2, 8, 8, 4), (2, 8, 8, 18), (2, 8, 8, 9), (3, 3, 4, 6)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.make_jaxpr(lambda *a: deform_conv(*a, slabs=4))(*arrays)
    (found,) = network_floor.products(program.jaxpr)
    assert found.multiply_adds == 2 * 8 * 8 * 9 * 4 * 6
    assert found.elements == sum(a.size for a in arrays) + 2 * 8 * 8 * 6
    rates = network_floor.Rates(flops=1e12, bytes=1e3)
    assert rates.floor([found, found], 2) == pytest.approx(2 * 2 * found.elements / 1e3)


def test_rows_of_the_batches_that_fit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = accelerator_steps.measure

    def up_to_two_images(kind: str, config: Any, *others: Any) -> Any:
        if config.batch > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return measure(kind, config, *others)

    monkeypatch.setattr(accelerator_steps, "from_config", lambda config, classes, points=None: two_layer_detector())
    monkeypatch.setattr(accelerator_steps, "measure", up_to_two_images)
    out = tmp_path / "rows"
    options = ["--models", "centernet_r18", "--tiny", "--batches", "2", "4", "--steps", "2", "--rounds", "3"]
    options += ["--part", "steps", "--rates", "1e11", "1e10", "--rows", str(out), "--profile", str(tmp_path / "traces")]
    assert accelerator_part.main(options) == 0
    rows = accelerator._read(out)
    assert [(row["kind"], row["batch"]) for row in rows] == [("inference", 2), ("training", 2)]
    for row in rows:
        passes = 3 if row["kind"] == "training" else 1
        assert row["forward_multiply_adds"] == row["batch"] * 16**2 * (4 * 4 * 3 * 4 + 9 * 4 * (3 + 2 + 2))
        flops = passes * 2 * row["forward_multiply_adds"]
        assert row["of_matmul"] == pytest.approx(flops / row["seconds"] / 1e11)
        assert row["of_floor"] == pytest.approx(row["floor_s"] / row["seconds"])
        assert row["floor_s"] >= 0.999 * flops / 1e11
        assert ("decode" in row) == (row["kind"] == "inference")
        assert row["memory_bytes"] > 0 and row["operations"][0]["ms"] > 0
    said = capsys.readouterr().out
    assert said.count("batch 4: does not fit the memory") == 2 and said.count(" kpjax ") == 2


def test_the_loop_is_train_pys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: two_layer_detector())
    assert 0 < accelerator_steps.loop_seconds(model_config("centernet_r18", 8, "float32", tiny=True), 3, 2) < 60


def test_a_machine_without_an_accelerator_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert accelerator.main([]) == 2
    said = capfd.readouterr()
    assert said.err.count("\n") == 1 and not said.out
