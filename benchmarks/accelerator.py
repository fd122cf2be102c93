"""Training and inference on one accelerator, beside the least time that their convolutions could take on it.

    python benchmarks/accelerator.py --json accelerator.json
    python benchmarks/accelerator.py --models centernet_r18 --batches 1 64 --profile traces
    python benchmarks/accelerator.py --tiny               narrow networks at 64 pixels, also on a CPU: a check

Each model runs at the size it was published with (512x512, corner methods 511x511), with random weights and batches of
1, 2, 4, ... 256 images (--batches), until one does not fit the memory; * marks the one with most images a second.
Medians of rounds; a round starts --steps steps and waits for the last, so that the host's work is done beside the
device's.  Training is the whole step of train.py, its state donated; inference goes from uint8 canvases to detections.
Needs no TensorFlow.  Columns:

    floor     the sum over the forward network's convolutions of max(FLOPs / matmul rate, bytes / copy bandwidth), three
              times that for training.  Both rates are measured first: the best of some large matrix products, and a
              copy.  FLOPs are 2 x multiply-adds, from the shapes of the program for other devices than CPUs; bytes
              are those of input, weights and output, each once in --dtype.  Of a transposed convolution only taps
              on a cell count.  A deformable one's input is the map, not the columns, which need not be in memory.
              Rematerialisation does not count, nor DLA's bilinear up-sampling, which runs as sums, nor, in inference,
              heads that only training looks at
    of floor  floor / time: at 100% the step takes no longer than its floor
    of matmul FLOPs a second over the matmul rate
    decode    inference: what the step takes longer than the network alone, as a share of the step
    loop      training, the best batch: how much longer a step takes in train.py's own loop (batches from the host's
              memory, metrics read two steps late, its log) than on data already there, as a share of the former.  Not
              measured where JAX sees more than one device, since the loop would use them all

Goals: HG-104 at 40% of matmul in training and 50% in inference; every model at 50% of its floor; decode under 3%; loop
under 2% (centernet_r18).  A goal missed is no error: the exit code is 0.  --profile DIR keeps a trace of one step of
each best batch and prints its ten longest operations; profile_step.py sums them by layer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import io
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import step as step_benchmark
from compile_time import model_config
from deform_conv import copy_rate, seconds
from jax.extend import core as jex
from profile_step import operation_names, operation_times
from step import Program

from kpjax.config import Config
from kpjax.data import memory
from kpjax.detectors import from_config
from kpjax.detectors.base import Detector
from kpjax.errors import UserError
from kpjax.inference.program import make_parts
from kpjax.parallel.compiling import keep_compiled
from kpjax.parallel.sharding import make_mesh
from kpjax.parallel.startup import skip_absent_tpu
from kpjax.training.run import run

MODELS = ("centernet_r18", "centernet_dla34", "centernet_hg104", "cornernet_hg104", "triplet_hg104")
BATCHES = [2**n for n in range(9)]
COLUMNS = ("batch", "ms", "spread", "images/s", "floor ms", "of floor", "of matmul", "decode", "loop", "MiB")


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a matrix product.  elements: of input, weights and output, each once."""

    multiply_adds: int
    elements: int


def products(jaxpr: Any) -> list[Product]:
    """The products on which a program's results depend, in its form for devices other than CPUs."""
    found = []
    needed = set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(map(id, equation.outvars)):
            continue
        needed |= set(map(id, equation.invars))
        found += _products_of(equation)
    return found


def _products_of(equation: Any) -> list[Product]:
    name, parameters = equation.primitive.name, equation.params
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    once = sum(math.prod(a.shape) for a in arrays)
    if name == "conv_general_dilated":
        features = arrays[1].shape[parameters["dimension_numbers"].rhs_spec[0]]
        taps = arrays[1].size // features  # with their channels; of a dilated input only one in so many falls on a cell
        return [Product(arrays[-1].size * taps // math.prod(parameters["lhs_dilation"]), once)]
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return [Product(arrays[-1].size * math.prod(arrays[0].shape[axis] for axis in contracted), once)]
    if name == "cond":
        branches = [products(branch.jaxpr) for branch in parameters["branches"]]
        platforms = parameters.get("branches_platforms")
        if platforms:
            return branches[platforms.index(None)]
        return max(branches, key=lambda branch: sum(p.multiply_adds for p in branch))
    inner = [p for called in jex.jaxprs_in_params(parameters) for p in products(called)]
    if name == "scan":
        inner *= parameters["length"]
    if inner and name == "custom_vjp_call":
        # One operation with a gradient of its own: its intermediate arrays, such as columns, do not count.
        constants = sum(math.prod(a.shape) for a in arrays[: parameters["num_consts"]])
        return [Product(sum(p.multiply_adds for p in inner), once - constants)]
    return inner


def network_products(detector: Detector, batch: int, size: tuple[int, int], training: bool) -> list[Product]:
    """`products` of the network's forward pass.  size: height and width of the images."""
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    one = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: detector.net.init(jax.random.key(0), x, train=False), one)

    def forward(variables: Any, images: Any) -> Any:
        outputs: Any = detector.net.apply(variables, images, train=False)
        return outputs if training else outputs[-1]

    return products(jax.make_jaxpr(forward)(variables, images).jaxpr)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the device reaches a second: a matrix product's FLOPs, and a copy's bytes, read and written."""

    flops: float
    bytes: float

    def floor(self, found: Sequence[Product], width: int) -> float:
        """Seconds of `found` at these rates.  width: bytes of an element."""
        return sum(max(2 * p.multiply_adds / self.flops, width * p.elements / self.bytes) for p in found)


def measure_rates(dtype: str, tiny: bool) -> Rates:
    """The best of some sizes, and the medians of nine rounds of ten runs."""
    best = 0.0
    for side in (256, 512) if tiny else (4096, 8192, 16384):
        a = jax.random.normal(jax.random.key(0), (side, side), dtype)
        multiply = jax.jit(jnp.matmul).lower(a, a).compile()
        once = statistics.median([seconds(lambda m=multiply, a=a: m(a, a), 10) for _ in range(10)][1:])
        best = max(best, 2 * side**3 / once)
    return Rates(best, copy_rate(1024 if tiny else 8192, 10))


def build(kind: str, config: Config) -> dict[str, Program]:
    """The programs to time: "step", and the "network" alone for inference."""
    detector = from_config(config, config.model.num_classes)
    mesh = make_mesh(devices=jax.devices()[:1])
    if kind == "training":
        return {"step": step_benchmark.training(detector, config, mesh)}
    inputs = step_benchmark.inference_inputs(detector, config, mesh)
    heads_of, _ = make_parts(detector, mesh)
    network, flops, compile_s, size = step_benchmark.compiled(jax.jit(heads_of), *inputs[:3])
    return {
        "step": step_benchmark.inference(detector, config, mesh, inputs),
        "network": Program(lambda: network(*inputs[:3]), config.batch, flops, compile_s, size),
    }


def if_it_fits(what: str, function: Callable[[], Any]) -> Any:
    """What the function returns; None, and a line, where the device's memory does not hold it."""
    try:
        return function()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    gc.collect()  # what the error's frames held
    print(f"{what}: does not fit the memory", flush=True)
    return None


def measure(kind: str, config: Config, rates: Rates, steps: int, rounds: int) -> dict[str, Any]:
    """The figures of one batch size."""
    programs = build(kind, config)
    step_benchmark.measure(programs, steps, rounds)
    times = programs["step"].seconds
    median = statistics.median(times)
    detector = from_config(config, config.model.num_classes)
    size = (config.augment.height, config.augment.width)
    found = network_products(detector, config.batch, size, kind == "training")
    passes = 3 if kind == "training" else 1
    floor = passes * rates.floor(found, jnp.dtype(config.model.dtype).itemsize)
    multiply_adds = sum(p.multiply_adds for p in found)
    row = {"model": config.model.name, "kind": kind, "batch": config.batch, "seconds": median, "rounds": times}
    row |= {"images_per_s": config.batch / median, "floor_s": floor, "of_floor": floor / median}
    row |= {"spread": (max(times) - min(times)) / median, "forward_multiply_adds": multiply_adds}
    row |= {"of_matmul": passes * 2 * multiply_adds / median / rates.flops}
    row |= {"memory_bytes": programs["step"].memory, "compile_s": programs["step"].compile_s}
    if "network" in programs:
        row["network_s"] = statistics.median(programs["network"].seconds)
        row["decode"] = (median - row["network_s"]) / median
    return row


class _Enough(Exception):
    """Ends train.py's loop without a checkpoint."""


def loop_seconds(config: Config, steps: int, rounds: int) -> float:
    """Seconds of one step in train.py's own loop, fed with a batch that lies in the host's memory."""
    batch = step_benchmark.random_batch(config, config.model.num_classes)
    asked: list[float] = []

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(5 + steps * rounds):
            asked.append(time.perf_counter())
            yield batch
        asked.append(time.perf_counter())
        raise _Enough

    record = (batch["canvas"][0], np.array([[0, 0, 9, 9]]), np.array([config.model.num_classes - 1]))
    source, _ = memory._from_arrays([record], None)
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(_Enough):
            run(config, workdir, train_source=source, batches=batches)
            raise KeyboardInterrupt  # it returns only after a Ctrl-C, which is meant for this program too
        return statistics.median(np.diff(asked[5::steps])) / steps


def show(row: dict[str, Any], best: bool) -> None:
    """A line of the table."""

    def percent(name: str) -> str:
        return f"{100 * row[name]:.1f}%" if row.get(name) is not None else "-"

    cells = (
        *(f"{row['batch']}{'*' if best else ''}", f"{1e3 * row['seconds']:.2f}", percent("spread")),
        *(f"{row['images_per_s']:.1f}", f"{1e3 * row['floor_s']:.2f}", percent("of_floor"), percent("of_matmul")),
        *(percent("decode"), percent("loop"), f"{row['memory_bytes'] / 2**20:.0f}" if row["memory_bytes"] else "-"),
    )
    print(f"{row['model']:18}{row['kind']:10}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def profile(kind: str, config: Config, folder: str) -> list[dict[str, Any]]:
    """The ten longest operations of one step, printed; empty where the trace has none that can be read."""
    program = build(kind, config)["step"]
    jax.block_until_ready(program.run())
    names = operation_names(program.executable.as_text())
    spent = operation_times(program.run, os.path.join(folder, f"{config.model.name}-{kind}"), names)
    total = sum(spent.values())
    top = [{"ms": ms, "share": ms / total, "name": n, "source": names[n]} for n, ms in spent.most_common(10)]
    for one in top:
        print(f"  {one['ms']:9.3f} ms {100 * one['share']:5.1f}%  {one['name']:32}  {one['source'][-110:]}")
    if not top:
        print(f"  the trace has no operation that can be read here; open it: {folder}")
    return top


def measure_model(name: str, rates: Rates, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of a model, printed."""
    rows: list[dict[str, Any]] = []
    for kind in ("training", "inference"):
        of_kind: list[dict[str, Any]] = []
        for batch in args.batches:
            config = model_config(name, batch, args.dtype, args.tiny)
            measured = functools.partial(measure, kind, config, rates, args.steps, args.rounds)
            row = if_it_fits(f"{name} {kind}, batch {batch}", measured)
            if row is None:
                break
            of_kind.append(row)
        if not of_kind:
            continue
        best = max(of_kind, key=lambda row: row["images_per_s"])
        config = model_config(name, best["batch"], args.dtype, args.tiny)
        if kind == "training" and jax.device_count() == 1:
            measured = functools.partial(loop_seconds, config, args.steps, args.rounds)
            best["loop_s"] = if_it_fits(f"{name} in train.py's loop, batch {config.batch}", measured)
            best["loop"] = best["loop_s"] and (best["loop_s"] - best["seconds"]) / best["loop_s"]
        for row in of_kind:
            show(row, row is best)
        if args.profile:
            best["operations"] = profile(kind, config, args.profile)
        rows += of_kind
    return rows


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; give a whole number of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=positive, help="images a step (default: 1, 2, 4, ... 256)")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=positive, default=20, help="a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--tiny", action="store_true", help="narrow networks at 64 pixels, on any device")
    parser.add_argument("--cpu", action="store_true", help="measure a CPU all the same")
    parser.add_argument("--profile", help="a folder for traces")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args(arguments)
    skip_absent_tpu()
    keep_compiled()
    device = jax.devices()[0]
    if device.platform == "cpu" and not (args.tiny or args.cpu):
        print("error: JAX finds no accelerator; --tiny tries the command here, --cpu measures a CPU", file=sys.stderr)
        return 2
    # A CPU's memory is the host's, which no step should fill.
    args.batches = args.batches or ([1, 2] if args.tiny else [1] if device.platform == "cpu" else BATCHES)
    try:
        for name in args.models:
            model_config(name, 1, args.dtype, args.tiny)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rates = measure_rates(args.dtype, args.tiny)
    size = ", tiny" if args.tiny else ""
    print(
        f"{args.dtype}{size}; {device.device_kind}, {os.cpu_count()} CPUs, jax {jax.__version__}; "
        f"a matrix product {rates.flops / 1e12:.3g} TFLOP/s, a copy {rates.bytes / 1e9:.4g} GB/s",
        flush=True,
    )
    print(f"{'':28}" + "".join(f"{name:>11}" for name in COLUMNS), flush=True)
    rows = [row for name in args.models for row in measure_model(name, rates, args)]
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        result = {"benchmark": "accelerator", "machine": step_benchmark.machine(1), "settings": settings}
        result |= {"rates": dataclasses.asdict(rates), "rows": rows}
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
