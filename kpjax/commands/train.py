"""`kpjax train` and train.py: train a detector by a recipe."""

from __future__ import annotations

import os
from typing import Any

from absl import flags as absl_flags

from kpjax.commands import flags
from kpjax.errors import ConfigError, UserError

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
    "this run": ("workdir DIR", "show-batch FILE", "report", "force"),
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
    absl_flags.DEFINE_boolean("report", True, "write a page about the run at its end, as kpjax report does", **ours)
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

    workdir = values["workdir"].value
    result = run(config, workdir, force=bool(values["force"].value))
    if result.finished and values["report"].value:
        report_of_run(workdir)
    return 0


def report_of_run(workdir: str) -> None:
    """Write the page about a run that has ended, unless there is one of its last step.  What hinders it is one line."""
    from kpjax.parallel import distributed

    if distributed.active():
        return  # a page is made by one process, later
    page, log = (os.path.join(workdir, name) for name in ("report.html", "metrics.jsonl"))
    if os.path.isfile(page) and os.path.isfile(log) and os.path.getmtime(page) >= os.path.getmtime(log):
        return
    from kpjax.show.run_report import report_run

    try:
        print(f"report   {report_run(workdir, say=lambda line: None)}")
    except (UserError, OSError) as error:
        print(f"note     no report: {flags.on_one_line(str(error))}")
