"""Which settings does a folder get?  Its data are understood and opened, and a step of their training is tried."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from kpjax import convert
from kpjax.checkpoint.weights import load_inference
from kpjax.config import Config
from kpjax.data import files
from kpjax.data.opening import has_validation, open_source
from kpjax.data.source import (
    Source,
    require_boxes,
    require_keypoints,
    require_outlines,
    require_same_classes,
    require_solid,
)
from kpjax.datasets.check import UNLISTED, check_split
from kpjax.datasets.folders import Folder, Joined, join, open_folder
from kpjax.detectors import MODELS, build, data_needed, from_config
from kpjax.errors import ConfigError, DataError
from kpjax.objects import UNLABELLED
from kpjax.training.choices import (
    Choices,
    Wishes,
    choose,
    choose_steps,
    facts_of,
    own_options,
    set_steps,
    steps_in_time,
)
from kpjax.training.step_speed import this_machine, try_step

BOXES, POSE, SOLID = "ttfnet_r18", "centernet_r18_pose", "centernet_r18_3d"
DATA = "data"  # folder of the work directory
_FITS = 0.9  # least share of a file's names and sizes that make it one of a model
_LINES = 6  # of notes and of oddities that are shown
_LOOKED_AT = 20_000  # images of which every header is read before training
_MEASURED, _TRIED = 10.0, 2.0  # seconds in which steps are timed: to count them by, or to say how long they take


def choose_for(paths: Sequence[str], wishes: Wishes, workdir: str, begun: float) -> Choices:
    """Understand the data, and choose the settings; prints what was understood and what is odd.

    paths: of data sets, which are joined.  workdir: gets the splits that no file holds as they are.  begun:
    `time.monotonic()` when the minutes began.  Raises ConfigError or DataError for what a user can put right.
    """
    folders = [open_folder(path) for path in paths]
    keypoints = bool(wishes.model) and data_needed(wishes.model)["keypoints"]
    parts = {folder.path: folder.parts(keypoints) for folder in folders}
    for folder in folders:
        print(folder.describe(parts[folder.path]))
    joined = join(parts)
    _say(joined.lines, "note     ")

    model, options, why = _model(wishes, folders, joined)
    try:
        data, source, val = _open(model, joined, folders, workdir)
    except DataError as error:
        if wishes.model or model != SOLID:
            raise
        print(f"note     boxes in the image alone: {error}")
        model, why = BOXES, "boxes; not all objects are known in 3D; the smallest TTFNet"
        data, source, val = _open(model, joined, folders, workdir)
    facts, machine = facts_of(source, 0 if val is None else len(val)), this_machine()
    if model == BOXES and options is None:
        small = machine.platform == "cpu" and not wishes.init_from
        options = own_options(small)
        why += (
            f", of half its width, which learns more in a CPU's minutes: --model {BOXES} has the whole" if small else ""
        )
    chosen = choose(facts, machine, wishes, model, options or {}, why)
    config, reasons = chosen.config, chosen.reasons
    for key in ("train", "val", "source", "kitti_dir", "kitti_train", "kitti_val", "kitti_classes", "mirror_pairs"):
        setattr(config.data, key, getattr(data.data, key))
    _check(config, facts.images + facts.val_images)

    print(f"trying a step of {config.batch} images on {machine.devices} x {machine.platform}", flush=True)
    seconds = _MEASURED if wishes.minutes else _TRIED
    speed = try_step(config, source, machine, lambda c, s: from_config(c, len(s.classes), s.points), seconds=seconds)
    if config.batch != config.optim.lr_batch:
        reasons["batch"] = f"what {machine.memory / 2**30:.1f} GiB of free memory hold"
        choose_steps(config, facts, machine, wishes, reasons)
    reasons["batch"] += f"; a step takes {speed.memory / 2**20:,.0f} MiB"
    # An evaluation takes a forward pass an image, about a third of a step's work, and its program is compiled once.
    evaluation = 2.0 + 0.4 * speed.seconds * facts.val_images / config.batch if val is not None else 0.0
    if wishes.minutes:
        left = 60 * wishes.minutes - (time.monotonic() - begun) - 1.4 * speed.compiling - 5.0
        steps, evaluations = steps_in_time(left, speed.seconds, evaluation)
        set_steps(config, steps, evaluations)
        epochs = f"{steps * config.batch / facts.images:.3g} epochs, what fits into --minutes {wishes.minutes:g}"
        reasons["steps"] = f"{epochs}: a step takes {speed.seconds:.2f} s; the last evaluation comes on top"
    else:
        duration = _duration((config.steps * speed.seconds + 5 * evaluation) / 60)
        reasons["steps"] += f"; about {duration}, --minutes sets another time"
    config.check()
    return chosen


def _model(wishes: Wishes, folders: Sequence[Folder], joined: Joined) -> tuple[str, dict[str, Any] | None, str]:
    """The model, its options (None: neither the user nor weights say which), and why it was chosen."""
    if wishes.model:
        calibrated = len(folders) == 1 and folders[0].reading.calibrated
        if data_needed(wishes.model)["solid"] and not calibrated:
            raise ConfigError(
                f"--model {wishes.model} learns 3D boxes, which need one folder of KITTI's with image_2, label_2 and "
                f"calib; {folders[0].path} is a {folders[0].reading.kind} data set ({folders[0].reading.evidence})"
            )
        return wishes.model, {}, "--model"
    model, why = _by_labels(folders, joined)
    if wishes.init_from:
        name, options = _model_of(wishes.init_from, model)
        if name:
            return name, options, f"that of {wishes.init_from}"
    return model, None, why


def _model_of(path: str, like: str) -> tuple[str, dict[str, Any]]:
    """The model of weights to start from and its options, where it learns from the same labels as `like`; else "".

    Raises ConfigError or CheckpointError where the path cannot be read.
    """
    if os.path.isdir(path):
        detector = load_inference(path).detector
        options = {key: value for key, value in detector.options.items() if key != "points"}
        return (detector.name, options) if data_needed(detector.name) == data_needed(like) else ("", {})
    try:
        state_dict = convert.read_torch_weights(path).state_dict
    except convert.TorchFileError as error:
        raise ConfigError(f"--from {error}") from error
    if convert.is_backbone(state_dict):
        return "", {}
    alike = [name for name in MODELS if data_needed(name) == data_needed(like)]
    name, share = convert.resembles(state_dict, {name: functools.partial(build, name) for name in alike})
    return (name, {}) if share >= _FITS else ("", {})


def _by_labels(folders: Sequence[Folder], joined: Joined) -> tuple[str, str]:
    if len(folders) == 1 and folders[0].reading.calibrated:
        return SOLID, f"KITTI's labels and calibrations: 3D boxes; --model {BOXES} learns those in the image"
    learnable = [row for row in joined.train.instances["annotations"] if not row.get("iscrowd")]
    named = all(category.get("keypoints") for category in joined.train.instances["categories"])
    with_points = sum(_labelled(row.get("keypoints")) for row in learnable)
    if named and learnable and with_points == len(learnable):
        return POSE, f"all {with_points:,} objects have keypoints; --model {BOXES} learns boxes alone"
    if with_points:
        return BOXES, f"boxes; {with_points:,} of {len(learnable):,} objects have keypoints, --model {POSE} learns them"
    return BOXES, "boxes; the smallest TTFNet, without deformable convolution"


def _labelled(points: Any) -> bool:
    return isinstance(points, list) and any(isinstance(v, (int, float)) and v > UNLABELLED for v in points[2::3])


def _set_data(config: Config, joined: Joined, folders: Sequence[Folder], workdir: str, solid: bool) -> None:
    """Name the splits in the configuration, and write those that no file holds as they are."""
    if solid:
        _set_kitti(config, joined, folders[0], workdir)
        return
    for name, part in (("train", joined.train), ("val", joined.val)):
        if part is None:
            continue
        split = getattr(config.data, name)
        split.images = os.path.abspath(part.images)
        split.annotations = os.path.abspath(part.file or os.path.join(workdir, DATA, f"{name}.json"))
        if not part.file:
            write_text(split.annotations, json.dumps(part.instances))


def _set_kitti(config: Config, joined: Joined, folder: Folder, workdir: str) -> None:
    """KITTI's own reader, with lists of frames in the work directory: the folder of the data is left as it is."""
    root = os.path.abspath(os.path.join(workdir, DATA, "kitti"))
    os.makedirs(root, exist_ok=True)
    link = os.path.join(root, "training")
    if os.path.islink(link):
        os.unlink(link)
    os.symlink(os.path.abspath(folder.reading.calibrated), link)
    for name, part in (("train", joined.train), ("val", joined.val)):
        stems = [os.path.splitext(image["file_name"])[0] for image in part.instances["images"]] if part else []
        if stems:
            write_text(os.path.join(root, "ImageSets", f"{name}.txt"), "".join(f"{stem}\n" for stem in stems))
    used = {row["category_id"] for row in joined.train.instances["annotations"]}
    there = [c["name"] for c in joined.train.instances["categories"] if c["id"] in used]
    usual = tuple(name for name in config.data.kitti_classes if name in there)
    config.data.source, config.data.kitti_dir = "kitti", root
    config.data.kitti_val = "val" if joined.val else ""
    config.data.kitti_classes = usual or tuple(there)


def _open(model: str, joined: Joined, folders: Sequence[Folder], workdir: str) -> tuple[Config, Source, Source | None]:
    """The settings of the data, and both splits as training will open them.

    Raises ConfigError or DataError with what would end the run.
    """
    config, needed = Config(), data_needed(model)
    _set_data(config, joined, folders, workdir, needed["solid"])
    if needed["keypoints"] and len(folders) == 1:
        config.data.mirror_pairs = folders[0].reading.mirror_pairs()
    source = open_source(config.data, "train", **needed)
    require_boxes(source)
    if needed["keypoints"]:
        require_keypoints(source)
    if needed["solid"]:
        require_solid(source)
    if needed["outlines"]:
        require_outlines(source)
    val = open_source(config.data, "val", **needed) if has_validation(config.data) else None
    if val is not None:
        require_same_classes(val, source)
    return config, source, val


def _check(config: Config, images: int) -> None:
    """Print what is odd in the data.  Raises DataError with the line that would end training."""
    if images > _LOOKED_AT:
        print("note     the images are not looked at one by one; kpjax check-data does it")
        return
    needed = data_needed(config.model.name)
    for split in ("train", "val") if has_validation(config.data) else ("train",):
        report, _ = check_split(
            config,
            split,
            lambda classes, points: from_config(config, classes, points),
            keypoints=needed["keypoints"],
            solid=needed["solid"],
            outlines=bool(needed["outlines"]),
        )
        if report.stop:
            # No configuration is there yet in which that could be set.
            raise DataError(report.stop.removesuffix("; or set config.data.bad_images='skip'"))
        few = [name for name, count in zip(report.classes, report.class_counts, strict=True) if not count]
        lines = [
            f"{len(o.cases):,} x {o.kind}: {o.action}, e.g. {o.cases[0]}" for o in report.oddities if o.kind != UNLISTED
        ]
        if few and split == "train":
            lines.append(f"classes without an object to learn from: {', '.join(few[:5])}{' ...' if few[5:] else ''}")
        _say([f"{split}: {line}" for line in lines], "odd      ")


def _say(lines: Sequence[str], begin: str) -> None:
    for line in lines[:_LINES]:
        print(f"{begin}{line}")
    if len(lines) > _LINES:
        print(f"{begin}... and {len(lines) - _LINES} more")


def write_text(path: str, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_bytes(path, text.encode("utf-8", "surrogateescape"))


def _duration(minutes: float) -> str:
    if minutes < 100:
        return f"{max(minutes, 1):.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 60 * 48 else f"{minutes / 60 / 24:.0f} days"
