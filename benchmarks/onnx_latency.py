"""Time of a batch from canvases to detections on the CPU: an ONNX file in onnxruntime, and kpjax's compiled program.

    python benchmarks/onnx_latency.py [--models centernet_r18 ...] [--side 512] [--batch 1] [--json OUT.json]

Weights are random, so that it is the network and the peaks that are timed.  Both get arrays of NumPy and their results
are fetched.  Rounds alternate; the figures are medians, in milliseconds.  start: how long the compiler needs, and
onnxruntime to load the file.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import kpjax
from kpjax.errors import UserError
from kpjax.export.onnx_check import session_of, test_inputs
from kpjax.export.onnx_file import require_onnx, write_onnx
from kpjax.export.stablehlo import inputs_of, one_program


def random_leaves(detector: kpjax.Detector, size: tuple[int, int]) -> tuple[Any, list[np.ndarray]]:
    """The variables' structure and random leaves, as they are at the start of a training."""
    variables = jax.jit(lambda: detector.net.init(jax.random.key(0), np.zeros((1, *size, 3), np.float32)))()
    leaves, tree = jax.tree.flatten(variables)
    return tree, [np.asarray(x) for x in leaves]


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(name: str, side: int, batch: int, rounds: int) -> dict[str, float]:
    """One row of the table."""
    detector = kpjax.build(name)
    size = (side - detector.less,) * 2
    tree, leaves = random_leaves(detector, size)
    inputs = [np.resize(x, (batch, *x.shape[1:])) for x in test_inputs(detector, size)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        write_s = timed(lambda: write_onnx(detector, tree, leaves, size, "na", 100, (), path))
        megabytes = os.path.getsize(path) / 1e6
        sessions: list[Any] = []
        load_s = timed(lambda: sessions.append(session_of(path)))
    feed = dict(zip([given for given, *_ in inputs_of(detector, size)], inputs, strict=True))
    program, weights = jax.jit(one_program(detector, tree, size, "na", 100)), jax.device_put(leaves)

    def by_jax() -> None:
        jax.device_get(program(weights, *inputs))

    def by_onnxruntime() -> None:
        sessions[0].run(None, feed)

    compile_s = timed(by_jax)
    by_onnxruntime()
    times = [(timed(by_jax), timed(by_onnxruntime)) for _ in range(rounds)]
    jax_ms, onnx_ms = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "jax_ms": jax_ms,
        "onnxruntime_ms": onnx_ms,
        "jax_start_s": compile_s,
        "onnxruntime_start_s": load_s,
        "write_s": write_s,
        "megabytes": megabytes,
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["centernet_r18"])
    parser.add_argument("--side", type=int, default=512, help="of the canvas in pixels; a pixel less for corners")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        require_onnx()
        print(f"{os.cpu_count()} cores of {platform.machine()}, batch {args.batch}, side {args.side}; milliseconds")
        print(f"{'model':24}{'JAX':>9}{'onnxruntime':>13}{'ratio':>7}{'start JAX s':>13}{'onnxruntime s':>15}{'MB':>8}")
        results = {}
        for name in args.models:
            row = results[name] = measure(name, args.side, args.batch, args.rounds)
            figures = f"{row['jax_ms']:9.0f}{row['onnxruntime_ms']:13.0f}{row['jax_ms'] / row['onnxruntime_ms']:7.2f}"
            starts = f"{row['jax_start_s']:13.1f}{row['onnxruntime_start_s']:15.1f}{row['megabytes']:8.1f}"
            print(f"{name:24}{figures}{starts}", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"batch": args.batch, "side": args.side, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
