"""Pose by Objects as Points (arXiv 1904.07850, section 4.2): boxes and the named points of each object.

An object's points are regressed at its centre.  A second heatmap, with a channel a point, finds points on their own,
and a regressed point moves to the nearest peak of its channel within the box.  The released models find the 17 joints
of COCO's persons; any other points of any classes are learnt in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kpjax.detectors import center_config
from kpjax.detectors.base import Array, Detector, Outputs, Targets
from kpjax.detectors.center_config import STRIDE, CenterNetConfig, multiple, with_options
from kpjax.detectors.center_decode import average_with_mirror, best_centers, protocols
from kpjax.detectors.center_decode import merge_flip as merge_center_flip
from kpjax.detectors.center_network import CenterNet, center_heads
from kpjax.detectors.center_targets import centers_of, map_size
from kpjax.detectors.center_targets import encode as encode_centers
from kpjax.detectors.center_targets import normaliser as count_centers
from kpjax.detectors.center_targets import oracle as center_oracle
from kpjax.errors import ConfigError
from kpjax.nn.heads import Head, heatmap_head
from kpjax.objects import UNLABELLED, Detections, Objects, Placed, PointSet
from kpjax.ops import losses, peaks
from kpjax.ops.heatmap import draw_points
from kpjax.ops.oracle import logits, nearest_values
from kpjax.person import PERSON

PEAK_SCORE = 0.1  # least score of a peak that moves a regressed point
REACH = 0.3  # how far a point moves at most, as a fraction of the box's longer side


@dataclasses.dataclass(frozen=True)
class PoseConfig(CenterNetConfig):
    """One released model, or a variation of it: as `CenterNetConfig`, and the weights of two more losses.

    keypoint_weight: of the regressed points (`hp_weight`).  joint_heatmap_weight: of the points' heatmap
    (`hm_hp_weight`).  The points' offsets within their cells have `offset_weight`, as the centres'.
    box_without_points: an object without any labelled point trains wh and offset too, for data in which only some
    objects have points.  Not so in the original: such a person is a centre of the heatmap alone (golden:
    fn_multi_pose_targets).
    """

    keypoint_weight: float = 1.0
    joint_heatmap_weight: float = 1.0
    box_without_points: bool = False


def _released(boxes: CenterNetConfig) -> PoseConfig:
    """The pose model on the network of a detector of boxes."""
    values = {field.name: getattr(boxes, field.name) for field in dataclasses.fields(boxes)}
    return PoseConfig(**values | {"import_rules": f"{boxes.import_rules}_pose"})


R18 = _released(center_config.R18)
DLA34 = _released(center_config.DLA34)
HG104 = _released(center_config.HG104)


def pose_heads(config: PoseConfig, num_classes: int, points: PointSet) -> tuple[tuple[str, Head], ...]:
    """The heads of boxes, and: points relative to the centre's cell, the points' heatmap, offsets within its cells."""
    count = len(points)
    return (
        *center_heads(config, num_classes),
        ("keypoint_offset", Head(2 * count)),
        ("joint_heatmap", heatmap_head(count)),
        ("joint_offset", Head(2)),
    )


def encode(objects: Objects, placed: Placed, *, config: PoseConfig, num_classes: int, points: PointSet) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels, with J points each.  placed: only its size is read.  Returns the targets of
    boxes, and: "joint_heatmap" (h, w, J) float32; "keypoint_offset" (M, J, 2) float32, the points in cells from the
    centre's cell; "joint_index" (M, J) int32 and "joint_offset" (M, J, 2) float32, each point's own cell and offset
    within it; "keypoint_mask" (M, J) bool, the points that are labelled (hidden ones too) and lie on the map.
    """
    height, width = map_size(placed.size)
    if objects.points is None or objects.points.shape[-2] != len(points):
        given = "no points" if objects.points is None else f"{objects.points.shape[-2]} points"
        raise ValueError(f"the objects have {given}, the detector learns {len(points)}")
    centers = centers_of(objects, placed, config.rules)
    targets = encode_centers(objects, placed, rules=config.rules, num_classes=num_classes, centers=centers)
    labelled = objects.seen != UNLABELLED
    mask = targets["mask"] & (labelled.any(-1) | config.box_without_points)
    xy = objects.points.astype(jnp.float32) / STRIDE
    on_map = ((xy >= 0) & (xy < jnp.asarray([width, height], jnp.float32))).all(-1)
    there = labelled & on_map & centers.valid[:, None]
    cell = jnp.where(there[..., None], xy.astype(jnp.int32), 0)
    keep = there[..., None]
    return targets | {
        "mask": mask,
        "index": jnp.where(mask, targets["index"], 0),
        "keypoint_offset": jnp.where(keep, xy - centers.cell[:, None], 0.0),
        "keypoint_mask": there,
        "joint_heatmap": draw_points(cell, centers.radius, there, (height, width)),
        "joint_index": cell[..., 1] * width + cell[..., 0],
        "joint_offset": jnp.where(keep, xy - cell, 0.0),
    }


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: those of boxes, points, and cells of the points' heatmap that are points."""
    return count_centers(targets) | {
        "joints": targets["keypoint_mask"].sum(dtype=jnp.float32),
        "joint_peaks": (targets["joint_heatmap"] == 1).sum(dtype=jnp.float32),
    }


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: PoseConfig
) -> tuple[Array, dict[str, Array]]:
    """The loss of boxes + points at the centre + the points' heatmap + their offsets, the mean over the stacks.

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted parts, named after
    the heads, float32 scalars.
    """
    weights = {
        "heatmap": 1.0,
        "wh": config.wh_weight,
        "offset": config.offset_weight,
        "keypoint_offset": config.keypoint_weight,
        "joint_heatmap": config.joint_heatmap_weight,
        "joint_offset": config.offset_weight,
    }
    index, mask = targets["index"], targets["mask"]
    boxes, joints = 2 * counts["boxes"] + 1e-4, 2 * counts["joints"] + 1e-4
    joint_mask = targets["keypoint_mask"].reshape(mask.shape[0], -1)
    joint_index = targets["joint_index"].reshape(mask.shape[0], -1)
    joint_offset = targets["joint_offset"].reshape(mask.shape[0], -1, 2)
    parts = dict.fromkeys(weights, jnp.float32(0))
    for maps in outputs:
        values = {
            "heatmap": losses.focal_loss(maps["heatmap"], targets["heatmap"], counts["peaks"]),
            "wh": losses.l1_at(maps["wh"], index, mask, targets["wh"], boxes),
            "offset": losses.l1_at(maps["offset"], index, mask, targets["offset"], boxes),
            "keypoint_offset": losses.points_l1_at(
                maps["keypoint_offset"], index, targets["keypoint_mask"], targets["keypoint_offset"], joints
            ),
            "joint_heatmap": losses.focal_loss(maps["joint_heatmap"], targets["joint_heatmap"], counts["joint_peaks"]),
            "joint_offset": losses.l1_at(maps["joint_offset"], joint_index, joint_mask, joint_offset, joints),
        }
        for key, value in values.items():
            parts[key] += value / len(outputs)
    total = sum((weight * parts[key] for key, weight in weights.items()), jnp.float32(0))
    return total, parts


def decode(maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: PoseConfig) -> Detections:
    """Boxes and points of the best centres, (B, top_k, ...), best first, in input pixels.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them.  top_k: also the peaks of each
    channel of the points' heatmap that are looked at.  A regressed point moves to the nearest of them where that
    scores more than `PEAK_SCORE`, lies in the object's box, and within `REACH` of the box's longer side.  Without a
    "joint_heatmap" points are as regressed, with a score of 1; without a "joint_offset" a peak is its cell's middle.

    A point's score is the peak's that it moved to, else that of the heatmap where it lies, 0 beyond the map.  The
    original has none.
    """
    best = best_centers(maps, top_k, config.rules)
    found = best.detections()
    regressed = peaks.gather_cells(maps["keypoint_offset"].astype(jnp.float32), best.index)
    xy = regressed.reshape(*regressed.shape[:2], -1, 2) + best.cell[:, :, None].astype(jnp.float32)
    merged = "joint_scores" in maps
    if not merged and "joint_heatmap" not in maps:
        scores = jnp.ones((*xy.shape[:-1], 1), jnp.float32)
        return dataclasses.replace(found, keypoints=jnp.concatenate([xy * STRIDE, scores], axis=-1))
    heat = maps["joint_scores" if merged else "joint_heatmap"].astype(jnp.float32)
    heat = heat if merged else jax.nn.sigmoid(heat)
    height, width = heat.shape[1:3]
    peak_scores, ys, xs = peaks.peaks_of_channels(heat, top_k)  # (B, J, P)
    peak_xy = jnp.stack([xs, ys], axis=-1).astype(jnp.float32)
    if "joint_offset" in maps:
        cells = (ys * width + xs).reshape(heat.shape[0], -1)
        peak_xy += peaks.gather_cells(maps["joint_offset"].astype(jnp.float32), cells).reshape(peak_xy.shape)
    else:
        peak_xy += 0.5

    # The nearest peak of each object's point: (B, N, J).
    away = jnp.square(xy[:, :, :, None] - peak_xy[:, None]).sum(-1)
    away = jnp.where((peak_scores > PEAK_SCORE)[:, None], away, jnp.inf)
    nearest = jnp.argmin(away, axis=-1)
    batch, joint = jnp.arange(heat.shape[0])[:, None, None], jnp.arange(heat.shape[3])[None, None]
    near_xy, near_score = peak_xy[batch, joint, nearest], peak_scores[batch, joint, nearest]
    distance = jnp.sqrt(jnp.take_along_axis(away, nearest[..., None], axis=-1)[..., 0])
    low, high = best.boxes[:, :, None, :2], best.boxes[:, :, None, 2:]
    moves = ((near_xy >= low) & (near_xy <= high)).all(-1)
    moves &= distance <= REACH * (high - low).max(-1)
    own = jnp.floor(xy).astype(jnp.int32)
    on_map = ((own >= 0) & (own < jnp.asarray([width, height]))).all(-1)
    own = jnp.clip(own, 0, jnp.asarray([width - 1, height - 1]))
    own_score = jnp.where(on_map, heat[batch, own[..., 1], own[..., 0], joint], 0.0)
    points = jnp.where(moves[..., None], near_xy, xy) * STRIDE
    scores = jnp.where(moves, near_score, own_score)
    return dataclasses.replace(found, keypoints=jnp.concatenate([points, scores[..., None]], axis=-1))


def merge_flip(maps: dict[str, Array], *, config: PoseConfig, points: PointSet) -> dict[str, Array]:
    """Merge the maps of [images; mirrored images], (2B, h, w, .), as the original's `flip_test` does.

    Scores, wh and the regressed points are averaged, in the mirrored image with left and right points exchanged; both
    offsets are the plain image's.  Returns (B, h, w, .) for `decode`.
    """
    half, partner = maps["wh"].shape[0] // 2, np.array(points.mirror)
    heat = jax.nn.sigmoid(maps["joint_heatmap"].astype(jnp.float32))
    heat = jnp.concatenate([heat[:half], heat[half:][..., partner]])
    xy = maps["keypoint_offset"].reshape(*maps["wh"].shape[:3], -1, 2)
    mirrored = xy[half:][:, :, :, partner] * jnp.asarray([-1.0, 1.0])
    xy = jnp.concatenate([xy[:half], mirrored]).reshape(maps["keypoint_offset"].shape)
    return merge_center_flip(maps, rules=config.rules) | {
        "joint_scores": average_with_mirror(heat),
        "keypoint_offset": average_with_mirror(xy),
        "joint_offset": maps["joint_offset"][:half],
    }


def oracle(targets: Targets, size: tuple[int, int], *, config: PoseConfig) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets; in each cell the values of the nearest object, or point.

    size: (H, W) of the input.  Points that are not labelled are where the centre is.
    """
    shape, batch = map_size(size), targets["mask"].shape[0]
    joints = {key: targets[key].reshape(batch, -1, *targets[key].shape[3:]) for key in ("joint_index", "keypoint_mask")}
    offsets = targets["joint_offset"].reshape(batch, -1, 2)
    points = targets["keypoint_offset"].reshape(*targets["mask"].shape, -1)
    return center_oracle(targets, size, config=config) | {
        "keypoint_offset": nearest_values(targets["index"], targets["mask"], points, shape),
        "joint_heatmap": logits(targets["joint_heatmap"]),
        "joint_offset": nearest_values(joints["joint_index"], joints["keypoint_mask"], offsets, shape),
    }


def build(name: str, released: PoseConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace, and "points": a `PointSet`,
    or its fields as a dictionary (default: the joints of COCO's persons).
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    options = dict(options)
    points = point_set(name, options.pop("points", PERSON))
    config = with_options(name, released, options, fixed={"class_specific_wh"})
    if points != PERSON:
        options["points"] = dataclasses.asdict(points)
    return Detector(
        name=name,
        net=CenterNet(config, pose_heads(config, num_classes, points)),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, config=config, num_classes=num_classes, points=points),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=functools.partial(merge_flip, config=config, points=points),
        protocols=protocols(config, capped=False),
        oracle=functools.partial(oracle, config=config),
        points=points,
        heatmaps=("heatmap", "joint_heatmap"),
        metric="keypoints",
        stride=STRIDE,
        multiple=multiple(config),
        boxes_model=name.removesuffix("_pose"),
        import_rules=config.import_rules,
        options=options,
    )


def point_set(name: str, value: Any) -> PointSet:
    """A `PointSet`, or its fields in a dictionary (from JSON: with lists), as a `PointSet`."""
    if isinstance(value, PointSet):
        return value
    fields = {field.name for field in dataclasses.fields(PointSet)}
    named = isinstance(value, Mapping) and isinstance(value.get("names"), (list, tuple)) and value["names"]
    if not named or not set(value) <= fields:
        raise ConfigError(f"model {name}: points is {value!r}; give names, and perhaps mirror, edges and sigmas")
    try:
        return PointSet(
            names=tuple(map(str, value["names"])),
            mirror=tuple(int(j) for j in value.get("mirror", ())),
            edges=tuple((int(a), int(b)) for a, b in value.get("edges", ())),
            sigmas=tuple(float(s) for s in value.get("sigmas", ())),
        )
    except ConfigError as error:
        raise ConfigError(f"model {name}: points: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name}: points has values of another kind ({error})") from error
