"""`kpjax train --data FOLDER`: train on a folder of labelled images, with settings that suit it and the machine."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import time
from collections.abc import Sequence
from typing import Any

from kpjax.commands.flags import config_of
from kpjax.config import Config
from kpjax.data.opening import open_source
from kpjax.data.source import Source, require_boxes, require_keypoints, require_same_classes, require_solid
from kpjax.datasets.check import UNLISTED, check_split
from kpjax.datasets.folders import Folder, Joined, join, open_folder
from kpjax.errors import ConfigError, DataError
from kpjax.objects import UNLABELLED
from kpjax.parallel import distributed

BOXES, POSE, SOLID = "centernet_r18", "centernet_r18_pose", "centernet_r18_3d"
CONFIG, COMMAND, DATA = "config.py", "command.json", "data"
_LINES = 6  # of notes and of oddities that are shown
_LOOKED_AT = 20_000  # images of which every header is read before training
_OPTIONS = ("data", "model", "size", "minutes", "epochs", "from")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Train on a folder of labelled images: COCO, Pascal VOC, YOLO or KITTI, understood by looking."
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="FOLDER",
        help="a data set, or its JSON or data.yaml; given several times they are joined",
    )
    parser.add_argument("--model", default="", metavar="NAME", help="default: by the labels, centernet_r18 for boxes")
    parser.add_argument("--size", type=int, default=0, metavar="N", help="side of the network's input in pixels")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=0.0, metavar="M", help="train as long as fits into this time")
    length.add_argument("--epochs", type=float, default=0.0, metavar="E", help="train for so many passes over the data")
    parser.add_argument("--workdir", default="", metavar="DIR", help="where all of it goes (default: runs/FOLDER)")
    parser.add_argument(
        "--from", dest="init_from", default="", metavar="CHECKPOINT", help="weights to start from, e.g. resnet18.pth"
    )
    parser.add_argument("--dry-run", action="store_true", help="choose and write the configuration, and stop")
    parser.add_argument("--force", action="store_true", help="take the work directory from another run that holds it")


def run(args: argparse.Namespace) -> int:
    """Choose, or go on with what was chosen before, and train.  Raises UserError for what a user can put right."""
    begun = time.monotonic()
    if distributed.connected():
        raise ConfigError(
            "--data is for one process; choose with --dry-run, then start train.py --config WORKDIR/config.py on all"
        )
    _check_options(args)
    name = os.path.splitext(os.path.basename(os.path.abspath(args.data[0])))[0]
    workdir = args.workdir or os.path.join("runs", name)
    config = _stored_choices(args, workdir) or _choose(args, workdir, begun)
    path = os.path.join(workdir, CONFIG)
    if args.dry_run:
        print(f"{path} is written; the same command without --dry-run trains")
        return 0
    from kpjax.training.run import run as train

    result = train(config, workdir, force=args.force)
    if result.finished:
        # A report page of the run belongs here: its path is then the first line below.
        place, found = shlex.quote(workdir), shlex.quote(os.path.join(workdir, "found"))
        print(f"next:\n  kpjax detect --checkpoint {place} --out {found} IMAGES\n  kpjax report {place}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    from kpjax.detectors import build

    if args.model:
        build(args.model, 1)  # a wrong name is refused before anything is read
    for name, least in (("size", 32), ("minutes", 0), ("epochs", 0)):
        value = getattr(args, name)
        if value and not least <= value < 1e6:
            raise ConfigError(f"--{name} is {value:g}; give a number from {least} on")
    twice = [
        path for path in args.data if sum(map(lambda p: os.path.abspath(p) == os.path.abspath(path), args.data)) > 1
    ]
    if twice:
        raise ConfigError(f"--data {twice[0]} is given twice; name each folder once")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a resumed run must share."""
    values = {name: getattr(args, "init_from" if name == "from" else name) for name in _OPTIONS}
    return values | {"data": [os.path.abspath(os.path.expanduser(path)) for path in args.data]}


def _stored_choices(args: argparse.Namespace, workdir: str) -> Config | None:
    """The configuration of an earlier start of this command; None where there is none, or one that may be replaced.

    Raises ConfigError where an earlier start had other options, and has left weights or was edited.
    """
    from kpjax.training.workdir import holds_weights

    path, chosen = os.path.join(workdir, COMMAND), os.path.join(workdir, CONFIG)
    if not os.path.isfile(path):
        for name in ("config.json", "checkpoints", CONFIG):
            if os.path.exists(os.path.join(workdir, name)):
                raise ConfigError(f"{workdir} holds {name} of another run; use another --workdir")
        return None
    if not os.path.isfile(chosen):  # killed between the two
        return None
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        with open(chosen, "rb") as file:
            edited = before["config"] != hashlib.sha256(file.read()).hexdigest()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); use another --workdir") from error
    for name, now in _given(args).items():
        then = before.get(name)
        if then == now:
            continue
        if not edited and not holds_weights(workdir):
            return None
        said, wanted = (" ".join(value) if isinstance(value, list) else value for value in (then, now))
        raise ConfigError(
            f"{workdir} was begun with {f'--{name} {said}' if then else f'no --{name}'}, and this command has "
            f"{f'--{name} {wanted}' if now else 'none'}; use another --workdir, or the same options"
        )
    print(f"going on with the choices in {chosen}" + (", edited since" if edited else ""))
    return config_of(chosen)


def _choose(args: argparse.Namespace, workdir: str, begun: float) -> Config:
    """Understand the data, choose the settings, print them, and write them to `workdir`."""
    from kpjax.detectors import data_needed, from_config
    from kpjax.training.choices import Wishes, choose, choose_steps, facts_of, set_steps, steps_in_time
    from kpjax.training.step_speed import this_machine, try_step

    folders = [open_folder(path) for path in args.data]
    keypoints = bool(args.model) and data_needed(args.model)["keypoints"]
    parts = {folder.path: folder.parts(keypoints) for folder in folders}
    for folder in folders:
        print(folder.describe(parts[folder.path]))
    joined = join(parts)
    _say(joined.lines, "note     ")

    model, options, why = _model(args, folders, joined)
    needed = data_needed(model)
    data = Config()
    data.model.name = model
    _set_data(data, joined, folders, workdir, needed["solid"])
    if needed["keypoints"] and len(folders) == 1:
        data.data.mirror_pairs = folders[0].reading.mirror_pairs()
    source, val = _open(data, needed)
    facts = facts_of(source, len(val) if val is not None else 0)
    wishes = Wishes(args.model, args.size, args.minutes, args.epochs, args.init_from)
    machine = this_machine()
    chosen = choose(facts, machine, wishes, model, options, why)
    config, reasons = chosen.config, chosen.reasons
    for split in ("train", "val"):
        setattr(config.data, split, getattr(data.data, split))
    for key in ("source", "kitti_dir", "kitti_train", "kitti_val", "kitti_classes", "mirror_pairs"):
        setattr(config.data, key, getattr(data.data, key))
    _check(config, needed, facts.images + facts.val_images)

    print(f"trying a step of {config.batch} images on {machine.devices} x {machine.platform}", flush=True)
    speed = try_step(config, source, machine, lambda c, s: from_config(c, len(s.classes), s.points))
    if config.batch != config.optim.lr_batch:
        reasons["batch"] = f"what {machine.memory / 2**30:.1f} GiB of free memory hold"
        choose_steps(config, facts, wishes, reasons)
    # An evaluation takes a forward pass an image, about a third of a step's work, and its program is compiled once.
    evaluation = 2.0 + 0.4 * speed.seconds * facts.val_images / config.batch
    if args.minutes:
        left = 60 * args.minutes - (time.monotonic() - begun) - 1.4 * speed.compiling - 5.0
        steps, evaluations = steps_in_time(left, 1.02 * speed.seconds, evaluation if val is not None else 0.0)
        set_steps(config, steps, evaluations)
        reasons["steps"] = (
            f"what fits into --minutes {args.minutes:g}: a step takes {speed.seconds:.2f} s, and {evaluations} "
            f"evaluation{'s' if evaluations > 1 else ''} about {evaluation:.0f} s each"
        )
    config.check()
    reasons["batch"] += f"; a step takes {speed.memory / 2**20:,.0f} MiB"
    _write(args, config, reasons, workdir)
    print(f"chosen, and written to {os.path.join(workdir, CONFIG)}:")
    for key, reason in reasons.items():
        print(f"  {key:17} {_shown(config, key):16} {reason}")
    if not args.minutes:
        minutes = (config.steps * speed.seconds + 5 * evaluation) / 60
        print(f"training takes about {_duration(minutes)} here; --minutes sets another time", flush=True)
    return config


def _model(args: argparse.Namespace, folders: Sequence[Folder], joined: Joined) -> tuple[str, dict[str, Any], str]:
    """The model, its options, and why it was chosen."""
    from kpjax.detectors import data_needed

    if args.model:
        calibrated = len(folders) == 1 and folders[0].reading.calibrated
        if data_needed(args.model)["solid"] and not calibrated:
            raise ConfigError(
                f"--model {args.model} learns 3D boxes, which need one folder of KITTI's with image_2, label_2 and "
                f"calib; {folders[0].path} is a {folders[0].reading.kind} data set ({folders[0].reading.evidence})"
            )
        return args.model, {}, "--model"
    model, why = _by_labels(folders, joined)
    if not os.path.isdir(args.init_from):
        return model, {}, why
    from kpjax.checkpoint.weights import load_inference

    detector = load_inference(args.init_from).detector
    if data_needed(detector.name) != data_needed(model):
        return model, {}, why
    options = {key: value for key, value in detector.options.items() if key != "points"}
    return detector.name, options, f"that of {args.init_from}"


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
    return BOXES, "boxes; the smallest released network"


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
            _write_text(split.annotations, json.dumps(part.instances))


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
            _write_text(os.path.join(root, "ImageSets", f"{name}.txt"), "".join(f"{stem}\n" for stem in stems))
    used = {row["category_id"] for row in joined.train.instances["annotations"]}
    there = [c["name"] for c in joined.train.instances["categories"] if c["id"] in used]
    usual = tuple(name for name in config.data.kitti_classes if name in there)
    config.data.source, config.data.kitti_dir = "kitti", root
    config.data.kitti_val = "val" if joined.val else ""
    config.data.kitti_classes = usual or tuple(there)


def _open(config: Config, needed: Any) -> tuple[Source, Source | None]:
    """Both splits as training will open them.  Raises ConfigError or DataError with what would end the run."""
    from kpjax.data.opening import has_validation

    source = open_source(config.data, "train", **needed)
    require_boxes(source)
    if needed["keypoints"]:
        require_keypoints(source)
    if needed["solid"]:
        require_solid(source)
    val = open_source(config.data, "val", **needed) if has_validation(config.data) else None
    if val is not None:
        require_same_classes(val, source)
    return source, val


def _check(config: Config, needed: Any, images: int) -> None:
    """Print what is odd in the data.  Raises DataError with the line that would end training."""
    if images > _LOOKED_AT:
        print("note     the images are not looked at one by one; kpjax check-data does it")
        return
    from kpjax.data.opening import has_validation
    from kpjax.detectors import from_config

    for split in ("train", "val") if has_validation(config.data) else ("train",):
        report, _ = check_split(
            config,
            split,
            lambda classes, points: from_config(config, classes, points),
            keypoints=needed["keypoints"],
            solid=needed["solid"],
        )
        if report.stop:
            raise DataError(report.stop)
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


def _write(args: argparse.Namespace, config: Config, reasons: dict[str, str], workdir: str) -> None:
    """The options, then the configuration file that belongs to them: with it the choices are complete."""
    from kpjax.training.config_file import config_text

    path = os.path.join(workdir, CONFIG)
    about = (
        f"Chosen for {', '.join(args.data)}; edit it before the first step, or train with it in another folder.\n\n"
        f"    python train.py --config {path} --workdir OTHER\n"
    )
    text = config_text(config, about, reasons)
    command = _given(args) | {"config": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}
    _write_text(os.path.join(workdir, COMMAND), json.dumps(command, indent=1))
    _write_text(path, text)


def _write_text(path: str, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    from kpjax.data import files

    os.makedirs(os.path.dirname(path), exist_ok=True)
    files.write_bytes(path, text.encode("utf-8", "surrogateescape"))


def _shown(config: Config, key: str) -> str:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return f"{value:g}" if isinstance(value, float) else str(value) or "-"


def _duration(minutes: float) -> str:
    if minutes < 100:
        return f"{max(minutes, 1):.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 60 * 48 else f"{minutes / 60 / 24:.0f} days"
