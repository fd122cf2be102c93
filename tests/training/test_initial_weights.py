"""config.init_from: what the path holds decides how it is read, never its name."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.checkpoint.weights import save_inference
from kpjax.convert import import_torch
from kpjax.errors import ConfigError, UserError
from kpjax.training.initial_weights import init_from
from kpjax.training.step import TrainState
from tests.convert import released
from tests.convert import torch_bytes as tb
from tests.convert.test_safetensors import file_of

MODEL = "centernet_r18"
SMALL = released.SMALL[MODEL]


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return released.arrays(MODEL, 3, **SMALL)


def start(path: pathlib.Path) -> Any:
    """The first kernel of a network that starts from the path."""
    detector = kpjax.build(MODEL, 3, **SMALL)
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    new = TrainState(0, zeros["params"], zeros["batch_stats"], None, None, -1)
    done = init_from(str(path), detector, new, types.SimpleNamespace(params=place, batch_stats=place))
    return np.asarray(done.params["backbone"]["trunk"]["conv1"]["kernel"])


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "a", "a.orbax"])
def test_a_file_is_one_of_pytorch_or_safetensors(
    name: str, state: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    kinds = {"float32": "F32", "int64": "I64"}
    described = tb.described({f"model.{key}": value for key, value in state.items()}, "state_dict")
    for content in (
        tb.zip_file(described, list(state.values())),
        tb.legacy_file(described, list(state.values())),
        file_of({key: (kinds[value.dtype.name], value) for key, value in state.items()}),
    ):
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(start(tmp_path / name), state["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("name", ["model", "model.pth", "model.tar"])
def test_a_folder_is_one_of_kpjax(name: str, state: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    detector = kpjax.build(MODEL, 3, **SMALL)
    save_inference(str(tmp_path / name), detector, import_torch(detector, state), ("a", "b", "c"))
    np.testing.assert_array_equal(start(tmp_path / name), state["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("name", ["a.pth", "a", "a.safetensors"])
def test_what_is_neither(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    with pytest.raises(ConfigError, match=r"^config\.init_from: .*no such file"):
        start(path)
    path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    with pytest.raises(ConfigError, match=r"^config\.init_from: .*a web page"):
        start(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="neither an inference checkpoint"):
        start(path)


def test_the_set_that_was_taken_is_said(state: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: Any) -> None:
    path, halves = tmp_path / "a", {f"ema_model.{key}": value // 2 for key, value in state.items()}
    tb.save(path, {f"model.{key}": value for key, value in state.items()} | halves, wrapper="state_dict")
    np.testing.assert_array_equal(start(path), state["conv1.weight"].transpose(2, 3, 1, 0))
    assert "left out: ema_model.*, another set of weights; state_dict.model.* was taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "given"),
    [("centernet_hg104", "extremenet_hg104"), ("extremenet_hg104", "cornernet_hg104")],
)
def test_an_hourglass_starts_from_another_detectors(
    model: str, given: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    """As the recipes of both say: the backbone is taken, the heads start anew."""
    options = released.SMALL["centernet_hg104"]
    detector = kpjax.build(model, 3, **options)
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 31, 31, 3), np.float32)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    new = TrainState(0, zeros["params"], zeros["batch_stats"], None, None, -1)
    arrays = released.arrays(given, 80, **released.SMALL[given])
    path = tmp_path / "released.pkl"
    tb.save(path, {f"module.{key}": value for key, value in arrays.items()}, zipped=False)
    done = init_from(str(path), detector, new, types.SimpleNamespace(params=place, batch_stats=place))
    stem = arrays["pre.0.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(done.params["backbone"]["stem"]["conv"]["kernel"], stem)
    variance = arrays["cnvs_.0.1.running_var"]
    np.testing.assert_array_equal(done.batch_stats["backbone"]["said0"]["bn"]["var"], variance)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(done.params["heads1"]))
    said = capsys.readouterr().out
    assert "initialised anew: params/heads0/" in said and "initialised anew: params/backbone" not in said
