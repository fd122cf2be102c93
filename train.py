"""Train a detector.

    python train.py --config configs/coco_r18.py --workdir runs/coco
    python train.py --config configs/coco_r18.py --workdir runs/coco64 --config.batch=64

One process on each host of a TPU pod, or several anywhere, are one run (README.md, Many hosts).
The same command again goes on where the work directory stands; one run at a time holds it.  Any field of the
configuration (kpjax/config.py) can be changed with --config.key=value.
"""

from absl import flags as absl_flags

from kpjax.commands import flags


def define(values):
    flags.define_config(values)
    absl_flags.DEFINE_string("workdir", None, "where checkpoints and logs go", flag_values=values)
    absl_flags.DEFINE_string(
        "show-batch",
        None,
        "write augmented training images with boxes and heatmaps to this PNG, and stop",
        flag_values=values,
    )
    absl_flags.DEFINE_boolean(
        "force", False, "take the work directory from another run that holds it", flag_values=values
    )


def main(values) -> int:
    config = flags.read_config(values)
    if values["show-batch"].value:
        from kpjax.show.batch import show

        show(config, values["show-batch"].value)
        return 0
    if not values["workdir"].value:
        raise flags.UserError("no --workdir given; name a folder for checkpoints and logs, e.g. --workdir runs/mine")
    from kpjax.training.run import run

    run(config, values["workdir"].value, force=values["force"].value)
    return 0


if __name__ == "__main__":
    flags.run(main, define)
