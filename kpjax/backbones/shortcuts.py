"""A trunk whose last map is up-sampled, its earlier ones joining by shortcuts (TTFNet, arXiv 1909.00700, figure 2).

Parameter names: `trunk`, and in `neck` `conv1`, `conv1_bn`, `shortcut1_0` ... of each step.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.backbones.darknet import DarkNet
from kpjax.backbones.resnet import ResNet
from kpjax.nn.convolution import Precision
from kpjax.nn.deform_conv import DeformConv
from kpjax.nn.layers import BatchNorm, Conv
from kpjax.nn.upsample import upsample_corners

Array = jax.Array

# Uniform within 1 / sqrt(9 C), as the original's deformable convolutions start.
uniform_by_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ShortcutNeck(nn.Module):
    """Steps of a convolution with BatchNorm and ReLU, bilinear up-sampling by 2, and the sum with a shortcut.

    features: channels of each step.  shortcuts: 3x3 convolutions of each step's shortcut, with ReLU between them; none
    follows the last, nor the sum, so that maps have negative values.  dcn: the step's convolution is a
    deformable one, with a bias as the original's; else an ordinary one.
    Takes the trunk's maps, (B, H / 4, W / 4, .) and on; returns the last step's, (B, h, w, features[-1]).
    """

    features: tuple[int, ...] = (256, 128, 64)
    shortcuts: tuple[int, ...] = (1, 2, 3)
    dcn: bool = True
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, maps: list[Array], train: bool) -> Array:
        settings: dict[str, Any] = {"dtype": self.dtype, "precision": self.precision}
        layer: Any = functools.partial(DeformConv, kernel_init=uniform_by_fan_in) if self.dcn else Conv
        x = maps[-1]
        for step, (features, convs) in enumerate(zip(self.features, self.shortcuts, strict=True), start=1):
            x = layer(features, name=f"conv{step}", **settings)(x)
            x = nn.relu(BatchNorm(groups=self.bn_groups, dtype=self.dtype, name=f"conv{step}_bn")(x, train))
            side = maps[-1 - step]
            for i in range(convs):
                side = nn.relu(side) if i else side
                side = Conv(features, bias=True, name=f"shortcut{step}_{i}", **settings)(side)
            x = upsample_corners(x) + side
        return x


class TrunkWithShortcuts(nn.Module):
    """Trunk and neck: images (B, H, W, 3) -> (B, h, w, C), of stride 2^(stages + 1 - steps of the neck).

    kind: "resnet" or "darknet", of `depth` and `width`.  stages: of the trunk; 4 end at stride 32, of which H and W are
    multiples.  features, shortcuts, dcn: see `ShortcutNeck`; fewer steps than stages.  max_width: as `ResNet` has it.
    """

    kind: str = "resnet"
    depth: int = 18
    width: int = 64
    stages: int = 4
    features: tuple[int, ...] = (256, 128, 64)
    shortcuts: tuple[int, ...] = (1, 2, 3)
    dcn: bool = True
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None
    max_width: int = 0

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        resnet = functools.partial(ResNet, every_stage=True, max_width=self.max_width)
        trunk: Any = DarkNet if self.kind == "darknet" else resnet
        trunk = trunk(self.depth, self.width, self.stages, remat=self.remat, name="trunk", **settings)
        neck = ShortcutNeck(self.features, self.shortcuts, self.dcn, name="neck", **settings)
        return neck(trunk(images.astype(self.dtype), train), train)
