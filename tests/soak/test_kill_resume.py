"""Killed with SIGKILL at random moments, a run ends with the parameters of one that was never interrupted.

`make soak` runs it.  KPJAX_SOAK_KILLS (32) and KPJAX_SOAK_SEED (0) change how often and when.
"""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from kpjax.checkpoint.scores import read_metrics
from tests.programs import STEPS_A_KILL, config_file, kill_until_done, run_program, same_weights, shapes_set


@pytest.mark.soak
def test_killed_at_random_moments(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    kills = int(os.environ.get("KPJAX_SOAK_KILLS", "32"))
    total = STEPS_A_KILL * kills
    config = str(config_file(tmp_path, shapes_set(tmp_path / "data"), total))
    begun = time.monotonic()
    whole = run_program("train.py", "--config", config, "--workdir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    one = time.monotonic() - begun
    arguments = ["--config", config, "--workdir", str(tmp_path / "killed")]
    starts = kill_until_done(arguments, kills, int(os.environ.get("KPJAX_SOAK_SEED", "0")), total)
    assert len(starts) == kills
    with capsys.disabled():
        print(f"\nuninterrupted run {one:.1f} s; with {kills} kills {time.monotonic() - begun - one:.1f} s")
        for i, (lines, when) in enumerate(starts, 1):
            print(f"  start {i}: killed after {lines} steps and {when:.3f} s")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    steps = [line["step"] for line in read_metrics(str(tmp_path / "killed")) if line["kind"] == "train"]
    assert steps == list(range(1, total + 1))
