"""Corner pooling against loops in NumPy: values, who gets the gradient, ties, odd sizes, bfloat16."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.nn.pooling import DIRECTIONS, CascadeCornerPool, CenterPool, CornerPool, corner_pool, line_pool

VIEWS = {  # a view in which the scan runs down the first axis
    "top": lambda x: x[::-1],
    "bottom": lambda x: x,
    "left": lambda x: x.swapaxes(0, 1)[::-1],
    "right": lambda x: x.swapaxes(0, 1),
}


def reference(x: np.ndarray, slope: np.ndarray, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """The running maximum of (B, h, w, C) and the gradient of sum(maximum * slope), cell by cell."""
    y, gradient = np.zeros_like(x), np.zeros_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[3]):
            lines, out, incoming, found = (VIEWS[direction](a[b, :, :, c]) for a in (x, y, slope, gradient))
            for column in range(lines.shape[1]):
                best = 0
                for row in range(lines.shape[0]):
                    if lines[row, column] > lines[best, column]:
                        best = row
                    out[row, column] = lines[best, column]
                    found[best, column] += incoming[row, column]
    return y, gradient


@functools.partial(jax.jit, static_argnums=2)
def pooled(x: Any, slope: Any, direction: str) -> Any:
    y, pull = jax.vjp(lambda x: corner_pool(x, direction), x)
    return y, pull(slope)[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(max_examples=12, deadline=None)
@given(
    size=st.sampled_from([(1, 1), (1, 7), (6, 1), (5, 8)]),
    levels=st.sampled_from([1, 2, 3, 1000]),
    seed=st.integers(0, 2**31),
)
def test_corner_pool(direction: str, size: tuple[int, int], levels: int, seed: int) -> None:
    """Few levels make many ties; the first cell along the scan keeps the gradient."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, (2, *size, 3)).astype(np.float32) - levels / 2
    slope = rng.standard_normal(x.shape).astype(np.float32)
    y, gradient = pooled(x, slope, direction)
    expected, expected_gradient = reference(x, slope, direction)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_no_gradient_is_lost_in_bfloat16() -> None:
    """Sums of many gradients are taken in float32: bfloat16, which has no 257, would stop at 256."""
    x = jnp.zeros((1, 300, 1, 1), jnp.bfloat16)
    y, gradient = pooled(x, jnp.ones_like(x), "top")
    assert y.dtype == gradient.dtype == jnp.bfloat16
    assert float(gradient[0, -1, 0, 0]) == 300 and float(jnp.abs(gradient[0, :-1]).max()) == 0


@pytest.mark.parametrize(("axis", "pair"), [(1, ("top", "bottom")), (2, ("left", "right"))])
def test_line_pool_is_two_corner_pools(axis: int, pair: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, 6, 7, 4)).astype(np.float32))
    slope = jnp.asarray(rng.standard_normal(x.shape).astype(np.float32))

    @jax.jit
    def both(x: Any, slope: Any) -> Any:
        y, pull = jax.vjp(lambda x: line_pool(x, axis), x)
        twice, pull_twice = jax.vjp(lambda x: corner_pool(corner_pool(x, pair[0]), pair[1]), x)
        return y, twice, pull(slope)[0], pull_twice(slope)[0]

    y, twice, gradient, expected = both(x, slope)
    np.testing.assert_array_equal(y, twice)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("module", [CornerPool, CascadeCornerPool])
def test_a_corner_sees_its_quadrant(module: Any) -> None:
    """A change reaches the cells left of it and above it from afar, others only within the convolutions' reach."""
    x = np.random.default_rng(0).standard_normal((1, 24, 24, 4)).astype(np.float32)
    changed = x.copy()
    changed[0, 12, 12] += 50
    pool = module(("top", "left"), branch=4)
    variables = jax.jit(lambda: pool.init(jax.random.key(0), x, False))()
    apply = jax.jit(lambda x: pool.apply(variables, x, False))
    moved = np.abs(np.asarray(apply(changed) - apply(x)))[0].max(-1) > 1e-6
    reach = 5  # of the stacked 3x3 convolutions
    assert moved[12, 0] and moved[0, 12]
    assert not moved[12 + reach :].any() and not moved[:, 12 + reach :].any()


def test_center_pool_sees_its_row_and_column() -> None:
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
    changed = x.copy()
    changed[0, 3, 12] += 50
    pool = CenterPool(branch=4)
    variables = jax.jit(lambda: pool.init(jax.random.key(0), x, False))()
    apply = jax.jit(lambda x: pool.apply(variables, x, False))
    moved = np.abs(np.asarray(apply(changed) - apply(x)))[0].max(-1) > 1e-6
    assert moved[3].all() and moved[:, 12].all() and not moved[10, 4]
