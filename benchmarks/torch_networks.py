"""The five networks that accelerator.py measures, in PyTorch: what kpjax's are compared with.

    network = build("centernet_dla34", num_classes=80)
    outputs = network(images)        (B, 3, H, W) -> [{head: (B, C, h, w)}], a dictionary a stack, kpjax's head names

The names of parameters are those of the authors' released checkpoints, so that `kpjax.import_torch` reads a network's
state dict; tests/benchmarks/test_torch_networks.py compares the heads.  Options are those of `kpjax.build`: width,
deconv, features, ...

Deformable convolution is torchvision's operation where torchvision can be imported, else `grid_sample` and a product
(`torch_layers.DEFORMABLE` says which).  Offsets are predicted in float32 under autocast too, as kpjax does.  Corner
pooling is `torch.cummax`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_hourglass import Outputs, Pool, StackedHourglass
from torch_layers import Block, DeformConv, conv_bn, plain_head

import kpjax

MODELS = ("centernet_r18", "centernet_dla34", "centernet_hg104", "cornernet_hg104", "triplet_hg104")

# The authors' names of CenterNet's heads -> ours.
CENTER = {"hm": "heatmap", "wh": "wh", "reg": "offset"}


class ResNet18(nn.Module):
    """CenterNet on ResNet-18 with three deconvolutions (xingyizhou's `res_18`)."""

    def __init__(self, num_classes: int, width: int, deconv: Sequence[int], head_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage in range(4):
            features = width * 2**stage
            first = Block(inputs, features, 2 if stage else 1, downsample=stage > 0)
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, Block(features, features, 1)))
            inputs = features
        steps: list[nn.Module] = []
        for features in deconv:
            steps += [nn.ConvTranspose2d(inputs, features, 4, 2, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
            inputs = features
        self.deconv_layers = nn.Sequential(*steps)
        for name, channels in {"hm": num_classes, "wh": 2, "reg": 2}.items():
            setattr(self, name, plain_head(inputs, head_channels, channels))

    def forward(self, images: Tensor) -> Outputs:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        x = self.deconv_layers(x)
        return [{ours: getattr(self, theirs)(x) for theirs, ours in CENTER.items()}]


class _Root(nn.Module):
    """The end of a tree: all its maps joined by a 1x1 convolution."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(inputs, features, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return functional.relu(self.bn(self.conv(torch.cat(list(maps), 1))))


class _Tree(nn.Module):
    """A tree of DLA with one level of leaves, or two.  more: channels of the maps that its root sees from outside."""

    def __init__(self, levels: int, inputs: int, features: int, stride: int, keep_input: bool, more: int = 0) -> None:
        super().__init__()
        self.levels, self.keep_input = levels, keep_input
        self.pool = nn.MaxPool2d(2) if stride > 1 else nn.Identity()
        more += inputs if keep_input else 0
        if levels > 1:
            self.tree1 = _Tree(levels - 1, inputs, features, stride, False)
            self.tree2 = _Tree(levels - 1, features, features, 1, False, more + features)
            return
        self.tree1, self.tree2 = Block(inputs, features, stride), Block(features, features, 1)
        self.root = _Root(2 * features + more, features)
        self.project = nn.Sequential(*conv_bn(inputs, features, 1)) if inputs != features else nn.Identity()

    def forward(self, x: Tensor, seen: Sequence[Tensor] = ()) -> Tensor:
        bottom = self.pool(x)
        seen = [*seen, bottom] if self.keep_input else [*seen]
        if self.levels > 1:
            x = self.tree1(x)
            return self.tree2(x, [*seen, x])
        first = self.tree1(x, self.project(bottom))
        return self.root([self.tree2(first, first), first, *seen])


class _DeformStep(nn.Module):
    """Deformable convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.conv = DeformConv(inputs, features)
        self.actf = nn.Sequential(nn.BatchNorm2d(features), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.actf(self.conv(x))


class _Aggregation(nn.Module):
    """Brings each map to the first one's size and adds it on; the result of each step.  factors: of the other maps."""

    def __init__(self, channels: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        features = channels[0]
        for i, (inputs, factor) in enumerate(zip(channels[1:], factors, strict=True), start=1):
            up = nn.ConvTranspose2d(features, features, 2 * factor, factor, factor // 2, groups=features, bias=False)
            setattr(self, f"proj_{i}", _DeformStep(inputs, features))
            setattr(self, f"up_{i}", up)
            setattr(self, f"node_{i}", _DeformStep(features, features))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        x, steps = maps[0], []
        for i, other in enumerate(maps[1:], start=1):
            up = getattr(self, f"up_{i}")(getattr(self, f"proj_{i}")(other))
            x = getattr(self, f"node_{i}")(x + up)
            steps.append(x)
        return steps


class _Trunk(nn.Module):
    """DLA-34 without its classifier: the maps of strides 4 to 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sides = [width * 2**stage for stage in range(6)]
        self.base_layer = nn.Sequential(*conv_bn(3, width, 7, relu=True))
        self.level0 = nn.Sequential(*conv_bn(width, sides[0], relu=True))
        self.level1 = nn.Sequential(*conv_bn(sides[0], sides[1], stride=2, relu=True))
        for stage, levels in ((2, 1), (3, 2), (4, 2), (5, 1)):
            setattr(self, f"level{stage}", _Tree(levels, sides[stage - 1], sides[stage], 2, keep_input=stage > 2))

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.level1(self.level0(self.base_layer(images))), []
        for stage in range(2, 6):
            x = getattr(self, f"level{stage}")(x)
            maps.append(x)
        return maps


class _Neck(nn.Module):
    """From the smallest map upwards, each is aggregated with all smaller ones; the results of strides 4, 8 and 16."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        for i, start in enumerate((2, 1, 0)):
            others = len(channels) - 1 - start
            # Those that were aggregated before have the size and channels of the next larger map.
            setattr(self, f"ida_{i}", _Aggregation([channels[start]] + [channels[start + 1]] * others, [2] * others))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps, results = list(maps), []
        for i, start in enumerate((2, 1, 0)):
            maps[start + 1 :] = getattr(self, f"ida_{i}")(maps[start:])
            results.insert(0, maps[-1])
        return results


class DLA34(nn.Module):
    """CenterNet on DLA-34 with modulated deformable convolution (xingyizhou's `dla_34`)."""

    def __init__(self, num_classes: int, width: int, head_channels: int) -> None:
        super().__init__()
        channels = [4 * width, 8 * width, 16 * width, 32 * width]
        self.base, self.dla_up = _Trunk(width), _Neck(channels)
        self.ida_up = _Aggregation(channels[:3], [2, 4])
        for name, count in {"hm": num_classes, "wh": 2, "reg": 2}.items():
            setattr(self, name, plain_head(channels[0], head_channels, count))

    def forward(self, images: Tensor) -> Outputs:
        x = self.ida_up(self.dla_up(self.base(images)))[-1]
        return [{ours: getattr(self, theirs)(x) for theirs, ours in CENTER.items()}]


def _hourglass(name: str, num_classes: int, config: Any) -> StackedHourglass:
    c = config
    groups: list[tuple[str, Any, dict[str, tuple[str, int]]]] = []
    if name == "centernet_hg104":
        channels = {"hm": num_classes, "wh": 2, "reg": 2}
        groups.append(("", None, {theirs: (CENTER[theirs], count) for theirs, count in channels.items()}))
    else:
        cascade = name == "triplet_hg104"
        for side, directions in (("tl", ("top", "left")), ("br", ("bottom", "right"))):
            pool = functools.partial(Pool, c.features[0], c.branch, directions, cascade)
            kinds = (("heats", "heat", num_classes), ("tags", "tag", 1), ("regrs", "off", 2))
            heads = {f"{side}_{theirs}": (f"{side}_{ours}", count) for theirs, ours, count in kinds}
            groups.append((side, pool, heads))
        if cascade:
            pool = functools.partial(Pool, c.features[0], c.branch, ("column", "row"))
            heads = {"ct_heats": ("center_heat", num_classes), "ct_regrs": ("center_off", 2)}
            groups.append(("ct", pool, heads))
    return StackedHourglass(c.features, c.blocks, c.stem, c.stacks, c.head_channels, groups)


def build(name: str, num_classes: int, **options: Any) -> nn.Module:
    """The network of `name`, one of `MODELS`, initialised by PyTorch.  options: those of `kpjax.build`."""
    config: Any = kpjax.build(name, num_classes, **options).net.config
    if name == "centernet_r18":
        return ResNet18(num_classes, config.width, config.deconv, config.head_channels)
    if name == "centernet_dla34":
        return DLA34(num_classes, config.width, config.head_channels)
    return _hourglass(name, num_classes, config)
