"""CenterNet: Keypoint Triplets (arXiv 1904.08189).

CornerNet with cascade corner pooling, and a third keypoint, the box's centre, found after centre pooling.
A pair of corners counts only where a centre of its class lies in the middle of the box.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from kpjax.detectors import corner_config, corner_decode, corner_targets
from kpjax.detectors.base import PLAIN_AND_FLIP, Array, Detector, Outputs, Protocol, Targets
from kpjax.detectors.corner_config import SIDES, STRIDE, CornerNetConfig, Rules
from kpjax.nn.heads import Head, heatmap_head
from kpjax.nn.pooling import CascadeCornerPool, CenterPool
from kpjax.objects import BOX, POINT, Detections, Objects, Placed
from kpjax.ops.corners import Candidates, Points, require_centers
from kpjax.ops.keypoint_targets import keypoint_targets
from kpjax.ops.merge import best_rows

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
        options = corner_config.layer_options(c)
        outputs = []
        for i, x in enumerate(corner_config.backbone(c)(images, train)):
            maps: dict[str, Array] = {}
            for side, directions in SIDES.items():
                pooled = CascadeCornerPool(directions, c.branch, name=f"{side}_pool{i}", **options)(x, train)
                maps |= corner_config.corner_heads(c, self.num_classes, side, i)(pooled)
            pooled = CenterPool(c.branch, name=f"center_pool{i}", **options)(x, train)
            heads = {"center_heat": heatmap_head(self.num_classes), "center_off": Head(2)}
            maps |= corner_config.keypoint_heads(c, heads, f"center_heads{i}")(pooled)
            outputs.append(maps)
        return outputs


def encode(objects: Objects, placed: Placed, *, rules: Rules, num_classes: int) -> Targets:
    """CornerNet's targets of one image (`corner_targets.encode`), and those of "center"."""
    targets = corner_targets.encode(objects, placed, rules=rules, num_classes=num_classes)
    pixels, cells, labels, valid = corner_targets.boxes_on_map(objects, placed.size, rules)
    center = corner_targets.to_cells((pixels[:, :2] + pixels[:, 2:]) / 2, placed.size)
    radius, shape = corner_targets.gaussian_sizes(cells, valid, rules), corner_targets.map_size(placed.size)
    options: dict[str, Any] = {"one_per_cell": rules.one_per_cell, "sigma_divisor": CENTER_SIGMA}
    return targets | keypoint_targets("center", center, radius, labels, valid, shape, num_classes, **options)


def decode(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: CornerNetConfig
) -> Detections:
    """Pairs of corners with a centre between them, after soft-NMS (Keypoint Triplets, section 3.1), in input pixels.

    As `cornernet.decode`.  With a mirrored view the centres of both count for the boxes of both, those
    of the plain image first.  Areas are those of input pixels.
    """
    found, centers = pairs_and_centers(maps, placed, config)
    return corner_decode.select(
        corner_decode.suppress(rescored(found, centers), config, top_k), placed, top_k, config.rules
    )


def pairs_and_centers(
    maps: dict[str, Array], placed: Placed | None, config: CornerNetConfig
) -> tuple[Candidates, Points]:
    """All views' pairs (B, V * N, ...), cut to their image, and centres (B, V * K, ...), in its pixels."""
    found, frame = corner_decode.candidates(maps, placed, config=config)
    x1, y1, x2, y2 = (found.boxes[..., i] for i in range(4))
    beyond = (x1 <= -BEYOND) | (y1 <= -BEYOND) | (x2 >= frame.width + BEYOND) | (y2 >= frame.height + BEYOND)
    found = dataclasses.replace(found, scores=jnp.where(beyond, -1.0, found.scores))
    batch = maps["tl_heat"].shape[0]
    found = corner_decode.merge_views(corner_decode.inside_image(found, frame), batch)
    centers = corner_decode.points_of(corner_decode.views_of(maps), "center", config.corners, config.kernel)
    centers = frame.to_image(centers)
    return found, corner_decode.merge_views(dataclasses.replace(centers, xs=frame.unmirror(centers.xs)), batch)


def rescored(found: Candidates, centers: Points) -> Candidates:
    """Pairs (B, N, ...) with a centre (B, P, ...) between their corners, best first; the others have the score -1."""
    found = require_centers(found, centers)
    order = jnp.argsort(-found.scores, axis=1, stable=True)  # soft-NMS's stale rows depend on the order
    return jax.tree.map(lambda x: jax.vmap(lambda rows, index: rows[index])(x, order), found)


@flax.struct.dataclass
class PairsAndCenters:
    """What `merge_scales` needs of a scale: `Candidates`, and the centres: points (B, P, 2) x y, scores, labels."""

    boxes: Any = flax.struct.field(metadata=BOX)
    scores: Any = flax.struct.field()
    labels: Any = flax.struct.field()
    corner_scores: Any = flax.struct.field()
    points: Any = flax.struct.field(metadata=POINT)
    point_scores: Any = flax.struct.field()
    point_labels: Any = flax.struct.field()


def rows(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: CornerNetConfig
) -> PairsAndCenters:
    """`decode` before any centre is looked for: all pairs and all centres, in input pixels; top_k is not used."""
    found, centers = pairs_and_centers(maps, placed, config)
    rows = PairsAndCenters(
        boxes=found.boxes,
        scores=found.scores,
        labels=found.labels,
        corner_scores=found.corner_scores,
        points=jnp.stack([centers.xs, centers.ys], -1),
        point_scores=centers.scores,
        point_labels=centers.labels,
    )
    return corner_decode.in_input(rows, placed)


def merge_scales(views: tuple[PairsAndCenters, ...], top_k: int, *, config: CornerNetConfig, plain: int) -> Detections:
    """Merge the pairs of an image's scales: those with a centre, by one soft-NMS that averages boxes.

    views: for each scale, ascending, what `rows` found in one image, (N, ...), in its pixels.  plain: which of them
    is scale 1; its centres alone count (golden: postprocess_centernet_triplet `multi`).  Returns the rows of all
    scales, best first, the score 0 where a row is not among the top_k.
    """
    pairs = [Candidates(v.boxes, v.scores, v.labels, v.corner_scores) for v in views]
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts)[None], *pairs)
    view = views[plain]
    centers = Points(view.point_scores, view.points[:, 0], view.points[:, 1], view.point_labels)
    found = rescored(found, jax.tree.map(lambda x: x[None], centers))
    found = jax.tree.map(lambda x: x[0], corner_decode.suppress(found, config, top_k, config.merge_exponent))
    return best_rows(found, found.scores > -1, top_k)


# The published single-scale AP is that of "flip".
SCALES = (0.6, 1.0, 1.2, 1.5, 1.8)


def protocols(config: CornerNetConfig) -> dict[str, Protocol]:
    """The test protocols by preset."""
    several = Protocol(
        mirror="maps",
        scales=SCALES,
        rows=functools.partial(rows, config=config),
        merge=functools.partial(merge_scales, config=config, plain=SCALES.index(1.0)),
    )
    return {**PLAIN_AND_FLIP, "ms": several}


def build(name: str, released: CornerNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record; see `cornernet.build`."""
    config = corner_config.with_options(name, released, options)
    return Detector(
        name=name,
        net=Triplet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=config.rules, num_classes=num_classes),
        normaliser=corner_targets.normaliser,
        loss=functools.partial(corner_targets.loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=corner_decode.merge_flip,
        protocols=protocols(config),
        oracle=corner_targets.oracle,
        heatmaps=("tl_heat", "br_heat", "center_heat"),
        stride=STRIDE,
        multiple=STRIDE * 2 ** (len(config.features) - 1),
        less=1,
        import_rules=config.import_rules,
        options=options,
    )
