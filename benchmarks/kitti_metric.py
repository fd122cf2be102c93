"""CPU time of KITTI's metrics: made-up detections of as many frames as the usual validation split has.

python benchmarks/kitti_metric.py [--frames 3769] [--objects 8] [--detections 30] [--json FILE]

Ends with code 1 where the evaluation takes more than --limit seconds of CPU time.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kpjax.data.kitti_files import DONT_CARE, KittiObjects, objects_of_rows
from kpjax.metrics import kitti

CLASSES = ("Car", "Pedestrian", "Cyclist")
# Each type's part of the objects, and its height, width and length in metres.
TYPES = {
    "Car": (0.45, (1.5, 1.6, 3.9)),
    "Pedestrian": (0.2, (1.8, 0.7, 0.8)),
    "Cyclist": (0.1, (1.7, 0.6, 1.8)),
    "Van": (0.1, (2.2, 1.9, 5.0)),
    "Person_sitting": (0.05, (1.3, 0.6, 0.8)),
    DONT_CARE: (0.1, (1.5, 1.6, 3.9)),
}
FOCAL, CENTRE = 721.5, (609.6, 172.9)  # of a camera like KITTI's, pixels


def image_boxes(size: np.ndarray, location: np.ndarray) -> np.ndarray:
    """(n, 4) pixels: upright boxes around what stands at `location` (n, 3) with `size` (n, 3)."""
    x, y, z = location.T
    middle, bottom = FOCAL * x / z + CENTRE[0], FOCAL * y / z + CENTRE[1]
    half, height = FOCAL * (size[:, 1] + size[:, 2]) / 4 / z, FOCAL * size[:, 0] / z
    return np.stack([middle - half, bottom - height, middle + half, bottom], axis=1)


def frame(rng: np.random.Generator, objects: int, detections: int) -> tuple[KittiObjects, KittiObjects]:
    """Labels with `objects` lines, and detections: five in six near an object, with errors, the others anywhere."""
    names = list(TYPES)
    kinds = rng.choice(len(names), objects, p=[part for part, _ in TYPES.values()])
    size = np.array([size for _, size in TYPES.values()])[kinds] * rng.uniform(0.9, 1.1, (objects, 3))
    z = rng.uniform(5, 60, objects)
    location = np.stack([z * rng.uniform(-0.7, 0.7, objects), rng.normal(1.65, 0.1, objects), z], axis=1)
    yaw = rng.uniform(-np.pi, np.pi, objects)
    boxes, alpha = image_boxes(size, location), yaw - np.arctan2(location[:, 0], z)
    hidden = np.stack([np.maximum(rng.uniform(-0.8, 0.6, objects), 0), rng.integers(0, 4, objects), alpha], axis=1)
    labels = np.concatenate([hidden, boxes, size, location, yaw[:, None]], axis=1)
    nowhere = kinds == names.index(DONT_CARE)
    labels[nowhere, :3], labels[nowhere, 7:] = (-1, -1, -10), (-1, -1, -1, -1000, -1000, -1000, -10)

    of = rng.integers(0, objects, detections)
    near = rng.uniform(size=detections) < 5 / 6
    error = rng.choice([0.3, 1, 3], detections)[:, None]
    there = location[of] + error * rng.normal(0, (0.1, 0.03, 0.3), (detections, 3))
    far = rng.uniform(5, 60, detections)
    anywhere = np.stack([far * rng.uniform(-0.7, 0.7, detections), np.full(detections, 1.65), far], axis=1)
    there = np.where(near[:, None], there, anywhere)
    there[:, 2] = np.maximum(there[:, 2], 2)
    sides = size[of] * np.exp(error * rng.normal(0, 0.05, (detections, 3)))
    turned = yaw[of] + error[:, 0] * rng.normal(0, 0.1, detections)
    seen = np.stack([turned - np.arctan2(there[:, 0], there[:, 2])], axis=1)
    unknown = np.full((detections, 2), -1.0)
    score = np.round(np.clip(0.5 * near + rng.uniform(0, 0.5, detections) - 0.05 * error[:, 0], 0.01, 1), 2)
    rows = [unknown, seen, image_boxes(sides, there), sides, there, turned[:, None], score[:, None]]
    wrong = (rng.uniform(size=detections) < 0.1) | nowhere[of] | ~near
    found = np.where(wrong, rng.integers(0, len(CLASSES), detections), kinds[of] % len(CLASSES))
    return (
        objects_of_rows([names[k] for k in kinds], labels),
        objects_of_rows([names[k] for k in found], np.concatenate(rows, axis=1)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table of AP and the time, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=3769)
    parser.add_argument("--objects", type=int, default=8, help="a frame")
    parser.add_argument("--detections", type=int, default=30, help="a frame")
    parser.add_argument("--limit", type=float, default=120.0, help="CPU seconds")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    frames = [frame(rng, args.objects, args.detections) for _ in range(args.frames)]
    started, wall = time.process_time(), time.perf_counter()
    curves = kitti.evaluate_kitti([labels for labels, _ in frames], [found for _, found in frames], CLASSES)
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    print(kitti.table(curves))
    print(
        f"{seconds:.1f} s of CPU time, {wall:.1f} s in all: {args.frames} frames, {args.objects} objects and "
        f"{args.detections} detections each, {len(CLASSES)} classes"
    )
    if args.json:
        settings = {key: getattr(args, key) for key in ("frames", "objects", "detections")}
        report = {"benchmark": "kitti_metric", "settings": settings, "cpu_s": seconds, "wall_s": wall}
        pathlib.Path(args.json).write_text(json.dumps(report | {"stats": kitti.stats(curves)}, indent=1))
    if seconds > args.limit:
        print(f"error: more than {args.limit:g} s", file=sys.stderr)
    return int(seconds > args.limit)


if __name__ == "__main__":
    sys.exit(main())
