"""The training run: set up, resume, step, evaluate, save.  Read it top to bottom.

The loop holds nothing that the step number does not give back: batches come from
`train_batches(start_step)`, random draws from the example counter, and everything else is in
the state.  So a run that was killed anywhere continues to the same parameters, bit for bit,
on the same machine (docs/architecture.md, Resuming).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from kpjax import config as configs
from kpjax.checkpoint.weights import describe, is_inference, save_inference
from kpjax.config import Config
from kpjax.data.opening import has_validation, open_source
from kpjax.data.source import Source, fingerprint, require_boxes, require_same_classes
from kpjax.detectors import from_config
from kpjax.detectors.base import Detector
from kpjax.errors import DataError, UserError
from kpjax.inference.evaluate import describe_evaluation, make_evaluator
from kpjax.parallel import distributed
from kpjax.parallel.sharding import check_batch, make_mesh, meet, put_batch
from kpjax.parallel.startup import make_deterministic, quiet_tensorflow
from kpjax.training.checkpoints import Checkpoints, check_same_model
from kpjax.training.environment import environment
from kpjax.training.initial_weights import init_from
from kpjax.training.log import RunLog, StepClock, in_order, plain, say
from kpjax.training.report import describe_run
from kpjax.training.signals import Stopped, StopSignal, leaving_on_sigterm
from kpjax.training.step import TrainState, batch_shapes, init_state, jit_step, make_step, state_shardings
from kpjax.training.workdir import check_workdir, claim, evaluated

Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]

LONG_WAIT = 1.0  # seconds that a save may wait for the one before it without a word


class BadStep(UserError):
    """Loss or gradient was not finite.  Its text names the step, the loss parts and the images."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.  step: steps taken.  finished: all of them.  stats: the last evaluation's, if any."""

    step: int
    finished: bool
    stats: dict[str, float]


def run(config: Config, workdir: str, *, train_source: Source | None = None, batches: Batches | None = None) -> Result:
    """Train by `config` in `workdir`, resuming what is there.

    train_source, batches: given by callers that bring their own data (batches: start_step ->
    iterator of pipeline batches); by default both come from `config.data`.
    Raises UserError (ConfigError, DataError, CheckpointError, BadStep) for what a user can put right.
    """
    with StopSignal() as stop, contextlib.ExitStack() as starting:
        starting.enter_context(leaving_on_sigterm())

        def begun() -> None:
            stop.begun = True
            starting.close()

        return _run(config, workdir, train_source, batches, stop, begun)


def _run(
    config: Config,
    workdir: str,
    train_source: Source | None,
    batches: Batches | None,
    stop: StopSignal,
    begun: Callable[[], None],
) -> Result:
    """`run`; calls `begun` when a signal has to save, which is `stop`'s from then on."""
    config.check()
    make_deterministic(config)
    quiet_tensorflow()
    root = epath.Path(workdir)
    check_workdir(root, config)
    source = train_source or open_source(config.data, "train")
    require_boxes(source)
    val = _validation(config, source)
    detector = from_config(config, len(source.classes))
    steps = total_steps(config, len(source))
    mesh = make_mesh(config.sharding.fsdp)
    meet(mesh)
    check_batch(config.batch // config.optim.accumulate, mesh, "config.batch / config.optim.accumulate")

    evaluator = make_evaluator(detector, config, mesh) if val is not None else None
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
    distributed.agree({f"the newest checkpoint of --workdir {workdir}": checkpoints.latest()})
    restored = checkpoints.restore_newest(like, lambda stored, path: check_same_model(stored, detector, path), say)
    if restored is None:
        state, start = new or new_state(), 0
    else:
        state, start, stored = restored
        _warn_environment(stored.get("environment", {}))

    # The step, compiled before anything runs, so that its size is known.
    lowered = jit_step(make_step(detector, config, steps, mesh), mesh, shapes).lower(
        shapes, batch_shapes(config, detector.points)
    )
    clock_before = time.monotonic()
    step = lowered.compile()
    say(describe_run(detector, source, config, mesh, steps, shapes, step, time.monotonic() - clock_before, start))
    if val is not None:
        say(describe_evaluation(detector, config, val))
    claim(root, config, first=jax.process_index() == 0)

    feed = batches(start) if batches else _pipeline(source, config, start)
    clock = StepClock(config.batch)
    log = RunLog(workdir, start, steps, silent=jax.process_index() != 0)
    loop = _Loop(config, source, checkpoints, log, clock, saved=start if restored is not None else None)
    stats: dict[str, float] = {}
    number, told = start, 0

    def evaluate() -> dict[str, float]:
        assert evaluator is not None and val is not None
        with clock.aside(), stop.interrupting():
            params = state.params if state.ema is None else state.ema
            variables = {"params": params, "batch_stats": state.batch_stats}
            found = evaluator(variables, val, progress=False, between=stop.check)
        log.numbers("eval", number, dict(found.stats))
        skipped = f", {found.skipped} unreadable" if found.skipped else ""
        log.say(
            f"step {number}: AP {found.ap:.3f}, AP50 {found.ap50:.3f} "
            f"on {found.images} images{skipped} in {found.seconds:.1f} s"
        )
        return dict(found.stats)

    # The first process answers, since it is the one that writes the log.
    done = not _due(start, config.eval.every, steps) or distributed.gather(evaluated(workdir, start))[0]
    try:
        begun()
        try:
            if evaluator and start and not done:
                stats = evaluate()  # the signal that ended the last run had cut it short
                checkpoints.score(start, stats.get("AP"))
            while number < steps and not stop.reached():
                with clock.waiting():
                    raw = next(feed)
                bad_files = getattr(feed, "bad_files", [])
                for line in bad_files[told:]:
                    _say_skipped(line, log)
                told = len(bad_files)
                state, metrics = step(state, put_batch({k: v for k, v in raw.items() if k != "index"}, mesh))
                number += 1
                # Read two steps late: the device is never waited for.
                loop.pending.append((number, metrics, raw.get("index")))
                if len(loop.pending) > 2:
                    loop.read_oldest()
                if evaluator and _due(number, config.eval.every, steps):
                    # Saved first: however long it evaluates, and however it is stopped there, no step is lost.
                    loop.save(state, number)
                    stats = evaluate()
                    checkpoints.score(number, stats.get("AP"))
                elif _due(number, config.checkpoint.every, steps):
                    loop.save(state, number)
        except Stopped:
            pass
        except DataError:
            # The steps so far are good: keep them, so that the same command goes on once the data are mended.
            # With several processes only this one knows, and the others have given away the state in a step.
            if jax.process_count() == 1:
                loop.save(state, number)
                checkpoints.wait()
            raise
        loop.save(state, number)
        checkpoints.wait()
        finished = number >= steps
        if finished:
            if start < steps or not is_inference(root / "model"):
                _export(workdir, detector, source, config, state, checkpoints, log)
            else:
                log.say(f"step {start} of {steps}: this run has finished; nothing to do")
        else:
            log.say(f"stopped by {stop.name} at step {number} of {steps}; the same command goes on from here")
        return Result(number, finished, stats)
    finally:
        try:
            log.close()
        finally:
            checkpoints.close()
            close = getattr(feed, "close", None)
            if close:
                close()


class _Loop:
    """What the loop does besides stepping: it reads metrics late, stops at a bad step, and saves."""

    def __init__(
        self,
        config: Config,
        source: Source,
        checkpoints: Checkpoints,
        log: RunLog,
        clock: StepClock,
        saved: int | None,
    ):
        self.pending: collections.deque[tuple[int, Any, np.ndarray | None]] = collections.deque()
        self._config, self._source, self._checkpoints = config, source, checkpoints
        self._log, self._clock, self._saved = log, clock, saved
        self._begun = self._told_to_save_less = False

    def read_oldest(self) -> None:
        """Read the oldest step's metrics.  Raises BadStep."""
        number, metrics, records = self.pending.popleft()
        values = plain(jax.device_get(metrics))
        if not values.pop("ok"):
            raise BadStep(self._bad_step(number, values, records))
        if not self._begun:
            self._begun = True
            self._clock.begin(number)
        elif number % self._config.log_every == 0:
            values |= self._clock.lap(number)
            self._log.progress(number, values)
        if number % self._config.log_every == 0:
            self._log.numbers("train", number, values)

    def drain(self) -> None:
        """Read all metrics.  Raises BadStep."""
        while self.pending:
            self.read_oldest()

    def save(self, state: TrainState, number: int) -> None:
        """Save the state after step `number`, once it is known to be good; not twice."""
        self.drain()
        if self._saved == number:
            return
        with self._clock.aside():
            began = time.monotonic()
            self._checkpoints.wait()  # as Orbax would, which tells of it each time
            waited = time.monotonic() - began
            if waited > LONG_WAIT and not self._told_to_save_less:
                self._told_to_save_less = True
                self._log.say(
                    f"step {number}: waited {waited:.1f} s for the checkpoint before to be written; "
                    "a larger config.checkpoint.every costs less time"
                )
            self._checkpoints.save(state)
        self._saved = number

    def _bad_step(self, number: int, values: dict[str, float], records: np.ndarray | None) -> str:
        parts = ", ".join(f"{k} {values[k]:g}" for k in in_order(values))
        # Each process knows its own images; all of them are here, at the same step.
        mine = None if records is None else self._source.image_ids[records].tolist()
        slices = distributed.gather(mine)
        ids = "" if records is None else f"; image ids {[i for of_process in slices for i in of_process]}"
        return (
            f"step {number} was not finite ({parts}){ids}; nothing of it was kept. "
            "Look at these images, or lower config.optim.lr or set config.optim.clip in another --workdir, "
            f"e.g. with --config.init_from={self._checkpoints.workdir}"
        )


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


def _due(number: int, every: int, steps: int) -> bool:
    return number == steps or (every > 0 and number % every == 0)


def _export(
    workdir: str,
    detector: Detector,
    source: Source,
    config: Config,
    state: TrainState,
    checkpoints: Checkpoints,
    log: RunLog,
) -> None:
    params = state.params if state.ema is None else state.ema
    path = str(epath.Path(workdir) / "model")
    save_inference(path, detector, {"params": params, "batch_stats": state.batch_stats}, source.classes, config)
    best = checkpoints.best()
    more = f"; best AP {best[1]:.3f} at step {best[0]}" if best else ""
    log.say(f"done: the last weights are in {path}{more}")


def _say_skipped(line: str, log: RunLog) -> None:
    """Each process tells of its own images: no other one has read them."""
    text = f"skipped, and trained on as an empty image: {line}"
    if jax.process_index() == 0:
        log.say(text)
    else:
        print(f"process {jax.process_index()} of {jax.process_count()}: {text}", flush=True)


def _validation(config: Config, source: Source) -> Source | None:
    if not has_validation(config.data):
        return None
    val = open_source(config.data, "val")
    require_same_classes(val, source)
    return val


def _warn_environment(before: dict[str, Any]) -> None:
    now = environment()
    changed = [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
    if changed:
        say(f"resuming on another set-up ({', '.join(changed)}): results go on, but not bit for bit")
