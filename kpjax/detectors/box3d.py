"""3D boxes by Objects as Points (arXiv 1904.07850, section 4.1): depth, size in metres and orientation of each object.

All are regressed at the centre of the object's 2D box.  With the camera's projection matrix they give the box's place
in the camera's frame.  The released models (xingyizhou's ddd) find KITTI's pedestrians, cars and cyclists.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kpjax.detectors import center_config
from kpjax.detectors.base import Array, Detector, Outputs, Protocol, Targets
from kpjax.detectors.center_config import STRIDE, CenterNetConfig, Rules, multiple, with_options
from kpjax.detectors.center_decode import best_centers, merge_flip
from kpjax.detectors.center_network import CenterNet, center_heads
from kpjax.detectors.center_targets import centers_of, map_size
from kpjax.detectors.center_targets import encode as encode_centers
from kpjax.detectors.center_targets import oracle as center_oracle
from kpjax.images.preprocess import KITTI_BGR
from kpjax.nn.heads import Head
from kpjax.objects import ALL_CLASSES, IGNORE, NONE, OBJECT, Detections, Objects, Placed
from kpjax.ops import losses, peaks
from kpjax.ops.heatmap import draw_in_turn
from kpjax.ops.oracle import logits, nearest_values

DDD = Rules(round_sides=False)
BIN_CENTERS = (-math.pi / 2, math.pi / 2)  # alpha is regressed relative to its bin's centre
BIN_CHANNELS = 4  # of a bin: logits of "not in it" and "in it", sine and cosine of the angle from its centre
KITTI_CLASSES = ("Pedestrian", "Car", "Cyclist")  # of the released models, in their order
# The camera of the released programs where none is given, for images like KITTI's of 1242x375 pixels.
KITTI_CAMERA = (
    (707.0493, 0.0, 604.0814, 45.75831),
    (0.0, 707.0493, 180.5066, -0.3454157),
    (0.0, 0.0, 1.0, 0.004981016),
)


@dataclasses.dataclass(frozen=True)
class Box3DConfig(CenterNetConfig):
    """One released model, or a variation of it: as `CenterNetConfig`, and the weights of three more losses.

    depth_weight, size3d_weight, rotation_weight: of the losses of the three heads (`dep_weight`, `dim_weight`,
    `rot_weight`).
    ignore_rectangles: a region to ignore is left out of the heatmap's loss as a whole (`rect_mask`), not its centre
    alone.
    wh_as_point: as in the released programs, a box's width and height go through the map from input to image as if
    they were a point.  It is a pixel at a fixed resolution, and half the image's margin at a kept one.  False: as
    lengths.
    """

    depth_weight: float = 1.0
    size3d_weight: float = 1.0
    rotation_weight: float = 1.0
    ignore_rectangles: bool = False
    wh_as_point: bool = True


def _released(boxes: CenterNetConfig) -> Box3DConfig:
    """The 3D model on the network of a detector of boxes."""
    values = {field.name: getattr(boxes, field.name) for field in dataclasses.fields(boxes)}
    changes = {"rules": DDD, "preprocess": KITTI_BGR, "import_rules": f"{boxes.import_rules}_3d"}
    return Box3DConfig(**values | changes)


R18 = _released(center_config.R18)
DLA34 = _released(center_config.DLA34)


def heads_3d(config: Box3DConfig, num_classes: int) -> tuple[tuple[str, Head], ...]:
    """The heads of boxes, and: depth, rotation (two bins of `BIN_CHANNELS`), size in metres."""
    more = ("depth", Head(1)), ("rotation", Head(2 * BIN_CHANNELS)), ("size3d", Head(3))
    return (*center_heads(config, num_classes), *more)


def metres(depth: Array) -> Array:
    """What the depth head says, in metres: 1 / sigmoid - 1, which is exp(-x) but for a 1e-6 that keeps it finite."""
    return 1 / (jax.nn.sigmoid(depth.astype(jnp.float32)) + 1e-6) - 1


def encode(objects: Objects, placed: Placed, *, config: Box3DConfig, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels, with `solid`; their order decides where regions to ignore cover objects, see
    `draw_in_turn`.  placed: its size, and `changed`: a crop that scaled or moved the image trains no depth and no size.
    Returns the targets of boxes, and: "solid" (M,) bool, which slots train depth and size; "depth" (M, 1) and
    "size3d" (M, 3) float32 metres; "bins" (M, 2) bool, in which of the two bins alpha lies; "angles" (M, 2) float32
    alpha less each bin's centre, 0 where it is not in the bin.
    """
    if objects.solid is None:
        raise ValueError("the objects have no solid; 3D boxes are learnt from data with depth, size and orientation")
    height, width = map_size(placed.size)
    there = dataclasses.replace(objects, role=jnp.where(objects.role == NONE, NONE, OBJECT))
    every = centers_of(there, placed, config.rules)
    ignored = every.valid & (objects.role == IGNORE)
    centers = dataclasses.replace(every, valid=every.valid & objects.valid)
    targets = encode_centers(objects, placed, rules=config.rules, num_classes=num_classes, centers=centers)

    labels = jnp.asarray(objects.labels)[:, None]
    classes = ((labels == jnp.arange(num_classes)) | ((labels == ALL_CLASSES) & ignored[:, None])) & every.valid[
        :, None
    ]
    if config.ignore_rectangles:
        rectangles = every.boxes.astype(jnp.int32)
        radius = jnp.where(ignored, -1, every.radius)
    else:
        rectangles, radius = jnp.tile(every.cell, 2), every.radius
    heatmap = draw_in_turn(every.cell, radius, classes, ignored, rectangles, (height, width))

    mask = targets["mask"]
    alpha, sixth = objects.solid.orientation, math.pi / 6
    first = (alpha < sixth) | (alpha > 5 * sixth)  # less than 2/3 pi from the bin's centre; the bins share pi / 3
    second = (alpha > -sixth) | (alpha < -5 * sixth)
    bins = jnp.stack([first, second], -1) & mask[:, None]
    angles = alpha[:, None] - jnp.asarray(BIN_CENTERS, jnp.float32)
    keep = mask & ~jnp.asarray(False if placed.changed is None else placed.changed)
    return targets | {
        "heatmap": heatmap,
        "solid": keep,
        "depth": jnp.where(mask, objects.solid.depth, 0.0)[:, None],
        "size3d": jnp.where(mask[:, None], objects.solid.size, 0.0),
        "bins": bins,
        "angles": jnp.where(bins, angles, 0.0),
    }


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: heatmap cells that are objects, slots (empty ones too), objects in each bin."""
    bins = targets["bins"].sum((0, 1), dtype=jnp.float32)
    return {
        "peaks": (targets["heatmap"] == 1).sum(dtype=jnp.float32),
        "slots": jnp.float32(targets["mask"].size),
        "first_bin": bins[0],
        "second_bin": bins[1],
    }


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: Box3DConfig
) -> tuple[Array, dict[str, Array]]:
    """The heatmap's loss + depth + size + rotation + 0.1 wh + offset, the mean over the stacks.

    As in the original, L1 losses are means over all slots, empty ones too, so that `config.data.max_boxes` is part of
    their weight.  counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted parts,
    named after the heads, float32 scalars.
    """
    weights = {
        "heatmap": 1.0,
        "wh": config.wh_weight,
        "offset": config.offset_weight,
        "depth": config.depth_weight,
        "rotation": config.rotation_weight,
        "size3d": config.size3d_weight,
    }
    index, mask, slots = targets["index"], targets["mask"], counts["slots"]
    parts = dict.fromkeys(weights, jnp.float32(0))
    for maps in outputs:
        values = {
            "heatmap": losses.focal_loss(maps["heatmap"], targets["heatmap"], counts["peaks"]),
            "wh": losses.l1_at(maps["wh"], index, mask, targets["wh"], 2 * slots),
            "offset": losses.l1_at(maps["offset"], index, mask, targets["offset"], 2 * slots),
            "depth": losses.l1_at(metres(maps["depth"]), index, targets["solid"], targets["depth"], slots),
            "rotation": rotation_loss(maps["rotation"], targets, counts),
            "size3d": losses.l1_at(maps["size3d"], index, targets["solid"], targets["size3d"], 3 * slots),
        }
        for key, value in values.items():
            parts[key] += value / len(outputs)
    total = sum((weight * parts[key] for key, weight in weights.items()), jnp.float32(0))
    return total, parts


def rotation_loss(maps: Array, targets: Targets, counts: dict[str, Array]) -> Array:
    """Of each bin: the cross-entropy of being in it, and smooth L1 of sine and cosine of the objects in it.

    maps: (B, h, w, 8).  As in the original, an empty slot counts as one outside both bins with logits of 0, ln 2 each.
    """
    found = peaks.gather_cells(maps.astype(jnp.float32), targets["index"])
    total = jnp.float32(0)
    for number, count in enumerate(("first_bin", "second_bin")):
        own = found[..., BIN_CHANNELS * number : BIN_CHANNELS * (number + 1)]
        within, angle = targets["bins"][..., number], targets["angles"][..., number]
        likely = jax.nn.log_softmax(own[..., :2] * targets["mask"][..., None])
        total -= jnp.where(within, likely[..., 1], likely[..., 0]).sum() / counts["slots"]
        for channel, wanted in ((2, jnp.sin(angle)), (3, jnp.cos(angle))):
            distance = losses.smooth_l1(own[..., channel] - wanted)
            total += (distance * within).sum() / jnp.maximum(counts[count], 1)
    return total


def decode(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: Box3DConfig
) -> Detections:
    """Boxes and 3D boxes of the best centres, (B, top_k, ...), best first; 2D in input pixels, 3D in metres.

    maps: the last stack's heads, (B, h, w, .).  placed: with camera, zoom and shift.
    """
    if placed is None or placed.camera is None:
        raise ValueError("3D boxes need placed.camera, placed.zoom and placed.shift")
    best = best_centers(maps, top_k, config.rules)

    def at_centers(name: str) -> Array:
        return peaks.gather_cells(maps[name].astype(jnp.float32), best.index)

    alpha = alpha_of(at_centers("rotation"))
    zoom, shift = placed.zoom[:, None], placed.shift[:, None]
    center, wh = best.center * STRIDE, best.wh * STRIDE
    if config.wh_as_point:
        wh = wh - shift
    depth, size = metres(at_centers("depth"))[..., 0], at_centers("size3d")
    location, yaw = unproject((center - shift) / zoom, depth, size[..., 0], alpha, placed.camera)
    return Detections(
        boxes=jnp.concatenate([center - wh / 2, center + wh / 2], -1),
        scores=best.scores,
        labels=best.labels,
        boxes3d=jnp.concatenate([location, size, yaw[..., None]], -1),
        alpha=alpha,
    )


def alpha_of(rotation: Array) -> Array:
    """(..., 8) the rotation head -> (...) alpha, in (-3/2 pi, 3/2 pi]: by the bin that is likelier, not wrapped."""
    first = rotation[..., 1] > rotation[..., BIN_CHANNELS + 1]
    angles = [
        jnp.arctan2(rotation[..., BIN_CHANNELS * n + 2], rotation[..., BIN_CHANNELS * n + 3]) + BIN_CENTERS[n]
        for n in range(2)
    ]
    return jnp.where(first, angles[0], angles[1])


def unproject(center: Array, depth: Array, height: Array, alpha: Array, camera: Array) -> tuple[Array, Array]:
    """Where the objects are: the middle of their bottom (B, N, 3) in metres, and their yaw (B, N).

    center: (B, N, 2) x y of their middle in image pixels.  depth: (B, N) metres, height: (B, N) metres.  alpha: (B, N).
    camera: (B, 3, 4).  yaw is in [-pi, pi] where alpha is in (-3/2 pi, 3/2 pi].
    """
    p = camera.astype(jnp.float32)[:, None]
    z = depth - p[..., 2, 3]
    x = (center[..., 0] * depth - p[..., 0, 3] - p[..., 0, 2] * z) / p[..., 0, 0]
    y = (center[..., 1] * depth - p[..., 1, 3] - p[..., 1, 2] * z) / p[..., 1, 1]
    yaw = alpha + jnp.arctan2(center[..., 0] - p[..., 0, 2], p[..., 0, 0])
    yaw = jnp.where(yaw > math.pi, yaw - 2 * math.pi, jnp.where(yaw < -math.pi, yaw + 2 * math.pi, yaw))
    return jnp.stack([x, y + height / 2, z], axis=-1), yaw


def oracle(targets: Targets, size: tuple[int, int], *, config: Box3DConfig) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets; in each cell the values of the nearest object.

    size: (H, W) of the input.
    """
    shape, angles = map_size(size), targets["angles"]
    within = targets["bins"].astype(jnp.float32)
    # Of two bins that hold alpha, decoding may take either.
    channels = jnp.stack([1 - within, within, jnp.sin(angles), jnp.cos(angles)], -1)
    values = {
        "depth": logits(1 / (1 + targets["depth"]) - 1e-6),
        "rotation": channels.reshape(*angles.shape[:-1], 2 * BIN_CHANNELS),
        "size3d": targets["size3d"],
    }
    found = {key: nearest_values(targets["index"], targets["mask"], value, shape) for key, value in values.items()}
    return center_oracle(targets, size, config=config) | found


def build(name: str, released: Box3DConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options, fixed={"class_specific_wh", "nms"})
    return Detector(
        name=name,
        net=CenterNet(config, heads_3d(config, num_classes)),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, config=config, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=functools.partial(merge_flip, rules=config.rules),
        # The original tests one view: it ignores flip_test, and fails at a second scale.
        protocols={"na": Protocol()},
        oracle=functools.partial(oracle, config=config),
        solid=True,
        metric="kitti",
        stride=STRIDE,
        multiple=multiple(config),
        boxes_model=name.removesuffix("_3d"),
        import_rules=config.import_rules,
        options=options,
    )
