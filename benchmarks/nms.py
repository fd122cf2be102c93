"""Time of soft-NMS on the device: rows of all classes in one loop.

python benchmarks/nms.py [--rows 2000] [--classes 80] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from kpjax.ops import nms


def rows(count: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random boxes of 10 to 150 pixels in a picture of 650; scores above the threshold, so that all take part."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 500, (count, 2)), rng.uniform(10, 150, (count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
    return boxes, rng.uniform(0.002, 1, count).astype(np.float32), rng.integers(0, classes, count).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    boxes, scores, labels = rows(args.rows, args.classes)
    weights = np.stack([scores, scores], axis=1)
    results = {}
    for method in nms.METHODS:
        rules = nms.SoftNms(method)
        plain = jax.jit(lambda b, s, k, rules=rules: nms.soft_nms(b, s, k, rules=rules, stale_rows=True))
        merge = jax.jit(
            lambda b, s, k, w, rules=rules: nms.soft_nms_merge(b, s, k, w, rules=rules, exponent=10.0, stale_rows=True)
        )
        for name, run in (
            (method, lambda plain=plain: plain(boxes, scores, labels)),
            (f"{method}, merging", lambda merge=merge: merge(boxes, scores, labels, weights)),
        ):
            jax.block_until_ready(run())
            times = []
            for _ in range(args.repeat):
                started = time.perf_counter()
                jax.block_until_ready(run())
                times.append(1000 * (time.perf_counter() - started))
            results[name] = statistics.median(times)
            print(f"{name:20s} {results[name]:8.1f} ms  ({args.rows} rows, {args.classes} classes)", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(
            json.dumps({"device": jax.devices()[0].device_kind, "ms": results}, indent=1)
        )


if __name__ == "__main__":
    main()
