"""Decoding of the corner methods on the device against the same steps in NumPy.

    python benchmarks/corner_decode.py [--batch 8] [--rounds 5] [--json OUT.json]

Steps: sigmoid, 3x3 peaks, the best corners of a side over all classes, offsets and embeddings there, all pairs with
their tests, the best 1,000, and for the triplets the centres' rule; on maps of 128x128 cells and 80 classes as
the network gives them.  Soft-NMS, which NumPy's steps lack, is in a column of its own.  Both programs' boxes are
compared first.  The head maps are noise with some objects.  Rounds alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

import kpjax
from kpjax.detectors import cornernet

SIDE, CLASSES = 128, 80


def random_maps(batch: int, triplet: bool, objects: int = 40) -> dict[str, np.ndarray]:
    """Noise, strong peaks that belong to nothing, and the keypoints of some objects."""
    rng = np.random.default_rng(0)
    names = ("tl", "br", "center") if triplet else ("tl", "br")
    maps = {f"{name}_heat": rng.normal(-6, 1, (batch, SIDE, SIDE, CLASSES)).astype(np.float32) for name in names}
    maps |= {f"{name}_off": rng.random((batch, SIDE, SIDE, 2), np.float32) for name in names}
    maps |= {f"{name}_tag": rng.uniform(-1, 1, (batch, SIDE, SIDE, 1)).astype(np.float32) for name in names[:2]}
    for image in range(batch):
        for name in names:
            noise = tuple(rng.integers(0, n, 100) for n in (SIDE, SIDE, 10))
            maps[f"{name}_heat"][image][noise] = rng.normal(0, 1.5, 100)
        corner = rng.integers(0, SIDE // 2, (objects, 2))
        other = corner + rng.integers(4, SIDE // 2, (objects, 2))
        points = {"tl": corner, "br": other, "center": (corner + other) // 2}
        labels, tags = rng.integers(0, CLASSES, objects), rng.uniform(-1, 1, objects)
        for name in names:
            x, y = points[name].T
            maps[f"{name}_heat"][image, y, x, labels] = rng.uniform(0, 3, objects)
            if name != "center":
                maps[f"{name}_tag"][image, y, x, 0] = tags
    return maps


def numpy_points(maps: dict[str, np.ndarray], name: str, image: int, count: int) -> dict[str, np.ndarray]:
    """The best points of one image, in pixels of the input."""
    heat = 1 / (1 + np.exp(-maps[f"{name}_heat"][image]))
    padded = np.pad(heat, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    best = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    flat = np.where(best == heat, heat, 0).reshape(-1)
    indices = np.argpartition(-flat, count)[:count]
    indices = indices[np.argsort(-flat[indices], kind="stable")]
    cell, label = indices // CLASSES, indices % CLASSES
    y, x = cell // SIDE, cell % SIDE
    offset = maps[f"{name}_off"][image, y, x]
    ratio = np.float32((4 * SIDE - 1) / SIDE)
    found = {"score": flat[indices], "label": label, "x": (x + offset[:, 0]) * ratio, "y": (y + offset[:, 1]) * ratio}
    return found | ({"tag": maps[f"{name}_tag"][image, y, x, 0]} if f"{name}_tag" in maps else {})


def numpy_decode(maps: dict[str, np.ndarray], config: Any, top_k: int) -> list[np.ndarray]:
    """Rows x1, y1, x2, y2, score, label of each image, best first."""
    results = []
    for image in range(len(maps["tl_heat"])):
        tl, br = (numpy_points(maps, side, image, config.corners) for side in ("tl", "br"))
        score = (tl["score"][:, None] + br["score"]) / 2
        bad = (tl["label"][:, None] != br["label"]) | (np.abs(tl["tag"][:, None] - br["tag"]) > config.distance)
        bad |= (br["x"] < tl["x"][:, None]) | (br["y"] < tl["y"][:, None])
        score = np.where(bad, np.float32(-1), score).reshape(-1)
        count = min(config.pairs, score.size)
        indices = np.argpartition(-score, count - 1)[:count]
        indices = indices[np.argsort(-score[indices], kind="stable")]
        i, j = indices // config.corners, indices % config.corners
        score = score[indices]
        x1, y1, x2, y2 = tl["x"][i], tl["y"][i], br["x"][j], br["y"][j]
        label = tl["label"][i]
        triplet = "center_heat" in maps
        limit = np.float32(4 * SIDE - 1)
        if triplet:
            score[(x2 >= limit + 5) | (y2 >= limit + 5)] = -1
        x1, y1, x2, y2 = (np.clip(v, 0, limit) for v in (x1, y1, x2, y2))
        if triplet:
            center = numpy_points(maps, "center", image, config.corners)
            small = (x2 - x1) * (y2 - y1) <= 22500
            inside = center["label"] == label[:, None]
            for low, high, c in ((x1, x2, center["x"]), (y1, y2, center["y"])):
                first = np.where(small, (2 * low + high) / 3, (3 * low + 2 * high) / 5)
                last = np.where(small, (low + 2 * high) / 3, (2 * low + 3 * high) / 5)
                inside &= (c > first[:, None]) & (c < last[:, None])
            kept = inside.any(1) & (score > -1)
            score = np.where(kept, (2 * score + center["score"][inside.argmax(1)]) / 3, np.float32(-1))
        order = np.argsort(-score, kind="stable")[:top_k]
        order = order[score[order] > -1]
        results.append(np.stack([x1, y1, x2, y2, score, label], 1)[order])
    return results


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}, batch {args.batch}, float32")
    print(f"{'':20}{'kpjax ms':>10}{'NumPy ms':>10}{'ratio':>8}{'+ soft-NMS':>12}")
    table = []
    for model in ("cornernet_hg104", "triplet_hg52"):
        detector = kpjax.build(model, CLASSES, nms="none")
        config = detector.net.config  # type: ignore[attr-defined]
        assert isinstance(config, cornernet.CornerNetConfig)
        maps = random_maps(args.batch, model.startswith("triplet"))
        decode = jax.jit(lambda m, d=detector: d.decode(m, 100))
        on_device = jax.device_put(maps)
        found, expected = jax.device_get(decode(on_device)), numpy_decode(maps, config, 100)
        for image, rows in enumerate(expected):
            count = int((found.scores[image] > 0).sum())
            assert count == len(rows) > 0, (count, len(rows))
            np.testing.assert_allclose(found.scores[image][:count], rows[:, 4], atol=1e-5)
            np.testing.assert_allclose(found.boxes[image][:count].sum(), rows[:, :4].sum(), rtol=1e-4)
        complete = kpjax.build(model, CLASSES)
        whole = jax.jit(lambda m, d=complete: d.decode(m, 100))
        jax.block_until_ready(whole(on_device))
        forms: dict[str, Any] = {
            "soft_nms": functools.partial(whole, on_device),
            "kpjax": functools.partial(decode, on_device),
            "numpy": functools.partial(numpy_decode, maps, config, 100),
        }
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(args.rounds):
            for name, run in forms.items():
                start = time.perf_counter()
                jax.block_until_ready(run())
                seconds[name].append(time.perf_counter() - start)
        ours, theirs, with_nms = (statistics.median(seconds[name]) for name in ("kpjax", "numpy", "soft_nms"))
        print(f"{model:20}{1e3 * ours:10.1f}{1e3 * theirs:10.1f}{theirs / ours:8.2f}{1e3 * with_nms:12.1f}", flush=True)
        row = {"model": model, "seconds": ours, "numpy_seconds": theirs, "with_soft_nms_seconds": with_nms}
        table.append(row | {"rounds": seconds})
    if args.json:
        machine = {"device": device.device_kind, "host": platform.machine(), "cpus": os.cpu_count()}
        result = {"benchmark": "corner_decode", "machine": machine, "jax": jax.__version__, "batch": args.batch}
        pathlib.Path(args.json).write_text(json.dumps(result | {"rows": table}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
