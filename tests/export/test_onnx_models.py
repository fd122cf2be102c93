"""Every model as an ONNX file: onnxruntime finds what JAX finds; the comparison that says so notices differences."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.errors import ConfigError
from kpjax.export import onnx_check
from kpjax.export.onnx_file import save_onnx
from kpjax.export.stablehlo import inputs_of, one_program, outputs_of

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'kpjax[onnx]')")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'kpjax[onnx]')")

NARROW: dict[str, Any] = {"width": 4, "head_channels": 4}
HOURGLASS: dict[str, Any] = {"features": (4, 4), "blocks": (1, 1), "stem": 4, "stacks": 1, "head_channels": 4}
CORNERS: dict[str, Any] = {"branch": 4, "corners": 30, "distance": 9.0}
TOP_K = 15


def narrow(name: str) -> kpjax.Detector:
    """The model with few channels, for two classes, or one where few pairs have a centre."""
    if name.startswith("ttfnet"):
        small = {"width": 4, "neck": (4, 4, 4), "heatmap_channels": 4, "sides_channels": 4}
        return kpjax.build(name, 2, **small)
    if name.startswith(("cornernet", "triplet")):
        return kpjax.build(name, 1 if name.startswith("triplet") else 2, **HOURGLASS, **CORNERS)
    if "_hg104" in name:
        return kpjax.build(name, 2, **HOURGLASS)
    return kpjax.build(name, 2, **NARROW, **({} if "dla34" in name else {"deconv": (4,)}))


def leaves_of(detector: kpjax.Detector, size: tuple[int, int], seed: int = 2) -> tuple[Any, list[Any]]:
    """The variables' structure and drawn leaves, the same for each seed; kernels as wide as keeps activations alive."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, *size, 3), np.float32)))

    def drawn(x: jax.ShapeDtypeStruct) -> np.ndarray:
        inputs = int(np.prod(x.shape[:-1])) if len(x.shape) > 1 else 9
        width = 0.4 if detector.less else 1.5 * inputs**-0.5
        return rng.normal(0, width, x.shape).astype(x.dtype)

    variables = {
        "params": jax.tree.map(drawn, shapes["params"]),
        "batch_stats": jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes["batch_stats"]),
    }
    leaves, tree = jax.tree.flatten(variables)
    return tree, leaves


def save(detector: kpjax.Detector, size: tuple[int, int], preset: str, folder: pathlib.Path) -> Any:
    """Save the detector, which compares it with JAX; returns the onnxruntime session."""
    tree, leaves = leaves_of(detector, size)
    path = str(folder / "model.onnx")
    assert save_onnx(detector, tree, leaves, size, preset, TOP_K, ("cat", "dog"), path) < 1e-3
    session = ort.InferenceSession(path)
    inputs = onnx_check.test_inputs(detector, size)
    feed = dict(zip([name for name, *_ in inputs_of(detector, size)], inputs, strict=True))
    scores = session.run(["scores"], feed)[0]
    assert (scores > 0).sum() >= 10 and len(np.unique(scores)) >= 8, "hardly anything was compared"
    return session


def check(detector: kpjax.Detector, size: tuple[int, int], preset: str, folder: pathlib.Path) -> Any:
    """`save`, and compare what the file finds in other images."""
    session = save(detector, size, preset, folder)
    tree, leaves = leaves_of(detector, size)
    inputs = [x[::-1, :, ::-1] if x.ndim == 4 else x for x in onnx_check.test_inputs(detector, size)]
    names = outputs_of(detector)
    feed = dict(zip([name for name, *_ in inputs_of(detector, size)], inputs, strict=True))
    found = dict(zip(names, session.run(list(names), feed), strict=True))
    program = jax.jit(one_program(detector, tree, size, preset, TOP_K))
    wanted = dict(zip(names, map(np.asarray, program(leaves, *inputs)), strict=True))
    real = wanted["scores"] > 0
    assert real.any()
    # All values in any order: what is found, without the labels and boxes that belong together.
    for name in names:
        assert found[name].shape == wanted[name].shape and found[name].dtype == wanted[name].dtype
        same = np.isclose(np.sort(found[name], axis=1), np.sort(wanted[name], axis=1), rtol=1e-3, atol=1e-3)
        assert same.mean() > 0.9, name
    return session


# One of each method and backbone in the default run; CornerNet-Saccade has no form in ONNX.
QUICK = (
    "centernet_r18",
    "centernet_dla34_pose",
    "centernet_r18_3d",
    "ttfnet_r18",
    "cornernet_squeeze",
    "extremenet_hg104",
)
MODELS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in kpjax.list_models()
    if name != "cornernet_saccade"
]


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str, tmp_path: pathlib.Path) -> None:
    detector = narrow(name)
    size = (64 - detector.less, 96 - detector.less)
    session = save(detector, size, "na", tmp_path)
    dims = {x.name: x.shape for x in session.get_outputs()}
    slots = dims["scores"][1]
    assert dims["boxes"] == ["batch", slots, 4] and slots in (TOP_K, 2 * TOP_K)
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(model)
    assert model.opset_import[0].version >= 17


@pytest.mark.parametrize(
    "name", ["centernet_r18", "centernet_r18_pose", pytest.param("cornernet_hg104", marks=pytest.mark.slow)]
)
def test_with_the_mirror_image(name: str, tmp_path: pathlib.Path) -> None:
    detector = narrow(name)
    check(detector, (64 - detector.less, 64 - detector.less), "flip", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["centernet_r18", "centernet_dla34"])
def test_full_size(name: str, tmp_path: pathlib.Path) -> None:
    detector = kpjax.build(name)
    check(detector, (512, 512), "na", tmp_path)
    count = sum(x.size for x in leaves_of(detector, (512, 512))[1])
    assert (tmp_path / "model.onnx").stat().st_size < 4.1 * count + 2e6, "weights are stored more than once"


def test_bfloat16_is_written_as_float32(tmp_path: pathlib.Path) -> None:
    tree, leaves = leaves_of(narrow("centernet_r18"), (64, 64))
    detector = kpjax.build("centernet_r18", 2, **NARROW, deconv=(4,), dtype="bfloat16")
    path = str(tmp_path / "model.onnx")
    assert save_onnx(detector, tree, leaves, (64, 64), "na", TOP_K, ("cat", "dog"), path) < 1e-3
    assert all(x.data_type != onnx.TensorProto.BFLOAT16 for x in onnx.load(path).graph.initializer)


def test_metadata(tmp_path: pathlib.Path) -> None:
    detector = narrow("centernet_r18_pose")
    session = save(detector, (64, 96), "na", tmp_path)
    info = session.get_modelmeta().custom_metadata_map
    assert json.loads(info["classes"]) == ["cat", "dog"] and json.loads(info["size"]) == [64, 96]
    assert json.loads(info["border"]) == [0, 0, 0] and info["model"] == "centernet_r18_pose"
    assert len(json.loads(info["keypoint_names"])) == 17 and "keypoints (batch, N, J, 3)" in info["outputs"]


def test_a_file_that_finds_something_else_is_removed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kpjax.export import onnx_program
    from kpjax.export.onnx_rules import elementwise

    def wrong(graph: Any, eqn: Any, inputs: Any) -> Any:
        (value,) = elementwise.logistic(graph, eqn, inputs)
        return [graph.elementwise("Mul", [value, value])]

    monkeypatch.setitem(onnx_program.RULES, "logistic", wrong)
    detector, path = narrow("centernet_r18"), tmp_path / "model.onnx"
    tree, leaves = leaves_of(detector, (64, 64))
    with pytest.raises(ConfigError, match="batch of 1, image 1: JAX finds label"):
        save_onnx(detector, tree, leaves, (64, 64), "na", TOP_K, ("cat", "dog"), str(path))
    assert not path.exists()


def found(boxes: Any, scores: Any, labels: Any, **more: Any) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels, np.int32),
        **more,
    }


def test_differences() -> None:
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [5, 60, 30, 90]]
    one = found(boxes, [0.9, 0.5, 0.3], [0, 1, 0])

    def off(other: dict[str, np.ndarray], wanted: dict[str, np.ndarray] = one) -> float:
        return onnx_check.difference(wanted, other, (100, 100), "here")

    assert off(one) == 0
    moved = one["boxes"] + np.float32(5e-4)
    assert 4e-4 < off({**one, "boxes": moved}) < 6e-4
    level = found([boxes[1], boxes[0], boxes[2]], [0.9, 0.9, 0.3], [0, 0, 0])
    assert off(level, found(boxes, [0.9, 0.9, 0.3], [0, 0, 0])) == 0  # equal scores come in any order
    assert (
        off(found([*boxes[:2], [1, 2, 3, 4]], [0.9, 0.5, 0.3], [0, 1, 1])) == 0
    )  # the last may be another of its score
    for other, words in (
        ({**one, "boxes": one["boxes"] + np.float32([[0.002], [0], [0]])}, r"0\.002 pixels away"),
        ({**one, "labels": np.array([1, 1, 0])}, "JAX finds label 0 with score 0.9"),
        ({**one, "scores": np.float32([0.8, 0.5, 0.3])}, "JAX finds label 0 with score 0.9"),
        ({**one, "scores": np.float32([0, 0.5, 0.3])}, "JAX finds label 0 with score 0.9"),
    ):
        with pytest.raises(ConfigError, match=f"ONNX: here: .*{words}"):
            off(other)
    with pytest.raises(ConfigError, match=r"onnxruntime finds label 0 with score 0\.9"):
        off(one, {**one, "scores": np.float32([0, 0.5, 0.3])})
    points = np.zeros((3, 2, 3), np.float32)
    with pytest.raises(ConfigError, match=r"keypoints of onnxruntime differ by 0\.1"):
        off({**one, "keypoints": points + np.float32(0.1)}, {**one, "keypoints": points})


def test_level_neighbours_may_be_one_peak_or_two() -> None:
    """Two equal cells side by side are two peaks; where one differs in its last bit, one."""
    two = found([[0, 0, 10, 10], [4, 0, 14, 10], [50, 50, 60, 60]], [0.9, 0.9, 0.3], [0, 0, 0])
    single = found([[0, 0, 10, 10], [50, 50, 60, 60], [70, 70, 90, 90]], [0.9, 0.3, 0.2], [0, 0, 0])
    assert onnx_check.difference(two, single, (100, 100), "here") == 0
    apart = found([[0, 0, 10, 10], [30, 0, 40, 10], [50, 50, 60, 60]], [0.9, 0.9, 0.3], [0, 0, 0])
    with pytest.raises(ConfigError, match=r"JAX finds label 0 with score 0\.9"):
        onnx_check.difference(apart, single, (100, 100), "here")
