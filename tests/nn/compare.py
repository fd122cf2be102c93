"""Random inputs, and a function's values and gradients against those of another form of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def value_and_vjp(function: Callable[..., Any], *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """The output and the inputs' gradients for one fixed random cotangent."""

    def run(*inputs: Any) -> Any:
        y, pull = jax.vjp(function, *inputs)
        return (y, *pull(jnp.asarray(normal(99, *y.shape), y.dtype)))

    return tuple(np.asarray(x) for x in jax.jit(run)(*inputs))


def assert_same(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], tolerance: float = 2e-6) -> None:
    """Equal to float32 summation order: `tolerance` of the largest value of each array."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max())), rtol=0)


def lowered_for(platform: str, function: Callable[..., Any], *inputs: np.ndarray) -> str:
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
