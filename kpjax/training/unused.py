"""Which settings have no effect because of another one: said before the first step."""

from __future__ import annotations

from kpjax.config import Config, flat


def unused(config: Config, largest: int = 0) -> list[str]:
    """A line for each setting that differs from its default and that another setting makes void.

    largest: pixels of the longest side of any image, which config.data.canvas may shrink below the network's input.
    """
    values, usual = flat(config), flat(Config())
    kind, source = config.augment.kind, config.data.source
    decay = ("optim.weight_decay", config.optim.weight_decay > 0)
    if config.optim.name in ("adamw", "muon"):
        decay = ("optim.name", False)  # only kernels decay
    of_optim = {
        "momentum": ("optim.name", config.optim.name == "sgd"),
        "drops": ("optim.schedule", config.optim.schedule == "step"),
        "gamma": ("optim.schedule", config.optim.schedule == "step"),
        "final_lr": ("optim.schedule", config.optim.schedule in ("cosine", "wsd")),
        "hold": ("optim.schedule", config.optim.schedule == "wsd"),
        "bias_decay": decay,
        "norm_decay": decay,
        "ema_tau": ("optim.ema", config.optim.ema > 0),
        "warmup_start": ("optim.warmup_steps", bool(config.optim.warmup_steps) or config.optim.scale_lr != "none"),
        "scale_warmup": ("optim.scale_lr", config.optim.scale_lr != "none"),
    }
    of_augment = {
        "scales": kind in ("crop", "window", "object"),
        "border": kind in ("crop", "window"),
        **dict.fromkeys(("shift", "shift_unit", "shift_probability", "scale"), kind == "shift"),
        "expand": kind == "patch",
    }
    combines = config.augment.mosaic > 0 or config.augment.copy_paste > 0
    of_mosaic = {"mosaic_scale_range": config.augment.mosaic > 0, "mosaic_until": combines}
    of_data = {
        **dict.fromkeys(("train.images", "train.annotations", "val.images", "val.annotations"), source == "coco"),
        **dict.fromkeys(("tfds_name", "tfds_dir", "tfds_train", "tfds_val"), source == "tfds"),
        **dict.fromkeys(("kitti_dir", "kitti_train", "kitti_val", "kitti_classes"), source == "kitti"),
    }
    rules = {f"optim.{key}": rule for key, rule in of_optim.items()}
    rules |= {f"augment.{key}": ("augment.kind", used) for key, used in of_augment.items()}
    rules |= {f"augment.{key}": ("augment.mosaic", used) for key, used in of_mosaic.items()}
    rules |= {f"data.{key}": ("data.source", used) for key, used in of_data.items()}
    rules["eval.max_side"] = ("eval.resolution", config.eval.resolution == "keep")
    said = [
        f"config.{key} = {values[f'config.{key}']!r} has no effect: config.{other} is {values[f'config.{other}']!r}"
        for key, (other, used) in rules.items()
        if not used and values[f"config.{key}"] != usual[f"config.{key}"]
    ]
    side = max(config.augment.height, config.augment.width)
    if config.data.canvas < min(side, largest):
        said.append(
            f"config.data.canvas = {config.data.canvas} shrinks images, the largest of {largest} pixels, below the "
            f"input of {side}, which enlarges them again; raise it to keep what is in them"
        )
    return said
