"""Names and shapes of every released checkpoint, at any width: from the originals' definitions, not from our tables.

    file = released.arrays("triplet_hg52", classes=80)                  the released size
    file = released.arrays("triplet_hg52", classes=3, **SMALL["triplet_hg52"])    of a network built with these options

tests/golden/test_released_names.py compares the released sizes with the key lists of the authors' own programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

Key = tuple[str, tuple[int, ...]]
Keys = Iterator[Key]

_DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}
_RESNET = {"width": 8, "deconv": (8, 8, 8), "head_channels": 8}
_DLA = {"width": 4, "head_channels": 8}
_HOURGLASS = {"features": (4, 6, 8), "blocks": (2, 1, 2), "stem": 5, "head_channels": 7}
_CORNERS = {**_HOURGLASS, "branch": 3}
_TTF = {"width": 4, "neck": (8, 6, 4), "heatmap_channels": 6, "sides_channels": 5}
# Options of `kpjax.build` that make each model small; names and layouts do not depend on them.
SMALL: dict[str, dict[str, Any]] = {
    "centernet_r18": _RESNET,
    "centernet_r34": _RESNET,
    "centernet_r50": _RESNET,
    "centernet_r101": _RESNET,
    "centernet_r18_mmdet": _RESNET,
    "centernet_r18_dcn": _RESNET,
    "centernet_r101_dcn": _RESNET,
    "centernet_r18_dcn_mmdet": _RESNET,
    "centernet_dla34": _DLA,
    "centernet_dla34_nodcn": _DLA,
    "centernet_hg104": _HOURGLASS,
    "centernet_r18_pose": _RESNET,
    "centernet_dla34_pose": _DLA,
    "centernet_hg104_pose": _HOURGLASS,
    "centernet_r18_3d": _RESNET,
    "centernet_dla34_3d": _DLA,
    "cornernet_hg104": _CORNERS,
    "cornernet_hg104_mmdet": _CORNERS,
    "cornernet_squeeze": _CORNERS,
    "cornernet_saccade": {**_CORNERS, "features": (4, 6, 8, 10), "blocks": (2, 1, 2, 1), "view": 31},
    "triplet_hg52": _CORNERS,
    "triplet_hg104": _CORNERS,
    "ttfnet_r18": _TTF,
    "ttfnet_r34": _TTF,
    "ttfnet_d53": _TTF,
    "extremenet_hg104": _HOURGLASS,
}


def arrays(model: str, classes: int = 80, seed: int = 0, **options: Any) -> dict[str, np.ndarray]:
    """A state dict of small random numbers, with which activations stay of ordinary size, under the released names."""
    rng = np.random.default_rng(seed)
    state = {}
    for key, shape in keys(model, classes, **options):
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(7, np.int64)
        elif len(shape) == 4:
            state[key] = (rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        elif key.endswith("running_var"):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:  # a norm's weight is near one, all else near zero
            one = key.endswith("weight")
            state[key] = (one + rng.normal(0, 0.1, shape)).astype(np.float32)
    return state


def keys(model: str, classes: int = 80, **options: Any) -> Keys:
    """(name, shape) of each array.  options: as `kpjax.build` takes them.

    "cornernet_hg104_lite" is what CornerNet-Lite makes of `cornernet_hg104`.
    """
    if model.startswith("ttfnet"):
        return ttfnet(model.removeprefix("ttfnet_"), classes, **options)
    if "dla34" in model:
        return dla(model, classes, **options)
    if depth := re.fullmatch(r"centernet_r(\d+)(_dcn)?(_mmdet)?(?:_pose|_3d)?", model):
        return resnet(int(depth[1]), bool(depth[2]), bool(depth[3]), original_heads(model, classes), **options)
    squeeze = {"features": (256, 256, 384, 384, 512), "blocks": (2, 2, 2, 2, 4)}
    saccade = {"features": (256, 384, 384, 512), "blocks": (1, 1, 1, 1), "stacks": 3}
    by_name = {"cornernet_squeeze": squeeze, "cornernet_saccade": saccade, "triplet_hg52": {"stacks": 1}}
    sizes: Any = by_name.get(model, {})
    options = {key: value for key, value in options.items() if key not in ("view", "crops", "crops_at_once")}
    return hourglass_net(model, classes, **(sizes | options))


def norm(name: str, channels: int) -> Keys:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{leaf}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def conv(name: str, features: int, channels: int, size: int) -> Keys:
    yield f"{name}.weight", (features, channels, size, size)


def layer(convolution: str, bn: str, features: int, channels: int, size: int) -> Keys:
    yield from conv(convolution, features, channels, size)
    yield from norm(bn, features)


def deformable(name: str, features: int, channels: int, offsets: str = "conv_offset_mask") -> Keys:
    yield from conv(name, features, channels, 3)
    yield from conv(f"{name}.{offsets}", 27, channels, 3)
    yield f"{name}.{offsets}.bias", (27,)


def with_bias(name: str, features: int, channels: int, size: int) -> Keys:
    yield from conv(name, features, channels, size)
    yield f"{name}.bias", (features,)


# --- ResNets ------------------------------------------------------------------------------------------------


def trunk(blocks: tuple[int, ...], bottleneck: bool, width: int = 64) -> Keys:
    """torchvision's ResNet without its classifier."""
    yield from layer("conv1", "bn1", width, 3, 7)
    channels = width
    for stage, count in enumerate(blocks):
        features = width * 2**stage
        out = 4 * features if bottleneck else features
        for i in range(count):
            name, inner = f"layer{stage + 1}.{i}", channels
            sizes = (1, 3, 1) if bottleneck else (3, 3)
            outs = (features, features, out) if bottleneck else (features, features)
            for n, (size, to) in enumerate(zip(sizes, outs, strict=True), start=1):
                yield from layer(f"{name}.conv{n}", f"{name}.bn{n}", to, inner, size)
                inner = to
            if i == 0 and (stage > 0 or channels != out):
                yield from layer(f"{name}.downsample.0", f"{name}.downsample.1", out, channels, 1)
            channels = out


def resnet(
    depth: int,
    dcn: bool,
    mmdet: bool,
    outs: dict[str, int],
    width: int = 64,
    deconv: tuple[int, ...] = (),
    head_channels: int = 64,
) -> Keys:
    """xingyizhou's `res_*` and `resdcn_*`; mmdetection's `centernet_resnet18` with and without DCNv2."""
    blocks, bottleneck = _DEPTHS[depth]
    channels = width * 8 * (4 if bottleneck else 1)
    yield from ((("backbone." if mmdet else "") + key, shape) for key, shape in trunk(blocks, bottleneck, width))
    for step, features in enumerate(deconv or ((256, 128, 64) if dcn or mmdet else (256, 256, 256))):
        if mmdet:
            first, second = (f"neck.deconv_layers.{2 * step + i}" for i in (0, 1))
            if dcn:
                yield from deformable(f"{first}.conv", features, channels, "conv_offset")
                yield from norm(f"{first}.bn", features)
            else:
                yield from layer(f"{first}.conv", f"{first}.bn", features, channels, 3)
            yield from layer(f"{second}.conv", f"{second}.bn", features, features, 4)
        elif dcn:
            first = f"deconv_layers.{6 * step}"
            yield from deformable(first, features, channels)
            yield f"{first}.bias", (features,)
            yield from norm(f"deconv_layers.{6 * step + 1}", features)
            yield from layer(f"deconv_layers.{6 * step + 3}", f"deconv_layers.{6 * step + 4}", features, features, 4)
        else:  # a transposed convolution's weight has the input's channels first
            yield f"deconv_layers.{3 * step}.weight", (channels, features, 4, 4)
            yield from norm(f"deconv_layers.{3 * step + 1}", features)
        channels = features
    if mmdet:
        ours = {"hm": "heatmap", "wh": "wh", "reg": "offset"}
        outs = {f"bbox_head.{ours[name]}_head": out for name, out in outs.items()}
    yield from heads(outs, channels, head_channels)


def original_heads(model: str, classes: int) -> dict[str, int]:
    """xingyizhou's heads -> their channels, with 17 joints of a person."""
    boxes = {"hm": classes, "wh": 2, "reg": 2}
    if model.endswith("_pose"):
        return boxes | {"hps": 34, "hm_hp": 17, "hp_offset": 2}
    return boxes | {"dep": 1, "rot": 8, "dim": 3} if model.endswith("_3d") else boxes


def heads(outs: dict[str, int], channels: int, hidden: int) -> Keys:
    for name, out in outs.items():
        yield from with_bias(f"{name}.0", hidden, channels, 3)
        yield from with_bias(f"{name}.2", out, hidden, 1)


# --- DLA-34 -------------------------------------------------------------------------------------------------


def dla(model: str, classes: int, width: int = 16, head_channels: int = 256) -> Keys:
    """xingyizhou's `dla_34`, and `dlav0_34` without deformable convolution."""
    yield from ((f"base.{key}", shape) for key, shape in dla_trunk(width))
    yield from dla_neck(not model.endswith("nodcn"), width)
    yield from heads(original_heads(model, classes), 4 * width, head_channels)


def dla_trunk(width: int = 16) -> Keys:
    """ucbdrive's DLA-34 with its classifier."""
    yield from layer("base_layer.0", "base_layer.1", width, 3, 7)
    yield from layer("level0.0", "level0.1", width, width, 3)
    yield from layer("level1.0", "level1.1", 2 * width, width, 3)
    for stage, levels in ((2, 1), (3, 2), (4, 2), (5, 1)):
        yield from tree(f"level{stage}", levels, width * 2 ** (stage - 1), width * 2**stage, 0, stage > 2)
    yield from with_bias("fc", 1000, 32 * width, 1)


def tree(name: str, levels: int, channels: int, features: int, joined: int, keep_input: bool) -> Keys:
    """joined: channels that the root sees beside its two subtrees."""
    joined += channels if keep_input else 0
    if channels != features:
        yield from layer(f"{name}.project.0", f"{name}.project.1", features, channels, 1)
    if levels == 2:
        yield from tree(f"{name}.tree1", 1, channels, features, 0, False)
        yield from tree(f"{name}.tree2", 1, features, features, joined + features, False)
        return
    for leaf, inner in (("tree1", channels), ("tree2", features)):
        yield from layer(f"{name}.{leaf}.conv1", f"{name}.{leaf}.bn1", features, inner, 3)
        yield from layer(f"{name}.{leaf}.conv2", f"{name}.{leaf}.bn2", features, features, 3)
    yield from layer(f"{name}.root.conv", f"{name}.root.bn", features, 2 * features + joined, 1)


def dla_neck(dcn: bool, width: int = 16) -> Keys:
    steps = [("dla_up.ida_0", 16, (32,)), ("dla_up.ida_1", 8, (16, 16)), ("dla_up.ida_2", 4, (8, 8, 8))]
    for name, out, others in [*steps, *([("ida_up", 4, (8, 16))] if dcn else [])]:
        features = out * width
        for i, other in enumerate(others, start=1):
            factor = other // out if name == "ida_up" else 2
            for kind, channels in (("proj", other * width), ("node", features)):
                part = f"{name}.{kind}_{i}"
                if dcn:
                    yield from deformable(f"{part}.conv", features, channels)
                    yield f"{part}.conv.bias", (features,)
                    yield from norm(f"{part}.actf.0", features)
                else:
                    size, inner = (1, channels) if kind == "proj" else (3, 2 * channels)
                    yield from layer(f"{part}.0", f"{part}.1", features, inner, size)
            yield from conv(f"{name}.up_{i}", features, 1, 2 * factor)


# --- TTFNet -------------------------------------------------------------------------------------------------


def ttfnet(
    trunk_name: str,
    classes: int,
    width: int = 0,
    neck: tuple[int, int, int] = (256, 128, 64),
    heatmap_channels: int = 128,
    sides_channels: int = 64,
) -> Keys:
    """ZJULearning's `ttfnet_r18`, `ttfnet_r34` and `ttfnet_d53`."""
    dark = trunk_name == "d53"
    width = width or (32 if dark else 64)
    keys = darknet(width) if dark else trunk(_DEPTHS[int(trunk_name[1:])][0], False, width)
    yield from ((f"backbone.{key}", shape) for key, shape in keys)
    stages = [width * (4 if dark else 1) * 2**i for i in range(4)]
    channels = stages[3]
    for step, features in enumerate(neck):
        first = f"bbox_head.deconv_layers.{step}"
        yield from deformable(f"{first}.0", features, channels)
        yield f"{first}.0.bias", (features,)
        yield from norm(f"{first}.1", features)
        inner = stages[2 - step]
        for place in range(step + 1):
            yield from with_bias(f"bbox_head.shortcut_layers.{step}.layers.{2 * place}", features, inner, 3)
            inner = features
        channels = features
    for name, convs, hidden, out in (
        ("hm", 2, heatmap_channels, classes),
        ("wh", 1 if trunk_name == "r18" else 2, sides_channels, 4),
    ):
        inner = channels
        for i in range(convs):
            yield from with_bias(f"bbox_head.{name}.{i}.conv", hidden, inner, 3)
            inner = hidden
        yield from with_bias(f"bbox_head.{name}.{convs}", out, hidden, 1)


def darknet(width: int = 32) -> Keys:
    """DarkNet-53 of the same program."""
    yield from conv_bn("stem", width, 3)
    for stage, blocks in enumerate((1, 2, 8, 8, 4), start=1):
        features = width * 2**stage
        yield from conv_bn(f"layer{stage}.0", features, features // 2)
        for i in range(1, blocks + 1):
            yield from conv_bn(f"layer{stage}.{i}.body.0", features // 2, features, 1)
            yield from conv_bn(f"layer{stage}.{i}.body.1", features, features // 2)


# --- hourglasses --------------------------------------------------------------------------------------------


def hourglass_net(
    model: str,
    classes: int,
    features: tuple[int, ...] = (256, 256, 384, 384, 384, 512),
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4),
    stem: int = 128,
    stacks: int = 2,
    branch: int = 128,
    head_channels: int = 256,
) -> Keys:
    """princeton-vl's CornerNet, its CornerNet-Lite and mmdetection's, Duankaiwen's triplets, xingyizhou's `hourglass`
    and ExtremeNet."""
    mmdet, squeeze, width = model.endswith("mmdet"), model.endswith("squeeze"), features[0]
    saccade = model.endswith("saccade")
    lite = squeeze or saccade or model.endswith("lite")
    backbone = hourglass_backbone(mmdet, squeeze, features, blocks, stem, stacks)
    yield from ((f"hg.{key.replace('kps.', 'hgs.')}" if lite else key, shape) for key, shape in backbone)
    for i in range(stacks):
        if model.startswith("extremenet"):
            for name, out in {"heats": classes, "regrs": 2}.items():
                for point in ("t", "l", "b", "r", *(["ct"] if name == "heats" else [])):
                    yield from stack_head(f"{point}_{name}.{i}", out, width, head_channels, "1")
            continue
        if model.startswith("centernet"):
            for name, out in original_heads(model, classes).items():
                yield from stack_head(f"{name}.{i}", out, width, head_channels, "1")
            continue
        for side in ("tl", "br"):
            if mmdet:
                yield from mmdet_pool(f"bbox_head.{side}_pool.{i}", width, branch)
                for name, out in (("heat", classes), ("emb", 1), ("off", 2)):
                    yield from stack_head(f"bbox_head.{side}_{name}.{i}", out, width, head_channels, "1.conv")
            else:
                pools = f"{side}_{'modules' if lite else 'cnvs'}.{i}"
                yield from pool(pools, width, branch, cascade=model.startswith("triplet"))
                for name, out in (("heats", classes), ("tags", 1), ("offs" if lite else "regrs", 2)):
                    yield from stack_head(f"{side}_{name}.{i}", out, width, head_channels, "1", 1 if squeeze else 3)
        for level in range(len(features) - 1 if saccade else 0):  # the deepest level's attention map first
            yield from stack_head(
                f"att_modules.{i}.{level}", 1, features[len(features) - 2 - level], head_channels, "1"
            )
        if model.startswith("triplet"):
            yield from pool(f"ct_cnvs.{i}", width, branch, cascade=False)
            yield from stack_head(f"ct_heats.{i}", classes, width, head_channels, "1")
            yield from stack_head(f"ct_regrs.{i}", 2, width, head_channels, "1")


def hourglass_backbone(
    mmdet: bool, squeeze: bool, features: tuple[int, ...], blocks: tuple[int, ...], stem: int, stacks: int
) -> Keys:
    width, skip = features[0], "downsample" if mmdet else "skip"
    yield from conv_bn("backbone.stem.0" if mmdet else "pre.0", stem, 3, 7)
    yield from residual("backbone.stem.1.0" if mmdet else "pre.1", width, stem, skip, stride=2)
    if squeeze:
        yield from residual("pre.2", width, width, skip, stride=2)
    for i in range(stacks):
        name = f"backbone.hourglass_modules.{i}" if mmdet else f"kps.{i}"
        yield from hourglass(name, features, blocks, skip, squeeze)
        yield from conv_bn(f"backbone.out_convs.{i}" if mmdet else f"cnvs.{i}", width, width)
    for i in range(stacks - 1):
        yield from residual(f"backbone.inters.{i}" if mmdet else f"inters.{i}", width, width, skip)
        if mmdet:
            yield from conv_bn(f"backbone.conv1x1s.{i}", width, width, 1)
            yield from conv_bn(f"backbone.remap_convs.{i}", width, width, 1)
        else:
            yield from layer(f"inters_.{i}.0", f"inters_.{i}.1", width, width, 1)
            yield from layer(f"cnvs_.{i}.0", f"cnvs_.{i}.1", width, width, 1)


def conv_bn(name: str, out: int, inner: int, size: int = 3) -> Keys:
    return layer(f"{name}.conv", f"{name}.bn", out, inner, size)


def residual(name: str, out: int, inner: int, skip: str, stride: int = 1) -> Keys:
    yield from layer(f"{name}.conv1", f"{name}.bn1", out, inner, 3)
    yield from layer(f"{name}.conv2", f"{name}.bn2", out, out, 3)
    if stride != 1 or out != inner:
        yield from layer(f"{name}.{skip}.0", f"{name}.{skip}.1", out, inner, 1)


def fire(name: str, out: int, inner: int, skip: str, stride: int = 1) -> Keys:
    """CornerNet-Squeeze's block, which has no shortcut of its own."""
    yield from layer(f"{name}.conv1", f"{name}.bn1", out // 2, inner, 1)
    yield from conv(f"{name}.conv_1x1", out // 2, out // 2, 1)
    yield from conv(f"{name}.conv_3x3", out // 2, 1, 3)
    yield from norm(f"{name}.bn2", out)


def hourglass(name: str, widths: tuple[int, ...], blocks: tuple[int, ...], skip: str, squeeze: bool = False) -> Keys:
    block = fire if squeeze else residual
    here, below = widths[:2]
    for i in range(blocks[0]):
        yield from block(f"{name}.up1.{i}", here, here, skip)
        yield from block(f"{name}.low1.{i}", below, below if i else here, skip, stride=1 if i else 2)
        last = i == blocks[0] - 1
        yield from block(f"{name}.low3.{i}", here if last else below, below, skip)
    if squeeze:
        yield f"{name}.up2.weight", (here, here, 4, 4)
        yield f"{name}.up2.bias", (here,)
    if len(widths) > 2:
        yield from hourglass(f"{name}.low2", widths[1:], blocks[1:], skip, squeeze)
    else:
        for i in range(blocks[1]):
            yield from block(f"{name}.low2.{i}", below, below, skip)


def pool(name: str, width: int, branch: int, cascade: bool) -> Keys:
    for way in (1, 2):
        yield from conv_bn(f"{name}.p{way}_conv1", branch, width)
        if cascade:
            yield from conv_bn(f"{name}.look_conv{way}", branch, width)
            yield from conv(f"{name}.P{way}_look_conv", branch, branch, 3)
    yield from layer(f"{name}.p_conv1", f"{name}.p_bn1", width, branch, 3)
    yield from layer(f"{name}.conv1", f"{name}.bn1", width, width, 1)
    yield from conv_bn(f"{name}.conv2", width, width)


def mmdet_pool(name: str, width: int, branch: int) -> Keys:
    for way in (1, 2):
        yield from conv_bn(f"{name}.direction{way}_conv", branch, width)
    yield from conv_bn(f"{name}.aftpool_conv", width, branch)
    yield from conv_bn(f"{name}.conv1", width, width, 1)
    yield from conv_bn(f"{name}.conv2", width, width)


def stack_head(name: str, out: int, width: int, hidden: int, last: str, size: int = 3) -> Keys:
    yield from with_bias(f"{name}.0.conv", hidden, width, size)
    yield from with_bias(f"{name}.{last}", out, hidden, 1)
