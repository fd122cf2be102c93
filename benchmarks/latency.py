"""Time of one image by model and test protocol (N.A., F and MS), split into preprocessing, network, post-processing.

    python benchmarks/latency.py --models centernet_r18 cornernet_hg104 --presets na flip ms
    python benchmarks/latency.py --models triplet_hg52 --presets ms --image 640x480 --rounds 5 --json OUT.json
    python benchmarks/latency.py --models centernet_dla34 --options '{"dtype": "bfloat16"}' --batch 8

The steps are `Predictor`'s own, each waited for:
    place     host: the image resized for its scale, put on its canvas, sent to the device (decoding the file excluded)
    network   uint8 canvases, mirrored for F and MS -> head maps, one compiled program
    decode    head maps -> rows: peaks, selection, pairs of corners, and the soft-NMS of protocols with one scale
    host      rows fetched and brought into the image's pixels
    merge     MS (and F of mmdetection's models): the rows of all views by soft-NMS, a compiled program, and the fetch
Post-processing is decode + host + merge.  How long it takes depends on what the head maps hold, so it is timed on three
kinds of them:
    random    the network's output with random weights.  The hourglasses' embeddings then differ so much that hardly any
              two corners make a pair
    planted   --objects objects, the same in all views, over noise: as a trained network's maps are
    crowd     the worst case: all peaks of one class, equal scores, and embeddings that all agree, so that
              every pair of corners counts and soft-NMS has thousands of rows of one class
With several views (scales) figures are sums over them.  Rounds alternate between presets; the table has their
medians, of one image.  --image 511x511 gives the canvas of training (512x512 for CenterNet, 511x511 for the corners).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.extreme_points import BOTTOM, LEFT, RIGHT, TOP
from kpjax.objects import OBJECT, VISIBLE, Objects, Placed

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import kpjax
from kpjax.detectors.base import Detector
from kpjax.errors import UserError
from kpjax.images.views import View, make_view, place
from kpjax.inference.engine import finished, rows_in_image
from kpjax.inference.program import make_merge, make_parts, protocol_of, true_heads
from kpjax.parallel.compiling import compiler_options

HEADS = ("random", "planted", "crowd")
POST = ("decode", "host", "merge")
BACKGROUND, SURE = -5.0, 3.0  # mean logits where no object is, and of an object


def random_objects(count: int, classes: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) x1 y1 x2 y2 of 1/16 to 1/2 of the image of `size`, float32, and labels."""
    rng = np.random.default_rng(0)
    limit = np.array(size[::-1])
    corner = rng.uniform(0, 0.5, (count, 2)) * limit
    other = corner + rng.uniform(1 / 16, 0.5, (count, 2)) * limit
    return np.concatenate([corner, other], 1).astype(np.float32), rng.integers(0, classes, count)


def extreme_points(boxes: np.ndarray) -> np.ndarray:
    """The middles of the sides of boxes (..., 4), as those of ellipses: (..., 4, 2), in the order of ExtremeNet's."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    of = {TOP: (x, y1), LEFT: (x1, y), BOTTOM: (x, y2), RIGHT: (x2, y)}
    return np.stack([np.stack(of[kind], -1) for kind in range(4)], -2).astype(np.float32)


def planted_heads(
    detector: Detector, like: dict[str, Any], boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], seed: int
) -> dict[str, np.ndarray]:
    """Head maps shaped as `like`, (B or 2 B, h, w, .), that hold boxes (N, 4) in canvas pixels, over noise.

    Of 2 B maps every other one is of the mirror image.
    """
    rng = np.random.default_rng(seed)
    mirrored = np.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], 1)
    both = np.stack([boxes, mirrored]).astype(np.float32)
    objects = Objects(both, np.stack([labels] * 2), np.full((2, len(labels)), OBJECT, np.int32))
    if detector.outlines:
        points = extreme_points(both)
        objects = dataclasses.replace(objects, points=points, seen=np.full(points.shape[:-1], VISIBLE, np.int32))
    truth = jax.device_get(jax.jit(lambda x: true_heads(detector, x, size))(objects))
    config: Any = detector.net.config  # type: ignore[attr-defined]
    probabilities = getattr(getattr(config, "rules", None), "probabilities", False)  # what mmdetection's heatmap holds
    heads = {}
    for name, shape in {name: x.shape for name, x in like.items()}.items():
        views = truth[name] if shape[0] > 1 else truth[name][:1]
        maps = np.tile(views, (-(-shape[0] // len(views)), 1, 1, 1))[: shape[0]].astype(np.float32)
        if name.endswith(("heat", "heatmap")):
            with np.errstate(divide="ignore"):
                maps = np.log(maps / (1 - maps)) if probabilities else maps
            maps = np.minimum(maps, SURE) + rng.normal(0, 0.3, shape)  # no two objects have the same score
            maps = np.maximum(maps, rng.normal(BACKGROUND, 1, shape))
            maps = 1 / (1 + np.exp(-maps)) if probabilities else maps
        heads[name] = maps.astype(np.float32)
    return heads


def crowded_heads(like: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Head maps shaped as `like` that make as much work as there can be."""
    rng = np.random.default_rng(seed)
    heads = {}
    for name, shape in {name: x.shape for name, x in like.items()}.items():
        if name.endswith(("heat", "heatmap")):  # probabilities or logits: both have their order
            maps = np.full(shape, 1e-3)
            maps[..., 0] = rng.uniform(0.5, 0.6, shape[:-1])
        else:
            maps = np.full(shape, 10.0 if name == "wh" else 0.5 if name.endswith(("off", "offset")) else 0.0)
        heads[name] = maps.astype(np.float32)
    return heads


class Case:
    """A model with a preset: its compiled programs, its inputs, and the seconds that its steps took."""

    def __init__(
        self, detector: Detector, variables: Any, preset: str, image: np.ndarray, batch: int, objects: int, mesh: Mesh
    ) -> None:
        self.detector, self.preset, self.image, self.batch = detector, preset, image, batch
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.variables = variables
        size = (image.shape[0], image.shape[1])
        scales = protocol_of(detector, preset).scales
        self.views = [make_view(detector.preprocess, size, scale=scale) for scale in scales]
        heads_of, rows_of = make_parts(detector, mesh, preset=preset)
        options = compiler_options(mesh)
        self.network = jax.jit(heads_of, compiler_options=options)
        self.decode = jax.jit(rows_of, out_shardings=self.everywhere, compiler_options=options)
        self.merge = make_merge(detector, preset, 100)
        self.made: list[list[Any]] = []  # of each view, the head maps that are not the network's
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.cpu: dict[str, list[float]] = collections.defaultdict(list)
        boxes, labels = random_objects(objects, detector.num_classes, size)
        for view in self.views:
            like = jax.eval_shape(heads_of, variables, *self.place(view))
            planted = planted_heads(detector, like, view.xy_to_canvas(boxes), labels, view.canvas, seed=batch)
            self.made.append(jax.device_put([planted, crowded_heads(like, seed=batch)], self.everywhere))
        start = time.perf_counter()
        self.rows = {kind: int(found.scores.size) for kind, found in self.round()}
        self.first_s = time.perf_counter() - start

    def place(self, view: View) -> tuple[jax.Array, jax.Array]:
        """Canvases and windows on the device."""
        canvases = np.stack([place(self.image, view, self.detector.preprocess) for _ in range(self.batch)])
        windows = np.tile(np.array(view.window, np.int32), (self.batch, 1))
        return jax.device_put((canvases, windows), self.everywhere)

    def round(self) -> Iterator[tuple[str, Any]]:
        """All steps once, each timed: the last image's Detections by kind of heads."""
        total: dict[str, float] = collections.Counter()
        spent: dict[str, float] = collections.Counter()

        def timed(name: str, run: Callable[[], Any]) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(run())
            total[name] += time.perf_counter() - wall
            spent[name] += time.process_time() - cpu
            return result

        rows: dict[str, list[list[Any]]] = {kind: [[] for _ in range(self.batch)] for kind in HEADS}
        for view, made in zip(self.views, self.made, strict=True):
            inputs = timed("place", functools.partial(self.place, view))
            heads = timed("network", functools.partial(self.network, self.variables, *inputs))
            for kind, maps in zip(HEADS, (heads, *made), strict=True):
                run = functools.partial(self.decode, maps, Placed(view.canvas, inputs[1]))
                found = timed(f"{kind} decode", run)
                run_host = functools.partial(self.in_image, found, view)
                for slot, row in enumerate(timed(f"{kind} host", run_host)):
                    rows[kind][slot].append(row)
        results = []
        for kind in HEADS:
            run_merge = functools.partial(self.finish, rows[kind])
            results.append((kind, timed(f"{kind} merge", run_merge)[-1]))
        for name, value in total.items():
            self.seconds[name].append(value / self.batch)
            self.cpu[name].append(spent[name] / self.batch)
        return iter(results)

    def in_image(self, found: Any, view: View) -> list[Any]:
        """Rows of each image in its pixels."""
        fetched = jax.device_get(found)
        return [rows_in_image(fetched, slot, view) for slot in range(self.batch)]

    def finish(self, rows: list[list[Any]]) -> list[Any]:
        """Detections of each image."""
        return [finished(tuple(views), self.merge) for views in rows]

    def forget(self) -> None:
        """Leave the first round out, which compiled."""
        self.seconds.clear()
        self.cpu.clear()

    def figures(self) -> dict[str, Any]:
        """Medians of the rounds: seconds an image."""
        median = {name: statistics.median(values) for name, values in self.seconds.items()}
        cpu = {name: statistics.median(values) for name, values in self.cpu.items()}
        row: dict[str, Any] = {"model": self.detector.name, "preset": self.preset}
        row |= {"canvases": [view.canvas for view in self.views], "first_round_s": self.first_s}
        row |= {"place": median["place"], "network": median["network"], "cpu_seconds": cpu, "rounds": self.seconds}
        for kind in HEADS:
            parts = {part: median[f"{kind} {part}"] for part in POST}
            post = sum(parts.values())
            total = median["place"] + median["network"] + post
            cpu_post = sum(cpu[f"{kind} {part}"] for part in POST)
            row[kind] = {**parts, "post": post, "share": post / median["network"], "found": self.rows[kind]}
            row[kind] |= {"cpu_share": cpu_post / cpu["network"], "total": total, "images_per_s": 1 / total}
        return row


def report(row: dict[str, Any]) -> None:
    """A line of the table for each kind of head maps."""
    for kind in HEADS:
        of_kind = row[kind]
        figures = [row["place"], row["network"], *(of_kind[part] for part in POST), of_kind["post"]]
        print(
            f"{row['model']:22}{row['preset']:6}{kind:9}"
            + "".join(f"{1e3 * value:10.1f}" for value in figures)
            + f"{100 * of_kind['share']:8.1f}%{1e3 * of_kind['total']:11.1f}{of_kind['images_per_s']:10.2f}",
            flush=True,
        )


def image_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (height, width)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}; write WIDTHxHEIGHT, e.g. 640x480")
    return int(height), int(width)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["centernet_r18", "cornernet_hg104", "triplet_hg52"])
    parser.add_argument("--presets", nargs="+", default=["na", "flip", "ms"], choices=["na", "flip", "ms"])
    parser.add_argument("--image", type=image_size, default="640x480", help="the photograph, WIDTHxHEIGHT")
    parser.add_argument("--batch", type=int, default=1, help="images of a program")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=20, help="of the planted head maps")
    parser.add_argument("--options", type=json.loads, default={}, help='of the models, e.g. \'{"dtype": "bfloat16"}\'')
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args(arguments)
    try:
        detectors = [kpjax.build(name, args.classes, **args.options) for name in args.models]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = jax.local_devices()[0]
    mesh = Mesh(np.array([device]), ("data",))
    height, width = args.image
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    print(
        f"an image of {width}x{height}, batch {args.batch}, {args.classes} classes; {device.device_kind}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}; ms an image"
    )
    columns = ("place", "network", *POST, "post")
    header = f"{'':22}{'':6}{'heads':9}" + "".join(f"{name:>10}" for name in columns)
    print(header + f"{'of net':>9}{'total':>11}{'images/s':>10}", flush=True)
    table = []
    for detector in detectors:
        side = 2 * detector.multiple - detector.less
        smallest = jnp.zeros((1, side, side, 3), jnp.float32)
        init = jax.jit(functools.partial(detector.net.init, train=False))
        variables = jax.device_put(init(jax.random.key(0), smallest), NamedSharding(mesh, PartitionSpec()))
        cases = [Case(detector, variables, p, image, args.batch, args.objects, mesh) for p in args.presets]
        for case in cases:
            case.forget()
        for _ in range(args.rounds):
            for case in cases:
                case.round()
        for case in cases:
            table.append(case.figures())
            report(table[-1])
    if args.json:
        machine = {"device": device.device_kind, "host": platform.machine(), "cpus": os.cpu_count()}
        machine |= {"jax": jax.__version__, "load": os.getloadavg()}
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        result = {"benchmark": "latency", "machine": machine, "settings": settings, "rows": table}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
