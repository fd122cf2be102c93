"""Name rules of TTFNet's checkpoints (ZJULearning/ttfnet, a fork of mmdetection 1), and of its DarkNet-53."""

from __future__ import annotations

from kpjax.convert.resnet import TRUNK, deform_conv, resnet_trunk
from kpjax.convert.rules import Rule, batch_norm, conv_kernel

_NECK = "backbone/neck"


def _conv(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution with a bias."""
    return (
        Rule(rf"{source}\.weight", f"params/{target}/kernel", conv_kernel),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
    )


def _unit(source: str, target: str) -> tuple[Rule, ...]:
    """A convolution without a bias, and its BatchNorm."""
    return (
        Rule(rf"{source}\.conv\.weight", f"params/{target}/conv/kernel", conv_kernel),
        *batch_norm(rf"{source}\.bn", f"{target}/bn"),
    )


def _darknet(prefix: str = "") -> tuple[Rule, ...]:
    return (
        *_unit(f"{prefix}stem", f"{TRUNK}/stem"),
        *_unit(rf"{prefix}layer(\d)\.0", rf"{TRUNK}/layer\1_0"),
        *_unit(rf"{prefix}layer(\d)\.(\d+)\.body\.([01])", rf"{TRUNK}/layer\1_\2/body\3"),
    )


def _head() -> tuple[Rule, ...]:
    """Neck and heads, which the original keeps in one module."""
    steps: list[Rule] = []
    for step in (1, 2, 3):
        source = rf"bbox_head\.deconv_layers\.{step - 1}"
        steps += deform_conv(rf"{source}\.0", f"{_NECK}/conv{step}", "conv_offset_mask")
        steps += batch_norm(rf"{source}\.1", f"{_NECK}/conv{step}_bn")
        for place in range(step):  # a ReLU stands between two convolutions
            shortcut = rf"bbox_head\.shortcut_layers\.{step - 1}\.layers\.{2 * place}"
            steps += _conv(shortcut, f"{_NECK}/shortcut{step}_{place}")
    return (
        *steps,
        *_conv(r"bbox_head\.hm\.(\d)\.conv", r"heads/heatmap/conv\1"),
        *_conv(r"bbox_head\.hm\.\d", "heads/heatmap/out"),
        *_conv(r"bbox_head\.wh\.(\d)\.conv", r"heads/sides/conv\1"),
        *_conv(r"bbox_head\.wh\.\d", "heads/sides/out"),
    )


TTFNET_RESNET = (*resnet_trunk(r"backbone\."), *_head())
TTFNET_DARKNET = (*_darknet(r"backbone\."), *_head())
IMAGENET_DARKNET = _darknet()  # the authors' file that a training starts from
