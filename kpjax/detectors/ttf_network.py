"""TTFNet's network: a trunk with shortcuts into its neck, a head for the heatmap and one for the four sides."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kpjax.backbones.shortcuts import TrunkWithShortcuts
from kpjax.detectors.base import Array, Outputs
from kpjax.detectors.ttf_config import TTFConfig
from kpjax.nn.convolution import PRECISIONS
from kpjax.nn.heads import DeepHead, Head

PRIOR = -4.59512  # the heatmap's logits at the start: -ln 99, a score of 0.01


class TTFHeads(nn.Module):
    """(B, h, w, C) -> {"heatmap": (B, h, w, K) logits, "sides": (B, h, w, 4)}, float32.

    The sides are the distances from the cell's corner to the box's left, top, right and bottom, in input pixels; of
    every class in turn with `class_specific_sides`.
    """

    config: TTFConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        c = self.config
        settings = (jnp.dtype(c.dtype), PRECISIONS[c.precision])
        heat = Head(self.num_classes, bias=PRIOR, std=0.01)
        sides = Head(4 * (self.num_classes if c.class_specific_sides else 1))
        found = DeepHead(sides, c.sides_channels, c.sides_convs, *settings, name="sides")(x)
        return {
            "heatmap": DeepHead(heat, c.heatmap_channels, c.heatmap_convs, *settings, name="heatmap")(x),
            "sides": nn.relu(found) * c.sides_scale,
        }


class TTFNet(nn.Module):
    """Normalised images (B, H, W, 3) -> [{"heatmap", "sides"}], see `TTFHeads`."""

    config: TTFConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        backbone = TrunkWithShortcuts(
            c.backbone,
            c.depth,
            c.width,
            c.stages,
            c.neck,
            c.shortcuts,
            c.dcn,
            c.bn_groups,
            c.remat,
            jnp.dtype(c.dtype),
            PRECISIONS[c.precision],
            c.max_width,
            name="backbone",
        )
        return [TTFHeads(c, self.num_classes, name="heads")(backbone(images, train))]
