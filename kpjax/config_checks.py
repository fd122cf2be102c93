"""Do the values of a configuration fit, each by itself and together?  One line that names the key where they do not."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from kpjax.errors import ConfigError


def check_values(config: Any) -> None:
    """Check a `kpjax.config.Config`.

    Raises ConfigError for a value that is out of its range or no choice, and for values that cannot go together.
    """
    _check_choices(config)
    _check_whole_numbers(config)
    _check_numbers(config)
    _check_together(config)


def _check_choices(config: Any) -> None:
    for name, value, allowed in (
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("model.precision", config.model.precision, ("default", "high", "highest")),
        ("data.source", config.data.source, ("coco", "tfds", "kitti")),
        ("data.crowds", config.data.crowds, ("ignore", "train")),
        ("data.empty_images", config.data.empty_images, ("keep", "drop")),
        ("data.exif", config.data.exif, ("size", "apply", "ignore")),
        ("data.bad_images", config.data.bad_images, ("stop", "skip")),
        ("augment.kind", config.augment.kind, ("crop", "window", "shift", "patch", "object", "none")),
        ("augment.shift_unit", config.augment.shift_unit, ("longer", "side")),
        ("model.freeze_bn", config.model.freeze_bn, ("none", "trunk", "all")),
        ("optim.name", config.optim.name, ("adam", "adamw", "muon", "sgd")),
        ("optim.schedule", config.optim.schedule, ("step", "cosine", "wsd")),
        ("optim.scale_lr", config.optim.scale_lr, ("none", "linear")),
        ("eval.resolution", config.eval.resolution, ("keep", "fixed")),
        ("eval.preset", config.eval.preset, ("na", "flip", "ms", "first")),
        ("eval.nms", config.eval.nms, ("", "hard", "linear", "gaussian", "none")),
    ):
        if value not in allowed:
            raise ConfigError(f"config.{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}")


def _check_whole_numbers(config: Any) -> None:
    for name, number, least in (
        ("model.num_classes", config.model.num_classes, 0),
        ("model.bn_groups", config.model.bn_groups, 1),
        ("model.freeze_stages", config.model.freeze_stages, 0),
        ("data.canvas", config.data.canvas, 32),
        ("data.max_boxes", config.data.max_boxes, 1),
        ("data.threads", config.data.threads, 0),
        ("data.prefetch", config.data.prefetch, 1),
        ("augment.height", config.augment.height, 32),
        ("augment.width", config.augment.width, 32),
        ("augment.border", config.augment.border, 0),
        ("optim.accumulate", config.optim.accumulate, 1),
        ("optim.warmup_steps", config.optim.warmup_steps, 0),
        ("optim.lr_batch", config.optim.lr_batch, 0),
        ("optim.scale_warmup", config.optim.scale_warmup, 0),
        ("eval.batch", config.eval.batch, 1),
        ("eval.max_side", config.eval.max_side, 0),
        ("eval.every", config.eval.every, 0),
        ("eval.top_k", config.eval.top_k, 1),
        ("eval.images", config.eval.images, 0),
        ("eval.max_canvases", config.eval.max_canvases, 0),
        ("checkpoint.every", config.checkpoint.every, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("sharding.fsdp", config.sharding.fsdp, 1),
        ("batch", config.batch, 1),
        ("steps", config.steps, 0),
        ("log_every", config.log_every, 1),
        ("seed", config.seed, 0),
    ):
        if number < least:
            raise ConfigError(f"config.{name} is {number}; it must be at least {least}")


def _check_numbers(config: Any) -> None:
    for name, real, low, high in (
        ("augment.flip", config.augment.flip, 0.0, 1.0),
        ("augment.color", config.augment.color, 0.0, 1.0),
        ("augment.expand", config.augment.expand, 1.0, 100.0),
        ("augment.lighting", config.augment.lighting, 0.0, 10.0),
        ("augment.hue", config.augment.hue, 0.0, 0.5),
        ("augment.saturation", config.augment.saturation, 0.0, 1.0),
        ("augment.value", config.augment.value, 0.0, 1.0),
        ("augment.grey", config.augment.grey, 0.0, 1.0),
        ("augment.mosaic", config.augment.mosaic, 0.0, 1.0),
        ("augment.copy_paste", config.augment.copy_paste, 0.0, 1.0),
        ("augment.shift", config.augment.shift, 0.0, 10.0),
        ("augment.shift_probability", config.augment.shift_probability, 0.0, 1.0),
        ("eval.score_threshold", config.eval.score_threshold, 0.0, 1.0),
        ("optim.lr", config.optim.lr, 0.0, 1e3),
        ("optim.momentum", config.optim.momentum, 0.0, 1.0),
        ("optim.offset_lr", config.optim.offset_lr, 0.0, 1.0),
        ("optim.bias_lr", config.optim.bias_lr, 0.0, 100.0),
        ("optim.trunk_lr", config.optim.trunk_lr, 0.0, 1.0),
        ("optim.final_lr", config.optim.final_lr, 0.0, 1.0),
        ("optim.hold", config.optim.hold, 0.0, 1.0),
        ("optim.ema_tau", config.optim.ema_tau, 0.0, 1e9),
        ("optim.weight_decay", config.optim.weight_decay, 0.0, 1.0),
        ("optim.clip", config.optim.clip, 0.0, 1e9),
        ("optim.warmup_start", config.optim.warmup_start, 0.0, 1.0),
        ("data.repeat_threshold", config.data.repeat_threshold, 0.0, 1.0),
        ("epochs", config.epochs, 0.0, 1e9),
    ):
        if not low <= real <= high:
            raise ConfigError(f"config.{name} is {real}; it must lie between {low:g} and {high:g}")


def _check_together(config: Any) -> None:
    if config.optim.scale_lr != "none" and not config.optim.lr_batch:
        raise ConfigError(
            f"config.optim.scale_lr is {config.optim.scale_lr!r}, but config.optim.lr_batch is 0; "
            f"give the images a step that config.optim.lr = {config.optim.lr:g} is meant for"
        )
    for key, default in (("freeze_bn", "none"), ("freeze_stages", 0)):
        if (value := getattr(config.model, key)) != default and not config.init_from:
            raise ConfigError(
                f"config.model.{key} is {value!r}, and random weights have to learn; set config.init_from too"
            )
    if config.seed >= 2**63:
        raise ConfigError(f"config.seed is {config.seed}; it must be below 2**63")
    if not 0.0 <= config.optim.ema < 1.0:
        raise ConfigError(f"config.optim.ema is {config.optim.ema}; it must be at least 0 and below 1 (0: off)")
    if not 0.0 <= config.augment.scale < 1.0:
        raise ConfigError(f"config.augment.scale is {config.augment.scale}; it must be at least 0 and below 1")
    if not 0.0 < config.augment.mosaic_until <= 1.0:
        raise ConfigError(
            f"config.augment.mosaic_until is {config.augment.mosaic_until}; it must be above 0 and at most 1"
        )
    if config.augment.photometric and (config.augment.hue or config.augment.saturation or config.augment.value):
        raise ConfigError(
            "config.augment.photometric is True, and changes hue, saturation and brightness too; "
            "set config.augment.hue, saturation and value to 0"
        )
    if not 0.0 < config.optim.gamma <= 1.0:
        raise ConfigError(f"config.optim.gamma is {config.optim.gamma}; it must be above 0 and at most 1")
    if bool(config.steps) == bool(config.epochs):
        raise ConfigError(f"config.steps is {config.steps} and config.epochs is {config.epochs:g}; set exactly one")
    if any(not 0.0 < d < 1.0 for d in config.optim.drops) or list(config.optim.drops) != sorted(config.optim.drops):
        raise ConfigError(f"config.optim.drops is {config.optim.drops}; give ascending fractions between 0 and 1")
    if not all(0.0 < sigma <= 1.0 for sigma in config.data.sigmas):
        raise ConfigError(f"config.data.sigmas is {config.data.sigmas}; give numbers above 0 and at most 1")
    if not config.augment.scales or not all(0.0 < scale <= 100.0 for scale in config.augment.scales):
        raise ConfigError(f"config.augment.scales is {config.augment.scales}; give scales above 0, at least one")
    if not all(isinstance(side, int) and side >= 32 for side in config.augment.sizes):
        raise ConfigError(f"config.augment.sizes is {config.augment.sizes}; give widths in whole pixels, at least 32")
    sizes = config.augment.mosaic_scale_range
    if len(sizes) != 2 or not 0.01 <= sizes[0] <= sizes[1] <= 100.0:
        raise ConfigError(
            f"config.augment.mosaic_scale_range is {sizes}; give the least and the greatest size, from 0.01 to 100"
        )
    if config.batch % config.optim.accumulate:
        raise ConfigError(
            f"config.batch is {config.batch}, which config.optim.accumulate = {config.optim.accumulate} does not divide"
        )
    micro = config.batch // config.optim.accumulate
    for name, on, least in (
        ("mosaic", config.augment.mosaic, 4),
        ("copy_paste", config.augment.copy_paste, 5 if config.augment.mosaic else 2),
    ):
        if on and micro < least:
            raise ConfigError(
                f"config.augment.{name} takes {least} images of a micro-batch, which has {micro}; raise "
                "config.batch or lower config.optim.accumulate"
            )
    if micro % config.model.bn_groups:
        raise ConfigError(
            f"config.model.bn_groups = {config.model.bn_groups} does not divide the {micro} images of a micro-batch"
        )


def check_group(value: Any, kind: Any, path: str) -> None:
    """Raises ConfigError where the value for the group at `path` is not of the group's own type."""
    if type(value) is not kind:
        raise ConfigError(f"{path} is a {type(value).__name__}; it must be a kpjax.config.{kind.__name__}")


_OF_NAMES = ("config.data.kitti_classes",)  # tuples of names; all others hold numbers


def check_types(node: Any, path: str) -> None:
    """Raises ConfigError where a setting of the group `node`, which stands at `path`, has a value of another type."""
    for key, hint in get_type_hints(type(node)).items():
        value, here = getattr(node, key), f"{path}.{key}"
        if dataclasses.is_dataclass(hint):
            check_group(value, hint, here)
            check_types(value, here)
        elif hint is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{here} is {value!r}; it must be a number")
        elif hint is int:
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{here} is {value!r}; it must be a whole number")
        elif hint in (bool, str):
            if not isinstance(value, hint):
                raise ConfigError(f"{here} is {value!r}; it must be a {hint.__name__}")
        elif hint is dict:
            if not (isinstance(value, dict) and all(isinstance(k, str) for k in value)):
                raise ConfigError(f"{here} is {value!r}; it must be a dictionary of options, {{}} for none")
        elif hint is tuple:
            kind, what = (str, "names") if here in _OF_NAMES else ((int, float), "numbers")
            if not (isinstance(value, tuple) and all(isinstance(v, kind) and type(v) is not bool for v in value)):
                raise ConfigError(f"{here} is {value!r}; it must be a tuple of {what}")
