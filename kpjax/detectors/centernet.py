"""CenterNet: Objects as Points (arXiv 1904.07850), and mmdetection's version of it.

An object is the cell of its box's centre.  Three heads: a heatmap of centres for each class,
the box's width and height, and the centre's offset within its cell (lost by the stride of 4).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.backbones.dla import LEVELS, DLAUp
from kpjax.backbones.hourglass import StackedHourglass
from kpjax.backbones.resnet import STAGES, ResNetDeconv
from kpjax.detectors.base import Array, Detector, Outputs, Protocol, Targets, replace_options
from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR, IMAGENET_RGB, Preprocess
from kpjax.nn.convolution import PRECISIONS, Precision
from kpjax.nn.heads import Head, Heads, heatmap_head
from kpjax.objects import Detections, Objects, Placed
from kpjax.ops import losses, nms, peaks
from kpjax.ops.heatmap import draw_gaussians, gaussian_radius
from kpjax.ops.keypoint_targets import last_in_cell
from kpjax.ops.merge import merge_mirrored, merge_scales
from kpjax.ops.oracle import logits, nearest_values

STRIDE = 4


@dataclasses.dataclass(frozen=True)
class Rules:
    """Where the released implementations differ, as values.  The defaults are xingyizhou's.

    radius, overlap: the Gaussian's radius (golden: fn_ctnet_gaussian).
    round_sides: box sides are rounded up to whole cells before the radius is taken.
    clip: boxes are cut to the map's cells [0, w - 1] x [0, h - 1] first, and those without area
        then are no objects (golden: fn_ctdet_targets); otherwise they are used as given.
    one_per_cell: of several objects in one cell the last alone trains wh and offset (golden:
        fn_mmdet_targets); otherwise each does.
    probabilities: the network returns sigmoid(heatmap), as mmdetection's head does, and the loss
        has 1e-12 in its logarithms; otherwise logits, and scores are clamped to [1e-4, 1 - 1e-4].
    count: what the L1 losses divide by: "boxes" 2 n + 1e-4, or "peaks" 2 max(1, heatmap cells that are 1).
    flip: what the flip test merges with the mirror image's: "maps", or "boxes" with NMS
        (mmdetection).
    """

    radius: str = "legacy"
    overlap: float = 0.7
    round_sides: bool = True
    clip: bool = True
    one_per_cell: bool = False
    probabilities: bool = False
    count: str = "boxes"
    flip: str = "maps"


XINGYIZHOU = Rules()
MMDET = Rules(
    radius="fixed",
    overlap=0.3,
    round_sides=False,
    clip=False,
    one_per_cell=True,
    probabilities=True,
    count="peaks",
    flip="boxes",
)


@dataclasses.dataclass(frozen=True)
class CenterNetConfig:
    """One released model, or a variation of it.

    backbone: "resnet", "dla" or "hourglass".  features, blocks, stem, stacks: of an hourglass; each stack
    has its own heads.  depth, width: of a ResNet or DLA, the width being that of its first stage.
    deconv, neck_conv: of the ResNet's neck; two steps instead of three leave
    out the trunk's last stage (stride 16), for small images.  dcn: deformable convolution in
    the neck; dcn_bias: with a bias, as xingyizhou's in the ResNet's neck.  head_channels: of each head's
    3x3 convolution.  class_specific_wh: one pair of sizes a class (`cat_spec_wh`).
    radius, overlap: override the rules' ("": keep).  nms: soft-NMS of the detections at test time: "" as published
    (of merged views alone), "none", or a method, which then every preset uses (xingyizhou's `--nms`).
    dtype, precision, bn_groups, remat: see kpjax.config.
    """

    backbone: str = "resnet"
    depth: int = 18
    width: int = 64
    deconv: tuple[int, ...] = (256, 256, 256)
    neck_conv: bool = False
    features: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    dcn: bool = False
    dcn_bias: bool = True
    head_channels: int = 64
    class_specific_wh: bool = False
    rules: Rules = XINGYIZHOU
    preprocess: Preprocess = COCO_BGR
    import_rules: str = "xingyizhou_resnet"
    radius: str = ""
    overlap: float = 0.0
    nms: str = ""
    wh_weight: float = 0.1
    offset_weight: float = 1.0
    dtype: str = "float32"
    precision: str = "default"
    bn_groups: int = 1
    remat: bool = False


R18 = CenterNetConfig()
R34 = CenterNetConfig(depth=34)
R50 = CenterNetConfig(depth=50)
R101 = CenterNetConfig(depth=101)
R18_MMDET = CenterNetConfig(
    deconv=(256, 128, 64), neck_conv=True, rules=MMDET, preprocess=IMAGENET_RGB, import_rules="mmdet_resnet"
)
HG104 = CenterNetConfig(
    backbone="hourglass",
    head_channels=256,
    preprocess=dataclasses.replace(COCO_BGR, pad=127),
    import_rules="xingyizhou_hourglass",
)
R18_DCN = CenterNetConfig(deconv=(256, 128, 64), dcn=True, import_rules="xingyizhou_resnet_dcn")
R101_DCN = dataclasses.replace(R18_DCN, depth=101)
R18_DCN_MMDET = dataclasses.replace(R18_MMDET, dcn=True, dcn_bias=False, import_rules="mmdet_resnet_dcn")
DLA34 = CenterNetConfig(backbone="dla", depth=34, width=16, dcn=True, head_channels=256, import_rules="xingyizhou_dla")
DLA34_NODCN = dataclasses.replace(DLA34, dcn=False, import_rules="xingyizhou_dlav0")

# Fields that define a released model: no options of `build`.
_FIXED = {"backbone", "dcn", "dcn_bias"}
# Options of some backbones only.
_OF_BACKBONE = {
    "resnet": {"depth", "width", "deconv", "neck_conv"},
    "dla": {"depth", "width"},
    "hourglass": {"features", "blocks", "stem", "stacks"},
}


class CenterNet(nn.Module):
    """Backbone and heads: normalised images (B, H, W, 3) -> [{"heatmap", "wh", "offset"}], float32 (B, h, w, .)."""

    config: CenterNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        dtype, precision = jnp.dtype(c.dtype), PRECISIONS[c.precision]
        maps = _backbone(c, dtype, precision)(images, train)
        heads = {
            "heatmap": heatmap_head(self.num_classes),
            "wh": Head(2 * self.num_classes if c.class_specific_wh else 2),
            "offset": Head(2),
        }
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


def encode(objects: Objects, placed: Placed, *, rules: Rules, num_classes: int) -> Targets:
    """Targets of one image.

    objects: (M, ...), in input pixels.  placed: only its size is read.  Returns "heatmap" (h, w, K)
    float32; and for each slot m "index" (M,) int32 cell y * w + x, "mask" (M,) bool, "wh" (M, 2) and "offset" (M, 2)
    float32 in cells, "label" (M,) int32.  A box that is no object keeps its slot, with mask False.
    """
    height, width = placed.size[0] // STRIDE, placed.size[1] // STRIDE
    boxes, labels, valid = objects.boxes.astype(jnp.float32) / STRIDE, objects.labels, objects.valid
    if rules.clip:
        limit = jnp.asarray([width - 1, height - 1, width - 1, height - 1], jnp.float32)
        boxes = jnp.clip(boxes, 0.0, limit)
    wh = boxes[:, 2:] - boxes[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    cell = center.astype(jnp.int32)
    inside = ((cell >= 0) & (cell < jnp.asarray([width, height]))).all(-1)
    valid = valid & (wh > 0).all(-1) & inside
    sides = jnp.ceil(wh) if rules.round_sides else wh
    sides = jnp.where(valid[:, None], sides, 1.0)
    radius = gaussian_radius(sides[:, 1], sides[:, 0], rules.overlap, rules.radius)
    radius = jnp.maximum(radius.astype(jnp.int32), 0)
    labels = jnp.where(valid, labels, num_classes)  # scatters of empty slots are out of range, and dropped
    heatmap = draw_gaussians(cell, radius, labels, valid, (height, width), num_classes)
    index = jnp.where(valid, cell[:, 1] * width + cell[:, 0], 0)
    mask = last_in_cell(index, valid) if rules.one_per_cell else valid
    keep = mask[:, None]
    return {
        "heatmap": heatmap,
        "index": jnp.where(mask, index, 0),
        "mask": mask,
        "wh": jnp.where(keep, wh, 0.0),
        "offset": jnp.where(keep, center - cell, 0.0),
        "label": jnp.where(mask, labels, 0),
    }


def oracle(targets: Targets, size: tuple[int, int], *, config: CenterNetConfig) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets: the heatmap; wh and offset of the object nearest to each cell.

    size: (H, W) of the input.  As in the analysis of errors of Objects as Points, where a detection gets the size of
    the nearest object.
    """
    shape = size[0] // STRIDE, size[1] // STRIDE
    heat = targets["heatmap"]
    wh, offset = (nearest_values(targets["index"], targets["mask"], targets[key], shape) for key in ("wh", "offset"))
    if config.class_specific_wh:
        wh = jnp.tile(wh, heat.shape[-1])
    return {"heatmap": heat if config.rules.probabilities else logits(heat), "wh": wh, "offset": offset}


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: heatmap cells that are objects, and objects that train wh and offset."""
    return {
        "peaks": (targets["heatmap"] == 1).sum(dtype=jnp.float32),
        "boxes": targets["mask"].sum(dtype=jnp.float32),
    }


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: CenterNetConfig
) -> tuple[Array, dict[str, Array]]:
    """Objects as Points eq. 4: heatmap + 0.1 wh + offset, the mean over the stacks.

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted
    parts ("heatmap", "wh", "offset"), float32 scalars.
    """
    rules = config.rules
    index, mask = targets["index"], targets["mask"]
    l1_divisor = 2 * jnp.maximum(counts["peaks"], 1) if rules.count == "peaks" else 2 * counts["boxes"] + 1e-4
    parts = {"heatmap": jnp.float32(0), "wh": jnp.float32(0), "offset": jnp.float32(0)}
    for maps in outputs:
        if rules.probabilities:
            heat = losses.gaussian_focal_loss(maps["heatmap"], targets["heatmap"], jnp.maximum(counts["peaks"], 1))
        else:
            heat = losses.focal_loss(maps["heatmap"], targets["heatmap"], counts["peaks"])
        if config.class_specific_wh:
            wh = losses.class_l1_at(maps["wh"], index, mask, targets["label"], targets["wh"], l1_divisor)
        else:
            wh = losses.l1_at(maps["wh"], index, mask, targets["wh"], l1_divisor)
        offset = losses.l1_at(maps["offset"], index, mask, targets["offset"], l1_divisor)
        for key, value in (("heatmap", heat), ("wh", wh), ("offset", offset)):
            parts[key] += value / len(outputs)
    total = parts["heatmap"] + config.wh_weight * parts["wh"] + config.offset_weight * parts["offset"]
    return total, parts


def score_map(maps: dict[str, Array], rules: Rules) -> Array:
    """The heatmap head as scores, (B, h, w, K) float32."""
    heat = maps["heatmap"].astype(jnp.float32)
    return heat if rules.probabilities else jax.nn.sigmoid(heat)


def decode(maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, rules: Rules) -> Detections:
    """Boxes of the best peaks (Objects as Points, section 4), in input pixels, wherever the image is placed.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them; without an
    "offset" a centre lies in the middle of its cell.  Returns (B, top_k, ...), best first.
    """
    merged = "scores" in maps
    heat = maps["scores" if merged else "heatmap"].astype(jnp.float32)
    scores, labels, ys, xs = peaks.best_peaks(heat, top_k, logits=not (merged or rules.probabilities))
    index = ys * heat.shape[2] + xs
    wh = peaks.gather_cells(maps["wh"].astype(jnp.float32), index)
    if wh.shape[-1] > 2:  # one pair a class
        pairs = wh.reshape(*wh.shape[:2], -1, 2)
        wh = jnp.take_along_axis(pairs, labels[..., None, None], axis=2)[:, :, 0]
    offset: Array = jnp.full(wh.shape, 0.5)
    if "offset" in maps:
        offset = peaks.gather_cells(maps["offset"].astype(jnp.float32), index)
    center = jnp.stack([xs, ys], -1).astype(jnp.float32) + offset
    boxes = jnp.concatenate([center - wh / 2, center + wh / 2], -1) * STRIDE
    return Detections(boxes=boxes, scores=scores, labels=labels)


def merge_flip(maps: dict[str, Array], *, rules: Rules) -> dict[str, Array]:
    """Merge the maps of [images; mirrored images], (2B, h, w, .), as xingyizhou's `flip_test` does.

    Scores and wh are averaged, the offset is the plain image's.
    Returns {"scores", "wh", "offset"}, (B, h, w, .), for `decode`.
    """
    half = maps["wh"].shape[0] // 2

    def average(x: Array) -> Array:
        return (x[:half] + x[half:, :, ::-1]) / 2

    return {"scores": average(score_map(maps, rules)), "wh": average(maps["wh"]), "offset": maps["offset"][:half]}


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def protocols(config: CenterNetConfig) -> dict[str, Protocol]:
    """The test protocols by preset; the method of `config.nms` is applied to one view's detections too.

    mmdetection's configuration tests one scale; its DetTTAModel merges any number of them alike.
    """
    mirror, always = config.rules.flip, config.nms in nms.METHODS
    own = nms.ORIGINAL if mirror == "maps" else nms.MMCV if config.nms in ("linear", "gaussian") else nms.HARD_MMCV
    rules = dataclasses.replace(own, method=config.nms) if always else None if config.nms == "none" else own
    merge = functools.partial(merge_scales if mirror == "maps" else merge_mirrored, rules=rules)
    return {
        "na": Protocol(merge=merge if always else None),
        "flip": Protocol(mirror=mirror, merge=merge if always or mirror == "boxes" else None),
        "ms": Protocol(mirror=mirror, scales=SCALES, merge=merge),
    }


def build(name: str, released: CenterNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = _with_options(name, released, options)
    rules = dataclasses.replace(
        config.rules,
        radius=config.radius or config.rules.radius,
        overlap=config.overlap or config.rules.overlap,
    )
    config = dataclasses.replace(config, rules=rules)
    return Detector(
        name=name,
        net=CenterNet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=rules, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, rules=rules),
        merge_flip=functools.partial(merge_flip, rules=rules),
        protocols=protocols(config),
        oracle=functools.partial(oracle, config=config),
        stride=STRIDE,
        multiple=_multiple(config),
        import_rules=config.import_rules,
        options=options,
    )


def _multiple(config: CenterNetConfig) -> int:
    """Sides of the input have to be multiples of the trunk's stride: of the neck's, or the hourglass's, halvings."""
    if config.backbone == "dla":
        return 32
    halvings = len(config.features) - 1 if config.backbone == "hourglass" else len(config.deconv)
    return STRIDE * 2**halvings


def _with_options(name: str, released: CenterNetConfig, options: dict[str, Any]) -> CenterNetConfig:
    """`released` with the options put in, checked.  Lists (from JSON) become tuples."""
    others = set().union(*_OF_BACKBONE.values()) - _OF_BACKBONE[released.backbone]
    config: CenterNetConfig = replace_options(
        name,
        released,
        options,
        fixed=_FIXED | others,
        depth=tuple(LEVELS if released.backbone == "dla" else STAGES),
        dtype=("float32", "bfloat16"),
        precision=tuple(PRECISIONS),
        radius=("", "legacy", "fixed"),
        nms=("", "none", *nms.METHODS),
    )
    if len(config.features) != len(config.blocks) or len(config.features) < 2:
        raise ConfigError(
            f"model {name}: features is {config.features} and blocks is {config.blocks}; give both the same number "
            "of levels, two at least"
        )
    if min(config.stem, config.stacks, *config.features, *config.blocks) < 1:
        raise ConfigError(f"model {name}: features, blocks, stem and stacks must be at least 1")
    positive = (config.width, config.head_channels, config.bn_groups, *config.deconv)
    if min(positive) < 1:
        raise ConfigError(
            f"model {name}: width, head_channels, bn_groups and deconv must be at least 1, not {positive}"
        )
    if not 1 <= len(config.deconv) <= 3:
        raise ConfigError(f"model {name}: deconv is {config.deconv}; give one to three steps (three end at stride 32)")
    if not 0 <= config.overlap < 1:
        raise ConfigError(
            f"model {name}: overlap is {config.overlap}; it must be at least 0 (the rules' own) and below 1"
        )
    return config
