"""How large and how fast is a training step on this machine?  It is compiled and tried before the run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kpjax.config import Config
from kpjax.data.source import Source
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.parallel.compiling import memory_of
from kpjax.parallel.sharding import make_mesh, put_batch
from kpjax.training.choices import Machine
from kpjax.training.step import TrainState, batch_shapes, init_state, jit_step, make_step, state_shardings

SHARE = 0.8  # of the free memory that a step may take: evaluation and the input need some as well
WARM_UP = 2  # steps that are slower than the others
MOST = 30  # steps that are measured, if the time is enough


@dataclasses.dataclass(frozen=True)
class StepSpeed:
    """batch: images of the step that fits.  seconds: of a step with its input.  compiling: seconds that it took.
    memory: bytes a device."""

    batch: int
    seconds: float
    compiling: float
    memory: int


def this_machine() -> Machine:
    """The devices that JAX has found, and their free memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    memory = int(stats["bytes_limit"] - stats.get("bytes_in_use", 0)) if stats and "bytes_limit" in stats else 0
    count = len(jax.devices())
    return Machine(device.platform, count, memory or free_memory() // count)


def free_memory() -> int:
    """Bytes of the host's memory that are free, a container's limit included."""
    limits = []
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            limits += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")]
        with open("/sys/fs/cgroup/memory.max", encoding="utf-8") as file:
            limits += [int(line) for line in file if line.strip().isdecimal()]
    except OSError:  # not Linux, or without the second file
        pass
    return min(limits, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def try_step(
    config: Config,
    source: Source,
    machine: Machine,
    detector_of: Callable[[Config, Source], Detector],
    *,
    seconds: float = 10.0,
) -> StepSpeed:
    """Compile the step of `config`, halving `config.batch` until it fits, and run it for about so many seconds.

    Sets `config.batch`.  Raises ConfigError where the smallest batch does not fit.
    """
    mesh = make_mesh(config.sharding.fsdp)
    while True:
        detector = detector_of(config, source)
        begun = time.monotonic()
        try:
            step, shapes = _compile(config, detector, mesh)
            compiling, memory = time.monotonic() - begun, memory_of(step).total
            if memory <= SHARE * machine.memory:
                took = _seconds(step, config, source, detector, mesh, shapes, seconds)
                return StepSpeed(config.batch, took, compiling, memory)
        except RuntimeError as error:  # JAX's JaxRuntimeError is one
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        smaller = config.batch // 2 // machine.devices * machine.devices
        if not smaller:
            size = f"{config.augment.width}x{config.augment.height}"
            raise ConfigError(
                f"not even {config.batch} images of {size} fit into the {machine.memory / 2**30:.1f} GiB that are free "
                "on a device; give a smaller --size, or another --model"
            )
        config.batch = smaller


def _compile(config: Config, detector: Detector, mesh: Mesh) -> tuple[Any, TrainState]:
    """The compiled step, and the shapes of its state."""
    shapes = jax.eval_shape(lambda key: init_state(detector, config, config.steps, key), jax.random.key(0))
    program = jit_step(make_step(detector, config, config.steps, mesh), mesh, shapes)
    return program.lower(shapes, batch_shapes(config, detector)).compile(), shapes


def _seconds(
    step: Any, config: Config, source: Source, detector: Detector, mesh: Mesh, shapes: TrainState, longest: float
) -> float:
    """The median time of a step, images read and decoded as in the run."""
    from kpjax.data.pipeline import train_batches

    shardings = state_shardings(mesh, shapes)
    make = jax.jit(lambda key: init_state(detector, config, config.steps, key), out_shardings=shardings)
    state = make(jax.random.key(config.seed))
    feed = train_batches(source, config.data, batch=config.batch, seed=config.seed)
    times: list[float] = []
    try:
        while len(times) <= WARM_UP or (len(times) < WARM_UP + MOST and sum(times[WARM_UP:]) < longest):
            begun = time.monotonic()
            raw = next(feed)
            state, _ = step(state, put_batch({k: v for k, v in raw.items() if k != "index"}, mesh))
            jax.block_until_ready(state)
            times.append(time.monotonic() - begun)
        return float(np.median(times[WARM_UP:]))
    finally:
        getattr(feed, "close", lambda: None)()
