"""Stacked hourglasses (Newell et al. 2016) as CornerNet changed them (its section 4.1).

A stem of stride 4, then each stack: down `depth` times by strided residual blocks, up again by nearest
neighbours, the skips added at each size.  The same network is used by CornerNet, the keypoint triplets,
xingyizhou's CenterNet and mmdetection.  CornerNet-Squeeze (arXiv 1904.08900, section 4) makes it cheap: a stem of
stride 8, fire modules in place of the stacks' residual blocks, and learned up-sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.convolution import Precision
from kpjax.nn.depthwise import DepthwiseConv
from kpjax.nn.layers import BatchNorm, Conv, ConvBN, ConvTranspose, bilinear_kernel_init

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


class Expand(nn.Module):
    """A fire module's second layer: half the channels from a 1x1 convolution, half from a depthwise 3x3 one.

    x: (B, H, W, features / 2).  One BatchNorm follows both.
    """

    features: int
    stride: int = 1
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"stride": self.stride, "dtype": self.dtype}
        wide = Conv(self.features // 2, kernel=1, precision=self.precision, name="pointwise", **options)(x)
        y = jnp.concatenate([wide, DepthwiseConv(name="depthwise", **options)(x)], axis=-1)
        return BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="bn")(y, train)


class Fire(nn.Module):
    """CornerNet-Squeeze's block: squeezed to half the channels, then expanded; no ReLU between, as in the original.

    The shortcut is there only where the block changes nothing of the map's shape.  features: even.
    """

    features: int
    stride: int = 1
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        y = ConvBN(self.features // 2, 1, relu=False, name="first", **options)(x, train)
        y = Expand(self.features, self.stride, name="second", **options)(y, train)
        return nn.relu(y + x if self.stride == 1 and x.shape[-1] == self.features else y)


class Hourglass(nn.Module):
    """One level and, inside it, the levels below: (B, h, w, features[0]) -> its map and those of the levels below.

    Each level's map is the sum of its skip and of what comes from below, (B, h, w, features[0]) of its own size; the
    deepest comes first, this level's last.
    features: channels of this level and of those below; blocks: residual blocks a path of each.  fire: they are fire
    modules, and up-sampling is learned.
    """

    features: Sequence[int]
    blocks: Sequence[int]
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None
    fire: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> list[Array]:
        block = _block(Fire if self.fire else Residual, self.remat)
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        here, below = self.features[:2]

        def path(x: Array, name: str, widths: Sequence[int], stride: int = 1) -> Array:
            for i, width in enumerate(widths):
                first = stride if i == 0 else 1
                x = block(width, first, name=f"{name}_{i}", **options)(x, train)
            return x

        skip = path(x, "skip", [here] * self.blocks[0])
        low = path(x, "down", [below] * self.blocks[0], stride=2)
        maps: list[Array] = []
        if len(self.features) > 2:
            variant: dict[str, Any] = {"remat": self.remat, "fire": self.fire}
            maps = Hourglass(self.features[1:], self.blocks[1:], name="inner", **variant, **options)(low, train)
            low = maps[-1]
        else:
            low = path(low, "inner", [below] * self.blocks[1])
        low = path(low, "up", [below] * (self.blocks[0] - 1) + [here])
        if self.fire:
            low = ConvTranspose(here, self.dtype, self.precision, bilinear_kernel_init, bias=True, name="double")(low)
        else:
            low = double(low)
        return [*maps, skip + low[:, : x.shape[1], : x.shape[2]]]  # an odd side was rounded up


class StackedHourglass(nn.Module):
    """Images (B, H, W, 3) -> a map (B, ceil(H / stride), ceil(W / stride), features[0]) a stack.

    features, blocks, fire: see Hourglass; the depth is one less than their number.  stem: channels of the 7x7
    convolution.  stacks: hourglasses one after another; each but the first reads the sum of the previous
    one's input and output.  remat: recompute each residual block in the backward pass.  stride: of the stem, 4 or 8.
    """

    features: Sequence[int] = (256, 256, 384, 384, 384, 512)
    blocks: Sequence[int] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None
    fire: bool = False
    stride: int = 4

    def __call__(self, images: Array, train: bool) -> list[Array]:
        return [out for out, _ in self.with_levels(images, train)]

    @nn.compact
    def with_levels(self, images: Array, train: bool) -> list[tuple[Array, list[Array]]]:
        """As calling it, and beside each stack's map those of its hourglass's levels, the deepest first."""
        width = self.features[0]
        residual = _block(Residual, self.remat)
        options: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        x = ConvBN(self.stem, 7, 2, name="stem", **options)(images.astype(self.dtype), train)
        x = residual(width, 2, name="stem_residual", **options)(x, train)
        if self.stride == 8:
            x = residual(width, 2, name="stem_residual2", **options)(x, train)
        variant: dict[str, Any] = {"remat": self.remat, "fire": self.fire}
        outputs = []
        for i in range(self.stacks):
            levels = Hourglass(self.features, self.blocks, name=f"hourglass{i}", **variant, **options)(x, train)
            outputs.append((ConvBN(width, name=f"out{i}", **options)(levels[-1], train), levels))
            if i < self.stacks - 1:
                seen = ConvBN(width, 1, relu=False, name=f"seen{i}", **options)(x, train)
                said = ConvBN(width, 1, relu=False, name=f"said{i}", **options)(outputs[-1][0], train)
                x = residual(width, 1, name=f"between{i}", **options)(nn.relu(seen + said), train)
        return outputs


def _block(block: Any, remat: bool) -> Any:
    return nn.remat(block, static_argnums=(2,)) if remat else block


def double(x: Array) -> Array:
    """Nearest-neighbour up-sampling by 2: (B, h, w, C) -> (B, 2 h, 2 w, C)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
