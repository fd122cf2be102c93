"""The import engine: every key by one rule, every leaf filled, or no result."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax.convert import RULES, ImportMismatch, import_torch, load_backbone
from kpjax.convert.resnet import IMAGENET_RESNET, TRUNK, deconv_kernel
from kpjax.convert.rules import Rule, apply_rules, conv_kernel, flatten, leaf_shapes

from . import released

SMALL = released.SMALL["centernet_r18"]
MODELS = ("centernet_r18", "centernet_r50", "centernet_r18_mmdet")


def checkpoint(model: str, classes: int = 3) -> dict[str, np.ndarray]:
    """A state dict of random arrays under the reference's own names."""
    return released.arrays(model, classes, **SMALL)


@pytest.mark.parametrize("model", MODELS)
def test_every_leaf_is_filled(model: str) -> None:
    det = kpjax.build(model, num_classes=3, **SMALL)
    variables = import_torch(det, checkpoint(model))
    found = {path: leaf.shape for path, leaf in flatten(variables).items()}
    assert found == leaf_shapes(det)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert set(variables) == {"params", "batch_stats"}


def test_values_reach_their_leaves() -> None:
    det = kpjax.build("centernet_r18", num_classes=3, **SMALL)
    state = checkpoint("centernet_r18")
    leaves = flatten(import_torch(det, state))
    kernel = state["layer2.0.downsample.0.weight"]
    np.testing.assert_array_equal(
        leaves["params/backbone/trunk/layer2_0/downsample_conv/kernel"][0, 0, 3, 5], kernel[5, 3, 0, 0]
    )
    deconv = state["deconv_layers.3.weight"]
    np.testing.assert_array_equal(leaves["params/backbone/neck/deconv2/kernel"][1, 2, 3, 4], deconv[3, 4, 1, 2])
    np.testing.assert_array_equal(
        leaves["batch_stats/backbone/trunk/layer1_1/bn2/var"], state["layer1.1.bn2.running_var"]
    )
    np.testing.assert_array_equal(leaves["params/heads/offset_out/bias"], state["reg.2.bias"])


def test_layouts() -> None:
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert conv_kernel(kernel).shape == (4, 5, 3, 2)
    assert deconv_kernel(kernel).shape == (4, 5, 2, 3)
    assert conv_kernel(kernel)[1, 2, 0, 1] == kernel[1, 0, 1, 2]
    assert deconv_kernel(kernel)[1, 2, 0, 1] == kernel[0, 1, 1, 2]


@pytest.mark.parametrize("wrap", ("module", "state_dict", "model", "both"))
def test_wrappers_are_accepted(wrap: str) -> None:
    det = kpjax.build("centernet_r18", num_classes=3, **SMALL)
    state: dict[str, Any] = checkpoint("centernet_r18")
    expected = flatten(import_torch(det, state))
    if wrap in ("module", "both"):
        state = {f"module.{key}": value for key, value in state.items()}
    if wrap != "module":
        state = {"epoch": 140, "model" if wrap == "model" else "state_dict": state}
    for path, leaf in flatten(import_torch(det, state)).items():
        np.testing.assert_array_equal(leaf, expected[path])


def test_a_checkpoint_of_other_classes_is_told_apart() -> None:
    det = kpjax.build("centernet_r18", num_classes=4, **SMALL)
    with pytest.raises(ImportMismatch) as error:
        import_torch(det, checkpoint("centernet_r18", classes=3))
    text = str(error.value)
    assert "2 of another shape" in text
    assert "hm.2.weight -> params/heads/heatmap_out/kernel: (1, 1, 8, 3) in the checkpoint, (1, 1, 8, 4) here" in text
    assert "missing" not in text


def test_missing_unexpected_and_unknown_keys_are_listed_and_counted() -> None:
    det = kpjax.build("centernet_r18", num_classes=3, **SMALL)
    state = checkpoint("centernet_r18")
    del state["layer3.1.conv2.weight"]
    state |= {f"extra.{i}.weight": np.zeros((1,)) for i in range(25)}
    state["layer1.0.conv9.weight"] = np.zeros((1, 1, 1, 1))  # matched by a rule, but the network has no such leaf
    with pytest.raises(ImportMismatch) as error:
        import_torch(det, state)
    text = str(error.value)
    assert "1 missing from the checkpoint, 26 unexpected in the checkpoint" in text.splitlines()[0]
    assert "params/backbone/trunk/layer3_1/conv2/kernel" in text
    assert "... and 16 more" in text
    assert len(text.splitlines()) < 20


def test_another_model_gives_no_result() -> None:
    with pytest.raises(ImportMismatch, match="does not fit centernet_r18_mmdet"):
        import_torch(kpjax.build("centernet_r18_mmdet", num_classes=3, **SMALL), checkpoint("centernet_r18"))
    with pytest.raises(ImportMismatch, match="missing"):
        import_torch(kpjax.build("centernet_r34", num_classes=3, **SMALL), checkpoint("centernet_r18"))


@pytest.mark.parametrize("broken", ({}, {"state_dict": 3}, {"weights": [1, 2]}, {"conv1.weight": "text"}))
def test_what_is_no_state_dict_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ImportMismatch, match="state dict"):
        import_torch(kpjax.build("centernet_r18", num_classes=3, **SMALL), broken)


def test_two_keys_for_one_leaf_are_refused() -> None:
    rules = (Rule(r"(?:a|b)\.weight", "params/x/kernel"), Rule(r"b\..*", "params/x/kernel"))
    shapes = {"params/x/kernel": (2,)}
    with pytest.raises(ImportMismatch, match="given twice"):
        apply_rules(rules[:1], {"a.weight": np.zeros(2), "b.weight": np.zeros(2)}, shapes, "a network")
    with pytest.raises(ImportMismatch, match="matched by 2 rules"):
        apply_rules(rules, {"a.weight": np.zeros(2), "b.weight": np.zeros(2)}, shapes, "a network")


def test_each_dropping_rule_says_why() -> None:
    for table in (*RULES.values(), IMAGENET_RESNET):
        for rule in table:
            assert bool(rule.target) != bool(rule.drop)
            re.compile(rule.pattern)


def imagenet(blocks: tuple[int, ...] = (2, 2, 2, 2), bottleneck: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    state = {key: np.asarray(rng.random(shape), np.float32) for key, shape in released.trunk(blocks, bottleneck, 8)}
    features = 64 * 4 if bottleneck else 64
    return {**state, "fc.weight": np.zeros((1000, features), np.float32), "fc.bias": np.zeros(1000, np.float32)}


@pytest.mark.parametrize("model", MODELS)
def test_imagenet_backbone_replaces_the_trunk_alone(model: str) -> None:
    det = kpjax.build(model, num_classes=3, **SMALL)
    start = import_torch(det, checkpoint(model))
    state = imagenet((3, 4, 6, 3), True) if "r50" in model else imagenet()
    result = load_backbone(det, start, state)
    before, after = flatten(start), flatten(result.variables)
    assert sorted(result.loaded + result.kept) == sorted(before) == sorted(after)
    for path in before:
        in_trunk = f"/{TRUNK}/" in path
        assert (path in result.loaded) == in_trunk
        assert np.array_equal(before[path], after[path]) != in_trunk, path
    np.testing.assert_array_equal(
        after["params/backbone/trunk/conv1/kernel"], state["conv1.weight"].transpose(2, 3, 1, 0)
    )
    assert [line.split(":")[0] for line in result.ignored] == ["fc.bias", "fc.weight"]


def test_imagenet_backbone_of_another_depth_is_refused() -> None:
    det = kpjax.build("centernet_r34", num_classes=3, **SMALL)
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), _shapes(det))
    with pytest.raises(ImportMismatch, match="the backbone of centernet_r34"):
        load_backbone(det, start, imagenet())


def _shapes(det: Any) -> Any:
    return jax.eval_shape(lambda: det.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))


def test_tables_fit_the_full_size_networks() -> None:
    """Every leaf of each released depth can be reached, at full width, without computing anything."""
    for model, blocks, bottleneck in (
        ("centernet_r18", (2, 2, 2, 2), False),
        ("centernet_r34", (3, 4, 6, 3), False),
        ("centernet_r50", (3, 4, 6, 3), True),
        ("centernet_r101", (3, 4, 23, 3), True),
    ):
        shapes = leaf_shapes(kpjax.build(model))
        trunk = {path: shape for path, shape in shapes.items() if f"/{TRUNK}/" in path}
        state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in released.trunk(blocks, bottleneck, 64)}
        filled = apply_rules(IMAGENET_RESNET, state, trunk, model)
        assert {path: leaf.shape for path, leaf in filled.items()} == trunk
