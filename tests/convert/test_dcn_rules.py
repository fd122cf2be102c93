"""The tables of DLA-34 and of the networks with deformable convolution: every key, every leaf, the right places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.convert import RULES, ImportMismatch, import_torch, load_backbone
from kpjax.convert.dla import IMAGENET_DLA, depthwise_kernel
from kpjax.convert.resnet import TRUNK
from kpjax.convert.rules import flatten, leaf_shapes

from .test_rules import norm, trunk_keys

Key = tuple[str, tuple[int, ...]]
WIDTH = 4


def conv(name: str, features: int, channels: int, size: int) -> Iterator[Key]:
    yield f"{name}.weight", (features, channels, size, size)


def dla_keys(width: int = WIDTH) -> Iterator[Key]:
    """ucbdrive's DLA-34, from its definition and not from our tables."""
    yield from conv("base_layer.0", width, 3, 7)
    yield from norm("base_layer.1", width)
    yield from conv("level0.0", width, width, 3)
    yield from norm("level0.1", width)
    yield from conv("level1.0", 2 * width, width, 3)
    yield from norm("level1.1", 2 * width)
    for stage, levels in ((2, 1), (3, 2), (4, 2), (5, 1)):
        yield from tree(f"level{stage}", levels, width * 2 ** (stage - 1), width * 2**stage, 0, stage > 2)
    yield "fc.weight", (1000, 32 * width, 1, 1)
    yield "fc.bias", (1000,)


def tree(name: str, levels: int, channels: int, features: int, joined: int, keep_input: bool) -> Iterator[Key]:
    """joined: channels that the root sees beside its two subtrees."""
    joined += channels if keep_input else 0
    if channels != features:
        yield from conv(f"{name}.project.0", features, channels, 1)
        yield from norm(f"{name}.project.1", features)
    if levels == 2:
        yield from tree(f"{name}.tree1", 1, channels, features, 0, False)
        yield from tree(f"{name}.tree2", 1, features, features, joined + features, False)
        return
    for leaf, inner in (("tree1", channels), ("tree2", features)):
        yield from conv(f"{name}.{leaf}.conv1", features, inner, 3)
        yield from norm(f"{name}.{leaf}.bn1", features)
        yield from conv(f"{name}.{leaf}.conv2", features, features, 3)
        yield from norm(f"{name}.{leaf}.bn2", features)
    yield from conv(f"{name}.root.conv", features, 2 * features + joined, 1)
    yield from norm(f"{name}.root.bn", features)


def deformable(name: str, features: int, channels: int, offsets: str = "conv_offset_mask") -> Iterator[Key]:
    yield from conv(name, features, channels, 3)
    yield from conv(f"{name}.{offsets}", 27, channels, 3)
    yield f"{name}.{offsets}.bias", (27,)


def neck_keys(dcn: bool, width: int = WIDTH) -> Iterator[Key]:
    steps = [("dla_up.ida_0", 16, (32,)), ("dla_up.ida_1", 8, (16, 16)), ("dla_up.ida_2", 4, (8, 8, 8))]
    for name, out, others in [*steps, *([("ida_up", 4, (8, 16))] if dcn else [])]:
        features = out * width
        for i, other in enumerate(others, start=1):
            factor = other // out if name == "ida_up" else 2
            for kind, channels in (("proj", other * width), ("node", features)):
                layer = f"{name}.{kind}_{i}"
                if dcn:
                    yield from deformable(f"{layer}.conv", features, channels)
                    yield f"{layer}.conv.bias", (features,)
                    yield from norm(f"{layer}.actf.0", features)
                else:
                    size, inner = (1, channels) if kind == "proj" else (3, 2 * channels)
                    yield from conv(f"{layer}.0", features, inner, size)
                    yield from norm(f"{layer}.1", features)
            yield from conv(f"{name}.up_{i}", features, 1, 2 * factor)


def head_keys(channels: int, hidden: int, names: tuple[str, ...] = ("hm", "wh", "reg")) -> Iterator[Key]:
    for name, out in zip(names, (3, 2, 2), strict=True):
        yield from ((f"{name}.0.weight", (hidden, channels, 3, 3)), (f"{name}.0.bias", (hidden,)))
        yield from ((f"{name}.2.weight", (out, hidden, 1, 1)), (f"{name}.2.bias", (out,)))


def resnet_dcn_keys(mmdet: bool) -> Iterator[Key]:
    prefix, blocks = ("backbone.", (2, 2, 2, 2)) if mmdet else ("", (2, 2, 2, 2))
    yield from ((prefix + key, shape) for key, shape in trunk_keys(blocks, False))
    for step in range(3):
        channels = 64 if step == 0 else 8
        if mmdet:
            first, second = (f"neck.deconv_layers.{2 * step + i}" for i in (0, 1))
            yield from deformable(f"{first}.conv", 8, channels, "conv_offset")
            yield from norm(f"{first}.bn", 8)
            yield from conv(f"{second}.conv", 8, 8, 4)
            yield from norm(f"{second}.bn", 8)
        else:
            first = f"deconv_layers.{6 * step}"
            yield from deformable(first, 8, channels)
            yield f"{first}.bias", (8,)
            yield from norm(f"deconv_layers.{6 * step + 1}", 8)
            yield from conv(f"deconv_layers.{6 * step + 3}", 8, 8, 4)
            yield from norm(f"deconv_layers.{6 * step + 4}", 8)
    names = [f"bbox_head.{n}_head" for n in ("heatmap", "wh", "offset")] if mmdet else ["hm", "wh", "reg"]
    yield from head_keys(8, 8, tuple(names))


RESNET = {"width": 8, "deconv": (8, 8, 8), "head_channels": 8}
DLA = {"width": WIDTH, "head_channels": 8}
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "centernet_r18_dcn": (RESNET, lambda: resnet_dcn_keys(False)),
    "centernet_r18_dcn_mmdet": (RESNET, lambda: resnet_dcn_keys(True)),
    "centernet_dla34": (DLA, lambda: (*base(), *neck_keys(True), *head_keys(16, 8))),
    "centernet_dla34_nodcn": (DLA, lambda: (*base(), *neck_keys(False), *head_keys(16, 8))),
}


def base() -> Iterator[Key]:
    return ((f"base.{key}", shape) for key, shape in dla_keys())


def arrays(keys: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: np.asarray(rng.random(shape), np.float32) for key, shape in keys}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_is_filled(name: str) -> None:
    options, keys = MODELS[name]
    det = kpjax.build(name, num_classes=3, **options)
    found = import_torch(det, arrays(keys()))
    assert {path: leaf.shape for path, leaf in flatten(found).items()} == leaf_shapes(det)


def test_values_reach_their_leaves() -> None:
    options, keys = MODELS["centernet_dla34"]
    state = arrays(keys())
    leaves = flatten(import_torch(kpjax.build("centernet_dla34", num_classes=3, **options), state))
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
    options, keys = MODELS[name]
    det = kpjax.build(name, num_classes=3, **options)
    start = import_torch(det, arrays(keys()))
    state = {key: array + 1 for key, array in arrays(dla_keys()).items()}
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
    options, _ = MODELS["centernet_dla34"]
    det = kpjax.build("centernet_dla34", num_classes=3, **options)
    shapes = jax.eval_shape(
        lambda x: det.net.init(jax.random.key(0), x), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    with pytest.raises(ImportMismatch, match="the backbone of centernet_dla34"):
        load_backbone(det, start, arrays(trunk_keys((2, 2, 2, 2), False)))


def test_each_dropping_rule_says_why() -> None:
    for table in (*RULES.values(), IMAGENET_DLA):
        assert all(bool(rule.target) != bool(rule.drop) for rule in table)
