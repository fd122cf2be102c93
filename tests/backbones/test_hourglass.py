"""The hourglass: released sizes without computing anything, and small ones that are run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.hourglass import Hourglass, StackedHourglass, double

SMALL: dict[str, Any] = {"features": (4, 6, 8), "blocks": (1, 2, 1), "stem": 4}


def shapes(module: Any, *size: int) -> Any:
    """Shapes of variables and outputs, without computing them."""
    x = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)


# What the released networks count for 80 classes: learnt parameters, without running statistics.
@pytest.mark.parametrize(
    ("name", "parameters", "side", "stacks"),
    [
        ("cornernet_hg104", 201_035_212, 511, 2),
        ("cornernet_hg104_mmdet", 201_035_212, 511, 2),
        ("triplet_hg52", 104_844_152, 511, 1),
        ("triplet_hg104", 210_062_960, 511, 2),
        ("centernet_hg104", 191_284_008, 512, 2),
        ("extremenet_hg104", 198_531_504, 511, 2),
        ("cornernet_saccade", 116_969_339, 255, 3),
    ],
)
def test_released_networks(name: str, parameters: int, side: int, stacks: int) -> None:
    variables, outputs = shapes(kpjax.build(name, 80).net, 1, side, side, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert len(outputs) == stacks
    channels = {"heatmap": 80, "wh": 2, "offset": 2}
    if not name.startswith("centernet"):
        channels = {f"{side}_{k}": c for side in ("tl", "br") for k, c in (("heat", 80), ("tag", 1), ("off", 2))}
    if name.startswith("extremenet"):
        extremes = ("top", "left", "bottom", "right")
        channels = {f"{kind}_heat": 80 for kind in (*extremes, "center")} | {f"{kind}_off": 2 for kind in extremes}
    if name.startswith("triplet"):
        channels |= {"center_heat": 80, "center_off": 2}
    cells = -(-side // 4)
    wanted = {k: (1, cells, cells, c) for k, c in channels.items()}
    if name == "cornernet_saccade":
        wanted |= {f"attention{j}": (1, k, k, 1) for j, k in enumerate((16, 32, 64))}
    for maps in outputs:
        assert {k: v.shape for k, v in maps.items()} == wanted


@pytest.mark.parametrize("size", [(15, 31), (16, 32), (64, 48), (37, 50), (5, 9)])
def test_any_side_is_a_quarter_rounded_up(size: tuple[int, int]) -> None:
    variables, outputs = shapes(StackedHourglass(**SMALL, stacks=3), 2, *size, 3)
    assert [y.shape for y in outputs] == [(2, -(-size[0] // 4), -(-size[1] // 4), 4)] * 3
    assert sum(name.startswith("hourglass") for name in variables["params"]) == 3
    assert {"seen0", "said1", "between1"} <= set(variables["params"]) and "between2" not in variables["params"]


def test_levels_of_an_hourglass() -> None:
    """Two, then one block a path; the strided one and the widening one have a shortcut of their own."""
    variables, maps = shapes(Hourglass((4, 6, 8), (2, 1, 3)), 1, 8, 8, 4)
    assert [x.shape for x in maps] == [(1, 4, 4, 6), (1, 8, 8, 4)]  # the deepest first
    top = variables["params"]
    assert set(top) == {"skip_0", "skip_1", "down_0", "down_1", "inner", "up_0", "up_1"}
    assert set(top["inner"]) == {"skip_0", "down_0", "inner_0", "inner_1", "inner_2", "up_0"}
    assert "skip_conv" in top["down_0"] and "skip_conv" not in top["down_1"] and "skip_conv" not in top["up_0"]
    assert top["up_1"]["skip_conv"]["kernel"].shape == (1, 1, 6, 4)


def test_double_repeats_each_cell() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(double(x), x.repeat(2, axis=1).repeat(2, axis=2))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_rematerialisation_changes_nothing() -> None:
    x = images(2, 8, 8, 4)
    plain, remat = (Hourglass((4, 6), (1, 1), remat=r) for r in (False, True))
    variables = jax.jit(lambda: plain.init(jax.random.key(0), x, train=False))()

    def slopes(module: Any) -> Any:
        def loss(params: Any) -> Any:
            (y,), changed = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (y**2).mean(), changed

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    one, two = slopes(plain), slopes(remat)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(a).max())))
    whole = jax.make_jaxpr(lambda v, x: StackedHourglass(**SMALL, remat=True).apply(v, x, train=False))
    program = str(whole(*(shapes(StackedHourglass(**SMALL), 1, 31, 31, 3)[:1]), images(1, 31, 31, 3)))
    # Of each stack: two levels of 1 and 2 blocks on three paths, 1 block at the bottom; one in the stem, one between.
    assert program.count("remat2[") + program.count("checkpoint[") == 2 * (3 * 1 + 3 * 2 + 1) + 1 + 1


def test_groups_are_normalised_apart() -> None:
    """bn_groups=2 in training: each half of the batch comes out as if it were alone."""
    x = images(4, 8, 8, 4)
    whole, split = (Hourglass((4, 6), (1, 1), bn_groups=g) for g in (1, 2))
    variables = jax.jit(lambda: whole.init(jax.random.key(0), x, train=False))()

    @functools.partial(jax.jit, static_argnums=0)
    def run(module: Any, x: Any) -> Any:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0][-1]

    y = run(split, x)
    np.testing.assert_allclose(y, np.concatenate([run(whole, part) for part in (x[:2], x[2:])]), atol=1e-4)
    assert float(np.abs(np.asarray(run(whole, x)) - np.asarray(y)).max()) > 0.01
