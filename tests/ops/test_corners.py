"""Pairing of corners and the triplets' rule against loops in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.ops.corners import Candidates, Points, best_points, pair_corners, require_centers
from kpjax.ops.losses import associative_embedding

K = 9


def random_points(rng: np.random.Generator, batch: int = 2) -> Points:
    """Coordinates on a coarse grid, so that pairs that are level with each other occur."""
    return Points(
        scores=np.sort(rng.random((batch, K)).astype(np.float32))[:, ::-1].copy(),
        xs=rng.integers(0, 6, (batch, K)).astype(np.float32),
        ys=rng.integers(0, 6, (batch, K)).astype(np.float32),
        labels=rng.integers(0, 2, (batch, K)).astype(np.int32),
        tags=rng.uniform(-0.6, 0.6, (batch, K)).astype(np.float32),
    )


def pairs(one: Points, other: Points, image: int, distance: float, strict: bool) -> list[tuple[float, ...]]:
    found = []
    for i in range(K):
        for j in range(K):
            dx, dy = other.xs[image, j] - one.xs[image, i], other.ys[image, j] - one.ys[image, i]
            near = abs(one.tags[image, i] - other.tags[image, j]) <= distance
            level = dx <= 0 or dy <= 0 if strict else dx < 0 or dy < 0
            if one.labels[image, i] == other.labels[image, j] and near and not level:
                score = (one.scores[image, i] + other.scores[image, j]) / 2
                box = one.xs[image, i], one.ys[image, i], other.xs[image, j], other.ys[image, j]
                found.append((-score, *box, one.labels[image, i]))
    return sorted(found)


@pytest.mark.parametrize("strict", [False, True])
def test_pairs(strict: bool) -> None:
    run = jax.jit(lambda a, b: pair_corners(a, b, 0.5, 30, strict))
    rng = np.random.default_rng(0)
    for _ in range(10):
        one, other = random_points(rng), random_points(rng)
        found = run(one, other)
        for image in range(2):
            expected = pairs(one, other, image, 0.5, strict)[:30]
            kept = np.asarray(found.scores[image]) > -1
            assert kept.sum() == len(expected)
            rows = zip(
                (-found.scores[image][kept]).tolist(),
                *found.boxes[image][kept].T.tolist(),
                found.labels[image][kept].tolist(),
                strict=True,
            )
            np.testing.assert_allclose(sorted(rows), expected, atol=1e-6)


def test_fewer_pairs_than_asked_for() -> None:
    one = random_points(np.random.default_rng(1))
    assert pair_corners(one, one, 0.5, 10_000).scores.shape == (2, K * K)


@pytest.mark.parametrize("kernel", [1, 3])
def test_best_points(kernel: int) -> None:
    rng = np.random.default_rng(2)
    heat = rng.permutation(7 * 8 * 3).reshape(1, 7, 8, 3).astype(np.float32) / 200
    offset, tag = rng.random((1, 7, 8, 2), np.float32), rng.random((1, 7, 8, 1), np.float32)
    points = jax.jit(best_points, static_argnums=(3, 4))(heat, offset, tag, 5, kernel)
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = []
    for y, x, c in np.ndindex(7, 8, 3):
        if kernel == 1 or heat[0, y, x, c] == padded[0, y : y + 3, x : x + 3, c].max():
            cells.append((-heat[0, y, x, c], x + offset[0, y, x, 0], y + offset[0, y, x, 1], c, tag[0, y, x, 0]))
    rows = zip(-points.scores[0], points.xs[0], points.ys[0], points.labels[0], points.tags[0], strict=True)
    np.testing.assert_allclose(list(rows), sorted(cells)[:5], atol=1e-6)
    with pytest.raises(ValueError, match="kernel is 5"):
        best_points(heat, offset, tag, 5, 5)


def test_points_on_a_border_are_none() -> None:
    """They are dropped after the best are taken, and leave fewer; no pair has one of them."""
    heat = np.zeros((1, 4, 5, 1), np.float32)
    heat[0, [0, 2, 2, 3], [3, 0, 2, 4], 0] = [0.9, 0.8, 0.7, 0.6]
    heads = (heat, np.full((1, 4, 5, 2), 0.5, np.float32), np.zeros((1, 4, 5, 1), np.float32))
    inner = best_points(*heads, 4, 1, without=(0, 0))
    np.testing.assert_allclose(inner.scores, [[-1, -1, 0.7, 0.6]])
    outer = best_points(*heads, 4, 1, without=(3, 4))
    np.testing.assert_allclose(outer.scores, [[0.9, 0.8, 0.7, -1]])
    found = pair_corners(inner, outer, 0.5, 16)
    rows = np.asarray(found.boxes)[np.asarray(found.scores) > -1]
    np.testing.assert_allclose(rows, [[2.5, 2.5, 2.5, 2.5]])  # (2.5, 2.5) with itself; (4.5, 3.5) lies beyond it


def test_a_box_needs_a_centre_in_its_middle() -> None:
    """Middle third up to 150 x 150, middle fifth above; borders do not count; the first centre that fits."""
    small, large = [0, 0, 150, 150], [0, 0, 200, 200]
    centers = [  # x, y, class, score
        (75, 75, 1, 0.9),  # of another class
        (50, 75, 0, 0.8),  # on the third's border
        (51, 75, 0, 0.7),  # inside the third
        (75, 75, 0, 0.6),  # also, but later
        (79, 100, 0, 0.5),  # beside the large box's fifth (80 .. 120)
        (100, 100, 0, 0.4),
    ]
    points = Points(
        scores=jnp.asarray([[c[3] for c in centers]]),
        xs=jnp.asarray([[float(c[0]) for c in centers]]),
        ys=jnp.asarray([[float(c[1]) for c in centers]]),
        labels=jnp.asarray([[c[2] for c in centers]]),
    )
    found = Candidates(
        boxes=jnp.asarray([[small, large, small, [500, 500, 600, 600], small]], jnp.float32),
        scores=jnp.asarray([[0.5, 0.5, -1.0, 0.5, 0.3]]),
        labels=jnp.asarray([[0, 0, 0, 0, 2]]),
    )
    scores = np.asarray(require_centers(found, points).scores[0])
    np.testing.assert_allclose(scores, [(2 * 0.5 + 0.7) / 3, (2 * 0.5 + 0.4) / 3, -1, -1, -1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=2, max_size=2), seed=st.integers(0, 2**31))
def test_embeddings(counts: list[int], seed: int) -> None:
    """Loops over objects and pairs; no NaN in values or gradients for one object or none."""
    rng = np.random.default_rng(seed)
    tl, br = rng.uniform(-2, 2, (2, 2, 5)).astype(np.float32)
    mask = np.arange(5) < np.array(counts)[:, None]
    for eps in (1e-4, 0.0):
        pull = push = 0.0
        for image, n in enumerate(counts):
            mean = (tl[image, :n].astype(float) + br[image, :n]) / 2
            if n:
                pull += ((tl[image, :n] - mean) ** 2 + (br[image, :n] - mean) ** 2).sum() / (n + eps)
            for i in range(n):
                for j in range(n):
                    near = max(0.0, 1 - abs(mean[i] - mean[j]))
                    if eps:
                        push += (near - 1 / (n + eps)) / (n * (n - 1) + eps)
                    elif i != j:
                        push += near / (n * (n - 1))
        values, slopes = embeddings(tl, br, mask, eps)
        np.testing.assert_allclose(values, [pull, push], rtol=1e-4, atol=2e-3)  # 1 - 1 / 1.0001 in float32
        assert all(np.isfinite(s).all() for s in slopes)
        assert not any(np.abs(s)[~mask].any() for s in map(np.asarray, slopes))


@jax.jit
def _embeddings(tl: jax.Array, br: jax.Array, mask: jax.Array) -> list:
    results = []
    for eps in (1e-4, 0.0):
        values = associative_embedding(tl, br, mask, eps)
        slopes = jax.grad(lambda a, b, e=eps: sum(associative_embedding(a, b, mask, e)), argnums=(0, 1))(tl, br)
        results.append((values, slopes))
    return results


def embeddings(tl: np.ndarray, br: np.ndarray, mask: np.ndarray, eps: float) -> tuple:
    return _embeddings(tl, br, mask)[0 if eps else 1]
