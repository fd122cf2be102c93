"""Host pipeline against bare JPEG decoding: images/s into the training canvas, of the same files.

    python benchmarks/input.py --images DIR --annotations FILE.json [--json OUT.json]

The baseline is `tf.io.decode_jpeg(dct_method="INTEGER_ACCURATE")` and nothing else: the folder's file bytes are read
in the same parallel map, pixels are dropped.  Beside it the training pipeline from the folder and from records that
are written of it first.  All use the same number of threads in deterministic order.  Each is one stream that stays
open, as in training, and stands still with full buffers while another is timed; rounds alternate, a figure is the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from kpjax.config import DataConfig, SplitConfig
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.source import Source
from kpjax.data.tensorflow import import_tensorflow
from kpjax.datasets.records import NAME, write_records
from kpjax.parallel.startup import quiet_tensorflow

FORMATS = ("folder", "tfrecord", "array_record")


def bare_decode(source: Source, threads: int, batch: int) -> Iterator[int]:
    """Decode the source's files in order for ever; yields the number of images decoded, a batch at a time."""
    tf = import_tensorflow()

    def load(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
        return tf.shape(image)

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(list(source.files)).repeat()
    # As many calls in flight as the pipeline has, so that what is judged has no advantage by that.
    dataset = dataset.map(load, num_parallel_calls=4 * threads, deterministic=True).batch(batch).prefetch(2)
    for shapes in dataset.with_options(options).as_numpy_iterator():
        yield len(shapes)


def pipeline(source: Source, data: DataConfig, batch: int) -> Iterator[int]:
    """The training pipeline in the same order; yields the number of images of each batch."""
    for example in train_batches(source, data, batch=batch, seed=0, shuffle=False):
        yield len(example["canvas"])


def rate(stream: Iterator[int], images: int) -> float:
    """Images a second of `stream`."""
    seen, start = 0, time.perf_counter()
    while seen < images:
        seen += next(stream)
    return seen / (time.perf_counter() - start)


def stand_still() -> None:
    """Wait until nothing in this process computes: all streams have read ahead as far as they may."""
    while True:
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            return


def sources(data: DataConfig, formats: list[str], folder: str) -> dict[str, tuple[Source, DataConfig]]:
    """The folder's split, and the same as records written below `folder`, each open with its configuration."""
    found = {"folder": (open_source(data, "train"), data)}
    for name in formats:
        if name != "folder":
            out = os.path.join(folder, name)
            write_records({"train": found["folder"][0]}, out, shards=4, file_format=name)
            records = dataclasses.replace(data, source="tfds", tfds_name=NAME, tfds_dir=out)
            found[name] = (open_source(records, "train"), records)
    return found


def measure(args: argparse.Namespace, opened: dict[str, tuple[Source, DataConfig]]) -> list[dict[str, float]]:
    """A dictionary a round: "decode" and each of args.formats -> images/s."""

    streams = {"decode": bare_decode(opened["folder"][0], args.threads, args.batch)}
    streams |= {side: pipeline(*opened[side], args.batch) for side in args.formats}
    for stream in streams.values():
        rate(stream, args.count)  # files into the page cache, memory taken
        stand_still()

    def timed(side: str) -> float:
        rate(streams[side], 4 * args.batch)  # past what was read ahead
        measured = rate(streams[side], args.count)
        stand_still()
        return measured

    rounds = []
    sides = ["decode", *args.formats]
    print("round " + "".join(f"{side:>24s}" for side in sides))
    for n in range(args.rounds):
        # The side that goes first changes, so that a drift of the machine favours none.
        turned = sides[n % len(sides) :] + sides[: n % len(sides)]
        measured = {side: timed(side) for side in turned}
        rounds.append(measured)
        print(f"{n + 1:5d} " + _row(measured, {s: measured[s] / measured["decode"] for s in sides}, sides), flush=True)
    return rounds


def _row(rates: dict[str, float], ratios: dict[str, float], sides: list[str]) -> str:
    return "".join(f"{rates[side]:16.1f} ({ratios[side]:.3f})" for side in sides)


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    parser.add_argument("--annotations", required=True, help="COCO instances JSON")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    parser.add_argument("--canvas", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=640, help="images a round and side")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    quiet_tensorflow()
    data = DataConfig(
        train=SplitConfig(args.images, args.annotations), canvas=args.canvas, threads=args.threads, prefetch=2
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            opened = sources(data, args.formats, folder)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        files = len(opened["folder"][0])
        print(f"{files} files, canvas {args.canvas}, {args.threads} threads, batch {args.batch}, {os.cpu_count()} CPUs")
        print("images/s, and as a part of bare decoding")
        rounds = measure(args, opened)
    sides = ["decode", *args.formats]
    median = {side: statistics.median(r[side] for r in rounds) for side in sides}
    ratio = {side: statistics.median(r[side] / r["decode"] for r in rounds) for side in sides}
    print("median" + _row(median, ratio, sides))
    if args.json:
        report = {
            "benchmark": "input",
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "settings": {key: getattr(args, key) for key in ("canvas", "threads", "batch", "rounds", "count")},
            "files": files,
            "rounds": rounds,
            "median": median,
            "ratio": ratio,
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
