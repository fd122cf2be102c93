"""2-D convolution, where wide 3x3 ones have a form of their own on a CPU: Winograd's (docs/benchmarks.md).

`lax.platform_dependent` chooses when the program is compiled: other devices get the plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kpjax.nn.cpu import as_separate_function, cached_partial

Array = jax.Array
Precision = lax.Precision | None

NHWC = ("NHWC", "HWIO", "NHWC")

# Output pixels that a Winograd convolution computes at a time on a CPU, in one go and in a loop: what it makes of
# them stays in the cache, and a loop that is not needed costs more than it saves (benchmarks/layers.py).
_WINOGRAD_WHOLE = 4096
_WINOGRAD_SLAB = 2048


# What `config.model.precision` names.  "default" gives no precision, so that JAX_DEFAULT_MATMUL_PRECISION decides.
PRECISIONS: dict[str, Precision] = {
    "default": None,
    "high": lax.Precision.HIGH,
    "highest": lax.Precision.HIGHEST,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d(
    x: Array,
    kernel: Array,
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    precision: Precision = None,
) -> Array:
    """2-D convolution.  x (B, H, W, C), kernel (kh, kw, C, O), padding ((top, bottom), (left, right)).

    precision: of the products, in the gradients too; see `kpjax.nn.layers`.
    """
    return _forward(x, kernel, stride, padding, precision)


def _convolve(x: Array, kernel: Array, stride: int, padding: Any, precision: Precision) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=NHWC, precision=precision)


def _forward(x: Array, kernel: Array, stride: int, padding: Any, precision: Precision) -> Array:
    plain = functools.partial(_convolve, stride=stride, padding=padding, precision=precision)
    if _suits_winograd(x, kernel, stride, padding):
        winograd = cached_partial(_winograd, precision=precision)
        return lax.platform_dependent(x, kernel, cpu=as_separate_function(winograd), default=plain)
    return plain(x, kernel)


def _winograd(x: Array, kernel: Array, precision: Precision) -> Array:
    return _conv_winograd(x, _winograd_kernels(kernel), precision)


def _suits_winograd(x: Array, kernel: Array, stride: int, padding: Any) -> bool:
    """3x3, float32, and so wide that the products outweigh the transforms around them (benchmarks/layers.py)."""
    _, height, width, channels = x.shape
    return (
        kernel.shape[:2] == (3, 3)
        and stride == 1
        and tuple(map(tuple, padding)) == ((1, 1), (1, 1))
        and x.dtype == kernel.dtype == jnp.float32
        and min(channels, kernel.shape[3]) >= 192
        and height % 2 == 0
        and width % 2 == 0
        # An exported program leaves its batch open: it may be 1.
        and (x.shape[0] if isinstance(x.shape[0], int) else 1) * height * width >= 1024
    )


def _conv_winograd(x: Array, kernels: list[list[Array]], precision: Precision = None) -> Array:
    """A 3x3 convolution as 16 products of matrices a block of 2x2 outputs: Winograd's F(2x2, 3x3), 4/9 of the work.

    Lavin and Gray 2016.  It differs from the plain sum by about 1e-6 of the largest value.  Larger images run one
    after another and the largest in slabs of rows, so that the 16 matrices stay in the cache.
    """
    batch, height, width, _ = x.shape
    if isinstance(batch, int) and batch > 1 and height * width > _WINOGRAD_SLAB:
        return lax.map(lambda image: _winograd_slabs(image[None], kernels, precision)[0], x)
    return _winograd_slabs(x, kernels, precision)


def _winograd_slabs(x: Array, kernels: list[list[Array]], precision: Precision) -> Array:
    batch, height, width, channels = x.shape
    features = kernels[0][0].shape[1]
    pixels = (batch if isinstance(batch, int) else 1) * height * width
    slabs = 1 if pixels <= _WINOGRAD_WHOLE else pixels // _WINOGRAD_SLAB
    while height // 2 % slabs:
        slabs -= 1
    rows = height // slabs
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def slab(start: Array) -> Array:
        # A place counted from the end, which JAX allows otherwise, would be looked for in each of the 16 tiles.
        part = lax.dynamic_slice_in_dim(padded, start, rows + 2, axis=1, allow_negative_indices=False)
        sums = []
        for line, of_line in zip(_winograd_input(part, 1), kernels, strict=True):
            products = [
                jnp.dot(tile.reshape(-1, channels), k, precision=precision)
                for tile, k in zip(_winograd_input(line, 2), of_line, strict=True)
            ]
            sums.append(_winograd_output(products))
        columns = [_winograd_output([line[v] for line in sums]) for v in (0, 1)]
        shape = (batch, rows // 2, width // 2, features)
        pairs = [jnp.stack([columns[v][u].reshape(shape) for v in (0, 1)], axis=3) for u in (0, 1)]
        return jnp.stack(pairs, axis=2).reshape(batch, rows, width, features)

    if slabs == 1:
        return slab(jnp.int32(0))
    y = lax.map(slab, jnp.arange(slabs) * rows)
    return jnp.moveaxis(y, 0, 1).reshape(batch, height, width, features)


def _winograd_kernels(kernel: Array) -> list[list[Array]]:
    """(3, 3, C, O) -> [u][v], each (C, O)."""
    return [_along_one_axis(line) for line in _along_one_axis(kernel)]


def _along_one_axis(k: Array) -> list[Array]:
    a, b, c = (lax.index_in_dim(k, i, 0, keepdims=False) for i in range(3))
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _winograd_input(x: Array, axis: int) -> list[Array]:
    length = x.shape[axis] - 2
    a, b, c, d = (lax.slice_in_dim(x, i, i + length - 1, stride=2, axis=axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _winograd_output(m: Sequence[Array]) -> tuple[Array, Array]:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _conv2d_forward(
    x: Array, kernel: Array, stride: int, padding: Any, precision: Precision
) -> tuple[Array, tuple[Array, Array]]:
    return _forward(x, kernel, stride, padding, precision), (x, kernel)


def _conv2d_backward(
    stride: int, padding: Any, precision: Precision, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    convolve = functools.partial(_convolve, stride=stride, padding=padding, precision=precision)

    def input_gradient(g: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: convolve(x, kernel), x)(g)[0]

    if _suits_winograd(g, kernel.swapaxes(2, 3), stride, padding):
        winograd = cached_partial(_input_gradient_winograd, precision=precision)
        dx = lax.platform_dependent(g, kernel, cpu=as_separate_function(winograd), default=input_gradient)
    else:
        dx = input_gradient(g, kernel)
    (dk,) = jax.linear_transpose(lambda k: convolve(x, k), kernel)(g)
    return dx, dk


def _input_gradient_winograd(g: Array, kernel: Array, precision: Precision) -> Array:
    k = _winograd_kernels(kernel)
    # Those of the mirrored kernel from outputs to inputs: the first and the last change places.
    return _conv_winograd(g, [[k[u][v].T for v in (3, 1, 2, 0)] for u in (3, 1, 2, 0)], precision)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)
