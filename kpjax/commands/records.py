"""`kpjax records`: write a COCO folder as sharded ArrayRecord or TFRECORD."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time

from kpjax.commands.flags import config_of
from kpjax.config import DataConfig, SplitConfig
from kpjax.data.opening import open_source
from kpjax.data.source import Source
from kpjax.datasets.records import FORMATS, NAME, write_records
from kpjax.errors import ConfigError

EXAMPLES = (
    "kpjax records --config coco_r18 --out data/records",
    "kpjax records --images DATA/val --annotations val.json --split val --out data/records",
)
SPLITS = {"train": "train", "val": "validation"}  # as data.tfds_train and data.tfds_val have them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Write image folders and their COCO JSON as sharded records through TensorFlow Datasets. The files are copied "
        "as they are; training reads from the records what it reads from the folders."
    )
    parser.add_argument("--config", help="a recipe or a file: its train and val splits (--config.key=value changes it)")
    parser.add_argument("--images", help="without --config: folder of the images")
    parser.add_argument("--annotations", help="without --config: COCO instances JSON")
    parser.add_argument("--split", choices=list(SPLITS), help="only this one (without --config: what to call it)")
    parser.add_argument("--out", required=True, help="folder to write the set into: data.tfds_dir")
    parser.add_argument("--name", default=NAME, help="the set's name: data.tfds_name (default %(default)s)")
    parser.add_argument("--shards", type=int, default=0, help="files a split (default: by size, as TFDS chooses)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default %(default)s")
    parser.add_argument(
        "--keypoints",
        action=argparse.BooleanOptionalAction,
        help="write the objects' keypoints too (default: where the JSON's categories name any)",
    )


def run(args: argparse.Namespace) -> int:
    """Write, and print the settings to train with.  Raises ConfigError or DataError."""
    # The records hold what the file says; these settings are for who reads them.
    data = dataclasses.replace(_data(args), mirror_pairs="", sigmas=())
    splits: dict[str, Source] = {}
    for key, name in SPLITS.items():
        wanted = args.split == key if args.split else bool(getattr(data, key).annotations)
        if wanted:
            splits[name] = open_source(data, key, keypoints=args.keypoints)
    if not splits:
        raise ConfigError("the configuration names no annotations; set config.data.train.annotations")
    begun = time.monotonic()
    folder = write_records(
        splits,
        args.out,
        name=args.name,
        shards=args.shards,
        file_format=args.format,
        skip_missing=data.bad_images == "skip",
    )
    size = sum(os.path.getsize(os.path.join(root, f)) for root, _, names in os.walk(folder) for f in names)
    counts = ", ".join(f"{len(source):,} images as {name}" for name, source in splits.items())
    points = next(iter(splits.values())).points
    with_points = f", with {len(points)} keypoints an object" if points else ""
    print(f"{folder}: {counts}{with_points}, {size / 2**20:,.1f} MiB in {time.monotonic() - begun:.1f} s")
    print("train with it:" if SPLITS["train"] in splits else "evaluate on it (no training split was written):")
    print(f"  --config.data.source=tfds --config.data.tfds_name={args.name}")
    print(f"  --config.data.tfds_dir={os.path.dirname(folder)}")
    if SPLITS["val"] not in splits:
        print("  --config.data.tfds_val=    (no validation: none was written)")
    return 0


def _data(args: argparse.Namespace) -> DataConfig:
    if args.config:
        if args.images or args.annotations:
            raise ConfigError("give --config or --images and --annotations, not both")
        data = config_of(args.config, args.settings).data
        if data.source == "kitti":
            raise ConfigError("config.data.source is 'kitti'; 3D boxes are not kept in records: train on the folder")
        if data.source != "coco":
            raise ConfigError(f"config.data.source is {data.source!r}; records are written from 'coco' folders")
        return data
    if args.settings:
        raise ConfigError(f"{args.settings[0]} changes a configuration; give --config FILE instead of --images")
    if not (args.images and args.annotations):
        raise ConfigError("give --config FILE, or --images DIR and --annotations FILE.json")
    args.split = args.split or "train"
    split = SplitConfig(args.images, args.annotations)
    return DataConfig(train=split, val=split)
