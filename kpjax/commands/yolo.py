"""`kpjax yolo`: convert YOLO labels to COCO JSON."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter

from kpjax.datasets.voc import Converted
from kpjax.datasets.yolo import convert_yolo

EXAMPLES = (
    "kpjax yolo --root DATA --split train --out runs/train.json",
    "kpjax yolo --root DATA --split val --names DATA/data.yaml --out runs/val.json",
)
_NOTES_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Convert YOLO text labels to a COCO instances JSON."
    parser.add_argument("--root", required=True, help="folder that holds images/ and labels/ (or SPLIT/images, ...)")
    parser.add_argument("--split", help="e.g. train: images/train with labels/train, or train/images with train/labels")
    parser.add_argument("--names", help="class names: a data.yaml or one name a line (default: looked for in --root)")
    parser.add_argument(
        "--exif",
        choices=("apply", "ignore"),
        default="apply",
        help="labels of images with an EXIF rotation are of the image as it is shown (apply) or stored (ignore)",
    )
    parser.add_argument("--out", required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> int:
    """Convert, write, and say what was dropped and why.  Raises DataError on what cannot be read."""
    report(convert_yolo(args.root, args.split, names=args.names, exif=args.exif), args.out)
    return 0


def report(converted: Converted, out: str) -> None:
    """Write the JSON and print what it holds, what was dropped, and the settings to train with it."""
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    # Written beside OUT, then renamed: a full disk or Ctrl-C never leaves half a file, or harms an older one.
    partial = f"{out}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(converted.instances, file)
        os.replace(partial, out)
    finally:
        if os.path.exists(partial):
            os.remove(partial)

    data = converted.instances
    counts = Counter(annotation["category_id"] for annotation in data["annotations"])
    empty = len(data["images"]) - len({annotation["image_id"] for annotation in data["annotations"]})
    print(f"{out}: {len(data['images'])} images ({empty} without objects), {len(data['annotations'])} boxes")
    for category in data["categories"]:
        print(f"  {category['id']:4d}  {category['name']:24s} {counts[category['id']]:8d} boxes")
    for note in converted.notes[:_NOTES_SHOWN]:
        print(f"  note: {note}")
    if len(converted.notes) > _NOTES_SHOWN:
        print(f"  note: ... and {len(converted.notes) - _NOTES_SHOWN} more kinds of notes")
    print("use it as a split (here train; val alike):")
    print(f"  --config.data.train.images={os.path.abspath(converted.images)}")
    print(f"  --config.data.train.annotations={os.path.abspath(out)}")
