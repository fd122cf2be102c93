"""Name rules of ResNet checkpoints: xingyizhou's `res_*`, mmdetection's `centernet_r18`, torchvision and timm.

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


def _trunk(prefix: str = "") -> tuple[Rule, ...]:
    block, target = prefix + r"layer(\d)\.(\d+)\.", TRUNK + r"/layer\1_\2/"
    return (
        Rule(rf"{prefix}conv1\.weight", f"params/{TRUNK}/conv1/kernel", conv_kernel),
        *batch_norm(rf"{prefix}bn1", f"{TRUNK}/bn1"),
        Rule(rf"{block}conv(\d)\.weight", rf"params/{target}conv\3/kernel", conv_kernel),
        *batch_norm(rf"{block}bn(\d)", rf"{target}bn\3"),
        Rule(rf"{block}downsample\.0\.weight", f"params/{target}downsample_conv/kernel", conv_kernel),
        *batch_norm(rf"{block}downsample\.1", f"{target}downsample_bn"),
    )


def _head(source: str, head: str) -> tuple[Rule, ...]:
    """A 3x3 convolution, ReLU and a 1x1 convolution in a Sequential."""
    return tuple(
        rule
        for number, layer in ((0, "conv"), (2, "out"))
        for rule in (
            Rule(rf"{source}\.{number}\.weight", f"params/heads/{head}_{layer}/kernel", conv_kernel),
            Rule(rf"{source}\.{number}\.bias", f"params/heads/{head}_{layer}/bias"),
        )
    )


XINGYIZHOU_RESNET = (
    *_trunk(),
    # One Sequential of (deconvolution, BatchNorm, ReLU) three times.
    *(
        rule
        for step, number in enumerate((0, 3, 6), start=1)
        for rule in (
            Rule(rf"deconv_layers\.{number}\.weight", f"params/{_NECK}/deconv{step}/kernel", deconv_kernel),
            *batch_norm(rf"deconv_layers\.{number + 1}", f"{_NECK}/deconv{step}_bn"),
        )
    ),
    *_head("hm", "heatmap"),
    *_head("wh", "wh"),
    *_head("reg", "offset"),
    Rule(r"fc\.(weight|bias)", drop="the ImageNet classifier, which detection does not use"),
)

MMDET_RESNET = (
    *_trunk(r"backbone\."),
    # Convolution and deconvolution modules take turns.
    *(
        rule
        for step, number in enumerate((0, 2, 4), start=1)
        for rule in (
            Rule(rf"neck\.deconv_layers\.{number}\.conv\.weight", f"params/{_NECK}/conv{step}/kernel", conv_kernel),
            *batch_norm(rf"neck\.deconv_layers\.{number}\.bn", f"{_NECK}/conv{step}_bn"),
            Rule(
                rf"neck\.deconv_layers\.{number + 1}\.conv\.weight",
                f"params/{_NECK}/deconv{step}/kernel",
                deconv_kernel,
            ),
            *batch_norm(rf"neck\.deconv_layers\.{number + 1}\.bn", f"{_NECK}/deconv{step}_bn"),
        )
    ),
    *_head(r"bbox_head\.heatmap_head", "heatmap"),
    *_head(r"bbox_head\.wh_head", "wh"),
    *_head(r"bbox_head\.offset_head", "offset"),
    Rule(r"data_preprocessor\.(mean|std)", drop="the input's statistics, which the model's own table holds"),
)

# ImageNet classifiers, torchvision's and timm's alike.
IMAGENET_RESNET = (
    *_trunk(),
    Rule(r"fc\.(weight|bias)", drop="the ImageNet classifier, which detection does not use"),
)
