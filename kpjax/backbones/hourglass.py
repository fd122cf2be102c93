"""Stacked hourglasses (Newell et al. 2016) as CornerNet changed them (its section 4.1).

A stem of stride 4, then each stack: down `depth` times by strided residual blocks, up again by nearest
neighbours, the skips added at each size.  The same network is used by CornerNet, the keypoint triplets,
xingyizhou's CenterNet and mmdetection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.convolution import Precision
from kpjax.nn.layers import BatchNorm, Conv, ConvBN

Array = jax.Array


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where stride or channels change."""

    features: int
    stride: int = 1
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"dtype": self.dtype, "precision": self.precision}
        y = ConvBN(self.features, 3, self.stride, bn_groups=self.bn_groups, name="first", **options)(x, train)
        y = ConvBN(self.features, relu=False, bn_groups=self.bn_groups, name="second", **options)(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, stride=self.stride, name="skip_conv", **options)(x)
            x = BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="skip_bn")(x, train)
        return nn.relu(x + y)


class Hourglass(nn.Module):
    """One level and, inside it, the levels below: (B, h, w, features[0]) -> its map and those of the levels below.

    Each level's map is the sum of its skip and of what comes from below, (B, h, w, features[0]) of its own size; the
    deepest comes first, this level's last.
    features: channels of this level and of those below; blocks: residual blocks a path of each.
    """

    features: Sequence[int]
    blocks: Sequence[int]
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> list[Array]:
        residual = _residual(self.remat)
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        here, below = self.features[:2]

        def path(x: Array, name: str, widths: Sequence[int], stride: int = 1) -> Array:
            for i, width in enumerate(widths):
                first = stride if i == 0 else 1
                x = residual(width, first, name=f"{name}_{i}", **options)(x, train)
            return x

        skip = path(x, "skip", [here] * self.blocks[0])
        low = path(x, "down", [below] * self.blocks[0], stride=2)
        maps: list[Array] = []
        if len(self.features) > 2:
            inner = Hourglass(self.features[1:], self.blocks[1:], remat=self.remat, name="inner", **options)
            maps = inner(low, train)
            low = maps[-1]
        else:
            low = path(low, "inner", [below] * self.blocks[1])
        low = path(low, "up", [below] * (self.blocks[0] - 1) + [here])
        return [*maps, skip + double(low)[:, : x.shape[1], : x.shape[2]]]  # an odd side was rounded up


class StackedHourglass(nn.Module):
    """Images (B, H, W, 3) -> a map (B, ceil(H / 4), ceil(W / 4), features[0]) a stack.

    features, blocks: see Hourglass; the depth is one less than their number.  stem: channels of the 7x7
    convolution.  stacks: hourglasses one after another; each but the first reads the sum of the previous
    one's input and output.  remat: recompute each residual block in the backward pass.
    """

    features: Sequence[int] = (256, 256, 384, 384, 384, 512)
    blocks: Sequence[int] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    def __call__(self, images: Array, train: bool) -> list[Array]:
        return [out for out, _ in self.with_levels(images, train)]

    @nn.compact
    def with_levels(self, images: Array, train: bool) -> list[tuple[Array, list[Array]]]:
        """As calling it, and with each stack's map those of its hourglass's levels, the deepest first."""
        width = self.features[0]
        residual = _residual(self.remat)
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        x = ConvBN(self.stem, 7, 2, name="stem", **options)(images.astype(self.dtype), train)
        x = residual(width, 2, name="stem_residual", **options)(x, train)
        outputs = []
        for i in range(self.stacks):
            levels = Hourglass(self.features, self.blocks, remat=self.remat, name=f"hourglass{i}", **options)(x, train)
            outputs.append((ConvBN(width, name=f"out{i}", **options)(levels[-1], train), levels))
            if i < self.stacks - 1:
                seen = ConvBN(width, 1, relu=False, name=f"seen{i}", **options)(x, train)
                said = ConvBN(width, 1, relu=False, name=f"said{i}", **options)(outputs[-1][0], train)
                x = residual(width, 1, name=f"between{i}", **options)(nn.relu(seen + said), train)
        return outputs


def _residual(remat: bool) -> Any:
    return nn.remat(Residual, static_argnums=(2,)) if remat else Residual


def double(x: Array) -> Array:
    """Nearest-neighbour up-sampling by 2: (B, h, w, C) -> (B, 2 h, 2 w, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
