"""Where in a checkpoint the weights are, and what their keys are called without the wrappers' prefixes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kpjax
from kpjax.convert import ImportMismatch, find_weights, import_torch, load_backbone, read_torch_weights
from kpjax.convert.rules import flatten, leaf_shapes, unflatten
from tests.convert import released
from tests.convert import torch_bytes as tb

State = dict[str, Any]
MODELS = ("centernet_r18", "centernet_r18_mmdet", "centernet_dla34", "cornernet_hg104", "cornernet_hg104_mmdet")


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def compiled_parts(state: State) -> State:
    """Each part of the network was compiled, or wrapped for several GPUs, on its own."""
    return {".".join((key.split(".")[0], "_orig_mod", *key.split(".")[1:])): value for key, value in state.items()}


WRAPPERS: dict[str, Callable[[State], State]] = {
    **{name: prefixed(name) for name in ("module.", "module.module.", "_orig_mod.", "model.", "net.", "detector.")},
    **{name: prefixed(name) for name in ("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.module.")},
    **{name: prefixed(name) for name in ("_fsdp_wrapped_module.", "student.", "anything.of.theirs.", "ema_model.")},
    **{name: prefixed(name) for name in ("ema.", "ema_", "model_ema.module.")},
    "parts": compiled_parts,
    "parts of a part": lambda state: prefixed("model.")(compiled_parts(state)),
    **{
        name: lambda state, name=name: {"epoch": 3, name: state, "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}}
        for name in ("state_dict", "model", "net", "weights", "model_state_dict", "ema_state_dict", "gen_3", "params")
    },
    "twice": lambda state: {"state_dict": {"state_dict": state}},
    "three deep": lambda state: {"checkpoint": {"model": {"state_dict": prefixed("module.")(state)}}, "epoch": 1},
    "a loss beside": lambda state: {"model_state_dict": state, "loss": np.float32(0.3), "best": np.ones(3)},
    "a larger optimizer": lambda state: {
        "optimizer": {
            str(i): {"exp_avg": np.ones(3), "exp_avg_sq": np.ones(3), "step": np.ones(1)} for i in range(999)
        },
        "net": state,
    },
    "not arrays": lambda state: state | {"decay": 0.999, "nothing": None, "names": ["a"]},
    "swa": lambda state: {"n_averaged": np.ones(1)} | prefixed("module.")(state),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str) -> None:
    """Every model's weights come out of every wrapper as they went in."""
    for model in MODELS:
        state = released.arrays(model, 3, **released.SMALL[model])
        found = find_weights(WRAPPERS[wrapper](state)).state_dict
        assert list(found) == list(state), model
        assert all(found[key] is value for key, value in state.items())


def test_names_of_no_model() -> None:
    """Then names of wrappers decide, and prefixes stay that are no usual wrapper's."""
    state = {f"layer{i}.weight": np.ones(i) for i in range(3)}
    for name in ("state_dict", "model", "net", "weights", "model_state_dict"):
        found = find_weights({"buffer": np.ones(3), name: prefixed("module.model.")(state), "queue": np.ones(2)})
        assert list(found.state_dict) == list(state) and found.left_out == ("buffer", "queue")
    assert list(find_weights(prefixed("mine.")(state)).state_dict) == list(prefixed("mine.")(state))
    assert list(find_weights({"mine": state, "loss": np.ones(())}).state_dict) == list(state)


def test_the_networks_own_weights_and_not_their_average() -> None:
    state = released.arrays("centernet_r18_mmdet", 3, **released.SMALL["centernet_r18_mmdet"])
    average = {key: value * 0.5 for key, value in state.items()}
    flat = {f"ema_{key.replace('.', '_')}": value for key, value in average.items()}
    steps = {"steps": np.ones(())}
    both: dict[str, tuple[State, tuple[str, ...]]] = {
        "mmengine": (
            {"ema_state_dict": steps | prefixed("module.")(average), "state_dict": state},
            ("ema_state_dict",),
        ),
        "mmcv": ({"state_dict": state | flat, "meta": {"epoch": 1}}, ("ema_*",)),
        "mmcv, bare": (flat | state, ("ema_*",)),
        "mmcv, several GPUs": (prefixed("module.")(state) | prefixed("module.")(flat), ("ema_*",)),
        "timm": ({"state_dict_ema": average, "state_dict": state}, ("state_dict_ema",)),
        "Lightning": (
            {"state_dict": prefixed("ema_model.")(average) | prefixed("model.")(state) | {"loss.weight": np.ones(3)}},
            ("ema_model.*",),
        ),
        "teacher": (prefixed("teacher.")(average) | prefixed("student.")(state), ("teacher.*",)),
        "ema within": ({"ema": {"module": average}, "model": state}, ("ema",)),
    }
    for name, (content, other) in both.items():
        found = find_weights(content)
        assert list(found.state_dict) == list(state), name
        assert all(found.state_dict[key] is value for key, value in state.items()), name
        assert found.other_sets == other and set(other) <= set(found.left_out) and not found.average, name
    assert find_weights(both["Lightning"][0]).left_out == ("ema_model.*", "loss.weight")
    assert find_weights(both["Lightning"][0]).taken == "state_dict.model.*"
    for content in ({"ema_state_dict": steps | prefixed("module.")(average), "epoch": 1}, prefixed("ema.")(average)):
        alone = find_weights(content)
        assert alone.average and list(alone.state_dict) == list(state) and not alone.other_sets


def test_what_is_left_out() -> None:
    state = {"conv1.weight": np.ones((2, 3, 7, 7))}
    found = find_weights({"model": {"state_dict": state | {"decay": 1.0}, "step": 3}, "optimizer": {}, "epoch": 1})
    assert found.left_out == ("optimizer", "epoch", "model.step", "model.state_dict.decay")
    assert found.taken == "model.state_dict"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, "no state dict found"),
        ({"epoch": 3, "path": "x"}, "not a state dict.*'epoch' is a int, 'path' is a str"),
        ({"state_dict": {}}, "'state_dict' is a dict"),
        ({str(i): i for i in range(9)}, "and 6 more"),
    ],
)
def test_no_weights_at_all(content: State, text: str) -> None:
    with pytest.raises(ImportMismatch, match=text):
        find_weights(content)


def test_dictionaries_in_themselves() -> None:
    """A pickle can put one dictionary under many keys, and into itself."""
    state: State = {"conv1.weight": np.ones((2, 3, 7, 7))}
    content: State = {"a": {}, "state_dict": state}
    content["self"] = content["a"]["again"] = state["up"] = content
    found = find_weights(content)
    assert list(found.state_dict) == ["conv1.weight"]
    deep: State = state
    for _ in range(1000):
        deep = {"a": deep, "b": deep}
    with pytest.raises(ImportMismatch, match="none is in it"):
        find_weights(deep)


def test_keys_that_would_become_one_stay_as_they_are() -> None:
    state = {"conv1._orig_mod.weight": np.ones(1), "conv1.weight": np.ones(2)}
    assert set(find_weights(state).state_dict) == set(state)


def test_through_a_file(tmp_path: pathlib.Path) -> None:
    model, path = "centernet_r18", tmp_path / "weights"
    state = released.arrays(model, 3, **released.SMALL[model])
    detector = kpjax.build(model, 3, **released.SMALL[model])
    wanted = flatten(import_torch(detector, state))
    tb.save(path, {f"model._orig_mod.{key}": value for key, value in state.items()}, wrapper="weights")
    weights = read_torch_weights(path)
    assert weights.taken == "weights.model.*" and not weights.left_out
    for leaf, value in flatten(import_torch(detector, weights.state_dict)).items():
        np.testing.assert_array_equal(value, wanted[leaf])


def test_a_backbone_within_another_network() -> None:
    """mmpretrain's classifiers and torchvision's detectors have it under a prefix."""
    det = kpjax.build("centernet_r18", num_classes=3, **released.SMALL["centernet_r18"])
    start = unflatten({path: np.zeros(shape, np.float32) for path, shape in leaf_shapes(det).items()})
    rng = np.random.default_rng(0)
    trunk = {key: np.asarray(rng.random(shape), np.float32) for key, shape in released.trunk((2, 2, 2, 2), False, 8)}
    for prefix, head in (("backbone.", "head.fc.weight"), ("backbone.body.", "rpn.head.conv.weight")):
        result = load_backbone(det, start, {"state_dict": prefixed(prefix)(trunk) | {head: np.ones((3, 3))}})
        leaves = flatten(result.variables)
        np.testing.assert_array_equal(
            leaves["params/backbone/trunk/conv1/kernel"], trunk["conv1.weight"].transpose(2, 3, 1, 0)
        )
        assert all("/trunk/" in path for path in result.loaded) and result.ignored == (f"{head}: beside the backbone",)
