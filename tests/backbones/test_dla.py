"""DLA-34 with its necks: sizes without computing anything, and small networks that are run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.dla import DLA, LEVELS, Aggregation, DLANeck, DLAUp, Tree
from kpjax.errors import ConfigError

from .test_resnet import count, images, initialise, shapes

# The originals' count with base.fc left out, and the two projections that they compute and never use:
# 64 -> 128 and 128 -> 256 channels with their BatchNorm.
UNUSED = 64 * 128 + 2 * 128 + 128 * 256 + 2 * 256


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("centernet_dla34", 19_675_892 - UNUSED),
        ("centernet_dla34_nodcn", 18_474_476 - 513_000 - UNUSED),
        ("centernet_r18_dcn", 14_437_349),
        ("centernet_r101_dcn", 49_673_189),
        ("centernet_r18_dcn_mmdet", 14_436_901),
    ],
)
def test_parameter_counts_are_the_released_ones(name: str, released: int) -> None:
    variables, outputs = shapes(kpjax.build(name, 80).net, 1, 512, 512, 3)
    assert count(variables["params"]) == released
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert {k: v.shape for k, v in outputs[-1].items()} == {
        "heatmap": (1, 128, 128, 80),
        "wh": (1, 128, 128, 2),
        "offset": (1, 128, 128, 2),
    }


def test_trunk_has_a_map_for_each_stride() -> None:
    variables, maps = shapes(DLA(width=4), 2, 64, 96, 3)
    assert [m.shape for m in maps] == [(2, 64 // s, 96 // s, 4 * s) for s in (1, 2, 4, 8, 16, 32)]
    # the root of a level's last tree sees both subtrees, what the trees before it found, and the level's input
    level = variables["params"]["level4"]
    assert level["tree1"]["root"]["conv"]["kernel"].shape == (1, 1, 2 * 64, 64)
    assert level["tree2"]["root"]["conv"]["kernel"].shape == (1, 1, 2 * 64 + 64 + 32, 64)
    assert "project_conv" in level["tree1"] and "project_conv" not in level["tree2"]


@pytest.mark.parametrize("dcn", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (64, 160)])
def test_map_has_a_quarter_of_the_side(dcn: bool, size: tuple[int, int]) -> None:
    variables, (out,) = shapes(DLAUp(width=4, dcn=dcn), 2, *size, 3)
    assert out.shape == (2, size[0] // 4, size[1] // 4, 16)
    neck = variables["params"]["neck"]
    assert ("ida_up" in neck) == dcn
    assert all(("offset" in step["conv"]) == dcn for step in (neck["ida_0"]["proj_1"], neck["ida_2"]["node_3"]))


def test_aggregation_adds_what_it_brings_to_size() -> None:
    """Without a second map nothing happens; with one, the node sees the sum of the first and the enlarged."""
    first, second = images(1, 8, 8, 4), images(1, 4, 4, 8)
    module = Aggregation(4, dcn=True, bn_groups=1, remat=False, dtype=jnp.float32)
    variables = jax.jit(lambda k: module.init(k, [first, second], False))(jax.random.key(0))
    assert module.apply(variables, [first], False) == []
    steps, state = jax.jit(
        lambda v: module.apply(v, [first, second], False, capture_intermediates=True, mutable="intermediates")
    )(variables)
    between = state["intermediates"]
    enlarged = between["up_1"]["__call__"][0]
    other = np.zeros_like(second)  # nothing to add: its projection is ReLU(BatchNorm(0)) = 0
    (alone,) = jax.jit(lambda v: module.apply(v, [first, other], False))(variables)
    (moved,) = jax.jit(lambda v: module.apply(v, [first + np.asarray(enlarged), other], False))(variables)
    np.testing.assert_allclose(steps[0], moved, atol=1e-5)
    assert float(np.abs(np.asarray(alone) - np.asarray(steps[0])).max()) > 1e-3


SETTINGS: dict[str, Any] = {"bn_groups": 1, "dtype": jnp.float32}


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (functools.partial(Tree, 2, 4, 2, True, **SETTINGS), images(2, 8, 8, 3)),
        (functools.partial(Aggregation, 4, True, **SETTINGS), [images(2, 8, 8, 4), images(2, 4, 4, 4)]),
    ],
    ids=["tree", "aggregation"],
)
def test_rematerialisation_changes_nothing(module: Any, inputs: Any) -> None:
    plain, remat = (module(remat=r) for r in (False, True))
    variables = jax.jit(lambda key: plain.init(key, inputs, False))(jax.random.key(0))

    def loss(params: Any, net: Any) -> Any:
        y, changed = net.apply({**variables, "params": params}, inputs, True, mutable=["batch_stats"])
        return sum((part**2).mean() for part in jax.tree.leaves(y)), changed

    one, two = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(variables["params"], m)
        for m in (plain, remat)
    )
    assert float(one[0][0]) > 0
    program = str(jax.make_jaxpr(lambda p: loss(p, remat)[0])(variables["params"]))
    assert "remat2[" in program or "checkpoint[" in program
    assert str(jax.tree.structure(one)) == str(jax.tree.structure(two))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 * max(1.0, float(np.abs(left).max())))


def test_bfloat16_activations_over_float32_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, 34, (0, 0, 0, 1))  # the same code, compiled in seconds
    x = images(1, 32, 64, 3)
    full, half = (DLAUp(width=8, dcn=False, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = initialise(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    (a,), (b,) = (jax.jit(lambda v, m=m: m.apply(v, x, train=False))(variables) for m in (full, half))
    assert b.dtype == jnp.bfloat16
    error = np.abs(np.asarray(a) - np.asarray(b, np.float32))
    assert 0 < error.max() < 0.05 * float(np.abs(a).max())


def test_neck_without_dcn_ends_at_the_last_aggregation() -> None:
    maps = [images(1, 16, 16, 4), images(1, 8, 8, 8)]
    module = DLANeck(dcn=False)
    variables = jax.jit(lambda k: module.init(k, maps, False))(jax.random.key(0))
    assert set(variables["params"]) == {"ida_0"}
    assert jax.eval_shape(lambda v: module.apply(v, maps, False), variables).shape == (1, 16, 16, 4)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("centernet_dla34", {"depth": 18}, "depth is 18; choose one of 34"),
        ("centernet_dla34", {"deconv": (64, 64)}, "has no option 'deconv'"),
        ("centernet_dla34", {"dcn": False}, "has no option 'dcn'"),
        ("centernet_r18_dcn", {"depth": 34, "dcn_bias": False}, "has no option 'dcn_bias'"),
    ],
)
def test_options_of_another_backbone_are_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        kpjax.build(name, **options)
