"""Which table of name rules reads which checkpoint."""

from __future__ import annotations

import functools

from kpjax.convert import dla, hourglass, resnet, ttfnet
from kpjax.convert.rules import Rule, destination

# Detector.import_rules -> the table that reads its released checkpoints.
RULES: dict[str, tuple[Rule, ...]] = {
    "xingyizhou_resnet": resnet.XINGYIZHOU_RESNET,
    "xingyizhou_resnet_dcn": resnet.XINGYIZHOU_RESNET_DCN,
    "xingyizhou_dla": dla.XINGYIZHOU_DLA,
    "xingyizhou_dlav0": dla.XINGYIZHOU_DLAV0,
    "xingyizhou_resnet_pose": resnet.XINGYIZHOU_RESNET_POSE,
    "xingyizhou_dla_pose": dla.XINGYIZHOU_DLA_POSE,
    "xingyizhou_hourglass_pose": hourglass.XINGYIZHOU_HOURGLASS_POSE,
    "xingyizhou_resnet_3d": resnet.XINGYIZHOU_RESNET_3D,
    "xingyizhou_dla_3d": dla.XINGYIZHOU_DLA_3D,
    "mmdet_resnet": resnet.MMDET_RESNET,
    "cornernet": hourglass.CORNERNET,
    "cornernet_saccade": hourglass.CORNERNET_SACCADE,
    "cornernet_mmdet": hourglass.MMDET_CORNERNET,
    "triplet": hourglass.TRIPLET,
    "extremenet": hourglass.EXTREMENET,
    "xingyizhou_hourglass": hourglass.XINGYIZHOU_HOURGLASS,
    "mmdet_resnet_dcn": resnet.MMDET_RESNET_DCN,
    "ttfnet_resnet": ttfnet.TTFNET_RESNET,
    "ttfnet_darknet": ttfnet.TTFNET_DARKNET,
}

# A leaf that only one kind of trunk has -> the table that reads that kind's ImageNet classifiers.
BACKBONES: dict[str, tuple[Rule, ...]] = {
    f"params/{resnet.TRUNK}/conv1/kernel": resnet.IMAGENET_RESNET,
    f"params/{resnet.TRUNK}/base_layer/conv/kernel": dla.IMAGENET_DLA,
    f"params/{resnet.TRUNK}/stem/conv/kernel": ttfnet.IMAGENET_DARKNET,
}

# The same, for backbones that no classifier has: the table reads the released detectors that share them.
SHARED_BACKBONES: dict[str, tuple[Rule, ...]] = {
    "params/backbone/stem_residual/first/conv/kernel": hourglass.BACKBONE_OF_DETECTORS,
}


_LONGEST_KEY = 200  # letters; the tables' are shorter, and a hostile file's can fill the memory


def is_known(key: str) -> bool:
    """Whether any of the tables knows a checkpoint's key."""
    return len(key) <= _LONGEST_KEY and _looked_up(key)


@functools.lru_cache(maxsize=4096)
def _looked_up(key: str) -> bool:
    return any(destination(rules, key) is not None for rules in (*RULES.values(), *BACKBONES.values()))
