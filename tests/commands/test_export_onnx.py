"""`python -m kpjax export --onnx`: a file that runs without JAX as the documentation says; what is refused."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint.weights import save_inference

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'kpjax[onnx]')")
pytest.importorskip("onnx", reason="onnx is not installed (pip install 'kpjax[onnx]')")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any, Any]:
    """An inference checkpoint of a narrow network with random weights, its detector, and the weights."""
    detector = kpjax.build("centernet_r18", 2, width=4, deconv=(4,), head_channels=4)
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 96, 3), np.float32)))
    rng = np.random.default_rng(0)
    variables = {
        "params": jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), shapes["params"]),
        "batch_stats": jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes["batch_stats"]),
    }
    path = tmp_path_factory.mktemp("onnx") / "model"
    save_inference(str(path), detector, variables, ("cat", "dog"))
    return path, detector, variables


def snippet() -> str:
    """The lines of docs/models.md that run an exported file."""
    (text,) = re.findall(r"```python\n(import json[^`]*onnxruntime[^`]*)```", (ROOT / "docs/models.md").read_text())
    return text


def test_the_documented_lines_run_without_jax(
    checkpoint: tuple[pathlib.Path, Any, Any], tmp_path: pathlib.Path, capsys: Any
) -> None:
    path, detector, variables = checkpoint
    folder = tmp_path / "exported"
    arguments = ["--checkpoint", str(path), "--out", str(folder), "--size", "64", "96", "--top-k", "20"]
    assert main(["export", *arguments, "--onnx"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"model\.onnx: onnxruntime's boxes are within \S+ pixels of JAX's, at batches of 1 and 3", said)
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "street.png")
    program = "import sys\nsys.modules['jax'] = sys.modules['kpjax'] = None\n" + snippet().replace("0.3", "0.0")
    program = program.replace("street.jpg", "street.png") + (
        "import numpy\nnumpy.savez('found.npz', boxes=boxes, scores=scores, labels=labels)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout or "dog" in done.stdout
    found = np.load(tmp_path / "found.npz")
    predictor = kpjax.Predictor(detector, variables, "na", resolution="fixed", size=(64, 96), top_k=20)
    wanted: Any = predictor(image)
    assert len(wanted) == 20
    np.testing.assert_allclose(found["scores"][0], wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found["boxes"][0], wanted.boxes, atol=1e-3)
    np.testing.assert_array_equal(found["labels"][0], wanted.labels)


def test_the_readme_has_the_same_lines() -> None:
    readme = (ROOT / "README.md").read_text()
    if "InferenceSession" not in readme:
        pytest.skip("README.md does not show how an exported file is run")
    assert snippet() in readme


def test_what_cannot_be_written_is_one_line(
    checkpoint: tuple[pathlib.Path, Any, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from kpjax.export import onnx_check, onnx_program

    arguments = ["export", "--checkpoint", str(checkpoint[0]), "--out", str(tmp_path / "out"), "--size", "64", "64"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert main([*arguments, "--onnx"]) == 2
        text = capsys.readouterr().err
        assert "pip install 'kpjax[onnx]'" in text and text.count("\n") == 1
        assert not (tmp_path / "out").exists(), "asked for before anything is written"
    with monkeypatch.context() as patch:
        patch.delitem(onnx_program.RULES, "top_k")
        assert main([*arguments, "--onnx"]) == 2
        text = capsys.readouterr().err
        assert "primitive 'top_k'" in text and text.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setattr(onnx_check, "PIXELS", -1.0)
        assert main([*arguments, "--onnx"]) == 2
        text = capsys.readouterr().err
        assert "pixels away from that of JAX" in text and text.count("\n") == 1
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["preset"] == "na"
