"""`kpjax voc`: convert Pascal VOC annotations to COCO JSON."""

from __future__ import annotations

import argparse

from kpjax.commands.yolo import report
from kpjax.datasets.voc import DIFFICULT, convert_voc

EXAMPLES = (
    "kpjax voc --root DATA --list ImageSets/Main/train.txt --out runs/train.json",
    "kpjax voc --root DATA --classes cat,dog --difficult drop --out runs/all.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Convert Pascal VOC XML annotations to a COCO instances JSON."
    parser.add_argument("--root", required=True, help="folder that holds Annotations/ and JPEGImages/")
    parser.add_argument("--list", help="names to convert, e.g. ImageSets/Main/train.txt (default: every XML file)")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--classes", help="names in the order of their ids, with commas (default: all, sorted)")
    parser.add_argument(
        "--difficult", choices=DIFFICULT, default="keep", help="objects marked difficult (default %(default)s)"
    )
    parser.add_argument(
        "--zero-based", action="store_true", help="corners count pixels from 0 and exclude the last one"
    )


def run(args: argparse.Namespace) -> int:
    """Convert, write, and say what was dropped and why.  Raises DataError on what cannot be read."""
    classes = [name.strip() for name in args.classes.split(",") if name.strip()] if args.classes else None
    converted = convert_voc(args.root, args.list, classes=classes, zero_based=args.zero_based, difficult=args.difficult)
    report(converted, args.out)
    return 0
