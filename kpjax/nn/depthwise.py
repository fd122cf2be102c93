"""A 3x3 convolution of each channel by itself, as a sum of nine shifted maps.

XLA's convolution of C groups takes some eight times longer on a CPU, four times with its gradients; the sum is one pass
over the map on every device.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# He et al. 2015: nine inputs an output.
_init = nn.initializers.normal((2 / 9) ** 0.5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_3x3(x: Array, kernel: Array, stride: int = 1) -> Array:
    """PyTorch's Conv2d(C, C, 3, stride, padding 1, groups C).  x (B, H, W, C), kernel (3, 3, C).

    Returns (B, ceil(H / stride), ceil(W / stride), C) of x's dtype; the sums are float32.
    """
    return _summed(x, kernel, stride)


def _summed(x: Array, kernel: Array, stride: int) -> Array:
    total = jnp.float32(0)
    for (u, v), tap in _taps(x, stride).items():
        total = total + tap * kernel[u, v].astype(jnp.float32)
    return total.astype(x.dtype)


def _taps(x: Array, stride: int) -> dict[tuple[int, int], Array]:
    """What each of the kernel's numbers is multiplied with: (row, column) -> (B, H', W', C) float32."""
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))

    def along(x: Array, start: int, axis: int, size: int) -> Array:
        last = start + stride * ((size - 1) // stride)
        return lax.slice_in_dim(x, start, last + 1, stride, axis)

    rows = {u: along(padded, u, 1, x.shape[1]) for u in range(3)}
    return {(u, v): along(row, v, 2, x.shape[2]) for u, row in rows.items() for v in range(3)}


def _saved(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _summed(x, kernel, stride), (x, kernel)


def _gradients(stride: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _summed(x, kernel, stride), x)(g)
    sums = [(tap * g.astype(jnp.float32)).sum((0, 1, 2)) for tap in _taps(x, stride).values()]
    return dx, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


depthwise_3x3.defvjp(_saved, _gradients)


class DepthwiseConv(nn.Module):
    """`depthwise_3x3` with a kernel of its own, without bias.  (B, H, W, C) -> (B, H', W', C) of `dtype`."""

    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _init, (3, 3, x.shape[-1]), jnp.float32)
        return depthwise_3x3(x.astype(self.dtype), kernel, self.stride)
