"""Corner pooling, and the modules that CornerNet and the keypoint triplets build from it.

A top-left corner lies outside its object; what tells of it lies to the right and below.  Top pooling gives
every cell the maximum of its column from there down, left pooling that of its row from there on
(CornerNet, section 3.5); bottom and right pooling look the other way.  The triplet paper adds
cascade corner pooling, which looks inside the object as well, and centre pooling (its section 3.2).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kpjax.nn.convolution import Precision
from kpjax.nn.layers import Conv, ConvBN

Array = jax.Array

# direction -> (axis of NHWC, whether the maximum runs from the far end back)
DIRECTIONS = {"top": (1, True), "bottom": (1, False), "left": (2, True), "right": (2, False)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def corner_pool(x: Array, direction: str) -> Array:
    """The running maximum of a map along one direction.

    x: (B, h, w, C), any float dtype.  direction: "top" (cell y gets the maximum over rows y .. h - 1),
    "bottom" (rows 0 .. y), "left" (columns x .. w - 1) or "right" (columns 0 .. x).

    Each gradient goes to the cell that won; of equal cells that is the one met first along the scan, as in the
    original extension (golden: corner_pool_ops).  Plain differentiation would keep every stage of the
    scan; here one bit a cell is kept.
    """
    axis, reverse = DIRECTIONS[direction]
    return lax.associative_scan(jnp.maximum, x, axis=axis, reverse=reverse)


def _corner_pool_forward(x: Array, direction: str) -> tuple[Array, Array]:
    axis, reverse = DIRECTIONS[direction]
    y = corner_pool(x, direction)
    # A cell wins where it is greater than all that the scan met before it; the first cell always does.
    length = x.shape[axis]
    head, tail = (lax.slice_in_dim(a, b, b + length - 1, axis=axis) for a, b in ((x, 0), (x, 1)))
    won = head > lax.slice_in_dim(y, 1, length, axis=axis) if reverse else tail > lax.slice_in_dim(y, 0, -1, axis=axis)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, 1) if reverse else (1, 0)
    return y, jnp.pad(won, widths, constant_values=True)


def _corner_pool_backward(direction: str, won: Array, g: Array) -> tuple[Array]:
    """Each winner gets the sum over the cells from it to the one before the next winner, in float32."""
    axis, reverse = DIRECTIONS[direction]

    # Against the pooling's scan: from the end of each stretch to its winner; past a winner the sum starts anew.
    def join(far: tuple[Array, Array], near: tuple[Array, Array]) -> tuple[Array, Array]:
        (far_sum, far_new), (near_sum, near_new) = far, near
        return jnp.where(near_new, near_sum, far_sum + near_sum), far_new | near_new

    new = jnp.roll(won, 1 if reverse else -1, axis)
    total, _ = lax.associative_scan(join, (g.astype(jnp.float32), new), axis=axis, reverse=not reverse)
    return (jnp.where(won, total, 0.0).astype(g.dtype),)


corner_pool.defvjp(_corner_pool_forward, _corner_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def line_pool(x: Array, axis: int) -> Array:
    """The maximum of each whole column (axis 1) or row (axis 2), in every cell of it.

    x: (B, h, w, C).  This is bottom pooling of top pooling, or right of left, and like these it sends the
    gradients to the last of equal cells.
    """
    return jnp.broadcast_to(x.max(axis, keepdims=True), x.shape)


def _line_pool_forward(x: Array, axis: int) -> tuple[Array, Array]:
    winner = x.shape[axis] - 1 - jnp.argmax(jnp.flip(x, axis), axis, keepdims=True)
    return line_pool(x, axis), winner


def _line_pool_backward(axis: int, winner: Array, g: Array) -> tuple[Array]:
    total = g.astype(jnp.float32).sum(axis, keepdims=True).astype(g.dtype)
    return (jnp.where(lax.broadcasted_iota(winner.dtype, g.shape, axis) == winner, total, 0),)


line_pool.defvjp(_line_pool_forward, _line_pool_backward)


class Merge(nn.Module):
    """The end of all three modules: the pooled sum and a shortcut around it (CornerNet, figure 7).

    pooled (B, h, w, D), x (B, h, w, C) -> (B, h, w, C).
    """

    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, pooled: Array, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        features = x.shape[-1]
        pooled = ConvBN(features, relu=False, name="pooled", **options)(pooled, train)
        shortcut = ConvBN(features, 1, relu=False, name="shortcut", **options)(x, train)
        return ConvBN(features, name="out", **options)(nn.relu(pooled + shortcut), train)


class CornerPool(nn.Module):
    """CornerNet's module: (B, h, w, C) -> the same shape (golden: corner_pool_modules).

    directions: ("top", "left") or ("bottom", "right").  branch: channels of a pooled map.
    """

    directions: tuple[str, str]
    branch: int = 128
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        one = corner_pool(ConvBN(self.branch, name="branch1", **options)(x, train), self.directions[0])
        other = corner_pool(ConvBN(self.branch, name="branch2", **options)(x, train), self.directions[1])
        return Merge(name="merge", **options)(one + other, x, train)


class CascadeCornerPool(nn.Module):
    """The triplet paper's corner pooling, which looks along the border and then into the object.

    As CornerPool; before a branch is pooled along its direction, a map pooled along the other one
    is added to it (golden: cascade_center_pool_modules).
    """

    directions: tuple[str, str]
    branch: int = 128
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        pooled: Any = 0
        for number, (along, inward) in enumerate((self.directions, self.directions[::-1]), start=1):
            inside = corner_pool(ConvBN(self.branch, name=f"inside{number}", **options)(x, train), inward)
            y = ConvBN(self.branch, name=f"branch{number}", **options)(x, train) + inside
            along_conv = Conv(self.branch, dtype=self.dtype, precision=self.precision, name=f"along{number}")
            y = along_conv(y)  # bare: no BatchNorm, no ReLU
            pooled = pooled + corner_pool(y, along)
        return Merge(name="merge", **options)(pooled, x, train)


class CenterPool(nn.Module):
    """Centre pooling: the maximum of a cell's column plus that of its row (golden: cascade_center_pool_modules)."""

    branch: int = 128
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        column = line_pool(ConvBN(self.branch, name="branch1", **options)(x, train), 1)
        row = line_pool(ConvBN(self.branch, name="branch2", **options)(x, train), 2)
        return Merge(name="merge", **options)(column + row, x, train)
