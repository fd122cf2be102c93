"""The tables of DLA-34 and of the networks with deformable convolution: every key, every leaf, the right places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.convert import RULES, ImportMismatch, import_torch, load_backbone
from kpjax.convert.dla import IMAGENET_DLA
from kpjax.convert.resnet import TRUNK
from kpjax.convert.rules import depthwise_kernel, flatten, leaf_shapes

from . import released

MODELS = (
    "centernet_r18_dcn",
    "centernet_r18_dcn_mmdet",
    "centernet_dla34",
    "centernet_dla34_nodcn",
    "centernet_dla34_pose",
)
SMALL = released.SMALL


def checkpoint(name: str) -> dict[str, np.ndarray]:
    return arrays(released.keys(name, 3, **SMALL[name]))


def arrays(keys: released.Keys) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: np.asarray(rng.random(shape), np.float32) for key, shape in keys}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_is_filled(name: str) -> None:
    det = kpjax.build(name, num_classes=3, **SMALL[name])
    found = import_torch(det, checkpoint(name))
    assert {path: leaf.shape for path, leaf in flatten(found).items()} == leaf_shapes(det)


def test_values_reach_their_leaves() -> None:
    state = checkpoint("centernet_dla34")
    det = kpjax.build("centernet_dla34", num_classes=3, **SMALL["centernet_dla34"])
    leaves = flatten(import_torch(det, state))
    neck = "params/backbone/neck"
    up = state["ida_up.up_2.weight"]
    np.testing.assert_array_equal(leaves[f"{neck}/ida_up/up_2/kernel"][1, 6], up[:, 0, 1, 6])
    offsets = state["dla_up.ida_2.node_3.conv.conv_offset_mask.weight"]
    np.testing.assert_array_equal(leaves[f"{neck}/ida_2/node_3/conv/offset/kernel"], offsets.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        leaves["batch_stats/backbone/neck/ida_1/proj_2/bn/var"], state["dla_up.ida_1.proj_2.actf.0.running_var"]
    )
    np.testing.assert_array_equal(
        leaves["params/backbone/trunk/level4/tree2/root/conv/kernel"][0, 0],
        state["base.level4.tree2.root.conv.weight"][:, :, 0, 0].T,
    )


def test_depthwise_layout() -> None:
    kernel = np.arange(3 * 4 * 5).reshape(3, 1, 4, 5)
    assert depthwise_kernel(kernel)[1, 2, 0] == kernel[0, 0, 1, 2]
    with pytest.raises(ValueError):
        depthwise_kernel(np.zeros((3, 2, 4, 4)))


@pytest.mark.parametrize("name", ["centernet_dla34", "centernet_dla34_nodcn"])
def test_imagenet_trunk_replaces_the_trunk_alone(name: str) -> None:
    det = kpjax.build(name, num_classes=3, **SMALL[name])
    start = import_torch(det, checkpoint(name))
    state = {key: array + 1 for key, array in arrays(released.dla_trunk(SMALL[name]["width"])).items()}
    result = load_backbone(det, start, state)
    before, after = flatten(start), flatten(result.variables)
    assert sorted(result.loaded + result.kept) == sorted(before) == sorted(after)
    for path in before:
        assert (path in result.loaded) == (f"/{TRUNK}/" in path)
        assert np.array_equal(before[path], after[path]) != (f"/{TRUNK}/" in path), path
    reasons = dict(line.split(": ", 1) for line in result.ignored)
    assert "classifier" in reasons["fc.weight"] and "never uses" in reasons["level3.project.0.weight"]
    assert len(reasons) == 2 + 2 * 5


def test_imagenet_trunk_of_another_kind_is_refused() -> None:
    det = kpjax.build("centernet_dla34", num_classes=3, **SMALL["centernet_dla34"])
    shapes = jax.eval_shape(
        lambda x: det.net.init(jax.random.key(0), x), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with pytest.raises(ImportMismatch, match="the backbone of centernet_dla34"):
        load_backbone(det, start, arrays(released.trunk((2, 2, 2, 2), False)))


def test_each_dropping_rule_says_why() -> None:
    for table in (*RULES.values(), IMAGENET_DLA):
        assert all(bool(rule.target) != bool(rule.drop) for rule in table)
