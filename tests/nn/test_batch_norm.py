"""Batch normalisation against its definition, with all gradients, and over several devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kpjax.nn.batch_norm import normalised
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


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    channels = SHAPES[case][-1]
    return normal(0, *SHAPES[case]) + normal(1, channels), normal(2, channels), normal(3, channels)


@pytest.mark.parametrize("case", SHAPES)
def test_values_are_those_of_float64(case: str) -> None:
    found = jax.jit(normalised, static_argnums=3)(*inputs(case), EPSILON)
    exact = plain(*(x.astype(np.float64) for x in inputs(case)))
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=1e-4 if case == "two cells" else 1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", SHAPES)
def test_all_gradients(case: str) -> None:
    """Of the output, the means and the variances at once, by x, scale and bias."""

    def joined(form: Any, *inputs: Any) -> Any:
        return jnp.concatenate([part.ravel() for part in form(*inputs)])

    ours = value_and_vjp(lambda *i: joined(lambda *i: normalised(*i, EPSILON), *i), *inputs(case))
    theirs = value_and_vjp(lambda *i: joined(plain, *i), *inputs(case))
    assert_same(ours, theirs, tolerance=1e-4 if case == "two cells" else 1e-5)


def test_a_channel_that_is_the_same_everywhere() -> None:
    x = np.full((1, 2, 4, 4, 3), 0.3, np.float32)
    (y, _, var), pull = jax.vjp(lambda x: normalised(x, np.ones(3, np.float32), np.zeros(3, np.float32), EPSILON), x)
    np.testing.assert_allclose(y, 0, atol=1e-5)
    assert float(var.min()) >= 0
    (g,) = pull((jnp.ones_like(y), jnp.zeros((1, 3)), jnp.zeros((1, 3))))
    np.testing.assert_allclose(g, 0, atol=1e-4)


def test_one_function_forward_and_one_backward_on_a_cpu() -> None:
    def loss(x: Any, scale: Any, bias: Any) -> Any:
        return (normalised(x, scale, bias, EPSILON)[0] ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    text = jax.jit(gradient).lower(*inputs("one group")).compile().as_text()
    assert text.count(" call(") == 4  # and the sums of each in one of their own
    assert "inlineable" not in "".join(lowered_for(p, gradient, *inputs("one group")) for p in ("tpu", "cuda"))


def test_images_on_several_devices_stay_where_they_are() -> None:
    mesh = make_mesh()
    x, scale, bias = normal(0, 1, 16, 8, 8, 4), normal(1, 4), normal(2, 4)

    def gradients(*inputs: Any) -> Any:
        return jax.grad(lambda *i: jnp.sin(normalised(*i, EPSILON)[0]).sum(), argnums=(0, 1, 2))(*inputs)

    over_images = NamedSharding(mesh, PartitionSpec(None, *BATCH))
    everywhere = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(gradients, in_shardings=(over_images, everywhere, everywhere)).lower(x, scale, bias).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute") if op in text]
    found = compiled(jax.device_put(x, over_images), *(jax.device_put(v, everywhere) for v in (scale, bias)))
    assert_same(tuple(map(np.asarray, found)), tuple(map(np.asarray, jax.jit(gradients)(x, scale, bias))), 1e-5)
