"""The models by name: `list_models` and `build`.  A further detector is one file and one line here."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any, TypedDict

from kpjax.config import AugmentConfig, Config, ModelConfig
from kpjax.detectors import (
    box3d,
    center_config,
    centernet,
    cornernet,
    extreme,
    pose,
    saccade,
    saccade_config,
    triplet,
    ttf,
    ttf_config,
)
from kpjax.detectors.base import Detector, check_size
from kpjax.errors import ConfigError
from kpjax.objects import Detections, PointSet

# name -> (num_classes, options) -> Detector
MODELS: dict[str, Callable[[int, dict[str, Any]], Detector]] = {
    name: functools.partial(centernet.build, name, released)
    for name, released in {
        "centernet_r18": center_config.R18,
        "centernet_r18_mmdet": center_config.R18_MMDET,
        "centernet_r34": center_config.R34,
        "centernet_r50": center_config.R50,
        "centernet_r101": center_config.R101,
        "centernet_hg104": center_config.HG104,
        "centernet_r18_dcn": center_config.R18_DCN,
        "centernet_r101_dcn": center_config.R101_DCN,
        "centernet_r18_dcn_mmdet": center_config.R18_DCN_MMDET,
        "centernet_dla34": center_config.DLA34,
        "centernet_dla34_nodcn": center_config.DLA34_NODCN,
    }.items()
}
MODELS |= {
    name: functools.partial(pose.build, name, released)
    for name, released in {
        "centernet_r18_pose": pose.R18,
        "centernet_dla34_pose": pose.DLA34,
        "centernet_hg104_pose": pose.HG104,
    }.items()
}
MODELS |= {
    name: functools.partial(box3d.build, name, released)
    for name, released in {"centernet_r18_3d": box3d.R18, "centernet_dla34_3d": box3d.DLA34}.items()
}
MODELS |= {
    name: functools.partial(cornernet.build, name, released)
    for name, released in {
        "cornernet_hg104": cornernet.HG104,
        "cornernet_hg104_mmdet": cornernet.HG104_MMDET,
        "cornernet_squeeze": cornernet.SQUEEZE,
    }.items()
}
MODELS |= {
    name: functools.partial(triplet.build, name, released)
    for name, released in {"triplet_hg52": triplet.HG52, "triplet_hg104": triplet.HG104}.items()
}
MODELS |= {
    name: functools.partial(ttf.build, name, released)
    for name, released in {
        "ttfnet_r18": ttf_config.R18,
        "ttfnet_r34": ttf_config.R34,
        "ttfnet_d53": ttf_config.D53,
    }.items()
}
MODELS["extremenet_hg104"] = functools.partial(extreme.build, "extremenet_hg104", extreme.HG104)

MODELS["cornernet_saccade"] = functools.partial(saccade.build, "cornernet_saccade", saccade_config.RELEASED)

__all__ = ["MODELS", "Detections", "Detector", "build", "from_config", "list_models"]


def list_models() -> list[str]:
    """The names that `build` accepts."""
    return sorted(MODELS)


def build(name: str, num_classes: int = 80, **options: Any) -> Detector:
    """Make a detector.

    name: one of `list_models()`.  num_classes: K.  options: fields of the model's own
    configuration that differ from the released one, e.g. `width=16`, `dtype="bfloat16"`.
    Raises ConfigError for a name or an option that does not exist.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)
        raise ConfigError(f"no model {name!r}; did you mean {near[0]!r}? kpjax.list_models() has them all")
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; a detector needs at least one class")
    return MODELS[name](num_classes, options)


def at_test(detector: Detector, nms: str = "", precision: str = "") -> Detector:
    """The detector with another soft-NMS or another precision of its network; "": as it is.

    nms: "hard", "linear", "gaussian" or "none".  precision: "default", "high" or "highest", see kpjax.config.
    Raises ConfigError for another name.
    """
    if nms and detector.solid:
        raise ConfigError(f"nms is {nms!r}, and {detector.name} suppresses no boxes; leave it out")
    if nms:
        other = build(detector.name, detector.num_classes, **{**detector.options, "nms": nms})
        detector = dataclasses.replace(detector, decode=other.decode, protocols=other.protocols)
    if precision:
        other = build(detector.name, detector.num_classes, **{**detector.options, "precision": precision})
        detector = dataclasses.replace(detector, net=other.net)
    return detector


def options_of(model: ModelConfig) -> dict[str, Any]:
    """The options of `build` that `config.model` sets; defaults are left out."""
    options: dict[str, Any] = dict(model.options)
    if model.dtype != "float32":
        options["dtype"] = model.dtype
    if model.precision != "default":
        options["precision"] = model.precision
    if model.remat:
        options["remat"] = True
    if model.bn_groups != 1:
        options["bn_groups"] = model.bn_groups
    return options


def learns_points(name: str) -> bool:
    """Whether the model finds points that its data name: it has the option `points`, and needs keypoints as data.

    Raises ConfigError for a name that does not exist.
    """
    return data_needed(name)["keypoints"]


class DataNeeded(TypedDict):
    """What a model needs of the data beside boxes: the keywords of `kpjax.data.opening.open_source`."""

    keypoints: bool
    solid: bool
    outlines: bool | None


def data_needed(name: str) -> DataNeeded:
    """What the model learns from beside boxes.  Raises ConfigError for a name that does not exist."""
    detector = build(name, 1)
    return {**to_measure(detector), "outlines": detector.outlines}


def to_measure(detector: Detector) -> DataNeeded:
    """What evaluation needs of the data beside boxes.  Extreme points are not measured: they are read where there are
    any, for pictures and the oracle."""
    keypoints = detector.points is not None and not detector.outlines
    return {"keypoints": keypoints, "solid": detector.solid, "outlines": None if detector.outlines else False}


def from_config(config: Config, classes: int, points: PointSet | None = None) -> Detector:
    """The detector that `config.model` describes, for data of `classes` classes.

    points: the data's, for models that learn points; None: the model's default, COCO's 17 of a person.
    Raises ConfigError where the two disagree, or where the network cannot take images of the size that
    `config.augment` gives.
    """
    model = config.model
    if model.num_classes not in (0, classes):
        raise ConfigError(
            f"config.model.num_classes is {model.num_classes}, but the training annotations list {classes} classes"
        )
    options = options_of(model)
    if points is not None and learns_points(model.name):
        if "points" in options:
            raise ConfigError(
                "config.model.options has points, which are those of the data; leave them out "
                "(config.data.mirror_pairs and config.data.sigmas set what the data do not say)"
            )
        options["points"] = points
    detector = build(model.name, classes, **options)
    if detector.solid:
        _check_3d(config, detector)
    _check_combining(config.augment, detector)
    check_resolution(detector, config.eval.resolution)
    size = (config.augment.height, config.augment.width)
    check_size(detector, size, "config.augment.height", "config.augment.width")
    for width in config.augment.sizes:
        key = f"config.augment.sizes has {width}: the"
        check_size(detector, (round(size[0] * width / size[1]), width), f"{key} height", f"{key} width")
    if detector.view and (size != (detector.view, detector.view) or config.augment.sizes):
        raise ConfigError(
            f"config.augment.height and width are {size[0]} and {size[1]}, sizes {config.augment.sizes}, and "
            f"{detector.name} looks at squares of {detector.view} pixels; set height and width to it, sizes to (), "
            "or config.model.options['view'] to their size"
        )
    return detector


def check_resolution(detector: Detector, resolution: str) -> None:
    """Raise ConfigError for a `config.eval.resolution` with which images have another shape than in training."""
    if detector.preprocess.fills == "both" and resolution == "keep":
        raise ConfigError(
            f"config.eval.resolution is 'keep', with which {detector.name} would see images of their own shape, and "
            "stretched ones in training; set config.eval.resolution='fixed'"
        )


def _check_combining(augment: AugmentConfig, detector: Detector) -> None:
    """Raise ConfigError where images are combined for a model that could not learn from that."""
    for name in ("mosaic", "copy_paste"):
        if not getattr(augment, name):
            continue
        if detector.solid or detector.outlines:
            what = "sizes in metres" if detector.solid else "the extreme points of objects that are cut"
            raise ConfigError(f"config.augment.{name} is set, but {detector.name} could not learn {what}; set it to 0")
        if augment.kind == "object":
            raise ConfigError(
                f"config.augment.{name} is set, and augment.kind=object shows one image around an object; set it to 0"
            )


def _check_3d(config: Config, detector: Detector) -> None:
    """Raise ConfigError for settings with which a model of 3D boxes learns no metres, or sees other images at test."""
    augment = config.augment
    if augment.kind in ("crop", "window", "patch", "object") or (
        augment.kind == "shift" and augment.shift_probability == 1
    ):
        raise ConfigError(
            f"config.augment.kind is {augment.kind!r}, which scales or moves every image: {detector.name} would "
            "learn no depth and no size; choose 'none', or 'shift' with config.augment.shift_probability below 1"
        )
    if config.eval.resolution == "keep":
        raise ConfigError(
            f"config.eval.resolution is 'keep', with which {detector.name} would see the middle of an image at its own "
            "scale, and whole images in training; set config.eval.resolution='fixed'"
        )
