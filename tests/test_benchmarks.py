"""The benchmarks that compile in processes of their own, at a small size."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


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
