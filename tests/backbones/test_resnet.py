"""ResNet with its neck: sizes without computing anything, and small networks that are run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.resnet import STAGES, ResNet, ResNetDeconv


def shapes(module: Any, *size: int) -> Any:
    """Shapes of variables and outputs, without computing them."""
    x = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# What the released networks count for 80 classes: learnt parameters, without running statistics.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("centernet_r18", 15_820_372), ("centernet_r101", 53_435_476), ("centernet_r18_mmdet", 14_219_092)],
)
def test_parameter_counts_are_the_released_ones(name: str, parameters: int) -> None:
    variables, outputs = shapes(kpjax.build(name, 80).net, 1, 512, 512, 3)
    assert count(variables["params"]) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert {k: v.shape for k, v in outputs[-1].items()} == {
        "heatmap": (1, 128, 128, 80),
        "wh": (1, 128, 128, 2),
        "offset": (1, 128, 128, 2),
    }


@pytest.mark.parametrize(
    ("depth", "blocks", "features"), [(18, 8, 512), (34, 16, 512), (50, 16, 2048), (101, 33, 2048)]
)
def test_trunk_of_each_depth(depth: int, blocks: int, features: int) -> None:
    variables, out = shapes(ResNet(depth), 2, 96, 64, 3)
    assert out.shape == (2, 3, 2, features)
    assert sum(name.startswith("layer") for name in variables["params"]) == blocks
    # the stride sits in the 3x3 convolution of a bottleneck (torchvision's version), and in the shortcut
    first = variables["params"]["layer2_0"]
    assert first["downsample_conv"]["kernel"].shape[:2] == (1, 1)
    assert first["conv2"]["kernel"].shape == (3, 3, 128, 128)
    # basic blocks of the first stage keep their input's channels, bottlenecks widen it
    assert ("downsample_conv" in variables["params"]["layer1_0"]) == (depth >= 50)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_map_has_a_quarter_of_the_side(size: tuple[int, int]) -> None:
    for neck_conv in (False, True):
        module = ResNetDeconv(width=8, deconv=(16, 12, 10), neck_conv=neck_conv)
        variables, (out,) = shapes(module, 2, *size, 3)
        assert out.shape == (2, size[0] // 4, size[1] // 4, 10)
        assert ("conv1" in variables["params"]["neck"]) == neck_conv


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths 18 and 50 with one block in each of the first two stages: the same code, compiled in seconds."""
    monkeypatch.setitem(STAGES, 18, ((1, 1, 0, 0), False))
    monkeypatch.setitem(STAGES, 50, ((1, 1, 0, 0), True))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def initialise(module: Any, x: np.ndarray) -> Any:
    return jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))


def test_rematerialisation_changes_nothing(short: None) -> None:
    x = images(2, 32, 32, 3)
    plain, remat = (ResNet(width=4, remat=r) for r in (False, True))
    variables = initialise(plain, x)

    def loss(params: Any, module: ResNet) -> Any:
        y, changed = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (y**2).mean(), changed

    one, two = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(variables["params"], m)
        for m in (plain, remat)
    )
    assert float(one[0][0]) > 0
    assert str(jax.tree.structure(one)) == str(jax.tree.structure(two))
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 * max(1.0, float(np.abs(left).max())))


@pytest.mark.parametrize("depth", [18, 50])
def test_rematerialisation_wraps_each_block(depth: int) -> None:
    module = ResNet(depth, width=4, remat=True)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables, _ = shapes(module, 1, 32, 32, 3)
    program = str(jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, x))
    assert program.count("remat2[") + program.count("checkpoint[") == sum(STAGES[depth][0])


def test_bfloat16_activations_over_float32_parameters(short: None) -> None:
    x = images(1, 32, 64, 3)
    full, half = (ResNetDeconv(width=8, deconv=(8, 8, 8), dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = initialise(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    (a,), (b,) = (jax.jit(lambda v, m=m: m.apply(v, x, train=False))(variables) for m in (full, half))
    assert b.dtype == jnp.bfloat16
    error = np.abs(np.asarray(a) - np.asarray(b, np.float32))
    assert 0 < error.max() < 0.05 * float(np.abs(a).max())  # it was computed in bfloat16, and well


def test_groups_are_normalised_apart(short: None) -> None:
    """bn_groups=2 in training: each half of the batch comes out as if it were alone."""
    x = images(4, 64, 64, 3)
    whole, split = (ResNet(width=4, bn_groups=g) for g in (1, 2))
    variables = initialise(whole, x)

    @functools.partial(jax.jit, static_argnums=0)
    def run(module: ResNet, x: Any) -> Any:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    (y, stats), halves = run(split, x), [run(whole, part) for part in (x[:2], x[2:])]
    np.testing.assert_allclose(y, np.concatenate([h[0] for h in halves]), atol=1e-4)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(np.abs(np.asarray(run(whole, x)[0]) - np.asarray(y)).max()) > 0.01
