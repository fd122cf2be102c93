"""The command for a first run on an accelerator: what it needs, how it keeps to its time, how heads are compared."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import kpjax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import accelerator
import accelerator_heads
import accelerator_steps
import accelerator_table

ROOT = pathlib.Path(__file__).parents[2]
# In a process whose PYTHONPATH holds it, these cannot be imported.
WITHOUT = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "pycocotools", "ml_collections", "torch"):
    sys.modules[name] = None
"""


def run_without(tmp_path: pathlib.Path, *options: str) -> tuple[dict[str, Any], str]:
    """The command's JSON and its output, run elsewhere, without the packages that it does not need."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    out = tmp_path / "accelerator.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--tiny", "--json", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_heads_need_the_working_tree_alone(tmp_path: pathlib.Path) -> None:
    result, said = run_without(tmp_path, "--heads", "centernet_r18", "--no-torch", "--models")
    assert [row["passed"] for row in result["heads"]] == [True] and result["rates"]["flops"] > 0
    assert "pass" in said and result["rows"] == []


@pytest.mark.slow
def test_steps_need_the_working_tree_alone(tmp_path: pathlib.Path) -> None:
    options = ["--no-heads", "--models", "centernet_r18", "--batches", "1", "2", "--steps", "1", "--rounds", "1"]
    result, said = run_without(tmp_path, *options)
    kinds_and_batches = {(row["kind"], row["batch"]) for row in result["rows"]}
    assert kinds_and_batches == {(kind, batch) for kind in ("training", "inference") for batch in (1, 2)}
    assert all(row["operations"] for row in result["rows"])
    assert "no columns of PyTorch: " in said and "best batch" in said


def command_of(tmp_path: pathlib.Path, seconds: float) -> accelerator.Command:
    args = accelerator.parser().parse_args(["--json", str(tmp_path / "out.json")])
    result: dict[str, Any] = {"rows": [], "rates": {"flops": 1.0}}
    return accelerator.Command([], args, time.monotonic() + seconds, result)


@pytest.mark.parametrize("end, failed", [("raise SystemExit(3)", True), ("time.sleep(60)", False)])
def test_rows_of_a_part_that_failed_or_was_stopped_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str, failed: bool
) -> None:
    monkeypatch.setattr(accelerator, "_LAST", 0.5)
    script = tmp_path / "part.py"
    lines = ["import sys, time", "file = open(sys.argv[sys.argv.index('--rows') + 1], 'w')"]
    lines += [r"""file.write('{"model": "a", "batch": 1}\n{"model": "b", "ba')""", "file.close()", end]
    script.write_text("\n".join(lines))
    command = command_of(tmp_path, 2.5)
    rows, _ = command.start("a part", [str(script)], 0.5)
    assert rows == [{"model": "a", "batch": 1}]
    assert command.failed == (["a part"] if failed else [])
    assert ("exit code 3" if failed else "stopped") in capsys.readouterr().out


def test_nothing_is_begun_when_the_time_is_over(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_of(tmp_path, accelerator._LAST).start("a part", ["missing.py"], 1.0) == ([], 0)
    assert capsys.readouterr().out == "a part: no time left\n"
    clock = accelerator_steps.Clock(1.0)
    assert clock.allows("batch", "batch 1")
    clock.took["batch"] = 2.0
    assert not clock.allows("batch", "batch 16") and clock.allows("other", "a profile")
    assert capsys.readouterr().out == "  batch 16: no time left\n"


def test_the_memory_of_a_larger_batch_is_on_the_line_of_the_smaller_ones() -> None:
    rows = [{"batch": 1, "memory_bytes": 130}, {"batch": 16, "memory_bytes": 580}, {"batch": 64, "memory_bytes": 2020}]
    assert accelerator_steps.expected_memory(rows[:1], 16) == 0
    assert accelerator_steps.expected_memory(rows[:2], 64) == 2020
    assert accelerator_steps.expected_memory(rows, 256) == 7780


def test_the_summary_takes_pytorchs_fastest_form(capsys: pytest.CaptureFixture[str]) -> None:
    def row(framework: str, batch: int, rate: float) -> dict[str, Any]:
        return {"model": "m", "kind": "training", "framework": framework, "batch": batch, "images_per_s": rate}

    accelerator_table.summary([row("kpjax", 1, 10), row("torch", 1, 8), row("compiled", 1, 9), row("kpjax", 16, 90)])
    cells = capsys.readouterr().out.splitlines()[1].split()
    assert cells == ["m", "training", "10.0", "9.0", "90.0", "(16)", "9.0", "(1)"]


def test_weights_are_drawn_alike_everywhere() -> None:
    expected = [-0.6953127, 0.5833572, -0.5102193]
    assert accelerator_heads.drawn("a", (3,)) == pytest.approx(expected, rel=1e-6)
    many = accelerator_heads.drawn("b", (100, 1000))
    assert many.dtype == np.float32 and abs(many.mean()) < 0.01 and many.std() == pytest.approx(3**-0.5, rel=0.01)
    assert not np.array_equal(many[:1, :3], accelerator_heads.drawn("b", (1, 3)))


def test_values_are_stored_of_every_model_and_none_has_vanished() -> None:
    stored = accelerator_heads.read_stored()
    assert sorted(stored) == kpjax.list_models()
    for name, values in stored.items():
        assert np.isfinite(values).all() and values.shape[1] == accelerator_heads.SAMPLES, name
        assert (values.std(1) > 0.01).all() and np.abs(values).max() < 1e4, name
    assert accelerator_heads.STORED.stat().st_size < 100_000


def test_heads_come_out_here_as_they_are_stored(capsys: pytest.CaptureFixture[str]) -> None:
    names, rows = ["centernet_r18", "centernet_r18_dcn"], []
    found = accelerator_heads.compare(names, accelerator_heads.read_stored(), report=rows.append)
    assert found == rows and [row["passed"] for row in rows] == [True, True]
    assert [row["difference"] < accelerator_heads.TOLERANCE for row in rows] == [True, True]
    assert capsys.readouterr().out.count(" pass ") == 2


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits of mantissa, as TensorFloat-32's."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("change", ["a kernel", "TensorFloat-32"])
def test_another_weight_or_rounded_ones_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    weight = accelerator_heads.weight

    def changed(path: str, shape: tuple[int, ...]) -> np.ndarray:
        value = weight(path, shape)
        if change == "TensorFloat-32":
            return rounded(value) if path.endswith("kernel") else value
        if path == "params/backbone/trunk/layer2_0/conv1/kernel":
            value[:, :, 0, 0] = value[::-1, :, 0, 0]
        return value

    monkeypatch.setattr(accelerator_heads, "weight", changed)
    (row,) = accelerator_heads.compare(["centernet_r18"], accelerator_heads.read_stored())
    assert not row["passed"] and row["difference"] > accelerator_heads.TOLERANCE
    assert "FAIL" in capsys.readouterr().out


def test_what_cannot_be_compared_is_told_and_models_without_time_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = accelerator_heads.compare(["centernet_r18"], {"centernet_r18": np.zeros((2, 64), np.float32)})
    assert not row["passed"] and "--write-heads" in capsys.readouterr().out
    assert accelerator_heads.compare(["centernet_r18", "triplet_hg52"], {}, in_time=lambda: False) == []
    assert "no time for centernet_r18, triplet_hg52" in capsys.readouterr().out
    with pytest.raises(kpjax.errors.DataError, match="--write-heads"):
        accelerator_heads.read_stored(pathlib.Path("/missing/heads.npz"))
