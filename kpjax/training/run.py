"""The training run: data, state, step, loop, export.  Read it top to bottom.

A run holds nothing that the step number does not give back: batches come from `train_batches(start_step)`, random
draws from the example counter, and everything else is in the state.  So a run that was killed anywhere continues to
the same parameters, bit for bit, on the same machine (docs/architecture.md, Resuming).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from kpjax import config as configs
from kpjax.checkpoint.weights import describe, is_inference, save_inference
from kpjax.config import Config
from kpjax.data.opening import has_validation, open_source, training_images
from kpjax.data.source import (
    Source,
    fingerprint,
    require_boxes,
    require_keypoints,
    require_outlines,
    require_same_classes,
    require_same_points,
    require_solid,
)
from kpjax.data.turned import notice
from kpjax.detectors import data_needed, from_config
from kpjax.detectors.base import Detector
from kpjax.inference.evaluate import describe_evaluation, make_evaluator
from kpjax.parallel import distributed
from kpjax.parallel.sharding import check_batch, connect_devices, make_mesh
from kpjax.parallel.startup import make_deterministic, quiet_tensorflow, use_atomic_sums
from kpjax.training.checkpoints import Checkpoints, check_same_model
from kpjax.training.environment import environment
from kpjax.training.initial_weights import init_from
from kpjax.training.lock import WorkdirLock
from kpjax.training.log import RunLog, say
from kpjax.training.loop import BadStep, Loop, averaged, due
from kpjax.training.report import describe_run
from kpjax.training.signals import StopSignal, leaving_on_sigterm
from kpjax.training.sizes import at_width, sizes_of, width_at
from kpjax.training.step import TrainState, batch_shapes, init_state, jit_step, make_step, state_shardings
from kpjax.training.workdir import check_workdir, evaluated, write_config

__all__ = ["BadStep", "Result", "run", "total_steps"]

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.  step: steps taken.  finished: all of them.  stats: the last evaluation's, if any."""

    step: int
    finished: bool
    stats: dict[str, float]


def run(
    config: Config,
    workdir: str,
    *,
    train_source: Source | None = None,
    batches: Batches | None = None,
    force: bool = False,
) -> Result:
    """Train by `config` in `workdir`, resuming what is there.

    train_source, batches: given by callers that bring their own data (batches: start_step ->
    iterator of pipeline batches); by default both come from `config.data`.
    force: take the work directory from another run that holds it.
    Raises UserError (ConfigError, DataError, CheckpointError, BadStep, WorkdirInUse) for what a user can put right.
    """
    config.check()
    make_deterministic(config)
    use_atomic_sums()
    quiet_tensorflow()
    lock = WorkdirLock(workdir, force, say)
    with StopSignal() as stop, contextlib.ExitStack() as starting:
        starting.enter_context(leaving_on_sigterm(lock.release))

        def begun() -> None:
            stop.begun = True
            starting.close()

        with distributed.before_end(lock.release), lock:
            return _run(config, workdir, train_source, batches, lock, stop, begun)


def _run(
    config: Config,
    workdir: str,
    train_source: Source | None,
    batches: Batches | None,
    lock: WorkdirLock,
    stop: StopSignal,
    begun: Callable[[], None],
) -> Result:
    """`run` with the work directory locked; calls `begun` when a signal has to save, which is `stop`'s from then on."""
    # The data, the model and the devices.
    root = epath.Path(workdir)
    check_workdir(root, config)
    needed = data_needed(config.model.name)
    source = training_images(train_source or open_source(config.data, "train", **needed), config.data)
    require_boxes(source)
    if needed["keypoints"]:
        require_keypoints(source)
    if needed["solid"]:
        require_solid(source)
    if needed["outlines"]:
        require_outlines(source)
    val = _validation(config, source)
    detector = from_config(config, len(source.classes), source.points)
    steps = total_steps(config, len(source))
    mesh = make_mesh(config.sharding.fsdp)
    connect_devices(mesh)
    check_batch(config.batch // config.optim.accumulate, mesh, "config.batch / config.optim.accumulate")
    evaluate = _evaluation(detector, config, mesh, val, stop)
    _agree_on_inputs(config, source, val)

    # The state: shapes first, then the real arrays, made where they will live.
    shapes = jax.eval_shape(lambda key: init_state(detector, config, steps, key), jax.random.key(config.seed))
    shardings = state_shardings(mesh, shapes)
    like = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)

    def new_state() -> TrainState:
        make = jax.jit(lambda key: init_state(detector, config, steps, key), out_shardings=shardings)
        state = make(jax.random.key(config.seed))
        return init_from(config.init_from, detector, state, shardings) if config.init_from else state

    # Before the first file is written: weights to start from that cannot be used leave nothing behind.
    # The first process answers: all have to make the state, or none.
    new = None if distributed.gather((root / "checkpoints").exists())[0] else new_state()
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, describe(detector, source.classes, config))
    with contextlib.ExitStack() as open_files:
        open_files.callback(checkpoints.close)
        distributed.agree({f"the newest checkpoint of --workdir {workdir}": checkpoints.latest()})
        restored = checkpoints.restore_newest(like, lambda stored, path: check_same_model(stored, detector, path), say)
        state, start, stored = restored or (new or new_state(), 0, {})
        _warn_environment(stored.get("environment", {}))

        # The step, compiled before anything runs, so that its size is known; one for each size of the input.
        compiling, programs = time.monotonic(), {}
        for width in sizes_of(config):
            of_width = at_width(config, width)
            lowered = jit_step(make_step(detector, of_width, steps, mesh), mesh, shapes).lower(
                shapes, batch_shapes(config, detector)
            )
            programs[width] = lowered.compile()
        seconds, largest = time.monotonic() - compiling, next(iter(programs.values()))
        say(describe_run(detector, source, config, mesh, steps, shapes, largest, seconds, start))
        if val is not None:
            say(describe_evaluation(detector, config, val))
            if distributed.first() and (turned := notice(val)):
                say(f"eval     {turned}")
        if distributed.first():
            write_config(root, config)

        # The loop.
        feed = batches(start) if batches else _pipeline(source, config, start)
        open_files.callback(getattr(feed, "close", lambda: None))
        log = RunLog(workdir, start, steps, silent=not distributed.first())
        open_files.callback(log.close)
        saved = start if restored is not None else None
        loop = Loop(
            config,
            source,
            mesh,
            lambda number: programs[width_at(config, number)],
            evaluate,
            steps,
            checkpoints,
            log,
            stop,
            lock,
            state,
            number=start,
            saved=saved,
        )
        del state, new, restored  # the loop gives its state's memory away, step by step
        # The first process answers, since it is the one that writes the log.
        done = not due(start, config.eval.every, steps) or distributed.gather(evaluated(workdir, start))[0]
        begun()
        loop.run(feed, evaluate_first=bool(evaluate and start and not done))

        # The end.
        finished = loop.number >= steps
        if not finished:
            log.say(f"stopped by {stop.name} at step {loop.number} of {steps}; the same command goes on from here")
        elif start < steps or not is_inference(root / "model"):
            save_inference(str(root / "model"), detector, averaged(loop.state), source.classes, config)
            best = checkpoints.best()
            more = f"; best AP {best[1]:.3f} at step {best[0]}" if best else ""
            log.say(f"done: the last weights are in {root / 'model'}{more}")
        else:
            log.say(f"step {start} of {steps}: this run has finished; nothing to do")
        return Result(loop.number, finished, loop.stats)


def _evaluation(
    detector: Detector, config: Config, mesh: Mesh, val: Source | None, stop: StopSignal
) -> Callable[[Any], Any] | None:
    """variables -> Evaluation of the validation split; None where there is none."""
    if val is None:
        return None
    evaluator = make_evaluator(detector, config, mesh)
    return lambda variables: evaluator(variables, val, progress=False, between=stop.check)


def _agree_on_inputs(config: Config, source: Source, val: Source | None) -> None:
    """Raise ConfigError where another process has other settings or data.  Folders may differ from host to host."""
    splits = {"the training split": source, "the validation split": val}
    data = {name: None if split is None else fingerprint(split) for name, split in splits.items()}
    distributed.agree(configs.shared(config) | data)


def total_steps(config: Config, images: int) -> int:
    """Steps of the whole run: given, or whole epochs rounded to the nearest step."""
    return config.steps or max(1, round(config.epochs * images / config.batch))


def _pipeline(source: Source, config: Config, start: int) -> Iterator[dict[str, np.ndarray]]:
    from kpjax.data.pipeline import train_batches

    return train_batches(
        source,
        config.data,
        batch=config.batch,
        seed=config.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _validation(config: Config, source: Source) -> Source | None:
    if not has_validation(config.data):
        return None
    needed = data_needed(config.model.name)
    val = open_source(config.data, "val", **needed)
    require_same_classes(val, source)
    require_same_points(val, source)
    if needed["keypoints"] and len(val.annotations.ids):
        require_keypoints(val, "val")
    return val


def _warn_environment(before: dict[str, Any]) -> None:
    now = environment()
    changed = [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
    if changed:
        say(f"resuming on another set-up ({', '.join(changed)}): results go on, but not bit for bit")
