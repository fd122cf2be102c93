"""CornerNet (arXiv 1808.01244), mmdetection's version of it, and CornerNet-Squeeze (arXiv 1904.08900, section 4).

An object is the pair of its top-left and bottom-right corners.  Each kind of corner has three heads, read from a
map of its own that corner pooling made: a heatmap for each class, an embedding that is near that of the same
object's other corner and far from those of others, and the corner's offset within its cell.

The functions here serve `kpjax.detectors.triplet` too, which adds a centre.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.detectors.base import PLAIN_AND_FLIP, Array, Detector, Outputs, Protocol
from kpjax.detectors.corner_config import (
    MMDET,
    PAD_RGB,
    SIDES,
    CornerNetConfig,
    Rules,
    backbone,
    corner_heads,
    layer_options,
    with_options,
)
from kpjax.detectors.corner_decode import in_input, merge_flip, pairs_of, select, suppress
from kpjax.detectors.corner_targets import encode, loss, normaliser, oracle
from kpjax.nn.pooling import CornerPool
from kpjax.objects import Detections, Placed
from kpjax.ops.corners import Candidates
from kpjax.ops.merge import best_rows, merge_mirrored

HG104 = CornerNetConfig()
# The same method on a network of a sixth of the cost.  Its authors test one scale without flip.
SQUEEZE = CornerNetConfig(
    features=(256, 256, 384, 384, 512),
    blocks=(2, 2, 2, 2, 4),
    fire=True,
    head_kernel=1,
    rules=Rules(stride=8),
    corners=20,
    pairs=100,
    merge_exponent=0.0,
)
HG104_MMDET = CornerNetConfig(rules=MMDET, preprocess=PAD_RGB, import_rules="cornernet_mmdet")


class CornerNet(nn.Module):
    """Normalised images (B, H, W, 3) -> of each stack {"tl_heat", "tl_tag", "tl_off", "br_..."}, float32 (B, h, w, .).

    heat: K logits.  tag: 1 embedding.  off: x and y within the cell.
    """

    config: CornerNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        options = layer_options(c)
        outputs = []
        for i, x in enumerate(backbone(c)(images, train)):
            maps: dict[str, Array] = {}
            for side, directions in SIDES.items():
                pooled = CornerPool(directions, c.branch, name=f"{side}_pool{i}", **options)(x, train)
                maps |= corner_heads(c, self.num_classes, side, i)(pooled)
            outputs.append(maps)
        return outputs


def decode(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: CornerNetConfig
) -> Detections:
    """Boxes of the best pairs of corners after soft-NMS (CornerNet, section 3.1 and 4.2), in input pixels.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them.  placed: None: inputs
    of 4 h - 1 and 4 w - 1 pixels (Squeeze: 8) that the image fills.
    Returns what `select` does, best first.
    """
    return select(suppress(pairs_of(maps, placed, config), config, top_k), placed, top_k, config.rules)


def rows(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: CornerNetConfig
) -> Candidates:
    """`decode` without soft-NMS, for `merge_scales`: all pairs, (B, V * N, ...), in input pixels; top_k is not used."""
    return in_input(pairs_of(maps, placed, config), placed)


def merge_scales(views: tuple[Candidates, ...], top_k: int, *, config: CornerNetConfig) -> Detections:
    """Merge the pairs of an image's scales by one soft-NMS that averages boxes, as CornerNet's multi-scale test does.

    views: for each scale, ascending, what `rows` found in one image, (N, ...), in its pixels (golden:
    postprocess_cornernet `multi_merge`).  Returns the rows of all scales, best first, the score 0 where a row is
    not among the top_k.
    """
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts)[None], *views)
    found = jax.tree.map(lambda x: x[0], suppress(found, config, top_k, config.merge_exponent))
    return best_rows(found, found.scores > -1, top_k)


# CornerNet's published single-scale AP is that of "flip", Squeeze's that of "na".
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def protocols(config: CornerNetConfig) -> dict[str, Protocol]:
    """The test protocols by preset.  mmdetection's configuration tests one scale; its merge takes any number."""
    if config.rules.flip == "boxes":
        rules = None if config.nms == "none" else config.rules.nms
        merged = Protocol(mirror="boxes", merge=functools.partial(merge_mirrored, rules=rules))
        return {"na": Protocol(), "flip": merged, "ms": dataclasses.replace(merged, scales=SCALES)}
    several = Protocol(
        mirror="maps",
        scales=SCALES,
        rows=functools.partial(rows, config=config),
        merge=functools.partial(merge_scales, config=config),
    )
    return {**PLAIN_AND_FLIP, "ms": several}


def build(name: str, released: CornerNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options)
    return Detector(
        name=name,
        net=CornerNet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=config.rules, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=merge_flip,
        protocols=protocols(config),
        oracle=functools.partial(oracle, stride=config.rules.stride),
        heatmaps=("tl_heat", "br_heat"),
        stride=config.rules.stride,
        multiple=config.rules.stride * 2 ** (len(config.features) - 1),
        less=1,
        import_rules=config.import_rules,
        options=options,
    )
