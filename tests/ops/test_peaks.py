"""Peaks and selection against loops over cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.ops.peaks import best_peaks, gather_cells, keep_peaks, top_k


def peaks_oracle(heat: np.ndarray) -> np.ndarray:
    batch, height, width, classes = heat.shape
    kept = np.zeros_like(heat)
    for b, y, x, k in np.ndindex(batch, height, width, classes):
        window = heat[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, k]
        if heat[b, y, x, k] == window.max():
            kept[b, y, x, k] = heat[b, y, x, k]
    return kept


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_peaks(seed: int, plateaus: bool) -> None:
    heat = np.random.default_rng(seed).random((2, 6, 7, 2), np.float32)
    heat = np.round(heat, 1) if plateaus else heat
    np.testing.assert_array_equal(keep_peaks(jnp.asarray(heat)), peaks_oracle(heat))


def test_the_border_is_not_a_peak_of_zeros() -> None:
    heat = -np.ones((1, 3, 3, 1), np.float32)
    heat[0, 0, 0, 0] = -0.5
    assert float(keep_peaks(jnp.asarray(heat))[0, 0, 0, 0]) == -0.5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 5, 9, 35, 40]), st.booleans())
def test_top_k(seed: int, k: int, ties: bool) -> None:
    heat = np.random.default_rng(seed).random((2, 3, 4, 3), np.float32)
    heat = np.round(heat, 1) if ties else heat
    scores, labels, ys, xs = (np.asarray(a) for a in top_k(jnp.asarray(heat), k))
    for b in range(2):
        # Of equal scores the lower class, then the lower cell: a stable sort of (K, h, w).
        flat = heat[b].transpose(2, 0, 1).ravel()
        order = np.argsort(-flat, kind="stable")[:k]
        np.testing.assert_array_equal(scores[b], flat[order])
        np.testing.assert_array_equal(labels[b], order // 12)
        np.testing.assert_array_equal(ys[b], order % 12 // 4)
        np.testing.assert_array_equal(xs[b], order % 4)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("logits", [False, True])
def test_best_peaks(kernel: int, logits: bool) -> None:
    """Image after image or together: the steps one by one give the same, ties included."""
    heat = np.round(np.random.default_rng(0).normal(0, 1, (3, 5, 6, 2)), 1).astype(np.float32)
    scores = jax.nn.sigmoid(heat) if logits else jnp.asarray(heat)
    found = jax.jit(lambda x: best_peaks(x, 9, kernel=kernel, logits=logits))(heat)
    for got, wanted in zip(found, top_k(keep_peaks(scores) if kernel == 3 else scores, 9), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_gather_cells() -> None:
    maps = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    index = np.array([[0, 14, 7], [3, 3, 9]], np.int32)
    found = np.asarray(gather_cells(jnp.asarray(maps), jnp.asarray(index)))
    for b, n in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[b, n], maps[b, index[b, n] // 5, index[b, n] % 5])
