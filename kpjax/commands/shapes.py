"""`kpjax shapes`: write a drawn data set, of shapes or of articulated figures."""

from __future__ import annotations

import argparse
import os
import time

from kpjax.datasets import figures, shapes
from kpjax.errors import ConfigError

EXAMPLES = (
    "kpjax shapes --out runs/shapes",
    "kpjax shapes --kind figures --out runs/figures --train 500 --seed 1",
)
_KINDS = {"shapes": shapes, "figures": figures}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Write a drawn data set: JPEG files and COCO JSON."
    parser.add_argument("--out", required=True, help="folder to write: train/, val/ and annotations/")
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        default="shapes",
        help="shapes: five outlines with boxes; figures: puppets with boxes and joints (default %(default)s)",
    )
    parser.add_argument("--train", type=int, default=1000, help="training images (default %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="held-out images (default %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels (default %(default)s)")
    parser.add_argument(
        "--sides",
        nargs=2,
        type=float,
        metavar=("LEAST", "MOST"),
        help="shapes: sides of a box, as fractions of the image's side (default: 0.125 0.5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another data set (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the data set and say what was written.  Raises ConfigError on settings that cannot work."""
    start = time.perf_counter()
    kind = _KINDS[args.kind]
    sides = {}
    if args.sides:
        if kind is not shapes:
            raise ConfigError("--sides is for --kind shapes; leave it out")
        sides = {"sides": tuple(args.sides)}
    written = kind.write(args.out, train=args.train, val=args.val, size=args.size, seed=args.seed, **sides)
    what = f"{args.train} train and {args.val} val images of {args.size} px, seed {args.seed}"
    how = f"written in {time.perf_counter() - start:.1f} s" if written else "already there"
    joints = f", joints {', '.join(figures.JOINTS)}" if args.kind == "figures" else ""
    print(f"{os.path.abspath(args.out)}: {what}, classes {', '.join(kind.CLASSES)}{joints}: {how}")
    return 0
