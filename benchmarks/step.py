"""Training and inference steps of a configuration: images/s and achieved FLOP/s on whatever device is there.

    python benchmarks/step.py --config configs/bccd_r18.py --batch 8
    python benchmarks/step.py --config configs/coco_r18.py --config.model.dtype=bfloat16 --json step.json

"preparation" is the part of a training step before the network, alone: augmentation and targets.

Batches are random and in memory: neither the host pipeline nor TensorFlow takes part.  Compilation is
timed separately.  Rounds of training, inference and the unit alternate, and the figures are the medians of
the rounds.

The unit is one 3x3 convolution of 256 -> 256 channels at 64x64 (float32, one image, forward), timed in
the same run: a step in units compares machines and frameworks better than a step in seconds.

FLOPs are XLA's own count of the program before it is optimised, a multiply-add being two.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kpjax.config import Config
from kpjax.detectors import from_config
from kpjax.detectors.base import Detector
from kpjax.errors import UserError
from kpjax.inference.program import make_infer
from kpjax.objects import Objects
from kpjax.parallel.compiling import memory_of
from kpjax.parallel.sharding import check_batch, make_mesh, put_batch
from kpjax.training.step import TrainState, init_state, jit_step, make_step, prepare, state_of, state_shardings


def random_batch(config: Config, classes: int, objects: int = 8) -> dict[str, np.ndarray]:
    """Noise on full canvases, with some boxes in each image."""
    rng = np.random.default_rng(0)
    n, side, slots = config.batch, config.data.canvas, config.data.max_boxes
    corner = rng.uniform(0, 0.7 * side, (n, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05 * side, 0.3 * side, (n, slots, 2))], axis=-1)
    return {
        "canvas": rng.integers(0, 256, (n, side, side, 3), np.uint8),
        "size": np.full((n, 2), side, np.int32),
        "objects": Objects(
            boxes=boxes.astype(np.float32),
            labels=rng.integers(0, classes, (n, slots)).astype(np.int32),
            role=(np.arange(slots)[None].repeat(n, 0) < objects).astype(np.int32),
        ),
        "counter": np.arange(n, dtype=np.int32),
    }


@dataclasses.dataclass
class Program:
    """Something timed.  run: executes once and returns what to wait for.  flops: of one run, None where unknown.

    executable: what was compiled.
    """

    run: Callable[[], Any]
    images: int
    flops: float | None
    compile_s: float
    memory: int | None = None
    executable: Any = None
    seconds: list[float] = dataclasses.field(default_factory=list)

    def round(self, repeats: int) -> None:
        """Time `repeats` runs in a row."""
        start = time.perf_counter()
        for _ in range(repeats):
            last = self.run()
        jax.block_until_ready(last)
        self.seconds.append((time.perf_counter() - start) / repeats)


def compiled(function: Any, *arguments: Any) -> tuple[Any, float | None, float, int | None]:
    """Compile a jitted function: (executable, FLOPs, seconds, bytes a device)."""
    lowered = function.lower(*arguments)
    cost = lowered.cost_analysis() or {}
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    return executable, cost.get("flops"), seconds, memory_of(executable).total or None


def training(detector: Detector, config: Config, mesh: Any, variables: Any = None) -> Program:
    """The whole step of train.py: augmentation, targets, forward, backward, update; the state donated.

    variables: what the network starts from; None: its own random ones, whose program takes a while to compile.
    """
    steps = 1000

    def make(given: Any) -> TrainState:
        """The first state, from the variables or from a random key."""
        return init_state(detector, config, steps, given) if variables is None else state_of(given, config, steps)

    given = jax.random.key(0) if variables is None else variables
    shapes = jax.eval_shape(make, given)
    batch = put_batch(random_batch(config, detector.num_classes), mesh)
    step, flops, seconds, memory = compiled(
        jit_step(make_step(detector, config, steps, mesh), mesh, shapes), shapes, batch
    )
    state = jax.jit(make, out_shardings=state_shardings(mesh, shapes))(given)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    # XLA counts the body of a loop over micro-batches once.
    return Program(run, config.batch, flops if config.optim.accumulate == 1 else None, seconds, memory, step)


def preparation(detector: Detector, config: Config, mesh: Any) -> Program:
    """The training step's augmentation and targets alone."""
    batch = put_batch(random_batch(config, detector.num_classes), mesh)
    program, flops, seconds, memory = compiled(jax.jit(lambda b: prepare(detector, config, b)), batch)
    return Program(lambda: program(batch), config.batch, flops, seconds, memory, program)


def inference_inputs(detector: Detector, config: Config, mesh: Any, variables: Any = None) -> tuple[Any, ...]:
    """What the test-time program takes: weights (random ones without `variables`), and noise on canvases of the
    training size."""
    height, width = config.augment.height, config.augment.width
    if variables is None:
        images = jnp.zeros((1, height, width, 3), jnp.float32)
        variables = jax.jit(lambda key: detector.net.init(key, images, train=False))(jax.random.key(0))
    variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    rng = np.random.default_rng(0)
    arrays = put_batch(
        {
            "canvases": rng.integers(0, 256, (config.batch, height, width, 3), np.uint8),
            "windows": np.tile(np.array([0, 0, height, width], np.int32), (config.batch, 1)),
            "tags": np.arange(config.batch, dtype=np.int32)[:, None],
        },
        mesh,
    )
    return variables, arrays["canvases"], arrays["windows"], arrays["tags"]


def inference(detector: Detector, config: Config, mesh: Any, inputs: tuple[Any, ...] = ()) -> Program:
    """uint8 canvases of the training size -> detections.  inputs: what `inference_inputs` makes."""
    inputs = inputs or inference_inputs(detector, config, mesh)
    infer, flops, seconds, memory = compiled(make_infer(detector, mesh, top_k=config.eval.top_k), *inputs)
    return Program(lambda: infer(*inputs), config.batch, flops, seconds, memory, infer)


def unit() -> Program:
    """One 3x3 convolution, 256 -> 256 channels at 64x64, float32."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 256), np.float32))
    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 256, 256), np.float32))
    convolve = jax.jit(
        lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    )
    executable, flops, seconds, _ = compiled(convolve, x, kernel)
    return Program(lambda: executable(x, kernel), 1, flops, seconds)


def measure(programs: dict[str, Program], steps: int, rounds: int) -> None:
    """Warm up, then alternate: each program's `seconds` get one entry a round."""
    for program in programs.values():
        jax.block_until_ready([program.run() for _ in range(2)])
    for _ in range(rounds):
        for name, program in programs.items():
            program.round(10 * steps if name == "unit" else steps)


def machine(devices: int) -> dict[str, Any]:
    """The machine on which the figures were measured."""
    device = jax.devices()[0]
    names = {"device": device.device_kind, "platform": device.platform, "devices": devices}
    return names | {"host": platform.machine(), "cpus": os.cpu_count(), "jax": jax.__version__}


def report(programs: dict[str, Program]) -> dict[str, dict[str, Any]]:
    """The figures of each program, from the medians of its rounds; printed as a table, returned for JSON."""
    one = statistics.median(programs["unit"].seconds)
    table: dict[str, dict[str, Any]] = {}
    header = ("", "ms", "spread", "images/s", "units", "GFLOP", "TFLOP/s", "compile s", "MiB")
    print(f"{header[0]:12}" + "".join(f"{h:>11}" for h in header[1:]))
    for name, program in programs.items():
        seconds = statistics.median(program.seconds)
        row: dict[str, Any] = {
            "seconds": seconds,
            "spread": (max(program.seconds) - min(program.seconds)) / seconds,
            "images_per_s": program.images / seconds,
            "units": seconds / one,
            "flops": program.flops,
            "flops_per_s": program.flops / seconds if program.flops else None,
            "compile_s": program.compile_s,
            "memory_bytes": program.memory,
            "rounds": program.seconds,
        }
        cells = (
            f"{1e3 * seconds:.2f}",
            f"{100 * row['spread']:.0f}%",
            f"{row['images_per_s']:.2f}",
            f"{row['units']:.1f}",
            f"{program.flops / 1e9:.1f}" if program.flops else "-",
            f"{row['flops_per_s'] / 1e12:.3f}" if program.flops else "-",
            f"{program.compile_s:.1f}",
            f"{program.memory / 2**20:.0f}" if program.memory else "-",
        )
        print(f"{name:12}" + "".join(f"{c:>11}" for c in cells))
        table[name] = row
    return table


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a file of configs/; any setting: --config.key=value")
    parser.add_argument("--batch", type=int, default=0, help="images a step over all devices (0: the configuration's)")
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, default=80, help="where the configuration leaves it to the data")
    parser.add_argument("--inference", action="store_true", help="inference alone")
    parser.add_argument("--json", help="write the figures here")
    args, overrides = parser.parse_known_args()
    from kpjax.commands.flags import config_of  # imports ml_collections, which accelerator.py does without

    try:
        config = config_of(args.config, overrides)
        if args.batch:
            config.batch = args.batch
            config.check()
        mesh = make_mesh(config.sharding.fsdp)
        check_batch(config.batch // config.optim.accumulate, mesh, "the batch")
        detector = from_config(config, config.model.num_classes or args.classes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    name = pathlib.Path(args.config).stem
    print(
        f"{name}: {detector.name}, {detector.num_classes} classes, {config.augment.width}x{config.augment.height}, "
        f"batch {config.batch}, {config.model.dtype}; {mesh.size} x {device.device_kind}, {os.cpu_count()} CPUs, "
        f"jax {jax.__version__}",
        flush=True,
    )
    programs = {"unit": unit()}
    if not args.inference:
        programs["training"] = training(detector, config, mesh)
        programs["preparation"] = preparation(detector, config, mesh)
    programs["inference"] = inference(detector, config, mesh)
    measure(programs, args.steps, args.rounds)
    table = report(programs)
    if args.json:
        result = {
            "benchmark": "step",
            "machine": machine(mesh.size),
            "settings": {"steps": args.steps, "rounds": args.rounds, "classes": detector.num_classes},
            "config": dataclasses.asdict(config),
            "results": table,
        }
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
