"""The benchmarks that compile in processes of their own, at a small size."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import compile_time

ROOT = pathlib.Path(__file__).parents[1]


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
