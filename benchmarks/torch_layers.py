"""Layers of the networks in PyTorch: convolution with BatchNorm, heads, deformable convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    from torchvision.ops import deform_conv2d

    DEFORMABLE = "torchvision's deform_conv2d"
except (ImportError, RuntimeError):  # a torchvision for another torch fails as it registers its operations
    deform_conv2d = None
    DEFORMABLE = "grid_sample and a product (no torchvision)"


def conv_bn(inputs: int, features: int, kernel: int = 3, stride: int = 1, relu: bool = False) -> list[nn.Module]:
    """A convolution without bias, BatchNorm, and ReLU if asked for."""
    conv = nn.Conv2d(inputs, features, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(features), *([nn.ReLU()] if relu else [])]


class ConvBN(nn.Module):
    """Convolution, BatchNorm, ReLU, named `conv` and `bn`."""

    def __init__(self, inputs: int, features: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(inputs, features, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def plain_head(inputs: int, features: int, channels: int) -> nn.Sequential:
    """A head of the ResNets and of DLA: layers 0, 1 and 2."""
    return nn.Sequential(nn.Conv2d(inputs, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, channels, 1))


class _HeadConv(nn.Module):
    """3x3 convolution with bias, ReLU; the convolution is named `conv`."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x))


def stack_head(inputs: int, features: int, channels: int) -> nn.Sequential:
    """A head of an hourglass: layers 0.conv and 1."""
    return nn.Sequential(_HeadConv(inputs, features), nn.Conv2d(features, channels, 1))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ResNet's and DLA's."""

    def __init__(self, inputs: int, features: int, stride: int, downsample: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, features, 3, stride)
        self.conv2, self.bn2 = conv_bn(features, features)
        self.downsample = nn.Sequential(*conv_bn(inputs, features, 1, stride)) if downsample else None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + shortcut)


class DeformConv(nn.Module):
    """Modulated deformable 3x3 convolution whose offsets and mask a convolution of the same map predicts."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(features, inputs, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(features))
        self.conv_offset_mask = nn.Conv2d(inputs, 27, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            found = self.conv_offset_mask(x.float())
        offset, mask = found[:, :18], torch.sigmoid(found[:, 18:])
        if deform_conv2d is not None:
            return deform_conv2d(x, offset.to(x.dtype), self.weight, self.bias, padding=1, mask=mask.to(x.dtype))
        return deform_by_grid_sample(x, offset, mask, self.weight) + self.bias[:, None, None]


def deform_by_grid_sample(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """All taps' samples by one `grid_sample`, then one product.  As torchvision's operation with padding 1, no bias.

    x (B, C, h, w), offset (B, 18, h, w) of (dy, dx) a tap, mask (B, 9, h, w), weight (O, C, 3, 3).
    """
    batch, channels, height, width = x.shape
    taps = torch.arange(9, device=x.device).reshape(9, 1, 1)
    rows = torch.arange(height, device=x.device)[:, None] + taps // 3 - 1 + offset[:, 0::2]
    columns = torch.arange(width, device=x.device) + taps % 3 - 1 + offset[:, 1::2]
    # With align_corners=False cell i of n lies at (2 i + 1) / n - 1.
    places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    grid = places.reshape(batch, 9 * height, width, 2).to(x.dtype)
    samples = functional.grid_sample(x, grid, align_corners=False).reshape(batch, channels, 9, height, width)
    samples = samples * mask[:, None].to(x.dtype)
    return torch.einsum("bckhw,ock->bohw", samples, weight.flatten(2).to(x.dtype))
