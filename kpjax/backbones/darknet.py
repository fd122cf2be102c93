"""DarkNet-53 (Redmon and Farhadi 2018, arXiv 1804.02767, table 1), as TTFNet's program has it.

Parameter names follow the original: `stem`, `layer1_0` (the strided convolution of a stage), `layer1_1` ... (its
residual blocks, of `body0` and `body1`), each a `conv` with a `bn`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.convolution import Precision
from kpjax.nn.layers import ConvBN

Array = jax.Array

BLOCKS: dict[int, tuple[int, ...]] = {53: (1, 2, 8, 8, 4)}  # depth -> residual blocks of each stage


def leaky(x: Array) -> Array:
    """The activation of every convolution: ReLU with a slope of 0.1 below 0."""
    return nn.leaky_relu(x, 0.1)


class Residual(nn.Module):
    """A 1x1 convolution to half the channels and a 3x3 one back, both with activation, added to the input."""

    bn_groups: int
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        features = x.shape[-1]
        y = leaky(ConvBN(features // 2, kernel=1, relu=False, name="body0", **settings)(x, train))
        return x + leaky(ConvBN(features, relu=False, name="body1", **settings)(y, train))


class DarkNet(nn.Module):
    """The trunk without its classifier: (B, H, W, 3) -> maps of strides 4, 8, ..., of 4, 8, ... times `width` channels.

    depth: 53.  width: features at full resolution (32 in the paper).  stages: maps returned; 4 end at stride 32.
    remat: recompute each residual block's activations in the backward pass.
    """

    depth: int = 53
    width: int = 32
    stages: int = 4
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        block: Any = nn.remat(Residual, static_argnums=(2,)) if self.remat else Residual
        x = leaky(ConvBN(self.width, relu=False, name="stem", **settings)(images, train))
        maps = []
        for stage, count in enumerate(BLOCKS[self.depth][: self.stages + 1], start=1):
            down = ConvBN(self.width * 2**stage, stride=2, relu=False, name=f"layer{stage}_0", **settings)
            x = leaky(down(x, train))
            for i in range(1, count + 1):
                x = block(name=f"layer{stage}_{i}", **settings)(x, train)
            maps.append(x)
        return maps[1:]  # nothing reads the first one, of stride 2
