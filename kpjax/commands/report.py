"""`kpjax report`: one HTML page about a run: curves, numbers, errors as pictures, and what to try next."""

from __future__ import annotations

import argparse
import sys
import time

from kpjax.errors import ConfigError

EXAMPLES = (
    "kpjax report runs/mine",
    "kpjax report runs/mine --oracle --out oracle.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Write one HTML page about a run, which opens from a file without a network. What was evaluated already with "
        "the same checkpoint, split and settings is not evaluated again."
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="a work directory of train.py, or an inference checkpoint")
    parser.add_argument("--out", default="", help="the page to write (default: WORKDIR/report.html)")
    parser.add_argument("--config", help="settings in place of those stored with the weights (--config.key=value too)")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the highest AP, not the newest")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which split (default %(default)s)")
    parser.add_argument(
        "--oracle",
        action="store_true",
        help="measure AP with each head replaced by the ground truth: an evaluation each",
    )
    parser.add_argument(
        "--train-images",
        type=int,
        default=100,
        metavar="N",
        help="training images to evaluate too, to see what was learnt by heart; 0: none (default %(default)s)",
    )
    parser.add_argument(
        "--pictures", type=int, default=120, metavar="N", help="most pictures of errors (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    for name in ("train_images", "pictures"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give 0 or more")
    from kpjax.commands.flags import config_of
    from kpjax.parallel.compiling import keep_compiled
    from kpjax.show.run_report import report_run

    keep_compiled()
    began = time.monotonic()
    path = report_run(
        args.workdir,
        args.out,
        config=config_of(args.config, args.settings) if args.config else None,
        best=args.best,
        split=args.split,
        oracle=args.oracle,
        train_images=args.train_images,
        pictures=args.pictures,
        say=lambda line: print(line, flush=True),
        progress=sys.stderr.isatty(),
    )
    print(f"report      {path} ({time.monotonic() - began:.0f} s); open it in a browser")
    return 0
