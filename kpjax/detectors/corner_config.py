"""Settings and network parts that the corner detectors (CornerNet, keypoint triplets) share."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

import jax.numpy as jnp

from kpjax.backbones.hourglass import StackedHourglass
from kpjax.detectors.base import replace_options
from kpjax.errors import ConfigError
from kpjax.images.preprocess import COCO_BGR, IMAGENET_RGB, Preprocess
from kpjax.nn.convolution import PRECISIONS
from kpjax.nn.heads import Head, Heads, heatmap_head
from kpjax.ops import nms
from kpjax.ops.nms import SoftNms

STRIDE = 4  # of all but CornerNet-Squeeze


SIDES = {"tl": ("top", "left"), "br": ("bottom", "right")}  # the directions of each corner's pooling


KEYPOINTS = ("tl", "br", "center")  # those of a detector are the ones that its targets and maps name


@dataclasses.dataclass(frozen=True)
class Rules:
    """Where the released implementations differ, as values.  The defaults are CornerNet's.

    stride: input pixels a cell of the maps, 4 or 8 (CornerNet-Squeeze's), their sides rounded up.
    radius, overlap: the Gaussian's radius (golden: gaussian_fixed, gaussian_original).
    clip: boxes are cut to the input's pixels, those without area then are dropped and later ones move up
        (golden: targets_cornernet); otherwise they are used as given, cells beyond the map pulled back onto it.
    one_per_cell: of several corners in one cell the last alone trains the offset (golden: fn_mmdet_targets).
    clamp: scores in the focal loss are cut to [1e-4, 1 - 1e-4], and a loss without corners is not divided;
        otherwise its logarithms have 1e-12 added (golden: loss_cornernet, fn_mmdet_losses).
    embedding_eps: see `losses.associative_embedding`.
    offset_eps: added to the corners that divide the offset's loss; 0: at least one is counted.
    average: what the loss's sums are divided by: "stacks", or "corners" (the two corners' heatmaps and offsets
        are averaged, and stacks are added up, so that pull and push weigh twice as much with two stacks).
    inside: a pair is tested after its corners were pulled to the right of and below the image's corner, and
        has to have an area; boxes are not cut otherwise (golden: fn_mmdet_predict).  If false, boxes are cut to
        the image afterwards.
    no_border: top-left corners in the map's first row or column and bottom-right ones in its last are none, which
        CornerNet-Saccade needs for its crops (golden: decode_cornernet_lite).
    nms, stale_rows: soft-NMS of the paired boxes, and whether the stale rows that the originals' leaves are kept.
    flip: what the flip test merges with the mirror image's: "pairs", before soft-NMS, or "boxes", after it, by
        another soft-NMS (mmdetection; golden: pipe_mmdet_cornernet_hg104, runs `*/flip`).
    """

    stride: int = STRIDE
    radius: str = "fixed"
    overlap: float = 0.3
    clip: bool = True
    one_per_cell: bool = False
    clamp: bool = True
    embedding_eps: float = 1e-4
    offset_eps: float = 1e-4
    average: str = "stacks"
    inside: bool = False
    no_border: bool = False
    nms: SoftNms = nms.ORIGINAL
    stale_rows: bool = True
    flip: str = "pairs"


ORIGINAL = Rules()


MMDET = Rules(
    clip=False,
    one_per_cell=True,
    clamp=False,
    embedding_eps=0.0,
    offset_eps=0.0,
    average="corners",
    inside=True,
    nms=nms.MMCV,
    stale_rows=False,
    flip="boxes",
)


# The originals pad to a side of 128 k - 1; mmdetection fills the border with the mean.
PAD_BGR = dataclasses.replace(COCO_BGR, pad=127, pad_plus_one=False)


PAD_RGB = dataclasses.replace(IMAGENET_RGB, pad=127, pad_plus_one=False, border="mean")


@dataclasses.dataclass(frozen=True)
class CornerNetConfig:
    """One released model, or a variation of it.

    features, blocks, stem, stacks, fire: of the hourglass.  branch: channels of a pooled map.  head_channels,
    head_kernel: channels and side of each head's first convolution.  radius, overlap: override the rules' ("": keep).
    corners: best corners of a side that are paired.  pairs: candidates kept of them.  distance: largest difference
    of a pair's embeddings.  kernel: neighbourhood of the peak test, 3 or 1 (none).  nms: method of the soft-NMS
    ("": the rules' own, Gaussian), or "none".  merge_exponent: of the averaging of boxes where several scales are
    merged (0: soft-NMS without averaging).
    embedding_images: pull and push are sums over a batch's images; they are scaled to this many, those a GPU
        had in the original's training (0: the plain sum).
    dtype, precision, bn_groups, remat: see kpjax.config.
    """

    features: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    fire: bool = False
    branch: int = 128
    head_channels: int = 256
    head_kernel: int = 3
    rules: Rules = ORIGINAL
    preprocess: Preprocess = PAD_BGR
    import_rules: str = "cornernet"
    radius: str = ""
    overlap: float = 0.0
    corners: int = 100
    pairs: int = 1000
    distance: float = 0.5
    kernel: int = 3
    nms: str = ""
    merge_exponent: float = 10.0
    pull_weight: float = 0.1
    push_weight: float = 0.1
    offset_weight: float = 1.0
    embedding_images: int = 0
    dtype: str = "float32"
    precision: str = "default"
    bn_groups: int = 1
    remat: bool = False


def with_options(
    name: str, released: CornerNetConfig, options: dict[str, Any], fixed: Set[str] = frozenset()
) -> CornerNetConfig:
    """`released` with the options put in, checked, and its rules completed.  fixed: see `replace_options`."""
    config = replace_options(
        name,
        released,
        options,
        fixed=fixed,
        dtype=("float32", "bfloat16"),
        precision=tuple(PRECISIONS),
        radius=("", "legacy", "fixed"),
        kernel=(1, 3),
        head_kernel=(1, 3),
        nms=("", "none", *nms.METHODS),
    )
    if len(config.features) != len(config.blocks) or len(config.features) < 2:
        raise ConfigError(
            f"model {name}: features is {config.features} and blocks is {config.blocks}; give both the same number "
            "of levels, two at least"
        )
    for key in ("stem", "stacks", "branch", "head_channels", "corners", "pairs", "bn_groups"):
        if getattr(config, key) < 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be at least 1")
    if min(config.features + config.blocks) < 1:
        raise ConfigError(f"model {name}: features and blocks must be at least 1 at every level")
    if config.fire and any(width % 2 for width in config.features):
        raise ConfigError(f"model {name}: features is {config.features}; fire modules need even numbers of channels")
    if config.embedding_images < 0:
        raise ConfigError(f"model {name}: embedding_images is {config.embedding_images}; it must be at least 0")
    if config.merge_exponent < 0:
        raise ConfigError(f"model {name}: merge_exponent is {config.merge_exponent}; it must be at least 0")
    if not 0 <= config.overlap < 1:
        raise ConfigError(
            f"model {name}: overlap is {config.overlap}; it must be at least 0 (the rules' own) and below 1"
        )
    rules = dataclasses.replace(
        config.rules, radius=config.radius or config.rules.radius, overlap=config.overlap or config.rules.overlap
    )
    if config.nms not in ("", "none"):
        rules = dataclasses.replace(rules, nms=dataclasses.replace(rules.nms, method=config.nms))
    return dataclasses.replace(config, rules=rules)


def backbone(config: CornerNetConfig) -> StackedHourglass:
    """The configuration's hourglass, as the submodule "backbone"."""
    c = config
    settings = (c.bn_groups, c.remat, jnp.dtype(c.dtype), PRECISIONS[c.precision])
    variant: dict[str, Any] = {"fire": c.fire, "stride": c.rules.stride}
    return StackedHourglass(c.features, c.blocks, c.stem, c.stacks, *settings, **variant, name="backbone")


def layer_options(config: CornerNetConfig) -> dict[str, Any]:
    """What all pooling modules take of the configuration."""
    c = config
    return {"bn_groups": c.bn_groups, "dtype": jnp.dtype(c.dtype), "precision": PRECISIONS[c.precision]}


def keypoint_heads(config: CornerNetConfig, heads: dict[str, Head], name: str) -> Heads:
    """The heads of one kind of keypoint in one stack, as the submodule `name`."""
    settings = (jnp.dtype(config.dtype), PRECISIONS[config.precision], config.head_kernel)
    return Heads(heads, config.head_channels, *settings, name=name)


def corner_heads(config: CornerNetConfig, num_classes: int, side: str, stack: int) -> Heads:
    """The heads of one corner in one stack."""
    heads = {f"{side}_heat": heatmap_head(num_classes), f"{side}_tag": Head(1), f"{side}_off": Head(2)}
    return keypoint_heads(config, heads, f"{side}_heads{stack}")
