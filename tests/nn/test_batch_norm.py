"""Batch normalisation against its definition, with all gradients, and over several devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kpjax.nn.batch_norm import normalised
from kpjax.nn.layers import BatchNorm
from kpjax.parallel.sharding import BATCH, make_mesh
from tests.nn.compare import assert_same, lowered_for, normal, value_and_vjp

SHAPES = {
    "one group": (1, 8, 16, 24, 6),
    "groups": (4, 2, 16, 16, 5),
    "wide": (1, 2, 3, 5, 2048),
    "two cells": (1, 2, 1, 1, 3),
}
EPSILON = 1e-3


def plain(x: Any, scale: Any, bias: Any) -> tuple[Any, Any, Any]:
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    return (x - mean) / (var + EPSILON) ** 0.5 * scale + bias, mean[:, 0, 0, 0], var[:, 0, 0, 0]


def inputs(case: str) -> tuple[np.ndarray, ...]:
    """x, scale, bias and shift."""
    channels = SHAPES[case][-1]
    x = normal(0, *SHAPES[case]) + normal(1, channels)
    return x, normal(2, channels), normal(3, channels), normal(4, channels)


@pytest.mark.parametrize("case", SHAPES)
def test_values_are_those_of_float64(case: str) -> None:
    found = jax.jit(normalised, static_argnums=4)(*inputs(case), EPSILON)
    exact = plain(*(x.astype(np.float64) for x in inputs(case)[:3]))
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=1e-4 if case == "two cells" else 1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", SHAPES)
def test_all_gradients(case: str) -> None:
    """Of the output, the means and the variances at once, by x, scale and bias; the shift has none."""

    def joined(form: Any, *inputs: Any) -> Any:
        return jnp.concatenate([part.ravel() for part in form(*inputs)])

    ours = value_and_vjp(lambda *i: joined(lambda *i: normalised(*i, EPSILON), *i), *inputs(case))
    theirs = value_and_vjp(lambda *i: joined(lambda x, scale, bias, _: plain(x, scale, bias), *i), *inputs(case))
    assert_same(ours, theirs, tolerance=1e-4 if case == "two cells" else 1e-5)


@pytest.mark.parametrize("mean", [100, 1000, -3000])
def test_large_means(mean: float) -> None:
    """The shift is half a standard deviation off, as a running mean is.  Values and gradients against float64's."""
    shape = (2, 4, 16, 16, 5)
    x, scale, g = normal(0, *shape) + np.float32(mean), normal(1, 5), normal(2, *shape)
    shift = np.full(5, mean + 0.5, np.float32)

    @jax.jit
    def ours(x: Any, scale: Any, bias: Any) -> Any:
        (y, mean, var), pull = jax.vjp(lambda *i: normalised(*i, shift, EPSILON), x, scale, bias)
        return y, mean, var, *pull((g, jnp.zeros_like(mean), jnp.zeros_like(var)))

    found = ours(x, scale, np.zeros(5, np.float32))
    y, means, var = plain(*(a.astype(np.float64) for a in (x, scale, np.zeros(5))))
    unit = (x.astype(np.float64) - means[:, None, None, None]) / np.sqrt(var + EPSILON)[:, None, None, None]
    g_scale, g_bias = (g * unit).sum((0, 1, 2, 3)), g.sum((0, 1, 2, 3), np.float64)
    inner = g - g.mean((1, 2, 3), np.float64, keepdims=True) - unit * (g * unit).mean((1, 2, 3), keepdims=True)
    g_x = inner * scale / np.sqrt(var + EPSILON)[:, None, None, None]
    # Of x itself in float32, whose last place is `rounding` standard deviations.
    rounding = abs(mean) * 2.0**-23
    np.testing.assert_allclose(found[1], means, rtol=1e-6)
    np.testing.assert_allclose(found[2], var, rtol=1e-5)
    np.testing.assert_allclose(found[0], y, atol=5 * rounding)
    np.testing.assert_allclose(found[3], g_x, atol=5 * rounding)
    np.testing.assert_allclose(found[4], g_scale, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[5], g_bias, rtol=1e-4, atol=1e-3)


def test_the_layer_shifts_by_its_running_mean() -> None:
    layer = BatchNorm()
    x = normal(0, 8, 16, 16, 4) + np.float32(1000)
    stats = {"mean": np.full(4, 999, np.float32), "var": np.ones(4, np.float32)}
    variables = {"params": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}, "batch_stats": stats}
    y, changed = jax.jit(lambda v, x: layer.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(y, (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2)), atol=1e-3)
    expected = 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(changed["batch_stats"]["var"], expected, rtol=1e-5)


def test_a_channel_that_is_the_same_everywhere() -> None:
    x = np.full((1, 2, 4, 4, 3), 0.3, np.float32)
    scale, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    (y, _, var), pull = jax.vjp(lambda x: normalised(x, scale, zero, zero, EPSILON), x)
    np.testing.assert_allclose(y, 0, atol=1e-5)
    assert float(var.min()) >= 0
    (g,) = pull((jnp.ones_like(y), jnp.zeros((1, 3)), jnp.zeros((1, 3))))
    np.testing.assert_allclose(g, 0, atol=1e-4)


def test_one_function_forward_and_one_backward_on_a_cpu() -> None:
    def loss(x: Any, scale: Any, bias: Any, shift: Any) -> Any:
        return (normalised(x, scale, bias, shift, EPSILON)[0] ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(*inputs("one group")).compile().as_text()
    assert text.count(" call(") == 4  # and the sums of each in one of their own
    assert "inlineable" not in "".join(lowered_for(p, gradient, *inputs("one group")) for p in ("tpu", "cuda"))


def test_images_on_several_devices_stay_where_they_are() -> None:
    mesh = make_mesh()
    x, scale, bias, shift = normal(0, 1, 16, 8, 8, 4), normal(1, 4), normal(2, 4), normal(3, 4)

    def gradients(*inputs: Any) -> Any:
        return jax.grad(lambda *i: jnp.sin(normalised(*i, shift, EPSILON)[0]).sum(), argnums=(0, 1, 2))(*inputs)

    over_images = NamedSharding(mesh, PartitionSpec(None, *BATCH))
    everywhere = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(gradients, in_shardings=(over_images, everywhere, everywhere)).lower(x, scale, bias).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]
    found = compiled(jax.device_put(x, over_images), *(jax.device_put(v, everywhere) for v in (scale, bias)))
    assert_same(tuple(map(np.asarray, found)), tuple(map(np.asarray, jax.jit(gradients)(x, scale, bias))), 1e-5)
