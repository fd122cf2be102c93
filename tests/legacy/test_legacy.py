"""What commit 1be5234 wrote, before modules were moved: a stopped run, and the model of that run's end.

written_by_1be5234.tar.xz holds `work`, a work directory of config.py stopped by SIGTERM after step 1,203 of 1,210
(its best step, 1,200, is kept beside the newest; TensorBoard's files left out), and `model`, the inference checkpoint
that the same commit wrote as it resumed `work` to its end.  detections.npz is what it found with `model` in `image()`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

import kpjax

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
AP = {1200: 0.066755, 1210: 0.058659}  # by step, of commit 1be5234
SHAPES = ("--train", "400", "--val", "40", "--size", "64", "--seed", "3")


def image() -> np.ndarray:
    """48 blocks of colour."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.fixture
def old(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with `work` and `model`."""
    with tarfile.open(HERE / "written_by_1be5234.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run(folder: pathlib.Path, *arguments: str) -> str:
    """A program's output; the paths of the stored configuration are relative to the folder it runs in."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(kpjax.load(checkpoint).variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys() and len(one) > 60
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def test_its_stopped_run_is_evaluated_and_resumed(old: pathlib.Path):
    run(old, "-m", "kpjax", "shapes", "--out", "shapes", *SHAPES)
    stopped, end = arrays(old / "work"), arrays(old / "model")
    assert furthest(stopped, end) > 1e-2

    text = run(old, str(ROOT / "eval.py"), "--workdir", "work", "--best")
    assert "step 1200" in text and f"maxDets=100 ] = {AP[1200]:.3f}" in text
    assert json.loads((old / "work" / "detections.json").read_text())

    text = run(old, str(ROOT / "train.py"), "--config", str(HERE / "config.py"), "--workdir", "work")
    assert "resuming at step 1203" in text and "best AP 0.067 at step 1200" in text
    lines = [json.loads(line) for line in (old / "work" / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["AP"] for line in lines if line["kind"] == "eval"}
    assert scores.keys() == {600, *AP}
    assert scores[1210] == pytest.approx(AP[1210], abs=5e-4)
    # Adam's moments, the moving average and the order of the images came back: all weights end where they did.
    assert furthest(arrays(old / "work"), end) < 1e-4
    assert furthest(arrays(old / "work" / "model"), end) < 1e-4


def test_its_inference_checkpoint_finds_what_it_found(old: pathlib.Path):
    predictor = kpjax.load(old / "model")
    assert isinstance(predictor, kpjax.Predictor)
    assert predictor.names == ("ellipse", "rectangle", "triangle", "star", "cross")
    found, then = predictor(image()), np.load(HERE / "detections.npz")
    assert len(then["scores"]) > 50
    np.testing.assert_array_equal(found.labels, then["labels"])
    np.testing.assert_allclose(found.scores, then["scores"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.boxes, then["boxes"], rtol=0, atol=1e-4)
