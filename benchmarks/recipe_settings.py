"""The settings that recipes.py compares if no other file is named: what is published, what is chosen, one change each.

`small` is the choice of `kpjax train --data` on a CPU, `ttf` that with a small TTFNet; names say what is added.
"""

from __future__ import annotations

from kpjax.config import Config
from kpjax.training.choices import set_steps


def settings(steps: int) -> dict[str, list[str]]:
    """Name -> arguments of train.py, for runs of so many steps.  Paths are relative to the repository's root."""
    chosen = Config()
    chosen.optim.schedule = "cosine"
    set_steps(chosen, steps)
    follows = [f"--config.optim.warmup_steps={chosen.optim.warmup_steps}", f"--config.optim.ema={chosen.optim.ema}"]
    small = ["--config=benchmarks/recipe_small.py", *follows]
    ttf = ["--config=benchmarks/recipe_ttf.py", *follows]
    mosaic = ["--config.augment.mosaic=0.5", "--config.augment.mosaic_until=0.85"]
    deeper = ["--config.model.options.stages=4", "--config.model.options.neck=(96, 64, 48)"]
    return {
        "published": ["--config=configs/bccd_r18.py"],
        "small": small,
        "ttf": ttf,
        "ttf_mosaic": [*ttf, *mosaic],
        "ttf_scale": [*ttf, "--config.augment.kind=scale", "--config.augment.scale_range=(0.5, 2.0)"],
        "ttf_hsv": [
            *ttf,
            "--config.augment.color=0.0",
            "--config.augment.lighting=0.0",
            "--config.augment.hue=0.015",
            "--config.augment.saturation=0.7",
            "--config.augment.value=0.4",
        ],
        "ttf_grey": [*ttf, "--config.augment.grey=0.1"],
        "ttf_copy_paste": [*ttf, "--config.augment.copy_paste=0.5", "--config.augment.mosaic_until=0.85"],
        "ttf_erase": [*ttf, "--config.augment.erase=0.5"],
        "ttf_adamw": [*ttf, "--config.optim.name=adamw", "--config.optim.weight_decay=0.05"],
        "ttf_sgd": [*ttf, "--config.optim.name=sgd", "--config.optim.lr=0.02"],
        "ttf_ema_tau": [*ttf, f"--config.optim.ema_tau={max(1, steps // 20)}"],
        "ttf_final_lr": [*ttf, "--config.optim.final_lr=0.05"],
        "ttf_repeat": [*ttf, "--config.data.repeat_threshold=0.5"],
        "ttf_deeper": [*ttf, *deeper, "--config.model.options.shortcuts=(1, 1, 1)"],
    }
