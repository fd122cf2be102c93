"""The settings that recipes.py compares if no other file is named: what is published, what is chosen, one change each.

`own` is the choice of `kpjax train --data` on a CPU, `small` what it was before; names say what is added or exchanged.
"""

from __future__ import annotations

from kpjax.config import Config, recipe
from kpjax.training.choices import set_steps


def settings(steps: int) -> dict[str, list[str]]:
    """Name -> arguments of train.py, for runs of so many steps.  Paths are relative to the repository's root."""
    chosen = recipe("own")
    set_steps(chosen, steps)
    follows = [f"--config.optim.warmup_steps={chosen.optim.warmup_steps}", f"--config.optim.ema={chosen.optim.ema}"]
    own = ["--config=configs/own.py", *follows]
    adam = ["--config.optim.name=adam", "--config.optim.lr=0.0015"]
    shallow = ["--config.model.options.stages=3", "--config.model.options.neck=(64, 48)"]
    return {
        "published": ["--config=configs/bccd_r18.py"],
        "small": ["--config=benchmarks/recipe_small.py", *follows],
        "own": own,
        "own_centernet": ["--config=benchmarks/recipe_small.py", *follows, *_optim(chosen)],
        "own_adam": [*own, *adam],
        "own_adam_cosine": [*own, *adam, "--config.optim.schedule=cosine", "--config.optim.hold=0"],
        "own_mosaic": [*own, "--config.augment.mosaic=0.5", "--config.augment.mosaic_until=0.85"],
        "own_hsv": [
            *own,
            "--config.augment.color=0.0",
            "--config.augment.lighting=0.0",
            "--config.augment.hue=0.015",
            "--config.augment.saturation=0.7",
            "--config.augment.value=0.4",
        ],
        "own_grey": [*own, "--config.augment.grey=0.1"],
        "own_copy_paste": [*own, "--config.augment.copy_paste=0.5", "--config.augment.mosaic_until=0.85"],
        "own_decay": [*own, "--config.optim.weight_decay=0.05"],
        "own_ema_tau": [*own, f"--config.optim.ema_tau={max(1, steps // 20)}"],
        "own_final_lr": [*own, "--config.optim.final_lr=0.05"],
        "own_repeat": [*own, "--config.data.repeat_threshold=0.5"],
        "own_shallow": [*own, *shallow, "--config.model.options.shortcuts=(1, 1)"],
    }


def _optim(chosen: Config) -> list[str]:
    """The optimiser and the schedule of a configuration."""
    keys = ("name", "lr", "schedule", "hold")
    return [f"--config.optim.{key}={getattr(chosen.optim, key)}" for key in keys]
