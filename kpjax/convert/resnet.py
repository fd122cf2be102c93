"""Name rules of ResNet checkpoints: xingyizhou's `res_*` and `resdcn_*`, mmdetection's `centernet_r18*`,
torchvision and timm.

All four name the trunk as torchvision does; necks and heads differ.  The tables fit every depth.
"""

from __future__ import annotations

import numpy as np

from kpjax.convert.rules import Rule, batch_norm, conv_kernel

TRUNK = "backbone/trunk"  # where the trunk lies in our networks
_NECK = "backbone/neck"


def deconv_kernel(kernel: np.ndarray) -> np.ndarray:
    """A transposed convolution's kernel from PyTorch's (in, out, kh, kw) to (kh, kw, in, out), not mirrored."""
    return kernel.transpose(2, 3, 0, 1)


def resnet_trunk(prefix: str = "") -> tuple[Rule, ...]:
    """torchvision's ResNet without its classifier, its keys behind `prefix` (a regular expression)."""
    block, target = prefix + r"layer(\d)\.(\d+)\.", TRUNK + r"/layer\1_\2/"
    return (
        Rule(rf"{prefix}conv1\.weight", f"params/{TRUNK}/conv1/kernel", conv_kernel),
        *batch_norm(rf"{prefix}bn1", f"{TRUNK}/bn1"),
        Rule(rf"{block}conv(\d)\.weight", rf"params/{target}conv\3/kernel", conv_kernel),
        *batch_norm(rf"{block}bn(\d)", rf"{target}bn\3"),
        Rule(rf"{block}downsample\.0\.weight", f"params/{target}downsample_conv/kernel", conv_kernel),
        *batch_norm(rf"{block}downsample\.1", f"{target}downsample_bn"),
    )


def deform_conv(source: str, target: str, offsets: str) -> tuple[Rule, ...]:
    """The rules of a modulated deformable convolution.  offsets: the name of the convolution that predicts them."""
    return (
        Rule(rf"{source}\.weight", f"params/{target}/kernel", conv_kernel),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
        Rule(rf"{source}\.{offsets}\.weight", f"params/{target}/offset/kernel", conv_kernel),
        Rule(rf"{source}\.{offsets}\.bias", f"params/{target}/offset/bias"),
    )


def head(source: str, head: str) -> tuple[Rule, ...]:
    """A 3x3 convolution, ReLU and a 1x1 convolution in a Sequential."""
    return tuple(
        rule
        for number, layer in ((0, "conv"), (2, "out"))
        for rule in (
            Rule(rf"{source}\.{number}\.weight", f"params/heads/{head}_{layer}/kernel", conv_kernel),
            Rule(rf"{source}\.{number}\.bias", f"params/heads/{head}_{layer}/bias"),
        )
    )


def _deconv(source: str, number: int, step: int) -> tuple[Rule, ...]:
    """A transposed convolution and its BatchNorm, the next in their Sequential."""
    return (
        Rule(rf"{source}\.{number}\.weight", f"params/{_NECK}/deconv{step}/kernel", deconv_kernel),
        *batch_norm(rf"{source}\.{number + 1}", f"{_NECK}/deconv{step}_bn"),
    )


XINGYIZHOU_HEADS = (*head("hm", "heatmap"), *head("wh", "wh"), *head("reg", "offset"))
# multi_pose: theirs -> ours
POSE_HEADS = {"hps": "keypoint_offset", "hm_hp": "joint_heatmap", "hp_offset": "joint_offset"}
XINGYIZHOU_POSE_HEADS = tuple(rule for theirs, ours in POSE_HEADS.items() for rule in head(theirs, ours))
# ddd: theirs -> ours
HEADS_3D = {"dep": "depth", "rot": "rotation", "dim": "size3d"}
XINGYIZHOU_HEADS_3D = tuple(rule for theirs, ours in HEADS_3D.items() for rule in head(theirs, ours))
_CLASSIFIER = Rule(r"fc\.(weight|bias)", drop="the ImageNet classifier, which detection does not use")

# One Sequential of (deconvolution, BatchNorm, ReLU) three times.
XINGYIZHOU_RESNET = (
    *resnet_trunk(),
    *(rule for step in (1, 2, 3) for rule in _deconv("deconv_layers", 3 * (step - 1), step)),
    *XINGYIZHOU_HEADS,
    _CLASSIFIER,
)

XINGYIZHOU_RESNET_POSE = (*XINGYIZHOU_RESNET, *XINGYIZHOU_POSE_HEADS)
XINGYIZHOU_RESNET_3D = (*XINGYIZHOU_RESNET, *XINGYIZHOU_HEADS_3D)

# The same with (deformable convolution, BatchNorm, ReLU) before each.
XINGYIZHOU_RESNET_DCN = (
    *resnet_trunk(),
    *(
        rule
        for step in (1, 2, 3)
        for rule in (
            *deform_conv(rf"deconv_layers\.{6 * (step - 1)}", f"{_NECK}/conv{step}", "conv_offset_mask"),
            *batch_norm(rf"deconv_layers\.{6 * (step - 1) + 1}", f"{_NECK}/conv{step}_bn"),
            *_deconv("deconv_layers", 6 * (step - 1) + 3, step),
        )
    ),
    *XINGYIZHOU_HEADS,
    _CLASSIFIER,
)


def _mmdet(dcn: bool) -> tuple[Rule, ...]:
    steps: list[Rule] = []
    for step, number in enumerate((0, 2, 4), start=1):  # convolution and deconvolution modules alternate
        conv, deconv = (rf"neck\.deconv_layers\.{n}" for n in (number, number + 1))
        if dcn:
            steps += deform_conv(rf"{conv}\.conv", f"{_NECK}/conv{step}", "conv_offset")
        else:
            steps.append(Rule(rf"{conv}\.conv\.weight", f"params/{_NECK}/conv{step}/kernel", conv_kernel))
        steps += [
            *batch_norm(rf"{conv}\.bn", f"{_NECK}/conv{step}_bn"),
            Rule(rf"{deconv}\.conv\.weight", f"params/{_NECK}/deconv{step}/kernel", deconv_kernel),
            *batch_norm(rf"{deconv}\.bn", f"{_NECK}/deconv{step}_bn"),
        ]
    return (
        *resnet_trunk(r"backbone\."),
        *steps,
        *head(r"bbox_head\.heatmap_head", "heatmap"),
        *head(r"bbox_head\.wh_head", "wh"),
        *head(r"bbox_head\.offset_head", "offset"),
        Rule(r"data_preprocessor\.(mean|std)", drop="the input's statistics, which the model's own table holds"),
    )


MMDET_RESNET = _mmdet(dcn=False)
MMDET_RESNET_DCN = _mmdet(dcn=True)

# ImageNet classifiers, torchvision's and timm's alike.
IMAGENET_RESNET = (*resnet_trunk(), _CLASSIFIER)
