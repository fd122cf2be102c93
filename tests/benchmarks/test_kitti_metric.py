"""The benchmark of KITTI's metrics at a small size."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import kitti_metric


def test_figures_of_made_up_frames_that_are_worth_timing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kitti.json"
    assert kitti_metric.main(["--frames", "60", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["settings"] == {"frames": 60, "objects": 8, "detections": 30} and report["cpu_s"] > 0
    # Neither nothing nor everything is found, by any metric.
    found = np.array([value for key, value in report["stats"].items() if key.endswith("hard/R40")])
    assert len(found) == 18 and (found > 0.05).all() and (found < 0.95).all()
    assert "60 frames, 8 objects and 30 detections each, 3 classes" in capsys.readouterr().out


def test_too_slow_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert kitti_metric.main(["--frames", "2", "--limit", "0"]) == 1
    assert capsys.readouterr().err == "error: more than 0 s\n"
