"""DarkNet-53 and the neck with shortcuts: sizes without computing anything, up-sampling, initial values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.darknet import DarkNet
from kpjax.backbones.resnet import ResNet
from kpjax.backbones.shortcuts import ShortcutNeck
from kpjax.nn.upsample import upsample_corners


def shapes(module: Any, *size: int) -> Any:
    """Shapes of variables and outputs, without computing them."""
    x = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# What the released networks count for 80 classes: learnt parameters, without running statistics.
@pytest.mark.parametrize(
    ("name", "parameters"), [("ttfnet_r18", 14_208_933), ("ttfnet_r34", 24_354_021), ("ttfnet_d53", 45_732_485)]
)
def test_parameter_counts_are_the_released_ones(name: str, parameters: int) -> None:
    variables, outputs = shapes(kpjax.build(name, 80).net, 1, 512, 512, 3)
    assert count(variables["params"]) == parameters
    assert {k: v.shape for k, v in outputs[-1].items()} == {"heatmap": (1, 128, 128, 80), "sides": (1, 128, 128, 4)}


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_trunks_return_a_map_of_each_stage(stages: int) -> None:
    for trunk, channels in ((DarkNet(width=4, stages=stages), 16), (ResNet(18, 16, stages, every_stage=True), 16)):
        _, maps = shapes(trunk, 2, 64, 96, 3)
        assert [m.shape for m in maps] == [(2, 16 >> i, 24 >> i, channels << i) for i in range(stages)]


def test_max_width_bounds_the_stages() -> None:
    _, maps = shapes(ResNet(18, 16, every_stage=True, max_width=32), 2, 64, 96, 3)
    assert [m.shape[1:] for m in maps] == [(16, 24, 16), (8, 12, 32), (4, 6, 32), (2, 3, 32)]
    variables, _ = shapes(kpjax.build("ttfnet_r18", 3, width=4, max_width=8).net, 1, 64, 64, 3)
    assert variables["params"]["backbone"]["trunk"]["layer4_1"]["conv2"]["kernel"].shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "stride", "multiple"),
    [
        ({}, 4, 32),
        ({"neck": (8, 8), "shortcuts": (1, 2)}, 8, 32),
        ({"stages": 3, "neck": (8, 8), "shortcuts": (1, 2)}, 4, 16),
        ({"stages": 2, "neck": (8,), "shortcuts": (1,), "dcn": False}, 4, 8),
    ],
)
def test_stride_follows_stages_and_steps(options: dict[str, Any], stride: int, multiple: int) -> None:
    det = kpjax.build("ttfnet_r18", 3, width=4, heatmap_channels=4, sides_channels=4, **options)
    assert (det.stride, det.multiple) == (stride, multiple)
    variables, (maps,) = shapes(det.net, 1, 2 * multiple, 3 * multiple, 3)
    assert maps["heatmap"].shape == (1, 2 * multiple // stride, 3 * multiple // stride, 3)
    assert ("offset" in variables["params"]["backbone"]["neck"]["conv1"]) == det.net.config.dcn  # type: ignore
    assert sum(name.startswith("shortcut") for name in variables["params"]["backbone"]["neck"]) == sum(
        options.get("shortcuts", (1, 2, 3))
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_upsampling_keeps_the_corners(size: tuple[int, int]) -> None:
    """Against interpolation one output at a time, with the gradients that follow from it."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)

    def weights(length: int) -> np.ndarray:
        matrix = np.zeros((2 * length, length))
        for i in range(2 * length):
            place = i * (length - 1) / (2 * length - 1)
            low = min(int(place), max(length - 2, 0))
            matrix[i, low] += 1 - (place - low)
            matrix[i, min(low + 1, length - 1)] += place - low
        return matrix

    rows, columns = weights(size[0]), weights(size[1])
    found, pull = jax.vjp(upsample_corners, jnp.asarray(x))
    np.testing.assert_allclose(found, np.einsum("yi,xj,bijc->byxc", rows, columns, x), atol=1e-6)
    g = np.random.default_rng(1).normal(size=found.shape).astype(np.float32)
    np.testing.assert_allclose(pull(g)[0], np.einsum("yi,xj,byxc->bijc", rows, columns, g), atol=1e-5)
    assert upsample_corners(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_initial_values_are_the_originals() -> None:
    neck = ShortcutNeck((16, 8), (1, 2))
    maps = [jnp.zeros((1, 16 >> i, 16 >> i, 4 << i)) for i in range(4)]
    params = jax.jit(lambda: neck.init(jax.random.key(0), maps, train=False))()["params"]
    bound = 1 / np.sqrt(9 * 32)
    largest = float(np.abs(params["conv1"]["kernel"]).max())
    assert 0.97 * bound < largest <= bound and not np.abs(params["conv1"]["offset"]["kernel"]).any()
    side = params["shortcut1_0"]["kernel"]  # by fan-out
    assert float(side.std()) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)
    net = kpjax.build("ttfnet_r18", 3, width=4, neck=(4, 4, 4)).net
    heads = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]["heads"]
    assert set(heads["heatmap"]) == {"conv0", "conv1", "out"} and set(heads["sides"]) == {"conv0", "out"}
