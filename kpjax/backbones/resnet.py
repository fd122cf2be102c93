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

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        y = norm(name="bn2")(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, stride=self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as torchvision's does) and 1x1 to four times the features."""

    features: int
    stride: int
    bn_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(Conv(self.features, kernel=1, dtype=self.dtype, name="conv1")(x), train))
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = Conv(4 * self.features, kernel=1, dtype=self.dtype, name="conv3")(y)
        y = norm(name="bn3")(y, train)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = Conv(4 * self.features, kernel=1, stride=self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The trunk without its classifier: (B, H, W, 3) -> (B, H / 32, W / 32, 8 width or 32 width).

    depth: 18, 34, 50 or 101.  width: features of the first stage (64 in the paper).
    stages: fewer than 4 stop at stride 16 (3) or 8 (2), which suits small images.
    remat: recompute each block's activations in the backward pass.
    """

    depth: int = 18
    width: int = 64
    stages: int = 4
    bn_groups: int = 1
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        blocks, bottleneck = STAGES[self.depth]
        block: Any = Bottleneck if bottleneck else BasicBlock
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))
        x = Conv(self.width, kernel=7, stride=2, padding=3, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(BatchNorm(groups=self.bn_groups, dtype=self.dtype, name="bn1")(x, train))
        x = max_pool_3x3_stride2(x)
        for stage, count in enumerate(blocks[: self.stages]):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                features = self.width * 2**stage
                x = block(features, stride, self.bn_groups, self.dtype, name=f"layer{stage + 1}_{i}")(x, train)
        return x


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

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(BatchNorm, groups=self.bn_groups, dtype=self.dtype)
        for i, features in enumerate(self.features, start=1):
            if self.conv or self.dcn:
                layer: Any = functools.partial(DeformConv, bias=self.dcn_bias) if self.dcn else Conv
                x = layer(features, dtype=self.dtype, name=f"conv{i}")(x)
                x = nn.relu(norm(name=f"conv{i}_bn")(x, train))
            x = ConvTranspose(features, dtype=self.dtype, kernel_init=bilinear_kernel_init, name=f"deconv{i}")(x)
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

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        trunk = ResNet(
            self.depth, self.width, len(self.deconv) + 1, self.bn_groups, self.remat, self.dtype, name="trunk"
        )
        neck = DeconvNeck(self.deconv, self.neck_conv, self.dcn, self.dcn_bias, self.bn_groups, self.dtype, name="neck")
        return [neck(trunk(images.astype(self.dtype), train), train)]
