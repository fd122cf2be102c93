"""Convolution, BatchNorm, up-sampling and pooling as the originals compute them.

Padding is explicit everywhere: PyTorch's is not `SAME` at stride 2.  Kernels are HWIO,
activations NHWC.  Parameters stay float32; `dtype` is that of the activations.

`precision` is that of the products of float32 activations, in the gradients too.  None leaves it to JAX, which on GPUs
multiplies in TensorFloat-32 and on TPUs in bfloat16 (10 and 7 bits of mantissa); `HIGH` is 3 bfloat16 passes on a TPU
and TensorFloat-32 on a GPU; `HIGHEST` is float32 on both.  On a CPU, and for bfloat16 activations, all are the same.

Some operations have a second form for the CPU, where XLA's usual one is up to 25 times slower
than it need be (docs/benchmarks.md has the figures).  `lax.platform_dependent`
chooses when the program is compiled, so that a program compiled for a TPU on a CPU machine
gets the TPU's form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kpjax.nn.batch_norm import normalised
from kpjax.nn.convolution import NHWC, Precision, conv2d

Array = jax.Array
Dtype = Any
Initializer = Callable[..., Any]

# He et al. 2015, by fan-out, as the released ResNets were initialised.  Flax asks an initialiser for its shape whenever
# a parameter is read; under `jax.jit` it is traced once for kernels of one shape.
he_normal = jax.jit(nn.initializers.variance_scaling(2.0, "fan_out", "normal"), static_argnums=(1, 2))


class ConvParams(nn.Module):
    """A convolution's parameters without the convolution: returns (kernel, bias or None).

    Lets several convolutions of one input run as a single wider one while the parameter tree
    keeps them apart.
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    bias: bool = True
    kernel_init: Initializer = he_normal
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array | None]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, channels, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.bias else None
        return kernel, bias


class Conv(nn.Module):
    """Convolution with PyTorch's padding.  x (B, H, W, C) -> (B, H', W', features) of `dtype`.

    padding: cells on every side; None: kernel // 2.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    bias: bool = False
    dtype: Dtype = jnp.float32
    precision: Precision = None
    kernel_init: Initializer = he_normal
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad = self.kernel // 2 if self.padding is None else self.padding
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        padding = (pad, pad), (pad, pad)
        y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding, self.precision)
        if self.bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's conventions, statistics in float32.

    Running variance is the unbiased one; `momentum` is the share of the old value (1 - PyTorch's).
    groups: statistics over this many equal slices of the batch, one after another, as on so
        many GPUs without synchronisation; the running ones move once, by the groups' mean.

    The batch's variance is exact to float32 where the running mean is within some hundred standard deviations of the
    batch's, as it is once it has followed it for some steps.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            offset = bias - running_mean.value * factor
            return (x.astype(jnp.float32) * factor + offset).astype(self.dtype)
        grouped = x.astype(jnp.float32).reshape(self.groups, -1, *x.shape[1:])
        y, mean, var = normalised(grouped, scale, bias, running_mean.value, self.epsilon)
        if not self.is_initializing():
            count = grouped.size // (self.groups * channels)
            keep = self.momentum
            with jax.named_scope("running_statistics"):  # kpjax.aot.hlo tells their sums by it
                unbiased = var.mean(0) * (count / max(count - 1, 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(0)
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return y.reshape(x.shape).astype(self.dtype)


class ConvBN(nn.Module):
    """Convolution, BatchNorm, and ReLU unless `relu` is false: (B, H, W, C) -> (B, H', W', features).

    layer: `Conv` (without bias) or another module of its fields, such as `DeformConv`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    relu: bool = True
    layer: Any = Conv
    bn_groups: int = 1
    dtype: Dtype = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        settings = {"kernel": self.kernel, "stride": self.stride, "dtype": self.dtype, "precision": self.precision}
        x = self.layer(self.features, **settings, name="conv")(x)
        x = BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="bn")(x, train)
        return nn.relu(x) if self.relu else x


def conv_transpose_4x4(x: Array, kernel: Array, precision: Precision = None) -> Array:
    """PyTorch's ConvTranspose2d(kernel 4, stride 2, padding 1): out[2 i - 1 + u] += x[i] kernel[u].

    x (B, H, W, C), kernel (4, 4, C, O) not mirrored.  Returns (B, 2 H, 2 W, O).
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_conv_transpose_phases, precision=precision),
        cuda=lambda x, kernel: _conv_transpose_cudnn(x, kernel, precision),
        default=functools.partial(_conv_transpose_dilated, precision=precision),
    )


def _conv_transpose_dilated(x: Array, kernel: Array, precision: Precision = None) -> Array:
    pads = [(2, 2), (2, 2)]
    return lax.conv_general_dilated(
        x, kernel[::-1, ::-1], (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=NHWC, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_transpose_cudnn(x: Array, kernel: Array, precision: Precision = None) -> Array:
    """The same, with gradients in forms that cuDNN has."""
    return _conv_transpose_dilated(x, kernel, precision)


def _conv_transpose_saved(x: Array, kernel: Array, precision: Precision) -> tuple[Array, tuple[Array, Array]]:
    return _conv_transpose_dilated(x, kernel, precision), (x, kernel)


def _conv_transpose_gradients(precision: Precision, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Both gradients as those of the strided convolution whose input gradient this layer is.

    What JAX derives for the kernel is a convolution with a window as large as the map, which cuDNN has no good form
    for (jax#31662).
    """
    x, kernel = saved

    def strided(g: Array, kernel: Array) -> Array:
        """(B, 2 H, 2 W, O) -> (B, H, W, C)."""
        pads, numbers = [(1, 1), (1, 1)], ("NHWC", "HWOI", "NHWC")
        return lax.conv_general_dilated(g, kernel, (2, 2), pads, dimension_numbers=numbers, precision=precision)

    (dk,) = jax.linear_transpose(lambda kernel: strided(g, kernel), kernel)(x)
    return strided(g, kernel), dk


_conv_transpose_cudnn.defvjp(_conv_transpose_saved, _conv_transpose_gradients)


def _conv_transpose_phases(x: Array, kernel: Array, precision: Precision = None) -> Array:
    # Even outputs see the taps 3 and 1 of cells m - 1 and m, odd ones 2 and 0 of m and m + 1:
    # four ordinary 2x2 convolutions, their outputs interleaved.
    taps, pads = (slice(3, None, -2), slice(2, None, -2)), ((1, 0), (0, 1))
    rows = [
        jnp.stack([conv2d(x, kernel[taps[a]][:, taps[b]], 1, (pads[a], pads[b]), precision) for b in (0, 1)], axis=3)
        for a in (0, 1)
    ]
    y = jnp.stack(rows, axis=2)
    batch, height, _, width, _, channels = y.shape
    return y.reshape(batch, 2 * height, 2 * width, channels)


class ConvTranspose(nn.Module):
    """Learned up-sampling by 2 (kernel 4, stride 2, padding 1).  (B, H, W, C) -> (B, 2H, 2W, features)."""

    features: int
    dtype: Dtype = jnp.float32
    precision: Precision = None
    kernel_init: Initializer = he_normal
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features), jnp.float32)
        y = conv_transpose_4x4(x.astype(self.dtype), kernel.astype(self.dtype), self.precision)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        return y


def bilinear_kernel_init(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    """Each output channel starts as bilinear up-sampling of the inputs' mean, plus noise that tells them apart.

    shape: (4, 4, C, O).  A random dense start of three stacked deconvolutions loses the image's
    detail before the first step; this one keeps it.
    """
    ramp = jnp.asarray([0.25, 0.75, 0.75, 0.25], dtype)
    window = (ramp[:, None] * ramp[None, :])[..., None, None]
    std = (2.0 / shape[3]) ** 0.5
    return window * std * jax.random.normal(key, (1, 1, *shape[2:]), dtype)


def upsample_depthwise(x: Array, kernel: Array) -> Array:
    """PyTorch's ConvTranspose2d(kernel 2 f, stride f, padding f / 2) of each channel by itself, f even.

    x (B, H, W, C), kernel (2 f, 2 f, C) not mirrored.  Returns (B, f H, f W, C).
    An output cell sees two cells of each axis, so that it is a sum of four shifted maps; as a convolution
    of C groups it takes some hundred times longer on a CPU.
    """
    batch, height, width, channels = x.shape
    f = kernel.shape[0] // 2
    half = f // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Output f q + r is kernel row (r + f / 2) mod f of the later of its two input cells, and that + f of the
    # earlier; they are q - 1 and q for the first half of the phases r, q and q + 1 for the second.
    later = (jnp.arange(f) + half) % f
    taps = [[kernel[u][:, v] for v in (later + f, later)] for u in (later + f, later)]

    def block(a: int, b: int) -> Array:
        """The phases of row half a and column half b: (B, H, f / 2, W, f / 2, C)."""
        rows, columns = slice(a * half, (a + 1) * half), slice(b * half, (b + 1) * half)
        return sum(
            (
                padded[:, a + i : a + i + height, None, b + j : b + j + width, None] * taps[i][j][rows, None, columns]
                for i in (0, 1)
                for j in (0, 1)
            ),
            start=jnp.zeros((), x.dtype),
        )

    y = jnp.concatenate([jnp.concatenate([block(a, b) for b in (0, 1)], axis=4) for a in (0, 1)], axis=2)
    return y.reshape(batch, f * height, f * width, channels)


def bilinear_window(factor: int) -> Array:
    """The (2 f, 2 f) kernel of bilinear up-sampling by f at half-pixel centres (Caffe's filler)."""
    ramp = 1 - jnp.abs((jnp.arange(2 * factor) + 0.5) / factor - 1)
    return ramp[:, None] * ramp[None, :]


class UpsampleDepthwise(nn.Module):
    """Up-sampling by an even factor, learnt for each channel from a bilinear start.  (B, H, W, C) -> (B, f H, f W, C).

    As bilinear interpolation only inside: beyond its border the map counts as 0 (golden: fn_ctnet_bilinear_up).
    """

    factor: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, channels = 2 * self.factor, x.shape[-1]
        kernel = self.param(
            "kernel",
            lambda key, shape: jnp.broadcast_to(bilinear_window(self.factor)[..., None], shape),
            (size, size, channels),
        )
        return upsample_depthwise(x.astype(self.dtype), kernel.astype(self.dtype))


def max_pool_3x3_stride2(x: Array) -> Array:
    """PyTorch's MaxPool2d(3, stride 2, padding 1).  (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C)."""
    return lax.platform_dependent(x, cuda=lambda x: _max_pool_views(x, 3), default=lambda x: _max_pool_window(x, 3))


def max_pool_2x2(x: Array) -> Array:
    """PyTorch's MaxPool2d(2).  (B, H, W, C) of even H and W -> (B, H / 2, W / 2, C)."""
    return lax.platform_dependent(
        x, cpu=_max_pool_2x2_views, cuda=lambda x: _max_pool_views(x, 2), default=lambda x: _max_pool_window(x, 2)
    )


def _max_pool_window(x: Array, size: int) -> Array:
    """Windows of `size`, 2 or 3, at a stride of 2; those of 3 begin a cell before the map."""
    border = (size - 2, size - 2)
    return nn.max_pool(x, (size, size), (2, 2), [border, border])


def _max_pool_2x2_views(x: Array) -> Array:
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_views(x: Array, size: int) -> Array:
    """The same, with a gradient that adds shifted maps; XLA's own scatters, one float at a time on a GPU."""
    return _max_pool_window(x, size)


def _max_pool_saved(x: Array, size: int) -> tuple[Array, tuple[Array, Array]]:
    y = _max_pool_window(x, size)
    return y, (x, y)


def _max_pool_gradient(size: int, saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    """Each window's gradient goes to its largest value, of equal ones to the first in rows, as in PyTorch."""
    x, y = saved
    batch, height, width, channels = x.shape
    rows, columns = y.shape[1:3]
    border, lowest = size - 2, jnp.asarray(-jnp.inf, x.dtype)
    # Window (i, j) reads the rows from 2 i and the columns from 2 j of the padded map.
    sides = 2 * rows + border, 2 * columns + border
    ends = [side - border - before for side, before in zip(sides, (height, width), strict=True)]
    padded = lax.pad(x, lowest, [(0, 0, 0), (border, ends[0], 0), (border, ends[1], 0), (0, 0, 0)])
    free = jnp.ones(y.shape, bool)
    total = jnp.zeros((batch, *sides, channels), jnp.float32)
    for u in range(size):
        for v in range(size):
            last = (batch, u + 2 * rows - 1, v + 2 * columns - 1, channels)
            tap = lax.slice(padded, (0, u, v, 0), last, (1, 2, 2, 1))
            won = free & (tap == y)
            free &= ~won
            part = jnp.where(won, g, 0).astype(jnp.float32)
            around = [(0, 0, 0), (u, size - 1 - u, 1), (v, size - 1 - v, 1), (0, 0, 0)]
            total += lax.pad(part, jnp.float32(0), around)
    return (total[:, border : border + height, border : border + width].astype(x.dtype),)


_max_pool_views.defvjp(_max_pool_saved, _max_pool_gradient)
