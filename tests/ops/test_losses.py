"""Losses against plain NumPy, and their gradients against finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.ops import losses


def focal_oracle(logits: np.ndarray, target: np.ndarray, clamp: float = 1e-4) -> float:
    score = np.clip(1 / (1 + np.exp(-logits.astype(np.float64))), clamp, 1 - clamp)
    total = 0.0
    for p, y in zip(score.ravel(), target.astype(np.float64).ravel(), strict=True):
        total -= np.log(p) * (1 - p) ** 2 if y == 1 else np.log(1 - p) * p**2 * (1 - y) ** 4
    return total / max((target == 1).sum(), 1)


def example(seed: int, positives: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.uniform(-5, 5, (2, 4, 5, 2)).astype(np.float32)
    target = rng.uniform(0, 0.99, logits.shape).astype(np.float32)
    target.ravel()[rng.choice(target.size, positives, replace=False)] = 1
    return logits, target


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5))
def test_focal_value(seed: int, positives: int) -> None:
    logits, target = example(seed, positives)
    found = losses.focal_loss(jnp.asarray(logits), jnp.asarray(target), (target == 1).sum())
    assert float(found) == pytest.approx(focal_oracle(logits, target), rel=1e-5)


def test_focal_gradient() -> None:
    logits, target = example(1)
    slope = jax.grad(losses.focal_loss)(jnp.asarray(logits), jnp.asarray(target), (target == 1).sum())
    step = 1e-4
    for index in np.ndindex(*logits.shape):
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[index] += step
        down[index] -= step
        expected = (focal_oracle(up, target) - focal_oracle(down, target)) / (2 * step)
        assert float(slope[index]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_focal_gradient_ends_at_the_clamp() -> None:
    logits = jnp.full((1, 2, 2, 1), 30.0).at[0, 0, 0, 0].set(-30.0)
    target = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(1.0)
    value, slope = jax.value_and_grad(losses.focal_loss)(logits, target, 1)
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("compiled", (False, True))
def test_mmdet_focal_at_certain_scores(compiled: bool) -> None:
    """Scores of exactly 0 and 1 stay finite, compiled too, and a perfect map costs nothing."""
    function = jax.value_and_grad(losses.gaussian_focal_loss)
    function = jax.jit(function) if compiled else function
    target = jnp.asarray([1.0, 0.0, 0.4]).reshape(1, 1, 3, 1)
    perfect = jnp.asarray([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1)
    value, slope = function(perfect, target, 1.0)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(slope).all()
    value, slope = function(1 - perfect, target, 2.0)
    assert float(value) == pytest.approx(-np.log(1e-12) * (1 + 1 + 0.6**4) / 2, rel=1e-4)
    np.testing.assert_allclose(np.ravel(slope), np.array([-1, 1, 0.6**4]) * 0.5e12, rtol=1e-4)


def test_losses_at_objects() -> None:
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    index = rng.integers(0, 20, (2, 3)).astype(np.int32)
    mask = np.array([[1, 0, 1], [0, 1, 0]], bool)
    labels = rng.integers(0, 3, (2, 3)).astype(np.int32)
    target = rng.normal(size=(2, 3, 6)).astype(np.float32)
    l1 = smooth = pairs = 0.0
    for b, m in np.argwhere(mask):
        found = maps[b, index[b, m] // 5, index[b, m] % 5]
        distance = abs(found - target[b, m])
        l1 += distance.sum()
        smooth += np.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        pairs += abs(found[2 * labels[b, m] : 2 * labels[b, m] + 2] - target[b, m, :2]).sum()
    assert float(losses.l1_at(maps, index, mask, target, 7.0)) == pytest.approx(l1 / 7, rel=1e-5)
    assert float(losses.smooth_l1_at(maps, index, mask, target, 7.0)) == pytest.approx(smooth / 7, rel=1e-5)
    found_pairs = losses.class_l1_at(jnp.asarray(maps), index, mask, jnp.asarray(labels), target[..., :2], 7.0)
    assert float(found_pairs) == pytest.approx(pairs / 7, rel=1e-5)
