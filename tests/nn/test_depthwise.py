"""The depthwise convolution against XLA's convolution of as many groups as channels, gradients too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kpjax.nn.depthwise import DepthwiseConv, depthwise_3x3

NHWC = ("NHWC", "HWIO", "NHWC")


def grouped(x: Any, kernel: Any, stride: int) -> Any:
    channels = x.shape[-1]
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=NHWC,
        feature_group_count=channels,
        precision=lax.Precision.HIGHEST,
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
def test_as_a_grouped_convolution(size: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *size, 3), np.float32), rng.standard_normal((3, 3, 3), np.float32)
    expected, transpose = jax.vjp(lambda x, kernel: grouped(x, kernel, stride), x, kernel)
    found, gradients = jax.vjp(lambda x, kernel: depthwise_3x3(x, kernel, stride), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    g = rng.standard_normal(expected.shape, np.float32)
    for ours, theirs in zip(gradients(g), transpose(g), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_sums_of_bfloat16_are_float32() -> None:
    """Nine products, of which the first, 256, would swallow the others, 1/2 each."""
    x = np.full((1, 3, 3, 1), 0.5, jnp.bfloat16)
    x[0, 0, 0, 0] = 256
    y = depthwise_3x3(jnp.asarray(x), jnp.ones((3, 3, 1)))
    assert y.dtype == jnp.bfloat16 and float(y[0, 1, 1, 0]) == 260


def test_module() -> None:
    x = jnp.ones((1, 4, 6, 5))
    variables = DepthwiseConv(stride=2).init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 5)
    assert DepthwiseConv(stride=2).apply(variables, x).shape == (1, 2, 3, 5)
