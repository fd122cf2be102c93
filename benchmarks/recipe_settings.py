"""The settings that recipes.py compares if no other file is named: what is published, what is chosen, one change each.

Names say what is added to `small`, the choice of `kpjax train --data` on a CPU.
"""

from __future__ import annotations

from kpjax.config import Config
from kpjax.training.choices import set_steps


def settings(steps: int) -> dict[str, list[str]]:
    """Name -> arguments of train.py, for runs of so many steps.  Paths are relative to the repository's root."""
    chosen = Config()
    chosen.optim.schedule = "cosine"
    set_steps(chosen, steps)
    small = [
        "--config=benchmarks/recipe_small.py",
        f"--config.optim.warmup_steps={chosen.optim.warmup_steps}",
        f"--config.optim.ema={chosen.optim.ema}",
    ]
    return {
        "published": ["--config=configs/bccd_r18.py"],
        "small": small,
        "small_sgd": [*small, "--config.optim.name=sgd", "--config.optim.lr=0.02"],
        "small_adamw": [*small, "--config.optim.name=adamw", "--config.optim.weight_decay=0.05"],
        "small_ema_tau": [*small, f"--config.optim.ema_tau={max(1, steps // 20)}"],
        "small_final_lr": [*small, "--config.optim.final_lr=0.05"],
        "small_repeat": [*small, "--config.data.repeat_threshold=0.5"],
    }
