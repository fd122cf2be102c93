"""Stacked hourglasses with corner pooling, in PyTorch, in the names of the authors' checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch_layers import ConvBN, conv_bn, stack_head

Outputs = list[dict[str, Tensor]]


class Residual(nn.Module):
    """An hourglass's block: two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, features, 3, stride)
        self.conv2, self.bn2 = conv_bn(features, features)
        changed = stride != 1 or inputs != features
        self.skip = nn.Sequential(*conv_bn(inputs, features, 1, stride)) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.skip(x))


def _path(widths: Sequence[int], stride: int = 1) -> nn.Sequential:
    """Residual blocks from widths[0] to widths[1] and on."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(Residual(a, b, stride if i == 0 else 1) for i, (a, b) in enumerate(pairs)))


class Hourglass(nn.Module):
    """One level and those below it."""

    def __init__(self, features: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        here, below, count = features[0], features[1], blocks[0]
        self.up1 = _path([here] * (count + 1))
        self.low1 = _path([here] + [below] * count, stride=2)
        deeper = len(features) > 2
        self.low2 = Hourglass(features[1:], blocks[1:]) if deeper else _path([below] * (blocks[1] + 1))
        self.low3 = _path([below] * count + [here])

    def forward(self, x: Tensor) -> Tensor:
        low = functional.interpolate(self.low3(self.low2(self.low1(x))), scale_factor=2, mode="nearest")
        return self.up1(x) + low[:, :, : x.shape[2], : x.shape[3]]


def corner_pool(x: Tensor, direction: str) -> Tensor:
    """The running maximum from the side opposite to `direction` on, as kpjax.nn.pooling's."""
    axis = 2 if direction in ("top", "bottom") else 3
    if direction in ("bottom", "right"):
        return x.cummax(axis)[0]
    return x.flip(axis).cummax(axis)[0].flip(axis)


class Pool(nn.Module):
    """The module before a group of heads: corner pooling, cascade corner pooling, or centre pooling ("column", "row").

    directions: of its two branches.
    """

    def __init__(self, channels: int, branch: int, directions: tuple[str, str], cascade: bool = False) -> None:
        super().__init__()
        self.directions, self.cascade = directions, cascade
        self.p1_conv1, self.p2_conv1 = ConvBN(channels, branch), ConvBN(channels, branch)
        if cascade:
            self.look_conv1, self.look_conv2 = ConvBN(channels, branch), ConvBN(channels, branch)
            self.P1_look_conv = nn.Conv2d(branch, branch, 3, padding=1, bias=False)
            self.P2_look_conv = nn.Conv2d(branch, branch, 3, padding=1, bias=False)
        self.p_conv1, self.p_bn1 = conv_bn(branch, channels)
        self.conv1, self.bn1 = conv_bn(channels, channels, 1)
        self.conv2 = ConvBN(channels, channels)

    def _branch(self, number: int, x: Tensor) -> Tensor:
        along, inward = self.directions if number == 1 else self.directions[::-1]
        y = getattr(self, f"p{number}_conv1")(x)
        if along in ("column", "row"):
            return y.amax(2 if along == "column" else 3, keepdim=True).expand_as(y)
        if self.cascade:
            y = y + corner_pool(getattr(self, f"look_conv{number}")(x), inward)
            y = getattr(self, f"P{number}_look_conv")(y)
        return corner_pool(y, along)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.p_bn1(self.p_conv1(self._branch(1, x) + self._branch(2, x)))
        return self.conv2(functional.relu(pooled + self.bn1(self.conv1(x))))


class StackedHourglass(nn.Module):
    """Hourglasses one after another, each with its heads.

    groups: of heads that read one map: the prefix of their names ("" where there is no pooling), the pooling module's
    builder or None, and {the authors' name: (ours, channels)}.
    """

    def __init__(
        self,
        features: Sequence[int],
        blocks: Sequence[int],
        stem: int,
        stacks: int,
        head_channels: int,
        groups: Sequence[tuple[str, Any, dict[str, tuple[str, int]]]],
    ) -> None:
        super().__init__()
        width, self.stacks = features[0], stacks
        self.pre = nn.Sequential(ConvBN(3, stem, 7, 2), Residual(stem, width, 2))
        self.kps = nn.ModuleList(Hourglass(features, blocks) for _ in range(stacks))
        self.cnvs = nn.ModuleList(ConvBN(width, width) for _ in range(stacks))
        for name in ("inters_", "cnvs_"):
            layers = (nn.Sequential(*conv_bn(width, width, 1)) for _ in range(stacks - 1))
            setattr(self, name, nn.ModuleList(layers))
        self.inters = nn.ModuleList(Residual(width, width) for _ in range(stacks - 1))
        self.groups = [
            (name, tuple((theirs, ours) for theirs, (ours, _) in heads.items())) for name, _, heads in groups
        ]
        for name, pool, heads in groups:
            if pool is not None:
                setattr(self, f"{name}_cnvs", nn.ModuleList(pool() for _ in range(stacks)))
            for theirs, (_, channels) in heads.items():
                of_stacks = (stack_head(width, head_channels, channels) for _ in range(stacks))
                setattr(self, theirs, nn.ModuleList(of_stacks))

    def forward(self, images: Tensor) -> Outputs:
        x, outputs = self.pre(images), []
        for i in range(self.stacks):
            y = self.cnvs[i](self.kps[i](x))
            maps = {}
            for name, heads in self.groups:
                read = getattr(self, f"{name}_cnvs")[i](y) if name else y
                maps |= {ours: getattr(self, theirs)[i](read) for theirs, ours in heads}
            outputs.append(maps)
            if i < self.stacks - 1:
                x = self.inters[i](functional.relu(self.inters_[i](x) + self.cnvs_[i](y)))
        return outputs
