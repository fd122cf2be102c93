"""Name rules of hourglass checkpoints: princeton-vl's CornerNet, Duankaiwen's triplets, xingyizhou's, mmdetection's.

All but mmdetection's share the names of the backbone; mmdetection has its own for the same layers, and CornerNet-Lite
puts it into a module `hg`.  The tables fit every number of stacks, and hourglasses of up to `_DEPTHS` levels.
"""

from __future__ import annotations

from kpjax.convert.resnet import POSE_HEADS, deconv_kernel
from kpjax.convert.rules import Rule, batch_norm, conv_kernel, depthwise_kernel

_DEPTHS = 8
BACKBONE = "backbone"


def _layer(conv: str, norm: str, target: str) -> tuple[Rule, ...]:
    """A convolution without bias and its BatchNorm.  conv, norm: regular expressions of their keys."""
    return (
        Rule(rf"{conv}\.weight", f"params/{target}/conv/kernel", conv_kernel),
        *batch_norm(norm, f"{target}/bn"),
    )


def _conv_bn(source: str, target: str) -> tuple[Rule, ...]:
    """As `_layer`, for a module that names its parts `conv` and `bn`."""
    return _layer(rf"{source}\.conv", rf"{source}\.bn", target)


def _residual(source: str, target: str, skip: str) -> tuple[Rule, ...]:
    return (
        *_layer(rf"{source}\.conv1", rf"{source}\.bn1", f"{target}/first"),
        *_layer(rf"{source}\.conv2", rf"{source}\.bn2", f"{target}/second"),
        Rule(rf"{source}\.{skip}\.0\.weight", f"params/{target}/skip_conv/kernel", conv_kernel),
        *batch_norm(rf"{source}\.{skip}\.1", f"{target}/skip_bn"),
    )


def _expand(source: str, target: str) -> tuple[Rule, ...]:
    """What a fire module has in place of the second convolution; its other names are those of `_residual`."""
    return (
        Rule(rf"{source}\.conv_1x1\.weight", f"params/{target}/second/pointwise/kernel", conv_kernel),
        Rule(rf"{source}\.conv_3x3\.weight", f"params/{target}/second/depthwise/kernel", depthwise_kernel),
    )


def _hourglass(source: str, skip: str, fire: bool = False) -> tuple[Rule, ...]:
    """A stack, whose number is the source's one group.  `low2` holds the next level, or the lowest level's blocks.

    fire: with those that CornerNet-Squeeze alone has: fire modules, and transposed convolutions to go up.
    """
    rules: tuple[Rule, ...] = ()
    for depth in range(_DEPTHS):
        here, there = source + r"\.low2" * depth, rf"{BACKBONE}/hourglass\1" + "/inner" * depth
        for theirs, ours in (("up1", "skip"), ("low1", "down"), ("low2", "inner"), ("low3", "up")):
            rules += _residual(rf"{here}\.{theirs}\.(\d+)", rf"{there}/{ours}_\2", skip)
            if fire:
                rules += _expand(rf"{here}\.{theirs}\.(\d+)", rf"{there}/{ours}_\2")
        if fire:
            rules += (
                Rule(rf"{here}\.up2\.weight", f"params/{there}/double/kernel", deconv_kernel),
                Rule(rf"{here}\.up2\.bias", f"params/{there}/double/bias"),
            )
    return rules


def _head(source: str, target: str, out: str) -> tuple[Rule, ...]:
    r"""A 3x3 convolution with bias, ReLU and a 1x1 one.  out: key of the latter in the head, `1` or `1\.conv`."""
    return tuple(
        rule
        for theirs, layer in ((r"0\.conv", "conv"), (out, "out"))
        for rule in (
            Rule(rf"{source}\.(\d+)\.{theirs}\.weight", f"params/{target}_{layer}/kernel", conv_kernel),
            Rule(rf"{source}\.(\d+)\.{theirs}\.bias", f"params/{target}_{layer}/bias"),
        )
    )


def _backbone(prefix: str, stacks: str, fire: bool = False) -> tuple[Rule, ...]:
    """princeton-vl's backbone.  prefix: of its keys.  stacks: the hourglasses' name.  fire: see `_hourglass`."""
    return (
        *_conv_bn(rf"{prefix}pre\.0", f"{BACKBONE}/stem"),
        *_residual(rf"{prefix}pre\.1", f"{BACKBONE}/stem_residual", "skip"),
        *(_residual(rf"{prefix}pre\.2", f"{BACKBONE}/stem_residual2", "skip") if fire else ()),
        *_hourglass(rf"{prefix}{stacks}\.(\d+)", "skip", fire),
        *_conv_bn(rf"{prefix}cnvs\.(\d+)", rf"{BACKBONE}/out\1"),
        *_layer(rf"{prefix}inters_\.(\d+)\.0", rf"{prefix}inters_\.(\d+)\.1", rf"{BACKBONE}/seen\1"),
        *_layer(rf"{prefix}cnvs_\.(\d+)\.0", rf"{prefix}cnvs_\.(\d+)\.1", rf"{BACKBONE}/said\1"),
        *_residual(rf"{prefix}inters\.(\d+)", rf"{BACKBONE}/between\1", "skip"),
    )


_ORIGINAL_BACKBONE = _backbone("", "kps")
LITE_BACKBONE = _backbone(r"hg\.", "hgs", fire=True)  # of CornerNet-Lite's CornerNet, Squeeze and Saccade alike


def original_pool(source: str, target: str, cascade: bool = False) -> tuple[Rule, ...]:
    """The pooling module before a pair of heads, in princeton-vl's and Duankaiwen's names."""
    rules: tuple[Rule, ...] = ()
    for branch in (1, 2):
        rules += _conv_bn(rf"{source}\.p{branch}_conv1", f"{target}/branch{branch}")
        if cascade:
            rules += _conv_bn(rf"{source}\.look_conv{branch}", f"{target}/inside{branch}")
            look = rf"{source}\.P{branch}_look_conv\.weight"
            rules += (Rule(look, f"params/{target}/along{branch}/kernel", conv_kernel),)
    return (
        *rules,
        *_layer(rf"{source}\.p_conv1", rf"{source}\.p_bn1", f"{target}/merge/pooled"),
        *_layer(rf"{source}\.conv1", rf"{source}\.bn1", f"{target}/merge/shortcut"),
        *_conv_bn(rf"{source}\.conv2", f"{target}/merge/out"),
    )


def corners(cascade: bool = False, pool: str = "cnvs", offset: str = "regrs") -> tuple[Rule, ...]:
    """Corner pooling and heads.  pool, offset: what the original calls the pooling modules and the offsets' heads."""
    rules: tuple[Rule, ...] = ()
    for corner in ("tl", "br"):
        rules += original_pool(rf"{corner}_{pool}\.(\d+)", rf"{corner}_pool\1", cascade)
        for theirs, ours in (("heats", "heat"), ("tags", "tag"), (offset, "off")):
            rules += _head(f"{corner}_{theirs}", rf"{corner}_heads\1/{corner}_{ours}", "1")
    return rules


# princeton-vl's names, and those that CornerNet-Lite has for the same network and for CornerNet-Squeeze.
CORNERNET = (
    *_ORIGINAL_BACKBONE,
    *LITE_BACKBONE,
    *corners(pool="(?:cnvs|modules)", offset="(?:regrs|offs)"),
)

CORNERNET_SACCADE = (
    *LITE_BACKBONE,
    *corners(pool="modules", offset="offs"),
    *_head(r"att_modules\.(\d+)", r"attention\2_head\1/attention\2", "1"),
)

TRIPLET = (
    *_ORIGINAL_BACKBONE,
    *corners(cascade=True),
    *original_pool(r"ct_cnvs\.(\d+)", r"center_pool\1"),
    *_head("ct_heats", r"center_heads\1/center_heat", "1"),
    *_head("ct_regrs", r"center_heads\1/center_off", "1"),
)

EXTREMENET = (
    *_ORIGINAL_BACKBONE,
    *(
        rule
        for theirs, ours in {"t": "top", "l": "left", "b": "bottom", "r": "right", "ct": "center"}.items()
        for rule in _head(f"{theirs}_heats", rf"heads\1/{ours}_heat", "1")
    ),
    *(
        rule
        for theirs, ours in {"t": "top", "l": "left", "b": "bottom", "r": "right"}.items()
        for rule in _head(f"{theirs}_regrs", rf"heads\1/{ours}_off", "1")
    ),
)

XINGYIZHOU_HOURGLASS = (
    *_ORIGINAL_BACKBONE,
    *_head("hm", r"heads\1/heatmap", "1"),
    *_head("wh", r"heads\1/wh", "1"),
    *_head("reg", r"heads\1/offset", "1"),
)


# The backbone of any of these detectors, for another one to start from.
BACKBONE_OF_DETECTORS = (
    *_ORIGINAL_BACKBONE,
    *LITE_BACKBONE,
    Rule(
        r"(?:tl|br|t|l|b|r|ct)_(?:heats|tags|regrs|cnvs|modules|offs)\..*",
        drop="of the detector that was trained before",
    ),
    Rule(r"(?:hm|wh|reg|hps|hm_hp|hp_offset|att_modules)\..*", drop="of the detector that was trained before"),
)


XINGYIZHOU_HOURGLASS_POSE = (
    *XINGYIZHOU_HOURGLASS,
    *(rule for theirs, ours in POSE_HEADS.items() for rule in _head(theirs, rf"heads\1/{ours}", "1")),
)


def _mmdet_corners() -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = ()
    for corner in ("tl", "br"):
        source, target = rf"bbox_head\.{corner}_pool\.(\d+)", rf"{corner}_pool\1"
        for theirs, ours in (
            ("direction1_conv", "branch1"),
            ("direction2_conv", "branch2"),
            ("aftpool_conv", "merge/pooled"),
            ("conv1", "merge/shortcut"),
            ("conv2", "merge/out"),
        ):
            rules += _conv_bn(rf"{source}\.{theirs}", f"{target}/{ours}")
        for theirs, ours in (("heat", "heat"), ("emb", "tag"), ("off", "off")):
            rules += _head(rf"bbox_head\.{corner}_{theirs}", rf"{corner}_heads\1/{corner}_{ours}", r"1\.conv")
    return rules


MMDET_CORNERNET = (
    *_conv_bn(r"backbone\.stem\.0", f"{BACKBONE}/stem"),
    *_residual(r"backbone\.stem\.1\.0", f"{BACKBONE}/stem_residual", "downsample"),
    *_hourglass(r"backbone\.hourglass_modules\.(\d+)", "downsample"),
    *_conv_bn(r"backbone\.out_convs\.(\d+)", rf"{BACKBONE}/out\1"),
    *_conv_bn(r"backbone\.conv1x1s\.(\d+)", rf"{BACKBONE}/seen\1"),
    *_conv_bn(r"backbone\.remap_convs\.(\d+)", rf"{BACKBONE}/said\1"),
    *_residual(r"backbone\.inters\.(\d+)", rf"{BACKBONE}/between\1", "downsample"),
    *_mmdet_corners(),
    Rule(r"data_preprocessor\.(mean|std)", drop="the input's statistics, which the model's own table holds"),
)
