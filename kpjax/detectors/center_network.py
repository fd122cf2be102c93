"""The network of Objects as Points: a backbone of stride 4, and heads on its map (on each stack's, of an hourglass)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.backbones.dla import DLAUp
from kpjax.backbones.hourglass import StackedHourglass
from kpjax.backbones.resnet import ResNetDeconv
from kpjax.detectors.base import Array, Outputs
from kpjax.detectors.center_config import CenterNetConfig
from kpjax.nn.convolution import PRECISIONS, Precision
from kpjax.nn.heads import Head, Heads, heatmap_head


class CenterNet(nn.Module):
    """Backbone and heads: normalised images (B, H, W, 3) -> [{name: (B, h, w, .) float32}], a dictionary a stack.

    heads: (name, Head) pairs, a "heatmap" of the centres among them.
    """

    config: CenterNetConfig
    heads: tuple[tuple[str, Head], ...]

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c, heads = self.config, dict(self.heads)
        dtype, precision = jnp.dtype(c.dtype), PRECISIONS[c.precision]
        maps = _backbone(c, dtype, precision)(images, train)
        names = [f"heads{i}" for i in range(len(maps))] if c.backbone == "hourglass" else ["heads"]
        outputs = [
            Heads(heads, c.head_channels, dtype, precision, name=name)(x) for name, x in zip(names, maps, strict=True)
        ]
        if c.rules.probabilities:
            outputs = [{**o, "heatmap": jax.nn.sigmoid(o["heatmap"])} for o in outputs]
        return outputs


def _backbone(c: CenterNetConfig, dtype: Any, precision: Precision) -> nn.Module:
    """Images (B, H, W, 3) -> a list of maps of stride 4."""
    settings = (c.bn_groups, c.remat, dtype, precision)
    if c.backbone == "hourglass":
        return StackedHourglass(c.features, c.blocks, c.stem, c.stacks, *settings, name="backbone")
    if c.backbone == "dla":
        return DLAUp(c.depth, c.width, c.dcn, *settings, name="backbone")
    return ResNetDeconv(c.depth, c.width, c.deconv, c.neck_conv, c.dcn, c.dcn_bias, *settings, name="backbone")


def center_heads(config: CenterNetConfig, num_classes: int) -> tuple[tuple[str, Head], ...]:
    """The heads of boxes: a heatmap of centres for each class, width and height, the offset within the cell."""
    sizes = 2 * num_classes if config.class_specific_wh else 2
    return ("heatmap", heatmap_head(num_classes)), ("wh", Head(sizes)), ("offset", Head(2))
