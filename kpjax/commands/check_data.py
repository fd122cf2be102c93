"""`kpjax check-data`: report what training would do with every annotation and image of a data set."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from typing import Any

import numpy as np

from kpjax.commands.flags import config_of
from kpjax.config import Config
from kpjax.data.opening import has_validation
from kpjax.data.source import (
    Source,
    require_boxes,
    require_keypoints,
    require_outlines,
    require_same_classes,
    require_same_points,
    require_solid,
)
from kpjax.datasets.check import SplitReport, check_split
from kpjax.errors import DataError, UserError

EXAMPLES = (
    "kpjax check-data --config mine.py --out runs/check",
    "kpjax check-data --config bccd_r18 --out runs/check --decode --config.data.train.images=DATA/train",
)
_EXAMPLES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = (
        "Read every annotation and every image's header as training would, and report what it would do with each "
        "oddity. The exit code is 0 where training would run."
    )
    parser.add_argument("--config", required=True, help="a recipe or a file (--config.key=value changes it)")
    parser.add_argument("--out", required=True, help="folder for report.json, which lists all cases, and histograms")
    parser.add_argument("--decode", action="store_true", help="decode every image, not the suspicious ones alone")


def run(args: argparse.Namespace) -> int:
    """Print and write the report.  Raises UserError with the line that would end training."""
    from kpjax.detectors import data_needed, from_config

    config = config_of(args.config, args.settings)
    needed, detector_of = data_needed(config.model.name), functools.partial(from_config, config)
    keypoints, solid = needed["keypoints"], True if needed["solid"] else None
    os.makedirs(args.out, exist_ok=True)
    splits = ["train"]
    if has_validation(config.data):
        splits.append("val")
    stops: list[str] = []
    reports: list[dict[str, Any]] = []
    sources: dict[str, Source] = {}
    for split in splits:
        begun = time.monotonic()
        try:
            report, source = check_split(
                config,
                split,
                detector_of,
                keypoints=keypoints,
                solid=solid,
                outlines=bool(needed["outlines"]),
                decode=args.decode,
            )
            sources[split] = source
            if keypoints and len(source.annotations.ids):
                require_keypoints(source, split)
            if split == "train":
                require_boxes(source)
                if solid:
                    require_solid(source)
                if needed["outlines"]:
                    require_outlines(source)
            else:
                require_same_classes(source, sources.get("train", source))
                require_same_points(source, sources.get("train", source))
        except UserError as error:
            if split not in sources:
                stops.append(str(error))
                continue
            report.stop = report.stop or str(error)
        say(report, config, time.monotonic() - begun)
        draw(report, args.out)
        reports.append(as_json(report))
        if report.stop:
            stops.append(report.stop)
    both = shared_images(sources)
    if both:
        print(f"{both:,} images of val are in train too: AP on them says nothing of new images")
    path = os.path.join(args.out, "report.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"splits": reports, "stops": stops, "images_in_both": both}, file, indent=1)
    print(f"all cases are in {path}, histograms beside it")
    if stops:
        more = f" (and {len(stops) - 1} more)" if len(stops) > 1 else ""
        raise DataError(f"{stops[0]}{more}")
    print("training would run")
    return 0


def shared_images(sources: dict[str, Source]) -> int:
    """How many image files of the validation split, if there is one, are in the training split too."""
    if not all(split in sources and sources[split].on_disk for split in ("train", "val")):
        return 0
    train, val = ({os.path.realpath(path) for path in sources[split].files} for split in ("train", "val"))
    return len(train & val)


def say(report: SplitReport, config: Config, seconds: float) -> None:
    """Print what was found in a split."""
    boxes, max_boxes = int(report.objects.sum()), config.data.max_boxes
    print(f"{report.split}: {report.name}")
    print(f"  {report.images:,} images, {boxes:,} boxes of {len(report.classes)} classes; looked at in {seconds:.1f} s")
    for oddity in report.oddities:
        print(f"  {len(oddity.cases):8,d} x {oddity.kind}: {oddity.action}")
        for case in oddity.cases[:_EXAMPLES]:
            print(f"             e.g. {case}")
    if not report.oddities:
        print("  nothing odd")
    if boxes:
        few = [n for n, c in zip(report.classes, report.class_counts, strict=True) if c == 0]
        if few:
            print(f"  classes without a box: {', '.join(few[:10])}{' ...' if len(few) > 10 else ''}")
        middle, many, most = np.percentile(report.objects, (50, 90, 100))
        print(f"  boxes an image: median {middle:.0f}, 90% have at most {many:.0f}, most {most:.0f}")
    for part in (report.points, report.solids):
        for line in part.lines() if part else ():
            print(f"  {line}")
    lost = int(np.maximum(report.objects - max_boxes, 0).sum())
    print(f"  max_boxes that loses none: {report.max_boxes} (config.data.max_boxes is {max_boxes}, which loses {lost})")
    if report.collisions:
        size = f"{config.augment.width} x {config.augment.height}"
        print(f"  cells of {report.stride} pixels, whole images on the input of {size}:")
    for name, c in report.collisions.items():
        share = f"{100 * (c.same_class + c.other_class) / max(c.objects, 1):.2f}%"
        what, kind = ("labelled keypoints", "name") if name == "joint" else ("objects", "class")
        print(
            f"    {f'{name}: ' if name else ''}of {c.objects:,} {what} {c.same_class:,} share one with another of "
            f"their {kind}, {c.other_class:,} with one of another {kind} ({share})"
        )
    sys.stdout.flush()


def draw(report: SplitReport, folder: str) -> None:
    """Write SPLIT_objects.png, SPLIT_sizes.png, SPLIT_classes.png, and SPLIT_keypoints.png where there are any."""
    from kpjax.show import figures

    counts, names = count_bins(report.objects)
    drawn = {"objects": figures.bars(counts, names, f"{report.split}: images by their number of boxes", "boxes")}
    sizes, names = size_bins(report.sizes)
    drawn["sizes"] = figures.bars(
        sizes, names, f"{report.split}: boxes by size", "square root of the area, pixels of the network's input"
    )
    order = np.argsort(-report.class_counts, kind="stable")[:40]
    drawn["classes"] = figures.bars(
        [int(report.class_counts[k]) for k in order],
        [report.classes[k] for k in order],
        f"{report.split}: boxes by class" + (", the 40 most frequent" if len(report.classes) > 40 else ""),
        "class",
    )
    if report.points:
        drawn["keypoints"] = figures.bars(
            report.points.labelled.tolist(),
            report.points.names,
            f"{report.split}: labelled keypoints by name, of {len(report.points.of_object):,} objects",
            "keypoint",
        )
    for name, figure in drawn.items():
        figures.save_png(os.path.join(folder, f"{report.split}_{name}.png"), figure)


def count_bins(objects: np.ndarray) -> tuple[list[int], list[str]]:
    """Images by their number of boxes: 0 to 15 each, then by widening ranges."""
    edges = [*range(16)]
    while edges[-1] < objects.max(initial=0):
        edges.append(int(edges[-1] * 1.25) + 1)
    names = [str(b) if b == a + 1 else f"{a + 1}-{b}" for a, b in zip([-1, *edges], edges, strict=False)]
    return np.histogram(objects, [-0.5, *(e + 0.5 for e in edges)])[0].tolist(), names


def size_bins(sizes: np.ndarray) -> tuple[list[int], list[str]]:
    """Boxes by size, in half octaves from 1 pixel."""
    edges = [0.0, *(2 ** (k / 2) for k in range(0, 2 * 13))]
    counts = np.histogram(sizes, [*edges, np.inf])[0].tolist()
    names = [f"<{b:.3g}" for b in edges[1:]] + [f">{edges[-1]:.3g}"]
    used = np.flatnonzero(counts)
    first, last = (used[0], used[-1] + 1) if len(used) else (0, 1)
    return counts[first:last], names[first:last]


def as_json(report: SplitReport) -> dict[str, Any]:
    """The report with every case, as plain JSON values."""
    return {
        "split": report.split,
        "name": report.name,
        "images": report.images,
        "boxes": int(report.objects.sum()),
        "boxes_by_class": dict(zip(report.classes, report.class_counts.tolist(), strict=True)),
        "max_boxes_that_loses_none": report.max_boxes,
        "collisions": {name: dataclasses.asdict(c) for name, c in report.collisions.items()},
        **({"keypoints": report.points.as_json()} if report.points else {}),
        **({"solids": report.solids.as_json()} if report.solids else {}),
        "oddities": [dataclasses.asdict(o) | {"count": len(o.cases)} for o in report.oddities],
        "stop": report.stop,
    }
