"""`kpjax train --data FOLDER`: train on a folder of labelled images, with settings that suit it and the machine."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from typing import Any

from kpjax.commands.flags import config_of
from kpjax.commands.train import report_of_run
from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.parallel import distributed

EXAMPLES = (
    "kpjax train --data photos --minutes 25",
    "kpjax train --data photos --data more --model centernet_dla34 --from dla34.pth --workdir runs/photos",
)
CONFIG, COMMAND = "config.py", "command.json"  # files of the work directory: the choices, and what they were made for


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
    parser.add_argument("--model", default="", metavar="NAME", help="default: by the labels, ttfnet_r18 for boxes")
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
        report_of_run(workdir)
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
    if args.init_from and not os.path.exists(args.init_from):
        raise ConfigError(f"--from {args.init_from}: no such file, checkpoint or work directory")
    paths = [os.path.abspath(path) for path in args.data]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise ConfigError(f"--data {twice} is given twice; name each folder once")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a resumed run must share."""
    values = {name: getattr(args, name) for name in ("model", "size", "minutes", "epochs")}
    data = [os.path.abspath(os.path.expanduser(path)) for path in args.data]
    return values | {"data": data, "from": os.path.abspath(args.init_from) if args.init_from else ""}


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
        said, wanted = (
            " ".join(v) if isinstance(v, list) else f"{v:g}" if isinstance(v, float) else v for v in (then, now)
        )
        raise ConfigError(
            f"{workdir} was begun with {f'--{name} {said}' if then else f'no --{name}'}, and this command has "
            f"{f'--{name} {wanted}' if now else 'none'}; use another --workdir, or the same options"
        )
    print(f"going on with the choices in {chosen}" + (", edited since" if edited else ""))
    return config_of(chosen)


def _choose(args: argparse.Namespace, workdir: str, begun: float) -> Config:
    """Choose the settings, print them, and write them to `workdir`."""
    from kpjax.commands.folder_choices import choose_for
    from kpjax.training.choices import Wishes

    given = _given(args)
    wishes = Wishes(args.model, args.size, args.minutes, args.epochs, given["from"])
    chosen = choose_for(args.data, wishes, workdir, begun)
    _write(given, chosen.config, chosen.reasons, workdir)
    print(f"chosen, and written to {os.path.join(workdir, CONFIG)}:")
    for key, reason in chosen.reasons.items():
        print(f"  {key:17} {_shown(chosen.config, key):16} {reason}")
    sys.stdout.flush()
    return chosen.config


def _write(given: dict[str, Any], config: Config, reasons: dict[str, str], workdir: str) -> None:
    """The options, then the configuration file that belongs to them: with it the choices are complete."""
    from kpjax.commands.folder_choices import write_text
    from kpjax.training.config_file import config_text

    path = os.path.join(workdir, CONFIG)
    about = (
        f"Chosen for {', '.join(given['data'])}; edit it before the first step, or train with it in another folder.\n\n"
        f"    python train.py --config {path} --workdir OTHER\n"
    )
    text = config_text(config, about, reasons)
    command = given | {"config": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}
    write_text(os.path.join(workdir, COMMAND), json.dumps(command, indent=1))
    write_text(path, text)


def _shown(config: Config, key: str) -> str:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return f"{value:g}" if isinstance(value, float) else str(value) or "-"
