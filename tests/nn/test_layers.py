"""Layers against NumPy, and each form for the CPU against the usual operation, with its gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from kpjax.nn import convolution, layers
from kpjax.nn.layers import (
    NHWC,
    BatchNorm,
    Conv,
    ConvTranspose,
    UpsampleDepthwise,
    bilinear_kernel_init,
    conv2d,
    conv_transpose_4x4,
    max_pool_2x2,
    max_pool_3x3_stride2,
    upsample_depthwise,
)
from tests.nn.compare import assert_same, lowered_for, normal, value_and_vjp

# --- convolution ---------------------------------------------------------------------------------

CONVOLUTIONS = {
    "small": ((3, 9, 11, 4), (3, 3, 4, 5), 1, 1),
    "stride 2, odd and even": ((2, 9, 12, 4), (3, 3, 4, 5), 2, 1),
    "7x7 stride 2": ((2, 13, 10, 3), (7, 7, 3, 4), 2, 3),
    "1x1": ((3, 7, 5, 4), (1, 1, 4, 6), 1, 0),
    "1x1 stride 2": ((3, 7, 8, 4), (1, 1, 4, 6), 2, 0),
    "many pixels at stride 2": ((5, 127, 128, 2), (3, 3, 2, 3), 2, 1),
    "many pixels at 1x1": ((3, 64, 64, 2), (1, 1, 2, 3), 1, 0),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d_is_the_convolution(case: str) -> None:
    x_shape, k_shape, stride, pad = CONVOLUTIONS[case]
    padding = ((pad, pad), (pad, pad))
    x, kernel = normal(0, *x_shape), normal(1, *k_shape)
    usual = value_and_vjp(
        lambda x, k: lax.conv_general_dilated(x, k, (stride, stride), padding, dimension_numbers=NHWC), x, kernel
    )
    assert_same(value_and_vjp(lambda x, k: conv2d(x, k, stride, padding), x, kernel), usual)


def test_conv2d_with_unequal_padding() -> None:
    x, kernel = normal(0, 2, 6, 7, 3), normal(1, 2, 2, 3, 4)
    padding = ((1, 0), (0, 1))
    usual = value_and_vjp(
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=NHWC), x, kernel
    )
    assert_same(value_and_vjp(lambda x, k: conv2d(x, k, 1, padding), x, kernel), usual)


def test_conv_pads_as_pytorch() -> None:
    """Conv(kernel 3, stride 2) of PyTorch reads rows -1, 0, 1 first; `SAME` would read 0, 1, 2."""
    x = normal(0, 1, 6, 8, 2)
    variables = jax.jit(Conv(3, stride=2, bias=True).init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((1, 3, 4, 3), np.float32)
    for i in range(3):
        for j in range(4):
            expected[0, i, j] = np.einsum("uvc,uvco->o", padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel)
    bias = np.array([1, 2, 3], np.float32)
    variables = {"params": {**variables["params"], "bias": bias}}
    found: Any = Conv(3, stride=2, bias=True).apply(variables, x)
    np.testing.assert_allclose(found, expected + bias, atol=1e-5)


# --- transposed convolution ----------------------------------------------------------------------

MAP_SIZES = [(1, 5), (7, 4)]


def conv_transpose_oracle(x: np.ndarray, kernel: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """PyTorch's definition: input cell i adds x[i] kernel[u] to output 2 i - 1 + u.  Output, dx, dkernel."""
    x, kernel, g = x.astype(np.float64), kernel.astype(np.float64), g.astype(np.float64)
    batch, height, width, _ = x.shape
    y = np.zeros((batch, 2 * height, 2 * width, kernel.shape[3]))
    dx, dk = np.zeros(x.shape), np.zeros(kernel.shape)
    for i in range(height):
        for j in range(width):
            for u in range(4):
                for v in range(4):
                    row, column = 2 * i - 1 + u, 2 * j - 1 + v
                    if 0 <= row < 2 * height and 0 <= column < 2 * width:
                        y[:, row, column] += x[:, i, j] @ kernel[u, v]
                        dx[:, i, j] += g[:, row, column] @ kernel[u, v].T
                        dk[u, v] += x[:, i, j].T @ g[:, row, column]
    return y, dx, dk


@pytest.mark.parametrize("form", ["phases", "dilated", "cudnn", "chosen"])
@pytest.mark.parametrize("size", MAP_SIZES)
def test_conv_transpose_is_pytorchs(form: str, size: tuple[int, int]) -> None:
    function = {
        "phases": layers._conv_transpose_phases,
        "dilated": layers._conv_transpose_dilated,
        "cudnn": layers._conv_transpose_cudnn,
        "chosen": conv_transpose_4x4,
    }[form]
    x, kernel = normal(0, 3, *size, 5), normal(1, 4, 4, 5, 6)
    expected = conv_transpose_oracle(x, kernel, normal(99, 3, 2 * size[0], 2 * size[1], 6))
    assert_same(value_and_vjp(function, x, kernel), expected)


def test_conv_transpose_module_and_dtype() -> None:
    x = normal(0, 2, 4, 3, 5)
    module = ConvTranspose(6)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (4, 4, 5, 6)
    expected, *_ = conv_transpose_oracle(x, kernel, np.zeros((2, 8, 6, 6)))
    found: Any = module.apply(variables, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    half = ConvTranspose(6, dtype=jnp.bfloat16)
    y = jax.jit(half.apply)(variables, x)
    assert isinstance(y, jax.Array) and y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.02 * np.abs(expected).max())


def test_bilinear_start_keeps_the_image() -> None:
    """Deconvolved with it, each output channel is bilinear up-sampling of a mixture of the input channels."""
    channels, features = 32, 64
    kernel = np.asarray(bilinear_kernel_init(jax.random.key(0), (4, 4, channels, features)))
    # out[2 i - 1 + u]: bilinear interpolation at half-pixel centres has the weights 1/4 and 3/4
    mixing = kernel[1, 1] / 0.5625
    assert mixing.std() == pytest.approx((2 / features) ** 0.5, rel=0.05)
    assert abs(mixing.mean()) < 0.01
    x = normal(0, 1, 6, 7, channels)
    enlarged = jax.image.resize(jnp.asarray(x) @ mixing, (1, 12, 14, features), "bilinear")
    found = layers._conv_transpose_dilated(jnp.asarray(x), jnp.asarray(kernel))
    # a transposed convolution sees zeros outside the map, resize repeats the edge
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], enlarged[:, 1:-1, 1:-1], atol=1e-4)


# --- max-pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 7)])
def test_max_pool_is_pytorchs(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3).astype(np.float32).reshape(2, *size, 3)
    x -= x.mean()
    expected = np.full((2, (size[0] + 1) // 2, (size[1] + 1) // 2, 3), -np.inf, np.float32)
    for i, j in np.ndindex(*expected.shape[1:3]):
        rows, columns = slice(max(2 * i - 1, 0), 2 * i + 2), slice(max(2 * j - 1, 0), 2 * j + 2)
        expected[:, i, j] = x[:, rows, columns].max((1, 2))
    np.testing.assert_array_equal(max_pool_3x3_stride2(jnp.asarray(x)), expected)


@pytest.mark.parametrize(
    "window, size", [(3, (1, 1)), (3, (2, 5)), (3, (9, 7)), (3, (8, 12)), (2, (2, 2)), (2, (8, 6))]
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_gradient_of_max_pool_is_pytorchs(window: int, size: tuple[int, int], ties: bool) -> None:
    """Of equal values in a window the first one in rows takes the gradient, in the form for GPUs."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, (2, *size, 3)).astype(np.float32) if ties else normal(3, 2, *size, 3)
    y, dx = value_and_vjp(lambda x: layers._max_pool_views(x, window), x)
    g, expected = normal(99, *y.shape), np.zeros(x.shape)
    for b, i, j, c in np.ndindex(*y.shape):
        first = 2 - window  # of the window's offsets
        cells = [(r, s) for r in range(2 * i + first, 2 * i + 2) for s in range(2 * j + first, 2 * j + 2)]
        inside = [(r, s) for r, s in cells if 0 <= r < size[0] and 0 <= s < size[1]]
        r, s = max(inside, key=lambda cell, b=b, c=c: x[b, *cell, c])  # the first of equal ones
        assert y[b, i, j, c] == x[b, r, s, c]
        expected[b, r, s, c] += g[b, i, j, c]
    np.testing.assert_allclose(dx, expected, atol=1e-5)
    if not ties:
        assert_same(value_and_vjp(lambda x: layers._max_pool_window(x, window), x), (y, dx), tolerance=1e-6)


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_3x3_stride2])
def test_max_pool_has_a_gradient_without_scatter_on_cuda(pool: Any) -> None:
    x = normal(0, 1, 8, 8, 2)
    text = lowered_for("cuda", jax.grad(lambda x: pool(x).sum()), x)
    assert "scatter" not in text
    assert "scatter" in lowered_for("tpu", jax.grad(lambda x: pool(x).sum()), x)


@pytest.mark.parametrize("size", [(2, 2), (8, 6)])
def test_max_pool_2x2_forms_agree(size: tuple[int, int]) -> None:
    # All values differ, so that each gradient has one place to go.
    x = np.random.default_rng(0).permutation(2 * size[0] * size[1] * 3).astype(np.float32).reshape(2, *size, 3)
    x -= x.mean()
    window = value_and_vjp(lambda x: layers._max_pool_window(x, 2), x)
    expected = x.reshape(2, size[0] // 2, 2, size[1] // 2, 2, 3).max((2, 4))
    np.testing.assert_array_equal(window[0], expected)
    assert_same(value_and_vjp(layers._max_pool_2x2_views, x), window, tolerance=1e-6)
    assert_same(value_and_vjp(max_pool_2x2, x), window, tolerance=1e-6)


# --- depthwise up-sampling -----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsample_depthwise_is_pytorchs_transposed_convolution(factor: int) -> None:
    """Against lax's convolution of C groups, with the gradients of both inputs."""
    x, kernel = normal(0, 2, 5, 3, 4), normal(1, 2 * factor, 2 * factor, 4)

    def usual(x: Any, kernel: Any) -> Any:
        pad = 2 * factor - 1 - factor // 2
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1, None],
            (1, 1),
            [(pad, pad)] * 2,
            lhs_dilation=(factor, factor),
            dimension_numbers=NHWC,
            feature_group_count=4,
        )

    wanted = value_and_vjp(usual, x, kernel)
    assert wanted[0].shape == (2, 5 * factor, 3 * factor, 4)
    assert_same(value_and_vjp(upsample_depthwise, x, kernel), wanted)


def test_upsample_depthwise_starts_bilinear() -> None:
    """Equal to interpolation at half-pixel centres inside; at the border cells outside count as 0."""
    x = normal(0, 1, 5, 6, 3)
    y, variables = jax.jit(UpsampleDepthwise(4).init_with_output)(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (8, 8, 3)
    enlarged = jax.image.resize(x, (1, 20, 24, 3), "bilinear")
    np.testing.assert_allclose(y[:, 2:-2, 2:-2], enlarged[:, 2:-2, 2:-2], atol=1e-5)
    np.testing.assert_allclose(y[0, 0, 0], 0.625**2 * x[0, 0, 0], rtol=1e-5)
    half = UpsampleDepthwise(4, dtype=jnp.bfloat16).apply(variables, x)
    assert isinstance(half, jax.Array) and half.dtype == jnp.bfloat16


# --- which form a platform gets ------------------------------------------------------------------


def test_each_platform_gets_its_own_form() -> None:
    """A program lowered on this machine for a TPU or a GPU contains the usual operations, not the CPU's."""
    x, kernel = normal(0, 1, 4, 4, 2), normal(1, 4, 4, 2, 3)
    for platform, usual in (("cpu", False), ("tpu", True), ("cuda", True)):
        text = lowered_for(platform, conv_transpose_4x4, x, kernel)
        assert ("lhs_dilate = [2, 2]" in text or "lhs_dilation" in text) == usual, platform
        assert ("reduce_window" in lowered_for(platform, max_pool_2x2, x)) == usual, platform


# --- BatchNorm -----------------------------------------------------------------------------------


def batch_norm_oracle(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PyTorch's batch_norm on each group of images by itself: output, mean of means, mean of unbiased variances."""
    y, means, variances = [], [], []
    for part in np.split(x.astype(np.float64), groups):
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        y.append((part - mean) / np.sqrt(var + 1e-5) * scale + bias)
        means.append(mean)
        variances.append(part.reshape(-1, x.shape[-1]).var(0, ddof=1))
    return np.concatenate(y), np.mean(means, 0), np.mean(variances, 0)


@pytest.mark.parametrize("groups", [1, 4])
def test_batch_norm_is_pytorchs(groups: int) -> None:
    x = normal(0, 8, 3, 2, 5) * np.array([1, 2, 0.5, 3, 1], np.float32) + np.array([0, 1, -2, 0.5, 4], np.float32)
    scale, bias = normal(1, 5), normal(2, 5)
    old_mean, old_var = normal(3, 5), np.abs(normal(4, 5)) + 0.5
    module = BatchNorm(groups=groups)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": old_mean, "var": old_var}}
    y, changed = module.apply(variables, x, True, mutable=["batch_stats"])
    expected, mean, var = batch_norm_oracle(x, scale, bias, groups)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.9 * old_mean + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 * old_var + 0.1 * var, rtol=1e-4)
    # evaluation reads the running statistics, whatever the groups are, and changes nothing
    y, changed = module.apply(variables, x[:3], False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, (x[:3] - old_mean) / np.sqrt(old_var + 1e-5) * scale + bias, atol=1e-4)
    assert not jax.tree.leaves(changed) or np.array_equal(changed["batch_stats"]["mean"], old_mean)


def test_batch_norm_starts_neutral_and_init_moves_nothing() -> None:
    x = normal(0, 4, 3, 3, 2) + 5
    variables = jax.jit(BatchNorm().init, static_argnums=2)(jax.random.key(0), x, True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)
    y: Any = BatchNorm().apply(variables, x, False)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_batch_norm_gradient() -> None:
    x, scale, bias = normal(0, 4, 3, 2, 3), normal(1, 3), normal(2, 3)
    stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}

    def ours(x: Any, scale: Any, bias: Any) -> Any:
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return BatchNorm(groups=2).apply(variables, x, True, mutable=["batch_stats"])[0]

    def plain(x: Any, scale: Any, bias: Any) -> Any:
        parts = x.reshape(2, 2, 3, 2, 3)
        mean = parts.mean((1, 2, 3), keepdims=True)
        var = ((parts - mean) ** 2).mean((1, 2, 3), keepdims=True)
        return ((parts - mean) / jnp.sqrt(var + 1e-5) * scale + bias).reshape(x.shape)

    assert_same(value_and_vjp(ours, x, scale, bias), value_and_vjp(plain, x, scale, bias), tolerance=2e-5)


def test_batch_norm_keeps_float32_statistics_under_bfloat16() -> None:
    # bfloat16 sums of 4096 values near 3 would be off by whole units.
    x = jnp.asarray(normal(0, 4, 32, 32, 2) + 3, jnp.bfloat16)
    module = BatchNorm(dtype=jnp.bfloat16)
    variables = jax.jit(module.init, static_argnums=2)(jax.random.key(0), x, True)
    y, changed = jax.jit(lambda v: module.apply(v, x, True, mutable=["batch_stats"]))(variables)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, changed)))
    exact = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "features", "winograd"),
    [
        ((1, 32, 32, 192), 192, True),
        ((2, 60, 38, 192), 200, True),  # several slabs of rows
        ((1, 32, 34, 191), 192, False),
        ((1, 33, 32, 192), 192, False),
        ((1, 16, 16, 192), 192, False),
    ],
)
def test_wide_convolutions(shape: tuple[int, ...], features: int, winograd: bool) -> None:
    """Winograd's form, where it is taken on a CPU, equals the plain convolution, values and gradients."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape, np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, shape[3], features), np.float32))
    padding = ((1, 1), (1, 1))
    assert convolution._suits_winograd(x, kernel, 1, padding) == winograd
    assert not convolution._suits_winograd(x, kernel, 2, padding)
    assert not convolution._suits_winograd(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 1, padding)

    def plain(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layers.NHWC)

    expected = jax.jit(plain)(x, kernel)
    limit = 3e-6 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(jax.jit(lambda x, k: layers.conv2d(x, k, 1, padding))(x, kernel), expected, atol=limit)
    if winograd:
        found = jax.jit(lambda x, k: convolution._conv_winograd(x, convolution._winograd_kernels(k)))(x, kernel)
        np.testing.assert_allclose(found, expected, atol=limit)
        # The gradients are those of the plain form.
        ours, theirs = (
            jax.jit(jax.grad(lambda x, k, f=f: (f(x, k) * expected).sum(), argnums=(0, 1)))(x, kernel)
            for f in (lambda x, k: layers.conv2d(x, k, 1, padding), plain)
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(("side", "channels"), [(16, 512), (32, 256), (64, 256)])
def test_convolution_of_an_open_batch(side: int, channels: int) -> None:
    """What `kpjax export` traces: the batch has no number, and the form must not depend on it."""
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x, k: conv2d(x, k, 1, ((1, 1), (1, 1)))))(x, kernel)
    assert str(exported.out_avals[0].shape[0]) == "b"
