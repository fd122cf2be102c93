"""`python -m kpjax export`: what it writes detects the same in a process without kpjax."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

import kpjax
from kpjax import detectors
from kpjax.__main__ import main
from kpjax.checkpoint.weights import Loaded, is_inference, save_inference
from kpjax.commands.export import run
from kpjax.config import AugmentConfig, Config, EvalConfig
from kpjax.errors import UserError
from tests import fakes

TINY: dict[str, Any] = {"width": 4, "deconv": (4,), "head_channels": 4}
TINY_CORNER: dict[str, Any] = {
    "features": (4, 4),
    "blocks": (1, 1),
    "stem": 4,
    "stacks": 1,
    "branch": 4,
    "head_channels": 4,
    "corners": 20,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any, Any]:
    return saved("centernet_r18", tmp_path_factory.mktemp("export") / "model", (64, 64))


def saved(model: str, path: pathlib.Path, size: tuple[int, int]) -> tuple[pathlib.Path, Any, Any]:
    """An inference checkpoint of a tiny network with random weights, its detector, and the weights."""
    det = kpjax.build(model, num_classes=2, **(TINY if model.startswith("centernet_r18") else TINY_CORNER))
    shapes = jax.eval_shape(lambda: det.net.init(jax.random.key(0), np.zeros((1, *size, 3), np.float32)))
    # CornerNet's weights are drawn wider, of a seed that gives corners to pair, with embeddings near each other.
    corner = model == "cornernet_hg104"
    rng = np.random.default_rng(2 if corner else 0)

    def drawn(path: jax.tree_util.KeyPath, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.normal(0, 0.4 if corner else 0.2, shape.shape).astype(shape.dtype)
        return 0.3 * values if "_tag_out" in jax.tree_util.keystr(path) else values

    variables = {
        "params": jax.tree_util.tree_map_with_path(drawn, shapes["params"]),
        "batch_stats": jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes["batch_stats"]),
    }
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
    assert not (tmp_path / "saved_model").exists()
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "['cat', 'dog']" in done.stdout
    assert not is_inference(epath.Path(tmp_path)), "convert --out would take its place"
    compare(det, variables, preset, images, tmp_path)


def compare(det: Any, variables: Any, preset: str, images: np.ndarray, folder: pathlib.Path) -> None:
    """found.npz in the folder against Predictor."""
    boxes, scores, labels = np.load(folder / "found.npz").values()
    predictor = kpjax.Predictor(det, variables, preset, resolution="fixed", size=images.shape[1:3], top_k=20)
    for i, image in enumerate(images):
        wanted = predictor(image)
        assert isinstance(wanted, kpjax.Detections)
        real = scores[i] > 0
        assert real.any()
        np.testing.assert_allclose(scores[i][real], wanted.scores, atol=1e-5)
        np.testing.assert_allclose(np.sort(boxes[i][real], 0), np.sort(wanted.boxes, 0), rtol=1e-3, atol=1e-2)
        np.testing.assert_array_equal(np.sort(labels[i][real]), np.sort(wanted.labels))


@pytest.fixture
def marked(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> tuple[pathlib.Path, np.ndarray]:
    """A checkpoint of a detector that reads keypoints from the pixels, and two images of two objects for it."""
    monkeypatch.setitem(detectors.MODELS, "marker_points", fakes.build_points)
    detector = kpjax.build("marker_points", 2)
    save_inference(str(tmp_path / "model"), detector, fakes.variables() | {"batch_stats": {}}, fakes.CLASSES)
    objects = [[(20, 21, 12, 0), (70, 40, 9, 1)], [(31, 30, 7, 1), (50, 20, 16, 0)]]
    return tmp_path / "model", np.stack([fakes.picture(64, 96, of_image) for of_image in objects])


def check_marked(images: np.ndarray, scores: np.ndarray, labels: np.ndarray, keypoints: np.ndarray) -> None:
    predictor = kpjax.Predictor(fakes.marker_detector(points=True), fakes.variables(), "flip", top_k=20)
    for i, image in enumerate(images):
        wanted = predictor(image)
        assert isinstance(wanted, kpjax.Detections) and len(wanted) == 2
        real = scores[i] > 0
        by_label = np.argsort(labels[i][real]), np.argsort(wanted.labels)
        np.testing.assert_allclose(keypoints[i][real][by_label[0]], wanted.keypoints[by_label[1]], atol=1e-4)


def test_keypoints_are_an_output(
    marked: tuple[pathlib.Path, np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, images = marked
    folder = tmp_path / "out"
    arguments = ["--checkpoint", str(path), "--out", str(folder), "--size", "64", "96", "--preset", "flip"]
    assert main(["export", *arguments, "--top-k", "20"]) == 0
    info = json.loads((folder / "export.json").read_text())
    assert info["outputs"] == ["boxes", "scores", "labels", "keypoints"]
    assert info["keypoint_names"] == ["top", "left_hand", "right_hand", "foot"]
    loaded: dict[str, Any] = {"__file__": str(folder / "load.py")}
    exec((folder / "load.py").read_text(), loaded)
    assert "'keypoints': (2, 20, 4, 3)" in capsys.readouterr().out
    _, scores, labels, keypoints = map(np.asarray, loaded["detect"](images))
    check_marked(images, scores, labels, keypoints)


@pytest.mark.slow
def test_saved_model_with_keypoints(marked: tuple[pathlib.Path, np.ndarray], tmp_path: pathlib.Path) -> None:
    path, images = marked
    folder = tmp_path / "out"
    arguments = ["--checkpoint", str(path), "--out", str(folder), "--size", "64", "96", "--preset", "flip"]
    assert main(["export", *arguments, "--top-k", "20", "--saved-model"]) == 0
    np.save(folder / "images.npy", images)
    program = IN_TENSORFLOW.replace('"labels")', '"labels", "keypoints")')
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "found.npz")
    check_marked(images, *(found[f"arr_{n}"] for n in (1, 2, 3)))


@pytest.mark.parametrize("tensorflow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_3d_boxes_are_an_output(tensorflow: bool, tmp_path: pathlib.Path) -> None:
    """The program takes the camera of each image, and finds what Predictor finds with it."""
    size, folder = (64, 96), tmp_path / "out"
    path, det, variables = saved("centernet_r18_3d", tmp_path / "model", size)
    arguments = ["--checkpoint", str(path), "--out", str(folder), "--size", *map(str, size), "--top-k", "5"]
    assert main(["export", *arguments, *(["--saved-model"] if tensorflow else [])]) == 0
    info = json.loads((folder / "export.json").read_text())
    assert info["inputs"] == [["canvases", [64, 96, 3], "uint8"], ["cameras", [3, 4], "float32"]]
    assert info["outputs"] == ["boxes", "scores", "labels", "boxes3d", "alpha"]
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    cameras = np.array([[[80 + i, 0, 40, 1], [0, 90, 30 + i, 0], [0, 0, 1, 0.1]] for i in range(2)], np.float32)
    if tensorflow:
        np.savez(folder / "images.npz", images, cameras)
        command = [sys.executable, "-c", IN_TENSORFLOW_3D, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results = dict(np.load(folder / "found.npz"))
    else:
        loaded: dict[str, Any] = {"__file__": str(folder / "load.py")}
        exec((folder / "load.py").read_text(), loaded)
        results = dict(zip(info["outputs"], loaded["detect"](images, cameras), strict=True))
    predictor = kpjax.Predictor(det, variables, resolution="keep", size=size, top_k=5)
    for i, (image, camera) in enumerate(zip(images, cameras, strict=True)):
        wanted: Any = predictor(image, camera=camera)
        real = np.asarray(results["scores"][i]) > 0
        assert real.sum() == len(wanted) == 5
        np.testing.assert_allclose(results["boxes3d"][i], wanted.boxes3d, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(results["alpha"][i], wanted.alpha, atol=1e-3)


IN_TENSORFLOW_3D = """
import sys
sys.modules["kpjax"] = sys.modules["jax"] = None  # whoever imports them fails
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1] + "/saved_model")
images, cameras = np.load(sys.argv[1] + "/images.npz").values()
found = model.detect(tf.constant(images), tf.constant(cameras))
served = model.signatures["serving_default"](canvases=tf.constant(images[:1]), cameras=tf.constant(cameras[:1]))
assert served["boxes3d"].shape[0] == 1, served
np.savez(sys.argv[1] + "/found.npz", **{k: v.numpy() for k, v in found.items()})
"""

IN_TENSORFLOW = """
import sys
sys.modules["kpjax"] = sys.modules["jax"] = None  # whoever imports them fails
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1] + "/saved_model")
images = np.load(sys.argv[1] + "/images.npy")
found = model.detect(tf.constant(images))
served = model.signatures["serving_default"](canvases=tf.constant(images[:1]))
assert served["scores"].shape[0] == 1 and served["scores"].shape[1] >= 20, served
np.savez(sys.argv[1] + "/found.npz", *(found[k].numpy() for k in ("boxes", "scores", "labels")))
"""


@pytest.mark.parametrize(
    ("model", "preset"),
    [("centernet_r18", "flip"), pytest.param("cornernet_hg104", "flip", marks=pytest.mark.slow)],
)
def test_saved_model(model: str, preset: str, tmp_path: pathlib.Path) -> None:
    """TensorFlow alone finds what Predictor finds, for batches of another size than any before."""
    size = (64, 96) if model == "centernet_r18" else (63, 95)
    path, det, variables = saved(model, tmp_path / "model", size)
    folder = tmp_path / "out"
    arguments = ["--checkpoint", str(path), "--out", str(folder), "--size", *map(str, size), "--preset", preset]
    assert main(["export", *arguments, "--top-k", "20", "--saved-model"]) == 0
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-c", IN_TENSORFLOW, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compare(det, variables, preset, images, folder)


@pytest.mark.parametrize(
    ("model", "config", "size"),
    [
        ("centernet_r18", None, (512, 512)),
        ("centernet_r18_3d", None, (384, 1280)),
        ("cornernet_hg104", None, (511, 511)),
        ("cornernet_hg104", Config(augment=AugmentConfig(height=383, width=255)), (383, 255)),
    ],
)
def test_the_size_that_is_not_given(
    model: str, config: Any, size: tuple[int, int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(kpjax.build(model, 2), {}, (), config, None)
    monkeypatch.setattr("kpjax.checkpoint.weights.load_inference", lambda path: loaded)

    def export(detector: Any, tree: Any, leaves: Any, size: tuple[int, int], *_: Any) -> Any:
        raise UserError(f"would export {size}")

    monkeypatch.setattr("kpjax.commands.export.export", export)
    command = argparse.Namespace(checkpoint="x", out=str(tmp_path), size=None, preset=None, top_k=100, onnx=False)
    with pytest.raises(UserError, match=re.escape(f"would export {size}")):
        run(command)


@pytest.mark.parametrize(
    ("config", "given", "exported", "said"),
    [
        (None, None, "na", "preset na, for"),
        (Config(), None, "na", "preset na (the configuration's), for"),
        (Config(eval=EvalConfig(preset="flip")), None, "flip", "preset flip (the configuration's), for"),
        (Config(eval=EvalConfig(preset="flip")), "na", "na", "preset na, for"),
        (Config(eval=EvalConfig(preset="ms")), None, "na", "preset na (the configuration's ms is of several programs)"),
    ],
)
def test_the_preset_is_the_configuration_s(
    config: Any,
    given: str | None,
    exported: str,
    said: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    loaded = Loaded(kpjax.build("centernet_r18", 2), {}, (), config, None)
    monkeypatch.setattr("kpjax.checkpoint.weights.load_inference", lambda path: loaded)
    presets: list[str] = []

    class Program:
        def serialize(self) -> bytes:
            return b""

    def export(detector: Any, tree: Any, leaves: Any, size: Any, preset: str, top_k: int) -> Any:
        presets.append(preset)
        return Program()

    monkeypatch.setattr("kpjax.commands.export.export", export)
    arguments = argparse.Namespace(
        checkpoint="x", out=str(tmp_path), size=None, preset=given, top_k=100, saved_model=False, onnx=False
    )
    assert run(arguments) == 0 and presets == [exported]
    assert json.loads((tmp_path / "export.json").read_text())["preset"] == exported
    assert said in capsys.readouterr().out


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


def test_other_files_are_never_written_among(
    checkpoint: tuple[pathlib.Path, Any, Any], tmp_path: pathlib.Path, capsys: Any
) -> None:
    path = checkpoint[0]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "load.py").write_text("precious")
    for out in (path, tmp_path / "run", tmp_path / "mine"):
        before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
        assert main(["export", "--checkpoint", str(path), "--out", str(out), "--size", "64", "64"]) == 2
        text = capsys.readouterr().err
        assert "no export" in text and text.count("\n") == 1
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
