"""Name rules of DLA-34 checkpoints: xingyizhou's `dla_34` and `dlav0_34`, and ucbdrive's ImageNet classifier."""

from __future__ import annotations

from kpjax.convert.resnet import TRUNK, XINGYIZHOU_HEADS, XINGYIZHOU_HEADS_3D, XINGYIZHOU_POSE_HEADS, deform_conv
from kpjax.convert.rules import Rule, batch_norm, conv_kernel, depthwise_kernel

_NECK = "backbone/neck"


def _trunk(prefix: str = "") -> tuple[Rule, ...]:
    single = rf"{prefix}(base_layer|level[01])\."
    rules = [
        Rule(rf"{single}0\.weight", rf"params/{TRUNK}/\1/conv/kernel", conv_kernel),
        *batch_norm(rf"{single}1", rf"{TRUNK}/\1/bn"),
    ]
    # Trees of one level, and those inside trees of two.
    for tree, target in (
        (rf"{prefix}(level[25])\.", rf"{TRUNK}/\1/"),
        (rf"{prefix}(level[34])\.(tree[12])\.", rf"{TRUNK}/\1/\2/"),
    ):
        leaf, number = tree + r"(?P<leaf>tree[12])\.", r"(?P<number>[12])"
        rules += [
            Rule(rf"{leaf}conv{number}\.weight", rf"params/{target}\g<leaf>/conv\g<number>/kernel", conv_kernel),
            *batch_norm(rf"{leaf}bn{number}", rf"{target}\g<leaf>/bn\g<number>"),
            Rule(rf"{tree}root\.conv\.weight", f"params/{target}root/conv/kernel", conv_kernel),
            *batch_norm(rf"{tree}root\.bn", f"{target}root/bn"),
            Rule(rf"{tree}project\.0\.weight", f"params/{target}project_conv/kernel", conv_kernel),
            *batch_norm(rf"{tree}project\.1", f"{target}project_bn"),
        ]
    return (
        *rules,
        Rule(rf"{prefix}level[34]\.project\..*", drop="a projection whose result the original computes and never uses"),
        Rule(rf"{prefix}fc\.(weight|bias)", drop="the ImageNet classifier, which detection does not use"),
    )


_AGGREGATION = r"(?:dla_up\.)?(ida_\d|ida_up)\."
_STEP = _AGGREGATION + r"((?:proj|node)_\d)\."
_UP = Rule(rf"{_AGGREGATION}(up_\d)\.weight", rf"params/{_NECK}/\1/\2/kernel", depthwise_kernel)

XINGYIZHOU_DLA = (
    *_trunk(r"base\."),
    *deform_conv(rf"{_STEP}conv", rf"{_NECK}/\1/\2/conv", "conv_offset_mask"),
    *batch_norm(rf"{_STEP}actf\.0", rf"{_NECK}/\1/\2/bn"),
    _UP,
    *XINGYIZHOU_HEADS,
)

XINGYIZHOU_DLA_POSE = (*XINGYIZHOU_DLA, *XINGYIZHOU_POSE_HEADS)
XINGYIZHOU_DLA_3D = (*XINGYIZHOU_DLA, *XINGYIZHOU_HEADS_3D)

# Without deformable convolution: Sequentials of convolution, BatchNorm, ReLU.
XINGYIZHOU_DLAV0 = (
    *_trunk(r"base\."),
    Rule(rf"{_STEP}0\.weight", rf"params/{_NECK}/\1/\2/conv/kernel", conv_kernel),
    *batch_norm(rf"{_STEP}1", rf"{_NECK}/\1/\2/bn"),
    _UP,
    *XINGYIZHOU_HEADS,
)

IMAGENET_DLA = _trunk()
