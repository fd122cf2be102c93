"""Evaluate a detector on a split: COCO's 12 numbers, its detections as JSON, pictures.

    python eval.py --workdir runs/coco                                          newest checkpoint
    python eval.py --workdir runs/coco --best                                   best by AP
    python eval.py --checkpoint runs/coco/model --split train --per-class       an inference checkpoint

The settings are those stored with the weights.  With --config they are the file's, and fields can be set:
--config configs/coco_r18.py --config.eval.max_side=800 --config.data.val.images=FOLDER.
"""

from __future__ import annotations

import os
from typing import Any

from absl import flags as absl_flags

from kpjax import flags
from kpjax.config import Config, ConfigError

PICTURE_SCORE = 0.3  # least score of a box that --show-dir draws


def define(values: absl_flags.FlagValues) -> None:
    flags.define_config(values)
    text = {
        "workdir": "work directory of train.py: its newest checkpoint is evaluated",
        "checkpoint": "an inference checkpoint (or one step of a work directory) instead of --workdir",
        "show-dir": "folder for pictures of the detections",
        "out": "where detections.json goes (default: in the work directory, or beside the checkpoint)",
    }
    for name, help_text in text.items():
        absl_flags.DEFINE_string(name, "", help_text, flag_values=values)
    absl_flags.DEFINE_enum("split", "val", ["val", "train"], "which split of config.data", flag_values=values)
    absl_flags.DEFINE_enum(
        "preset",
        None,
        ["na", "flip", "ms"],
        "the papers' test protocol (default: config.eval.preset)",
        flag_values=values,
    )
    absl_flags.DEFINE_boolean("best", False, "with --workdir: the best checkpoint by AP", flag_values=values)
    absl_flags.DEFINE_boolean("per-class", False, "print the AP of each class too", flag_values=values)
    absl_flags.DEFINE_integer("batch", 0, "images a program (0: config.eval.batch)", 0, flag_values=values)


def main(values: absl_flags.FlagValues) -> int:
    chosen: dict[str, Any] = values.flag_values_dict()
    workdir, checkpoint = chosen["workdir"], chosen["checkpoint"]
    if bool(workdir) == bool(checkpoint):
        raise ConfigError("give one of --workdir and --checkpoint")
    if chosen["best"] and not workdir:
        raise ConfigError("--best chooses among the checkpoints of a --workdir; name one")
    given = flags.read_config(values) if values["config"].present else None

    import jax  # after the flags: a typing mistake should not wait for the devices

    from kpjax import evaluate as ev
    from kpjax.checkpoint import load_inference
    from kpjax.data.source import open_source
    from kpjax.predict import output_folder

    loaded = load_inference(workdir or checkpoint, best=chosen["best"])
    config = settings(given, loaded)
    config.eval.batch = chosen["batch"] or config.eval.batch
    config.eval.preset = chosen["preset"] or config.eval.preset
    split, show_dir = chosen["split"], chosen["show-dir"]
    out = chosen["out"] or default_out(workdir or checkpoint, split)
    for folder in filter(None, (os.path.dirname(out), show_dir)):  # now, not after an hour of evaluation
        output_folder(folder)
    source = open_source(config.data, split)
    if show_dir:
        ev.check_pictures(show_dir, source)
    ev.check_classes(loaded.detector, source, loaded.names)
    evaluator = ev.make_evaluator(loaded.detector, config)
    first = jax.process_index() == 0
    if first:
        step = "" if loaded.step is None else f", step {loaded.step}"
        count = min(len(source), config.eval.images) if config.eval.images else len(source)
        print(
            f"model       {loaded.detector.name}, {loaded.detector.num_classes} classes ({workdir or checkpoint}{step})"
        )
        print(f"split       {split}: {count} of {len(source)} images, {source.name}")
        print(
            f"protocol    preset {config.eval.preset}, resolution {config.eval.resolution}, "
            f"batches of {evaluator.batch} on {evaluator.mesh.size} x {jax.devices()[0].device_kind}"
        )
    result = evaluator(loaded.variables, source)
    if not first:
        return 0
    ev.write_detections(out, result)
    if show_dir:
        ev.show(show_dir, result, source, PICTURE_SCORE)
    print(result.text or f"{source.name} has no annotations: detections only, no AP")
    if chosen["per-class"] and result.per_class:
        print(ev.class_table(result))
    if result.skipped:
        print(f"{result.skipped} images could not be read and count as images in which nothing was found")
    rate = result.images / result.seconds
    print(f"{result.images} images in {result.seconds:.1f} s ({rate:.1f} a second, compilation included)")
    print(f"{len(result.detections)} detections: {out}")
    return 0


def default_out(path: str, split: str) -> str:
    """detections.json in the work directory (its path, or one of its steps) or beside the checkpoint at `path`.

    Those of the training split are detections_train.json.
    """
    name = "detections.json" if split == "val" else f"detections_{split}.json"
    if os.path.isdir(os.path.join(path, "checkpoints")):
        return os.path.join(path, name)
    parent, last = os.path.split(os.path.abspath(path))
    if last.isdigit() and os.path.basename(parent) == "checkpoints":
        parent = os.path.dirname(parent)
    return os.path.join(parent, name)


def settings(given: Config | None, loaded: Any) -> Config:
    """The configuration on the command line, or the checkpoint's own.  Raises ConfigError where they do not fit."""
    if given is None:
        if loaded.config is None:
            raise ConfigError("the checkpoint holds no configuration; give --config")
        return loaded.config
    if given.model.name != loaded.detector.name:
        raise ConfigError(
            f"config.model.name is {given.model.name!r} and the checkpoint is of {loaded.detector.name!r}; "
            "give the configuration it was trained with"
        )
    return given


if __name__ == "__main__":
    flags.run(main, define)
