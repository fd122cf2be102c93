"""Gaussian radii and drawn heatmaps against every reference that has them."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.ops.heatmap import draw_gaussians, gaussian_profile, gaussian_radius, radius_in_cells

from .cases import each_case
from .dense import draw_dense


def draw(circles: np.ndarray, shape: tuple[int, ...], sigma_divisor: float = 6.0) -> np.ndarray:
    """One class's map with the Gaussians of rows x, y, radius."""
    count = len(circles)
    heat = jax.jit(draw_gaussians, static_argnums=(4, 5, 6))(
        circles[:, :2].astype(np.int32),
        circles[:, 2].astype(np.int32),
        np.zeros(count, np.int32),
        np.ones(count, bool),
        (shape[0], shape[1]),
        1,
        sigma_divisor,
    )
    return np.asarray(heat)[..., 0]


def kernel(radius: int, sigma_divisor: float = 6.0) -> np.ndarray:
    """The window of side 2 r + 1 around a centre."""
    center = np.array([radius], np.int32)
    axis = np.asarray(jax.jit(gaussian_profile, static_argnums=(2, 3))(center, center, 2 * radius + 1, sigma_divisor))[
        0
    ]
    return axis[:, None] * axis[None, :]


@each_case("fn_ctnet_gaussian")
def test_radius(case: Any) -> None:
    sizes = case["sizes_hw"]
    names = [name for name in case.arrays if name.startswith("radius/")]
    assert names
    for name in names:
        repository, overlap = name.removeprefix("radius/").rsplit("_", 1)
        formula = "legacy" if repository == "centernet" else "fixed"
        found = np.asarray(gaussian_radius(sizes[:, 0], sizes[:, 1], float(overlap), formula))
        np.testing.assert_allclose(found, case[name], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(radius_in_cells(found), case[name].astype(int), err_msg=name)


@each_case("fn_ctnet_gaussian")
def test_kernels_and_draws(case: Any) -> None:
    for name in [name for name in case.arrays if name.startswith("gaussian2D/r")]:
        radius = int(name.removeprefix("gaussian2D/r"))
        np.testing.assert_allclose(kernel(radius), case[name], atol=1e-6, err_msg=name)
    circles = umich_circles(case)
    for name in ("umich", "mmdet"):
        np.testing.assert_allclose(draw(circles, case[name].shape), case[name], atol=1e-6, err_msg=name)


@each_case("fn_ctnet_gaussian")
def test_dense_regression(case: Any) -> None:
    """Each draw with a radius writes its values where its Gaussian tops the map drawn so far."""
    circles, values = umich_circles(case), dense_values(case)
    assert len(circles) == len(values)
    depth, height, width = case["dense_reg"].shape
    # A draw without a radius enters the map and writes no value; it therefore comes in as an
    # object of the sequence that claims its one cell, which is then compared apart.
    dense, _ = draw_dense(
        jnp.zeros((height, width)),
        jnp.asarray(circles[:, :2], jnp.int32),
        jnp.asarray(circles[:, 2], jnp.int32),
        jnp.asarray(values, jnp.float32),
        jnp.ones(len(circles), bool),
        (height, width),
    )
    compared = np.ones((height, width), bool)
    compared[tuple(circles[circles[:, 2] == 0][:, 1::-1].T)] = False
    found = np.moveaxis(np.asarray(dense), -1, 0)
    np.testing.assert_allclose(found[:, compared], case["dense_reg"][:, compared], atol=1e-6)
    assert depth == values.shape[1]


@each_case("gaussian_fixed", "gaussian_original")
def test_radius_table(case: Any) -> None:
    formula = "legacy" if "original roots" in case.info["variant"] else "fixed"
    height, width = case["radius/h__f64"], case["radius/w__f64"]
    overlaps = case["radius/min_overlap__f64"]
    assert len(overlaps)
    for overlap in np.unique(overlaps):
        rows = overlaps == overlap
        found = np.asarray(gaussian_radius(height, width, float(overlap), formula))[rows]
        # The reference works in float64; 1e-6 is two units in the last place of float32.
        np.testing.assert_allclose(found, case["radius/r__f64"][rows], rtol=1e-6)
        np.testing.assert_array_equal(radius_in_cells(found), case["radius/r_int"][rows])


@each_case("gaussian_fixed", "gaussian_original")
def test_kernel_table_and_draws(case: Any) -> None:
    seen = 0
    for name in case.arrays:
        if match := re.fullmatch(r"gaussian2d/r(\d+)_div([\d.]+)__f64", name):
            found = kernel(int(match[1]), float(match[2]))
            np.testing.assert_allclose(found, case[name], atol=1e-6, err_msg=name)
            seen += 1
        elif match := re.fullmatch(r"draw/heat_div([\d.]+)", name):
            found = draw(case["draw/x_y_radius"], case[name].shape, float(match[1]))
            np.testing.assert_allclose(found, case[name], atol=1e-6, err_msg=name)
            seen += 1
    assert seen


def umich_circles(case: Any) -> np.ndarray:
    """Rows x, y, radius of the case's draws."""
    key = next((key for key in case.info if key.startswith("umich/mmdet draws")), None)
    if key is None:
        pytest.skip("the case does not state its draws")
    return np.array([[x, y, radius] for (x, y), radius in case.info[key]])


def dense_values(case: Any) -> np.ndarray:
    """The value of each draw, from the case's own words; zeros where the case skips one."""
    found = re.findall(r"\(([\d.-]+),([\d.-]+)\)|\((skipped)\)", case.info["dense_reg"])
    return np.array([[0, 0] if skipped else [float(x), float(y)] for x, y, skipped in found])
