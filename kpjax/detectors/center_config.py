"""What the methods of Objects as Points share: the released networks, and where the implementations differ, as values.

An object is the cell of its box's centre; boxes, pose and 3D boxes differ in what is regressed there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any, TypeVar

from kpjax.backbones.dla import LEVELS
from kpjax.backbones.resnet import STAGES
from kpjax.detectors.base import replace_options
from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR, IMAGENET_RGB, Preprocess
from kpjax.nn.convolution import PRECISIONS
from kpjax.ops import nms

STRIDE = 4
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)  # of the multi-scale test


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


Config = TypeVar("Config", bound=CenterNetConfig)

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


def multiple(config: CenterNetConfig) -> int:
    """Sides of the input have to be multiples of the trunk's stride: of the neck's, or the hourglass's, halvings."""
    if config.backbone == "dla":
        return 32
    halvings = len(config.features) - 1 if config.backbone == "hourglass" else len(config.deconv)
    return STRIDE * 2**halvings


def with_options(name: str, released: Config, options: dict[str, Any], *, fixed: Set[str] = frozenset()) -> Config:
    """`released` with the options put in, checked, and its rules completed.  Lists (from JSON) become tuples.

    fixed: fields that are no options, beside those that define every released model.
    """
    others = set().union(*_OF_BACKBONE.values()) - _OF_BACKBONE[released.backbone]
    config: Config = replace_options(
        name,
        released,
        options,
        fixed=_FIXED | others | fixed,
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
    rules = dataclasses.replace(
        config.rules,
        radius=config.radius or config.rules.radius,
        overlap=config.overlap or config.rules.overlap,
    )
    return dataclasses.replace(config, rules=rules)
