"""Modulated deformable convolution (DCNv2; Zhu et al. 2019, arXiv 1811.11168, equation 1).

A tap k of the kernel reads the input at its usual place p_k moved by an offset of its own, between
cells by bilinear interpolation, and weighs what it read by a mask:

    y(p) = sum_k kernel_k x(p + p_k + offset_k) mask_k

Without a mask it is deformable convolution as first published (Dai et al. 2017, arXiv 1703.06211).

What all taps read, the columns, is the largest array there is.  The forward pass gathers the four
neighbours of each sample, one after another, and multiplies with the kernel; the backward pass keeps
nothing but the inputs and samples again (benchmarks/deform_conv.py compares other forms).  Large columns
are made and used in slabs of output rows, one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kpjax.nn.convolution import Precision
from kpjax.nn.layers import Array, Conv, Dtype, Initializer, he_normal

# Columns of one image in one slab, at most.  A TPU pads row numbers to 128 times their size on their way into a
# gather, so that its memory is a small multiple of the whole batch's slab (`python -m kpjax plan`).
_SLAB_BYTES = 4 * 2**20
# Of the whole batch on a CPU: a slab stays in the cache.  Two slabs at least, since what a loop reads has been
# computed before it; without the loop, XLA computes it anew inside the gathers, for each of 4 K reads.
_CPU_SLAB_BYTES = 5 * 2**20
_CPU_SLABS = 2
# Of one image on a GPU, which starts some 27 kernels a slab, forward and backward, and pads nothing.  DLA-34 at 512x512
# keeps some 600 MiB an image for its gradients; its largest columns are 36.
_CUDA_SLAB_BYTES = 64 * 2**20


class _Geometry(NamedTuple):
    kernel: tuple[int, ...]
    stride: int
    padding: int
    dilation: int
    groups: int
    slabs: int
    cpu_slabs: int
    cuda_slabs: int
    precision: Precision


def deform_conv(
    x: Array,
    offset: Array,
    mask: Array | None,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    slabs: int = 0,
    precision: Precision = None,
) -> Array:
    """Deformable convolution without a bias.

    x: (B, H, W, C).  offset: (B, h, w, groups * K * 2) in cells, for each group of channels (dy, dx) of
    the K = kh * kw taps in rows.  mask: (B, h, w, groups * K), or None for 1 everywhere.
    kernel: (kh, kw, C, O).  h = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1, and w alike.
    slabs: pieces of output rows the columns are made in; 0: as many as keep one image's below 4 MiB (64 MiB on an
    NVIDIA GPU), or the batch's below 5 MiB on a CPU.
    precision: of the products with the kernel, in the gradients too; see `kpjax.nn.layers`.
    Returns (B, h, w, O) of x's dtype; positions, weights and gradients of x are summed in float32.

    A sample at or beyond a row of -1 or H (a column of -1 or W) is 0 with no gradient; a neighbour
    outside the map counts as 0.  At a whole offset the derivative is that towards the next cell
    (golden: fn_deform_conv).  Differentiable in reverse with respect to all four arrays.
    Raises ValueError where the shapes do not fit each other.
    """
    batch, height, width, channels = x.shape
    size = kernel.shape[:2]
    taps = size[0] * size[1]
    out = tuple(
        (side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for side, k in zip((height, width), size, strict=True)
    )
    if channels % groups or kernel.shape[2] != channels:
        raise ValueError(f"kernel {kernel.shape} and {groups} groups do not fit {channels} channels")
    if mask is None:
        mask = jnp.ones((*offset.shape[:3], groups * taps), jnp.float32)
    for name, array, count in (("offset", offset, 2), ("mask", mask, 1)):
        if array.shape != (batch, *out, groups * taps * count):
            raise ValueError(f"{name} is {array.shape}; it has to be {(batch, *out, groups * taps * count)}")
    if slabs and out[0] % slabs:
        raise ValueError(f"slabs is {slabs}; it has to divide the output's {out[0]} rows")
    columns = out[0] * out[1] * taps * channels * 4  # in float32, as gradients are summed
    elsewhere = slabs or _divisor(out[0], -(-columns // _SLAB_BYTES))
    images = batch if isinstance(batch, int) else 1  # an exported program leaves it open
    cpu = slabs or _divisor(out[0], max(_CPU_SLABS, -(-images * columns // _CPU_SLAB_BYTES)))
    cuda = slabs or _divisor(out[0], -(-columns // _CUDA_SLAB_BYTES))
    geometry = _Geometry(size, stride, padding, dilation, groups, elsewhere, cpu, cuda, precision)
    return _deform_conv(x, offset, mask, kernel, geometry)


def _divisor(number: int, least: int) -> int:
    """The smallest divisor that is at least `least`, or the number itself."""
    return next((n for n in range(least, number) if number % n == 0), number)


def _on_platform(function: Callable[..., Any], on_cuda: Callable[..., Any], geometry: _Geometry, *arrays: Any) -> Any:
    """function(slabs, *arrays) with the slabs of the platform that the program is compiled for."""
    if function is on_cuda and geometry.cpu_slabs == geometry.slabs == geometry.cuda_slabs:
        return function(geometry.slabs, *arrays)
    return lax.platform_dependent(
        *arrays,
        cpu=functools.partial(function, geometry.cpu_slabs),
        cuda=functools.partial(on_cuda, geometry.cuda_slabs),
        default=functools.partial(function, geometry.slabs),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
@functools.partial(jax.jit, static_argnums=4)  # traced once for layers of one shape
def _deform_conv(x: Array, offset: Array, mask: Array, kernel: Array, geometry: _Geometry) -> Array:
    weights, (index, _) = _corners(offset, mask, x.shape[1:3], geometry)
    multiply = functools.partial(_multiply, offset.shape[2], geometry.precision)
    arrays = _rows(x, geometry), weights, index, _matrix(kernel, geometry.groups)
    return _on_platform(multiply, multiply, geometry, *arrays)


def _multiply(
    width: int, precision: Precision, slabs: int, rows: Array, weights: Any, index: Any, matrix: Array
) -> Array:
    """Columns times matrix, (B, h, w, O)."""

    def slab(carry: None, part: Any) -> tuple[None, Array]:
        weights, index = part
        y = jnp.matmul(_columns(rows, weights, index, width), matrix, precision=precision)
        return carry, y.reshape(*index[0].shape[:2], width, -1)

    return _over_slabs(slab, None, (weights, index), slabs)[1]


def _forward(x: Array, offset: Array, mask: Array, kernel: Array, geometry: _Geometry) -> tuple[Array, Any]:
    return _deform_conv(x, offset, mask, kernel, geometry), (x, offset, mask, kernel)


@functools.partial(jax.jit, static_argnums=0)
def _backward(geometry: _Geometry, saved: Any, g: Array) -> tuple[Array, Array, Array, Array]:
    x, offset, mask, kernel = saved
    weights, pull, places = jax.vjp(lambda o, m: _corners(o, m, x.shape[1:3], geometry), offset, mask, has_aux=True)
    matrix, pull_matrix = jax.vjp(lambda k: _matrix(k, geometry.groups), kernel)
    multiply = functools.partial(_multiply_transposed, geometry.precision, x.shape, False)
    on_cuda = functools.partial(_multiply_transposed, geometry.precision, x.shape, True)
    arrays = _rows(x, geometry), weights, places, matrix, g
    dx, dweights, dmatrix = _on_platform(multiply, on_cuda, geometry, *arrays)
    doffset, dmask = pull(dweights)
    (dkernel,) = pull_matrix(dmatrix.astype(kernel.dtype))
    return dx.astype(x.dtype), doffset, dmask, dkernel


def _multiply_transposed(
    precision: Precision,
    shape: tuple[int, ...],
    windows: bool,
    slabs: int,
    rows: Array,
    weights: Any,
    places: Any,
    matrix: Array,
    g: Array,
) -> tuple[Array, list[Array], Array]:
    """The gradients of x, (B, H, W, C) = `shape`, and of `_multiply`'s weights and matrix, float32.

    windows: a sample's four neighbours are one update of the sum for x, not four (a third of the bytes on a GPU).
    """
    batch, height, width, _ = shape
    if slabs == 1:
        # Else XLA finds the forward pass's columns to be the same and keeps them: 5 GiB in DLA-34 at batch 16.
        rows = lax.optimization_barrier(rows)

    def slab(carry: tuple[Array, Array], part: Any) -> tuple[tuple[Array, Array], list[Array]]:
        (dx, dmatrix), (weights, (index, start), g) = carry, part
        out_width, g = g.shape[2], g.reshape(-1, g.shape[-1])
        dsamples = jnp.matmul(g, matrix.T, precision=precision).reshape(*index[0].shape, -1)
        dweights = [_dot_channels(dsamples, _take(rows, i)) for i in index]
        dsamples = dsamples.astype(jnp.float32)
        if windows:
            dx = _add_windows(dx, start, dsamples, weights)
        else:
            for w, i in zip(weights, index, strict=True):
                dx = _add_at(dx, i, dsamples * w[..., None])
        columns = _columns(rows, weights, index, out_width)
        dmatrix += jnp.matmul(columns.T, g, precision=precision, preferred_element_type=jnp.float32)
        return (dx, dmatrix), dweights

    # Windows may begin or end a cell beyond the map.
    empty = (batch, height + 2, width + 2, rows.shape[1] // (height * width), rows.shape[2]) if windows else rows.shape
    start = jnp.zeros(empty, jnp.float32), jnp.zeros(matrix.shape, jnp.float32)
    (dx, dmatrix), dweights = _over_slabs(slab, start, (weights, places, g), slabs)
    return (dx[:, 1:-1, 1:-1] if windows else dx).reshape(shape), dweights, dmatrix


_deform_conv.defvjp(_forward, _backward)


def _dot_channels(a: Array, b: Array) -> Array:
    """The sum over channels of a * b, (..., C) -> (...) float32: what moves the offsets, so as precise as these."""
    return jnp.einsum("...c,...c->...", a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _over_slabs(body: Callable[..., Any], carry: Any, arrays: Any, slabs: int) -> tuple[Any, Any]:
    """lax.scan over slabs of axis 1 of all arrays, (B, h, ...); a single one runs as it is."""
    if slabs == 1:
        return body(carry, arrays)
    split = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], slabs, -1, *a.shape[2:]), 1, 0), arrays)
    carry, out = lax.scan(body, carry, split)
    return carry, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:]), out)


def _corners(
    offset: Array, mask: Array, size: tuple[int, ...], geometry: _Geometry
) -> tuple[list[Array], tuple[list[Array], Array]]:
    """The four neighbours of every sample: weights (float32), and row numbers of `_rows` (int32), (B, h, n).

    Beside the numbers the first neighbour's row, column and group, (B, h, n, 3) int32, of a map with a border of 1.
    n = w * G * K: the samples of one output row, groups before taps as in offset and mask.  They
    stand in one axis, since TPUs pad short last ones to 128.
    """
    batch, height, width, _ = offset.shape
    groups, stride, dilation = geometry.groups, geometry.stride, geometry.dilation
    offset = offset.astype(jnp.float32).reshape(batch, height, -1, 2)
    mask = mask.astype(jnp.float32).reshape(batch, height, -1)
    kh, kw = geometry.kernel
    tap_y, tap_x = (t.reshape(-1) * dilation - geometry.padding for t in np.mgrid[:kh, :kw])
    cell_y, cell_x = stride * np.arange(height)[:, None], stride * np.arange(width)[:, None, None]
    y = offset[..., 0] + (cell_y + np.tile(tap_y, width * groups)).astype(np.float32)
    x = offset[..., 1] + (cell_x + np.broadcast_to(tap_x, (groups, kh * kw))).reshape(-1).astype(np.float32)
    inside = (y > -1) & (y < size[0]) & (x > -1) & (x < size[1])
    # Outside, and where a position is no number, weight 0 and a cell that exists.
    y, x, mask = (jnp.where(inside, a, fill) for a, fill in ((y, -1.0), (x, -1.0), (mask, 0.0)))
    (wy, iy), (wx, ix) = _neighbours(y, size[0]), _neighbours(x, size[1])
    group = np.tile(np.repeat(np.arange(groups, dtype=np.int32), kh * kw), width)
    pairs = [(a, b) for a in (0, 1) for b in (0, 1)]
    weights = [mask * wy[a] * wx[b] for a, b in pairs]
    index = [(iy[a] * size[1] + ix[b]) * groups + group for a, b in pairs]
    first = [jnp.floor(y).astype(jnp.int32) + 1, jnp.floor(x).astype(jnp.int32) + 1, jnp.broadcast_to(group, y.shape)]
    return weights, (index, jnp.stack(first, -1))


def _neighbours(position: Array, size: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Weights and cells of the two neighbours of positions in [-1, size) along one axis."""
    low = jnp.floor(position)
    fraction = position - low
    cell = low.astype(jnp.int32)
    weights = jnp.where(cell >= 0, 1 - fraction, 0.0), jnp.where(cell + 1 < size, fraction, 0.0)
    return weights, (jnp.maximum(cell, 0), jnp.minimum(cell + 1, size - 1))


def _rows(x: Array, geometry: _Geometry) -> Array:
    """(B, H, W, C) -> (B, H * W * G, C / G)."""
    return x.reshape(x.shape[0], -1, x.shape[-1] // geometry.groups)


def _columns(rows: Array, weights: Any, index: Any, width: int) -> Array:
    """What the taps of every output cell read: (B * h * w, G * K * C / G) of rows' dtype."""
    samples = sum(_take(rows, i) * w[..., None] for w, i in zip(weights, index, strict=True))
    batch, height, _ = index[0].shape
    return samples.astype(rows.dtype).reshape(batch * height * width, -1)


def _matrix(kernel: Array, groups: int) -> Array:
    """The kernel as a matrix for `_columns`: (kh, kw, C, O) -> (G * K * C / G, O)."""
    kh, kw, channels, features = kernel.shape
    return kernel.reshape(kh * kw, groups, channels // groups, features).swapaxes(0, 1).reshape(-1, features)


# Each image gathers from and adds to its own rows alone, so that a sharded batch stays where it is.


def _take(rows: Array, index: Array) -> Array:
    """rows (B, R, D), index (B, h, n) -> (B, h, n, D)."""
    return jax.vmap(lambda r, i: r.at[i].get(mode="promise_in_bounds"))(rows, index)


def _add_at(rows: Array, index: Array, values: Array) -> Array:
    return jax.vmap(lambda r, i, v: r.at[i].add(v, mode="promise_in_bounds"))(rows, index, values)


def _add_windows(x: Array, start: Array, values: Array, weights: list[Array]) -> Array:
    """Add values (B, h, n, D) times weights, four of (B, h, n), to 2x2 cells of x (B, H + 2, W + 2, G, D).

    start: (B, h, n, 3), the first cell's row, column and group.
    """
    shares = jnp.stack(weights, -1).reshape(*weights[0].shape, 2, 2, 1)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(2, 3, 4), inserted_window_dims=(2,), scatter_dims_to_operand_dims=(0, 1, 2)
    )
    add = functools.partial(lax.scatter_add, dimension_numbers=numbers, mode="promise_in_bounds")
    return jax.vmap(add)(x, start, values[..., None, None, :] * shares)


class DeformConv(nn.Module):
    """Deformable convolution whose offsets and mask a 3x3 convolution of the same input predicts.

    x (B, H, W, C) -> (B, H', W', features) of `dtype`, with PyTorch's padding of kernel // 2.
    That convolution starts at 0: as an ordinary convolution whose taps weigh one half.
    Its channels are those of the released checkpoints: offsets first, then the mask's logits
    (golden: FACTS_centernet).  modulated: with a mask (v2).  groups: groups of channels with offsets of their own.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    modulated: bool = True
    bias: bool = True
    dtype: Dtype = jnp.float32
    precision: Precision = None
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad, taps = self.kernel // 2, self.groups * self.kernel**2
        # Positions decide accuracy: float32 whatever the activations and their precision are.
        found = Conv(
            taps * (3 if self.modulated else 2),
            kernel=self.kernel,
            stride=self.stride,
            bias=True,
            precision=lax.Precision.HIGHEST,
            kernel_init=nn.initializers.zeros_init(),
            name="offset",
        )(x)
        offset, logits = jnp.split(found, [2 * taps], axis=-1)
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = deform_conv(
            x.astype(self.dtype),
            offset,
            jax.nn.sigmoid(logits) if self.modulated else None,
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=pad,
            groups=self.groups,
            precision=self.precision,
        )
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        return y
