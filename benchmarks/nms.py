"""Time of soft-NMS on the device: rows of all classes in one loop.

python benchmarks/nms.py [--rows 2000] [--classes 80] [--most 100] [--json FILE]

Each method to the threshold, and until the `most` best rows are certain.
"""

from __future__ import annotations

import argparse
import functools
import itertools
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
    parser.add_argument("--most", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json")
    args = parser.parse_args()
    boxes, scores, labels = rows(args.rows, args.classes)
    weights = np.stack([scores, scores], axis=1)
    results = {}
    for method, most in itertools.product(nms.METHODS, (0, args.most)):
        options = {"rules": nms.SoftNms(method), "stale_rows": True, "most": most}
        plain = jax.jit(functools.partial(nms.soft_nms, **options))
        merge = jax.jit(functools.partial(nms.soft_nms_merge, exponent=10.0, **options))
        best = f", the best {most}" if most else ""
        for name, run in (
            (f"{method}{best}", lambda plain=plain: plain(boxes, scores, labels)),
            (f"{method}, merging{best}", lambda merge=merge: merge(boxes, scores, labels, weights)),
        ):
            jax.block_until_ready(run())
            times = []
            for _ in range(args.repeat):
                started = time.perf_counter()
                jax.block_until_ready(run())
                times.append(1000 * (time.perf_counter() - started))
            results[name] = statistics.median(times)
            print(f"{name:34s} {results[name]:8.1f} ms  ({args.rows} rows, {args.classes} classes)", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(
            json.dumps({"device": jax.devices()[0].device_kind, "ms": results}, indent=1)
        )


if __name__ == "__main__":
    main()
