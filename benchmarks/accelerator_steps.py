"""kpjax's training and inference steps of one model on one device: the part of accelerator.py that measures them."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import gc
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import step as step_benchmark
from accelerator_heads import weight
from compile_time import model_config
from network_floor import Rates, network_products
from profile_step import operation_names, operation_times
from step import Program

from kpjax.aot.cuda_hlo import read_gpu_work
from kpjax.config import Config
from kpjax.convert.rules import leaf_shapes, unflatten
from kpjax.data import memory
from kpjax.detectors import from_config
from kpjax.inference.program import make_parts
from kpjax.parallel.sharding import make_mesh
from kpjax.training.run import run

KINDS = ("inference", "training")  # in the order in which they are measured: memory's peak rises
Report = Callable[[dict[str, Any]], None]


def start_weights(shapes: dict[str, tuple[int, ...]]) -> Any:
    """Variables for a step: those of accelerator_heads, but last layers as at the start of a training.

    So all pairs of corners count at test time, as at worst, and maps keep their size in between.
    """
    leaves = {}
    for path, shape in shapes.items():
        value = weight(path, shape)
        if path.endswith("_out/kernel"):
            value = value * np.float32(1e-3)
        if path.endswith("_out/bias"):
            value = np.full(shape, -2.19 if "heat" in path else 0.0, np.float32)
        leaves[path] = value
    return unflatten(leaves)


def build(kind: str, config: Config, variables: Any) -> dict[str, Program]:
    """The programs to time: "step", and the "network" alone for inference."""
    detector = from_config(config, config.model.num_classes)
    mesh = make_mesh(devices=jax.devices()[:1])
    if kind == "training":
        return {"step": step_benchmark.training(detector, config, mesh, variables)}
    inputs = step_benchmark.inference_inputs(detector, config, mesh, variables)
    heads_of, _ = make_parts(detector, mesh)
    network, flops, compile_s, size = step_benchmark.compiled(jax.jit(heads_of), *inputs[:3])
    return {
        "step": step_benchmark.inference(detector, config, mesh, inputs),
        "network": Program(lambda: network(*inputs[:3]), config.batch, flops, compile_s, size),
    }


def if_it_fits(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns; None, and a line, where the device's memory does not hold it."""
    try:
        return function(*arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    gc.collect()  # what the error's frames held
    print(f"{what}: does not fit the memory", flush=True)
    return None


def device_memory() -> dict[str, int]:
    """The allocator's account of the first device; empty where it keeps none."""
    return jax.devices()[0].memory_stats() or {}


def measure(kind: str, config: Config, programs: dict[str, Program], rates: Rates, steps: int, rounds: int) -> Any:
    """The figures of one batch size."""
    before = device_memory().get("peak_bytes_in_use", 0)
    step_benchmark.measure(programs, steps, rounds)
    times = programs["step"].seconds
    median = statistics.median(times)
    detector = from_config(config, config.model.num_classes)
    size = (config.augment.height, config.augment.width)
    found = network_products(detector, config.batch, size, kind == "training")
    passes = 3 if kind == "training" else 1
    floor = passes * rates.floor(found, jnp.dtype(config.model.dtype).itemsize)
    multiply_adds = sum(p.multiply_adds for p in found)
    row = {"framework": "kpjax", "model": config.model.name, "kind": kind, "batch": config.batch}
    row |= {"seconds": median, "rounds": times, "spread": (max(times) - min(times)) / median}
    row |= {"images_per_s": config.batch / median, "floor_s": floor, "of_floor": floor / median}
    row |= {"forward_multiply_adds": multiply_adds, "of_matmul": passes * 2 * multiply_adds / median / rates.flops}
    row |= {"memory_bytes": programs["step"].memory, "compile_s": programs["step"].compile_s}
    peak = device_memory().get("peak_bytes_in_use", 0)
    row["peak_bytes"] = peak if peak > before else None  # of the process: an earlier step's where it did not rise
    if jax.devices()[0].platform == "gpu":
        work = read_gpu_work(programs["step"].executable.as_text())
        row |= {"launches": work.launches + work.in_loops, "launches_in_loops": work.in_loops}
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


def longest_operations(program: Program, folder: str) -> list[dict[str, Any]]:
    """The ten longest operations of one run, which leaves its trace in the folder; empty where it has none to read."""
    names = operation_names(program.executable.as_text())
    spent = operation_times(program.run, folder, names)
    total = sum(spent.values())
    return [{"ms": ms, "share": ms / total, "name": n, "source": names[n]} for n, ms in spent.most_common(10)]


def show_operations(row: dict[str, Any]) -> None:
    """Print them."""
    print(f"  {row['model']} {row['kind']}, batch {row['batch']}: the longest operations of one step", flush=True)
    for one in row["operations"]:
        print(f"  {one['ms']:9.3f} ms {100 * one['share']:5.1f}%  {one['name']:32}  {one['source'][-100:]}")
    if not row["operations"]:
        print("  the trace has no operation that can be read here; --profile keeps it")


class Clock:
    """What there is time for.  seconds: from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.took: dict[str, float] = {}  # seconds of the last work of a name

    def allows(self, name: str, what: str, at_least: float = 0.0) -> bool:
        """Whether the work `name` would end in time if it took as long as the last of it; a line where not."""
        if time.monotonic() + max(at_least, self.took.get(name, 0.0)) <= self.end:
            return True
        print(f"  {what}: no time left", flush=True)
        return False

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.monotonic()
        yield
        self.took[name] = time.monotonic() - began


def expected_memory(rows: list[dict[str, Any]], batch: int) -> float:
    """Bytes of a step at `batch`, on the line through the last two rows' accounts; 0 where there are none."""
    known = [(row["batch"], row["memory_bytes"]) for row in rows if row["memory_bytes"]][-2:]
    if len(known) < 2:
        return 0.0
    (small, low), (large, high) = known
    return high + (high - low) / (large - small) * (batch - large)


def measure_model(name: str, rates: Rates, args: argparse.Namespace, report: Report) -> None:
    """All rows of a model that the time allows: the two smallest batches, then one after another.

    Then, of each kind's best batch, the longest operations, and in training the loop of train.py.
    report: is given each row as it is measured, and again when something was added to it.
    """
    clock = Clock(args.seconds)
    detector = from_config(model_config(name, 1, args.dtype, args.tiny), 3 if args.tiny else 80)
    variables = start_weights(leaf_shapes(detector))
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    full: set[str] = set()  # kinds whose larger batches do not fit
    limit = device_memory().get("bytes_limit", float("inf"))
    for batches in (args.batches[:2], *([batch] for batch in args.batches[2:])):
        for kind in KINDS:
            if kind not in full and expected_memory(rows[kind], batches[0]) > limit:
                print(f"  {name} {kind}, batch {batches[0]}: would not fit the memory", flush=True)
                full.add(kind)
        what = f"{name}, batch {' and '.join(map(str, batches))}"
        if full.issuperset(KINDS) or not clock.allows("batches", what):
            break
        with clock.timed("batches"):
            _measure_batches(name, batches, variables, rates, args, rows, full, report)
    for kind in KINDS[::-1]:
        best = max(rows[kind], key=lambda row: row["images_per_s"], default=None)
        if best:
            show_operations(best)
        # Compiled before: what is left is to trace the program again.
        again = clock.took.get("batches", 0.0) / 3
        one_device = jax.device_count() == 1  # the loop would use them all
        if best and kind == "training" and one_device and clock.allows("loop", f"{name}, train.py's loop", again):
            _add_loop(best, args)
            report(best)


def _measure_batches(
    name: str,
    batches: Sequence[int],
    variables: Any,
    rates: Rates,
    args: argparse.Namespace,
    rows: dict[str, list[dict[str, Any]]],
    full: set[str],
    report: Report,
) -> None:
    """Compile the steps of some batches side by side, then measure and profile one after another.

    rows, full: of each kind the rows, and the kinds that do not fit; both are added to.
    """
    steps = [(kind, batch) for batch in batches for kind in KINDS if kind not in full]
    configs = {step: model_config(name, step[1], args.dtype, args.tiny) for step in steps}
    with concurrent.futures.ThreadPoolExecutor(len(steps)) as pool:
        built = {
            (kind, batch): pool.submit(
                if_it_fits, f"  {name} {kind}, batch {batch}", build, kind, configs[kind, batch], variables
            )
            for kind, batch in steps
        }
    # All are compiled here: nothing is timed beside a compiler.
    for kind, batch in steps:
        programs = built.pop((kind, batch)).result()
        if kind in full:
            continue
        arguments = kind, configs[kind, batch], programs, rates, args.steps, args.rounds
        row = programs and if_it_fits(f"  {name} {kind}, batch {batch}", measure, *arguments)
        if row:
            rows[kind].append(row)
            report(row)
            with tempfile.TemporaryDirectory() as temporary:
                folder = os.path.join(args.profile or temporary, f"{name}-{kind}-{batch}")
                row["operations"] = longest_operations(programs["step"], folder)
            report(row)
        else:
            full.add(kind)
        del programs, arguments  # the device's arrays with them


def _add_loop(row: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure train.py's loop at the batch of a row of training."""
    config = model_config(row["model"], row["batch"], args.dtype, args.tiny)
    what = f"  {row['model']} in train.py's loop, batch {config.batch}"
    row["loop_s"] = if_it_fits(what, loop_seconds, config, args.steps, args.rounds)
    if row["loop_s"]:
        row["loop"] = (row["loop_s"] - row["seconds"]) / row["loop_s"]
        print(f"  {row['model']}, batch {config.batch}: {100 * row['loop']:.1f}% of train.py's loop is not the step")
