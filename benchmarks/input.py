"""Host pipeline against bare JPEG decoding: images/s into the training canvas, of the same files.

    python benchmarks/input.py --images DIR --annotations FILE.json [--json OUT.json]

The baseline is `tf.io.decode_jpeg(dct_method="INTEGER_ACCURATE")` and nothing else: file bytes are read in
the same parallel map, pixels are dropped.  Both sides use the same number of threads in deterministic
order; rounds alternate, the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from kpjax.config import DataConfig, SplitConfig
from kpjax.data.pipeline import import_tensorflow, train_batches
from kpjax.data.source import Source, open_source


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
    dataset = dataset.map(load, num_parallel_calls=threads, deterministic=True).batch(batch).prefetch(2)
    for shapes in dataset.with_options(options).as_numpy_iterator():
        yield len(shapes)


def pipeline(source: Source, data: DataConfig, batch: int) -> Iterator[int]:
    """The training pipeline in the same order; yields the number of images of each batch."""
    for example in train_batches(source, data, batch=batch, seed=0, shuffle=False):
        yield len(example["canvas"])


def rate(stream: Iterator[int], images: int) -> float:
    """Images a second of `stream`, started and warm."""
    seen, start = 0, time.perf_counter()
    while seen < images:
        seen += next(stream)
    return seen / (time.perf_counter() - start)


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of JPEG files")
    parser.add_argument("--annotations", required=True, help="COCO instances JSON")
    parser.add_argument("--canvas", type=int, default=640)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=640, help="images a round and side")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    data = DataConfig(
        train=SplitConfig(args.images, args.annotations), canvas=args.canvas, threads=args.threads, prefetch=2
    )
    try:
        source = open_source(data, "train")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def decode_rate() -> float:
        stream = bare_decode(source, args.threads, args.batch)
        rate(stream, 4 * args.batch)  # files into the page cache, threads up
        return rate(stream, args.count)

    def pipeline_rate() -> float:
        stream = pipeline(source, data, args.batch)
        rate(stream, 4 * args.batch)
        return rate(stream, args.count)

    rounds = []
    print(
        f"{len(source)} files, canvas {args.canvas}, {args.threads} threads, batch {args.batch}, {os.cpu_count()} CPUs"
    )
    print("round   decode images/s   pipeline images/s   ratio")
    for n in range(args.rounds):
        # The side that goes first changes, so that a drift of the machine favours neither.
        order = (decode_rate, pipeline_rate) if n % 2 == 0 else (pipeline_rate, decode_rate)
        measured = {side: side() for side in order}
        bare, whole = measured[decode_rate], measured[pipeline_rate]
        rounds.append({"decode": bare, "pipeline": whole, "ratio": whole / bare})
        print(f"{n + 1:5d} {bare:17.1f} {whole:19.1f} {whole / bare:7.3f}", flush=True)
    median = {key: statistics.median(r[key] for r in rounds) for key in ("decode", "pipeline", "ratio")}
    print(f"median{median['decode']:17.1f} {median['pipeline']:19.1f} {median['ratio']:7.3f}")
    if args.json:
        report = {
            "benchmark": "input",
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "settings": {key: getattr(args, key) for key in ("canvas", "threads", "batch", "rounds", "count")},
            "files": len(source),
            "rounds": rounds,
            "median": median,
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
