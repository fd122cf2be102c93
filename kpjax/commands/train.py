"""`kpjax train` and train.py: train a detector by a recipe."""

from __future__ import annotations

from typing import Any

from absl import flags as absl_flags

from kpjax.commands import flags
from kpjax.errors import ConfigError

USAGE = (
    "kpjax train RECIPE --workdir DIR [option ...] [--config.KEY=VALUE ...]\n"
    "       kpjax train --data FOLDER [option ...]"
)
DESCRIPTION = (
    "Train a detector by a recipe, or on a folder of images and labels (`kpjax train --data --help`). The same "
    "command again goes on where the work directory stands."
)
EXAMPLES = (
    "kpjax train coco_r18 --workdir runs/coco --config.init_from=resnet18.pth",
    "kpjax train --config mine.py --workdir runs/mine --config.batch=16 --config.optim.lr=1e-3",
)
# titles of --help -> options, each with what stands for its value
HELP = {
    "what to train": ("config RECIPE",),
    "this run": ("workdir DIR", "show-batch FILE", "force"),
    **flags.PROCESSES_HELP,
}


def define(values: absl_flags.FlagValues) -> None:
    """Declare the flags."""
    flags.define_config(values)
    # module_name: under which title `train.py --help` lists them
    ours: dict[str, Any] = {"flag_values": values, "module_name": "train.py"}
    absl_flags.DEFINE_string("workdir", None, "where checkpoints and logs go", **ours)
    absl_flags.DEFINE_string(
        "show-batch", None, "write augmented training images with boxes and heatmaps to this PNG, and stop", **ours
    )
    absl_flags.DEFINE_boolean("force", False, "take the work directory from another run that holds it", **ours)


def main(values: absl_flags.FlagValues) -> int:
    """Train, or draw a batch.  Raises UserError."""
    config = flags.read_config(values)
    if values["show-batch"].value:
        from kpjax.show.batch import show

        show(config, values["show-batch"].value)
        return 0
    if not values["workdir"].value:
        raise ConfigError("no --workdir given; name a folder for checkpoints and logs, e.g. --workdir runs/mine")
    with flags.importing():
        from kpjax.training.run import run

    run(config, values["workdir"].value, force=bool(values["force"].value))
    return 0
