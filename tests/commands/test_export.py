"""`python -m kpjax export`: what it writes detects the same in a process without kpjax."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint import is_inference, save_inference

TINY: dict[str, Any] = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any, Any]:
    det = kpjax.build("centernet_r18", num_classes=2, **TINY)
    shapes = jax.eval_shape(lambda: det.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    rng = np.random.default_rng(0)
    variables = {
        "params": jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(s.dtype), shapes["params"]),
        "batch_stats": jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes["batch_stats"]),
    }
    path = tmp_path_factory.mktemp("export") / "model"
    save_inference(str(path), det, variables, ("cat", "dog"))
    return path, det, variables


PROGRAM = """
import sys
sys.modules["kpjax"] = None  # whoever imports it fails
exec(open(sys.argv[1] + "/load.py").read().replace("__file__", repr(sys.argv[1] + "/load.py")))
found = detect(np.load(sys.argv[1] + "/images.npy"))
np.savez(sys.argv[1] + "/found.npz", *found)
"""


@pytest.mark.parametrize("preset", [pytest.param("na", marks=pytest.mark.slow), "flip"])
def test_round_trip(checkpoint: tuple[pathlib.Path, Any, Any], preset: str, tmp_path: pathlib.Path) -> None:
    path, det, variables = checkpoint
    arguments = ["--checkpoint", str(path), "--out", str(tmp_path), "--size", "64", "96", "--preset", preset]
    assert main(["export", *arguments, "--top-k", "20"]) == 0
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "['cat', 'dog']" in done.stdout
    assert not is_inference(epath.Path(tmp_path)), "convert --out would take its place"
    boxes, scores, labels = np.load(tmp_path / "found.npz").values()
    predictor = kpjax.Predictor(det, variables, preset, resolution="fixed", size=(64, 96), top_k=20)
    for i, image in enumerate(images):
        wanted = predictor(image)
        assert isinstance(wanted, kpjax.Detections)
        real = scores[i] > 0
        assert real.any()
        np.testing.assert_allclose(scores[i][real], wanted.scores, atol=1e-5)
        np.testing.assert_allclose(np.sort(boxes[i][real], 0), np.sort(wanted.boxes, 0), rtol=1e-3, atol=1e-2)
        np.testing.assert_array_equal(np.sort(labels[i][real]), np.sort(wanted.labels))


def test_mistakes(checkpoint: tuple[pathlib.Path, Any, Any], tmp_path: pathlib.Path, capsys: Any) -> None:
    path = checkpoint[0]
    for more, words in (
        (["--preset", "ms"], "export na or flip"),
        (["--size", "60", "64"], "--size HEIGHT is 60"),
        (["--top-k", "0"], "--top-k is 0"),
    ):
        assert main(["export", "--checkpoint", str(path), "--out", str(tmp_path / "out"), *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_or_a_checkpoint_is_never_written_over(
    checkpoint: tuple[pathlib.Path, Any, Any], tmp_path: pathlib.Path, capsys: Any
) -> None:
    path = checkpoint[0]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for out, held in ((path, "config.json"), (tmp_path / "run", "checkpoints"), (tmp_path / "mine", "config.json")):
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        assert main(["export", "--checkpoint", str(path), "--out", str(out), "--size", "64", "64"]) == 2
        text = capsys.readouterr().err
        assert f"holds {held}" in text and text.count("\n") == 1
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
