"""ResNet with a three-step deconvolution neck (Xiao et al. 2018; Objects as Points, section 5).

Parameter names follow the originals: `conv1`, `bn1`, `layer1_0` ... in `trunk`, and
`conv1`, `conv1_bn`, `deconv1`, `deconv1_bn` ... in `neck`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.nn.convolution import Precision
from kpjax.nn.deform_conv import DeformConv
from kpjax.nn.layers import BatchNorm, Conv, ConvTranspose, bilinear_kernel_init, max_pool_3x3_stride2

Array = jax.Array

# depth -> (blocks of each stage, bottleneck blocks?)
STAGES: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    features: int
    stride: int
    bn_groups: int
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype, precision=self.precision)
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        y = conv(self.features, stride=self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train))
        y = conv(self.features, name="conv2")(y)
        y = norm(name="bn2")(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, kernel=1, stride=self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as torchvision's does) and 1x1 to four times the features."""

    features: int
    stride: int
    bn_groups: int
    dtype: Any
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype, precision=self.precision)
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(conv(self.features, kernel=1, name="conv1")(x), train))
        y = conv(self.features, stride=self.stride, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = conv(4 * self.features, kernel=1, name="conv3")(y)
        y = norm(name="bn3")(y, train)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = conv(4 * self.features, kernel=1, stride=self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The trunk without its classifier: (B, H, W, 3) -> (B, H / 32, W / 32, 8 width or 32 width).

    depth: 18, 34, 50 or 101.  width: features of the first stage (64 in the paper).
    stages: fewer than 4 stop at stride 16 (3) or 8 (2), which suits small images.
    max_width: no stage has more features than this, before the fourfold ones of a bottleneck; 0: no bound.
    remat: recompute each block's activations in the backward pass.
    every_stage: return the list of all stages' maps, from stride 4 on, instead of the last one.
    """

    depth: int = 18
    width: int = 64
    stages: int = 4
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None
    every_stage: bool = False
    max_width: int = 0

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Any:
        blocks, bottleneck = STAGES[self.depth]
        block: Any = Bottleneck if bottleneck else BasicBlock
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))
        conv = Conv(self.width, kernel=7, stride=2, padding=3, dtype=self.dtype, precision=self.precision, name="conv1")
        x = conv(images)
        x = nn.relu(BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="bn1")(x, train))
        x = max_pool_3x3_stride2(x)
        maps = []
        for stage, count in enumerate(blocks[: self.stages]):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                features = min(self.width * 2**stage, self.max_width or self.width * 2**stage)
                settings = (self.bn_groups, self.dtype, self.precision)
                x = block(features, stride, *settings, name=f"layer{stage + 1}_{i}")(x, train)
            maps.append(x)
        return maps if self.every_stage else x


class DeconvNeck(nn.Module):
    """Up-sampling steps, each by 2: from the trunk's stride (32 for the released three) to 4.

    features: channels of each step.  conv: a 3x3 convolution before each deconvolution, as
    mmdetection's CTResNetNeck has (golden: fwd_mmdet_centernet_r18).  dcn: that convolution is a
    deformable one; dcn_bias: with a bias, as xingyizhou's, not mmdetection's.
    """

    features: tuple[int, ...] = (256, 256, 256)
    conv: bool = False
    dcn: bool = False
    dcn_bias: bool = True
    bn_groups: int = 1
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        settings: dict[str, Any] = {"dtype": self.dtype, "precision": self.precision}
        for i, features in enumerate(self.features, start=1):
            if self.conv or self.dcn:
                layer: Any = functools.partial(DeformConv, bias=self.dcn_bias) if self.dcn else Conv
                x = layer(features, name=f"conv{i}", **settings)(x)
                x = nn.relu(norm(name=f"conv{i}_bn")(x, train))
            x = ConvTranspose(features, kernel_init=bilinear_kernel_init, name=f"deconv{i}", **settings)(x)
            x = nn.relu(norm(name=f"deconv{i}_bn")(x, train))
        return x


class ResNetDeconv(nn.Module):
    """Trunk and neck: images (B, H, W, 3) -> [(B, H / 4, W / 4, C)].

    The trunk has one stage more than the neck has steps: H and W are multiples of 32 for three steps.
    """

    depth: int = 18
    width: int = 64
    deconv: tuple[int, ...] = (256, 256, 256)
    neck_conv: bool = False
    dcn: bool = False
    dcn_bias: bool = True
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32
    precision: Precision = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        settings: dict[str, Any] = {"bn_groups": self.bn_groups, "dtype": self.dtype, "precision": self.precision}
        stages = len(self.deconv) + 1
        trunk = ResNet(self.depth, self.width, stages, remat=self.remat, name="trunk", **settings)
        neck = DeconvNeck(self.deconv, self.neck_conv, self.dcn, self.dcn_bias, name="neck", **settings)
        return [neck(trunk(images.astype(self.dtype), train), train)]
