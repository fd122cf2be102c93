"""`python -m kpjax COMMAND`: the subcommands, for everything but training, evaluation and detection."""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from kpjax.errors import UserError
from kpjax.parallel.startup import escape_unprintable, quiet_tensorflow, skip_absent_tpu

# name -> (module, what --help says); a module is imported only when its command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "check-data": ("kpjax.commands.check_data", "read a data set as training would, and report every oddity"),
    "convert": ("kpjax.commands.convert", "turn a released PyTorch checkpoint into an inference checkpoint"),
    "download": ("kpjax.commands.download", "fetch COCO, or list the released checkpoints"),
    "export": ("kpjax.commands.export", "write a detector as StableHLO with a loader that needs JAX alone"),
    "plan": (
        "kpjax.commands.plan",
        "compile a step for a TPU slice or GPUs without one: memory, collectives, roofline",
    ),
    "records": ("kpjax.commands.records", "write a COCO folder as sharded records with random access"),
    "report": ("kpjax.commands.report", "write one HTML page about a run: numbers, curves, errors, what to try next"),
    "shapes": ("kpjax.commands.shapes", "write a data set of drawn shapes"),
    "voc": ("kpjax.commands.voc", "convert Pascal VOC annotations to COCO JSON"),
    "yolo": ("kpjax.commands.yolo", "convert YOLO labels to COCO JSON"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 after a line of explanation."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m kpjax", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in argv[:1]:
            importlib.import_module(module).add_arguments(command)
    args, rest = parser.parse_known_args(argv)
    # Settings of a configuration belong to the command; anything else unknown is a mistake.
    args.settings = rest if hasattr(args, "config") and all_settings(rest) else []
    if rest != args.settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    escape_unprintable()
    quiet_tensorflow()
    skip_absent_tpu()
    try:
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except (UserError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            # a write to a full disk fails without a name
            place = getattr(args, "out", None) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
            text = f"{error.filename or place}: {error.strerror}" if error.filename or place else text
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing more was written", file=sys.stderr)
        return 130


def all_settings(arguments: Sequence[str]) -> bool:
    """Whether each is --config.key=value, or --config.key followed by its value."""
    waiting = False
    for argument in arguments:
        if argument.startswith("--config."):
            waiting = "=" not in argument
        elif waiting:
            waiting = False
        else:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
