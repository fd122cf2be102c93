"""Radii and Gaussians against the definitions, in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.ops.heatmap import draw_gaussians, gaussian_radius, radius_in_cells
from tests.golden.dense import draw_dense

# Compiled once for all examples.
drawn = jax.jit(draw_gaussians, static_argnums=(4, 5))
dense_drawn = jax.jit(draw_dense, static_argnums=5)


def radius_oracle(height: float, width: float, overlap: float, formula: str) -> float:
    """The three quadratics solved as they are written in the papers' code."""
    total, area = height + width, height * width
    quadratics = (
        (1.0, total, area * (1 - overlap) / (1 + overlap)),
        (4.0, 2 * total, (1 - overlap) * area),
        (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
    )
    roots = []
    for i, (a, b, c) in enumerate(quadratics):
        discriminant = np.sqrt(b * b - 4 * a * c)
        if formula == "legacy":
            roots.append((b + discriminant) / 2)
        else:
            roots.append((b + discriminant if i == 2 else b - discriminant) / (2 * a))
    return min(roots)


side = st.floats(0.0625, 500, width=32)


@settings(max_examples=200, deadline=None)
@given(side, side, st.sampled_from((0.1, 0.3, 0.5, 0.7, 0.9)), st.sampled_from(("legacy", "fixed")))
def test_radius_is_the_least_root(height: float, width: float, overlap: float, formula: str) -> None:
    found = float(gaussian_radius(jnp.float32(height), jnp.float32(width), overlap, formula))
    assert found == pytest.approx(radius_oracle(height, width, overlap, formula), rel=2e-6)


@settings(max_examples=100, deadline=None)
@given(side, side, st.sampled_from((0.3, 0.7)))
def test_fixed_radius_keeps_the_overlap(height: float, width: float, overlap: float) -> None:
    """What the radius is for: corners moved by it, in any direction, leave an IoU of at least the overlap."""
    r = float(gaussian_radius(jnp.float32(height), jnp.float32(width), overlap, "fixed")) * (1 - 1e-5)
    area = height * width
    inner = max(width - 2 * r, 0) * max(height - 2 * r, 0)
    outer = (width + 2 * r) * (height + 2 * r)
    shifted = max(width - r, 0) * max(height - r, 0)
    for iou in (inner / area, area / outer, shifted / (2 * area - shifted)):
        assert iou >= overlap - 1e-4


@pytest.mark.parametrize("formula", ["legacy", "fixed"])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_whole_radii_do_not_depend_on_the_last_bits(overlap: float, formula: str) -> None:
    """Sides in whole cells: three units in the last place more or less, as a GPU's division has, change nothing."""
    height, width = (side.reshape(-1).astype(np.float32) for side in np.mgrid[1:129, 1:129])
    r = np.asarray(gaussian_radius(height, width, overlap, formula))
    whole = np.asarray(radius_in_cells(r))
    assert whole.dtype == np.int32 and (np.abs(r - np.round(r)) < 1e-6 * r).sum() > 10
    for units in (-3, -2, -1, 1, 2, 3):
        moved = r * np.float32(1 + units * 2.0**-23)
        np.testing.assert_array_equal(radius_in_cells(moved), whole)
    exact = [radius_oracle(float(h), float(w), overlap, formula) for h, w in zip(height, width, strict=True)]
    np.testing.assert_array_equal(whole, np.floor(np.array(exact) * (1 + 1e-9)))


def test_radius_of_an_unknown_formula_is_refused() -> None:
    with pytest.raises(ValueError, match="legacy"):
        gaussian_radius(jnp.ones(1), jnp.ones(1), 0.7, "new")


def draw_oracle(objects: np.ndarray, labels: np.ndarray, shape: tuple[int, int], classes: int) -> np.ndarray:
    heat = np.zeros((*shape, classes))
    for (x, y, radius), label in zip(objects, labels, strict=True):
        sigma = (2 * radius + 1) / 6
        for row in range(max(y - radius, 0), min(y + radius + 1, shape[0])):
            for column in range(max(x - radius, 0), min(x + radius + 1, shape[1])):
                value = np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma * sigma))
                heat[row, column, label] = max(heat[row, column, label], value)
    return heat


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_drawn_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, classes, count = (11, 14), 3, 6
    objects = np.stack([rng.integers(0, 14, count), rng.integers(0, 11, count), rng.integers(0, 7, count)], 1)
    labels, valid = rng.integers(0, classes, count), rng.random(count) < 0.7
    found = np.asarray(
        drawn(
            objects[:, :2].astype(np.int32),
            objects[:, 2].astype(np.int32),
            labels.astype(np.int32),
            valid,
            shape,
            classes,
        )
    )
    np.testing.assert_allclose(found, draw_oracle(objects[valid], labels[valid], shape, classes), atol=1e-6)
    for (x, y, _), label in zip(objects[valid], labels[valid], strict=True):
        assert found[y, x, label] == 1  # exactly: the focal loss takes a cell of 1 for an object


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_dense_targets(seed: int) -> None:
    """Later objects win ties, and a float64 Gaussian is compared with a float32 map, as the original does."""
    rng = np.random.default_rng(seed)
    shape, count = (12, 15), 6
    objects = np.stack([rng.integers(0, 15, count), rng.integers(0, 12, count), rng.integers(0, 5, count)], 1)
    objects[-1] = objects[0]  # the same place twice
    values, valid = rng.random((count, 2), np.float32), rng.random(count) < 0.8
    found, running = dense_drawn(
        np.zeros(shape, np.float32),
        objects[:, :2].astype(np.int32),
        objects[:, 2].astype(np.int32),
        values,
        valid,
        shape,
    )
    heat, dense = np.zeros(shape, np.float32), np.zeros((*shape, 2), np.float32)
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    for (x, y, radius), value in zip(objects[valid], values[valid], strict=True):
        sigma = (2 * radius + 1) / 6
        gaussian = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * sigma * sigma))
        window = (abs(ys - y) <= radius) & (abs(xs - x) <= radius)
        heat = np.where(window, np.maximum(heat, gaussian.astype(np.float32)), heat)
        dense[window & (gaussian >= heat)] = value
    np.testing.assert_allclose(running, heat, atol=1e-6)
    np.testing.assert_array_equal(found, dense)
