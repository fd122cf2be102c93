"""CenterNet: Keypoint Triplets (arXiv 1904.08189).

CornerNet with cascade corner pooling, and a third keypoint, the box's centre, found after centre pooling.
A pair of corners counts only where a centre of its class lies in the middle of the box.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.detectors import cornernet
from kpjax.detectors.base import Array, Detections, Detector, Outputs, Targets
from kpjax.detectors.centernet import Heads
from kpjax.detectors.cornernet import SIDES, STRIDE, CornerNetConfig, Rules
from kpjax.nn.pooling import CascadeCornerPool, CenterPool
from kpjax.ops.corners import require_centers

# The released program keeps CornerNet's first radius formula, at an IoU of 0.7 (golden: targets_centernet_triplet).
RULES = Rules(radius="legacy", overlap=0.7)
CENTER_SIGMA = 5.0  # the centre's Gaussian has sigma = diameter / 5, the corners' diameter / 6
BEYOND = 5.0  # a box that reaches this many pixels beyond the image is dropped

HG52 = CornerNetConfig(stacks=1, rules=RULES, import_rules="triplet", corners=70)
HG104 = CornerNetConfig(stacks=2, rules=RULES, import_rules="triplet", corners=70)


class Triplet(nn.Module):
    """Normalised images (B, H, W, 3) -> of each stack CornerNet's maps, "center_heat" and "center_off"."""

    config: CornerNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        options: dict[str, Any] = {"bn_groups": c.bn_groups, "dtype": dtype}
        outputs = []
        for i, x in enumerate(cornernet.backbone(c)(images, train)):
            maps: dict[str, Array] = {}
            for side, directions in SIDES.items():
                pooled = CascadeCornerPool(directions, c.branch, name=f"{side}_pool{i}", **options)(x, train)
                maps |= cornernet.corner_heads(c, self.num_classes, side, i)(pooled)
            pooled = CenterPool(c.branch, name=f"center_pool{i}", **options)(x, train)
            channels = {"center_heat": self.num_classes, "center_off": 2}
            maps |= Heads(channels, c.head_channels, dtype, name=f"center_heads{i}")(pooled)
            outputs.append(maps)
        return outputs


def encode(
    boxes: Array, labels: Array, valid: Array, size: tuple[int, int], *, rules: Rules, num_classes: int
) -> Targets:
    """CornerNet's targets of one image (`cornernet.encode`), and those of "center"."""
    targets = cornernet.encode(boxes, labels, valid, size, rules=rules, num_classes=num_classes)
    pixels, cells, labels, valid = cornernet.boxes_on_map(boxes, labels, valid, size, rules)
    center = cornernet.to_cells((pixels[:, :2] + pixels[:, 2:]) / 2, size)
    radius = cornernet.gaussian_sizes(cells, valid, rules)
    return targets | cornernet.keypoint_targets(
        "center", center, radius, labels, valid, cornernet.map_size(size), rules, num_classes, CENTER_SIGMA
    )


def decode(
    maps: dict[str, Array],
    top_k: int = 100,
    size: tuple[int, int] | None = None,
    windows: Array | None = None,
    *,
    config: CornerNetConfig,
) -> Detections:
    """Pairs of corners with a centre between them, after soft-NMS (Keypoint Triplets, section 3.1), in input pixels.

    As `cornernet.decode`.  With a mirrored view the centres of both count for the boxes of both, those
    of the plain image first.  Areas are those of input pixels.
    """
    found, frame = cornernet.candidates(maps, size, windows, config=config)
    x1, y1, x2, y2 = (found.boxes[..., i] for i in range(4))
    beyond = (x1 <= -BEYOND) | (y1 <= -BEYOND) | (x2 >= frame.width + BEYOND) | (y2 >= frame.height + BEYOND)
    found = dataclasses.replace(found, scores=jnp.where(beyond, -1.0, found.scores))
    batch = maps["tl_heat"].shape[0]
    found = cornernet.merge_views(cornernet.inside_image(found, frame), batch)
    centers = cornernet.points_of(cornernet.views_of(maps), "center", config.corners, config.kernel)
    centers = frame.to_image(centers)
    centers = cornernet.merge_views(dataclasses.replace(centers, xs=frame.unmirror(centers.xs)), batch)
    found = require_centers(found, centers)
    order = jnp.argsort(-found.scores, axis=1, stable=True)  # soft-NMS leaves its stale rows by the order of rows
    found = jax.tree.map(lambda x: jax.vmap(lambda rows, index: rows[index])(x, order), found)
    return cornernet.select(cornernet.suppress(found, config), windows, top_k)


def build(name: str, released: CornerNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Put the record together; see `cornernet.build`."""
    config = cornernet.with_options(name, released, options)
    return Detector(
        name=name,
        net=Triplet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=config.rules, num_classes=num_classes),
        normaliser=cornernet.normaliser,
        loss=functools.partial(cornernet.loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=cornernet.merge_flip,
        stride=STRIDE,
        multiple=STRIDE * 2 ** (len(config.features) - 1),
        less=1,
        import_rules=config.import_rules,
        options=options,
    )
