"""The training run: set up, resume, step, evaluate, save.  Read it top to bottom.

The loop holds nothing that the step number does not give back: batches come from
`train_batches(start_step)`, random draws from the example counter, and everything else is in
the state.  So a run that was killed anywhere continues to the same parameters, bit for bit,
on the same machine (DESIGN decision 16; docs/architecture.md).
"""

from __future__ import annotations

import collections
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from kpjax import config as configs
from kpjax.checkpoint import Checkpoints, environment, load_inference, save_inference, write_text
from kpjax.config import Config, ConfigError
from kpjax.data.source import Source, open_source
from kpjax.detectors import build
from kpjax.detectors.base import Detector
from kpjax.errors import UserError
from kpjax.evaluate import make_evaluator
from kpjax.log import RunLog
from kpjax.sharding import check_batch, make_mesh, put_batch
from kpjax.train_step import TrainState, init_state, jit_step, make_step, state_shardings

# Settings that may differ between the runs that share a work directory: they do not change
# what is learnt.
_FREE = ("config.log_every", "config.checkpoint.", "config.eval.", "config.data.threads", "config.data.prefetch")


class BadStep(UserError):
    """Loss or gradient was not finite.  Its text names the step, the loss parts and the images."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.  step: steps taken.  finished: all of them.  stats: the last evaluation's, if any."""

    step: int
    finished: bool
    stats: dict[str, float]


def run(config: Config, workdir: str, *, train_source: Source | None = None, batches: Any = None) -> Result:
    """Train by `config` in `workdir`, resuming what is there.

    train_source, batches: given by callers that bring their own data (batches: start_step ->
    iterator of pipeline batches); by default both come from `config.data`.
    Raises UserError (ConfigError, DataError, CheckpointError, BadStep) for what a user can put right.
    """
    config.check()
    root = epath.Path(workdir)
    _claim(root, config)
    source = train_source or open_source(config.data, "train")
    val = _validation(config)
    detector = build_detector(config, len(source.classes))
    steps = total_steps(config, len(source))
    mesh = make_mesh(config.sharding.fsdp)
    check_batch(config.batch // config.optim.accumulate, mesh, "config.batch / config.optim.accumulate")

    # The state: shapes first, then the real arrays, made where they will live.
    shapes = jax.eval_shape(lambda key: init_state(detector, config, steps, key), jax.random.key(config.seed))
    shardings = state_shardings(mesh, shapes)
    like = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, _info(detector, source, config))
    latest = checkpoints.latest()
    if latest is None:
        make = jax.jit(lambda key: init_state(detector, config, steps, key), out_shardings=shardings)
        state = make(jax.random.key(config.seed))
        if config.init_from:
            state = _init_from(config.init_from, detector, state, shardings)
        start = 0
    else:
        state, start = checkpoints.restore(latest, like), latest
        _warn_environment(checkpoints.metadata(latest).get("environment", {}))

    # The step, compiled before anything runs, so that its size is known.
    sample = jax.tree.map(lambda x: x, _batch_shapes(config))
    lowered = jit_step(make_step(detector, config, steps), mesh, shapes).lower(shapes, sample)
    begun = time.monotonic()
    step = lowered.compile()
    _report(detector, source, config, mesh, steps, shapes, step, time.monotonic() - begun, start)
    if start >= steps:
        print(f"step {start} of {steps}: this run has finished; nothing to do")
        return Result(start, True, {})

    evaluator = make_evaluator(detector, config, mesh) if val is not None else None
    log = RunLog(workdir, start, steps)
    stop = _StopSignal()
    stats: dict[str, float] = {}
    pending: collections.deque[tuple[int, Any]] = collections.deque()
    feed: Iterator[dict[str, np.ndarray]] = (
        batches(start)
        if batches
        else _pipeline(source, config, start)
    )
    clock = _Clock(config.batch)
    number = start
    try:
        with stop:
            while number < steps and not stop.asked:
                with clock.waiting():
                    raw = next(feed)
                device_batch = put_batch({k: v for k, v in raw.items() if k != "index"}, mesh)
                state, metrics = step(state, device_batch)
                number += 1
                # Read two steps late: the device is never waited for.
                pending.append((number, metrics))
                if len(pending) > 2:
                    _take(pending, log, clock, config, feed)
                if _due(number, config.eval.every, steps) and evaluator is not None:
                    _drain(pending, log, clock, config, feed)
                    stats = _evaluate(evaluator, state, val, log, number, clock)
                    checkpoints.save(state, ap=stats.get("AP"))
                elif _due(number, config.checkpoint.every, steps):
                    _drain(pending, log, clock, config, feed)
                    with clock.aside():
                        checkpoints.save(state)
            _drain(pending, log, clock, config, feed)
            if checkpoints.latest() != number:
                checkpoints.save(state)
            checkpoints.wait()
        finished = number >= steps
        if finished:
            _export(workdir, detector, source, config, state, checkpoints, log)
        else:
            log.say(f"stopped by {stop.name} at step {number} of {steps}; the same command goes on from here")
        return Result(number, finished, stats)
    finally:
        log.close()
        checkpoints.close()
        close = getattr(feed, "close", None)
        if close:
            close()


def build_detector(config: Config, classes: int) -> Detector:
    """The detector that a configuration describes, for a data set of `classes` classes."""
    wanted = config.model.num_classes or classes
    if wanted != classes:
        raise ConfigError(f"config.model.num_classes is {wanted}, but the training annotations list {classes} classes")
    settings: dict[str, Any] = dict(config.model.options)
    if config.model.dtype != "float32":
        settings["dtype"] = config.model.dtype
    if config.model.remat:
        settings["remat"] = True
    if config.model.bn_groups != 1:
        settings["bn_groups"] = config.model.bn_groups
    return build(config.model.name, wanted, **settings)


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


def _batch_shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    n, side, boxes = config.batch, config.data.canvas, config.data.max_boxes
    return {
        "canvas": jax.ShapeDtypeStruct((n, side, side, 3), np.uint8),
        "size": jax.ShapeDtypeStruct((n, 2), np.int32),
        "boxes": jax.ShapeDtypeStruct((n, boxes, 4), np.float32),
        "labels": jax.ShapeDtypeStruct((n, boxes), np.int32),
        "valid": jax.ShapeDtypeStruct((n, boxes), np.bool_),
        "counter": jax.ShapeDtypeStruct((n,), np.int32),
    }


def _due(number: int, every: int, steps: int) -> bool:
    return number == steps or (every > 0 and number % every == 0)


def _validation(config: Config) -> Source | None:
    has_val = config.data.source == "tfds" or bool(config.data.val.annotations)
    return open_source(config.data, "val") if has_val else None


def _claim(root: epath.Path, config: Config) -> None:
    """Make the work directory ours, or refuse one that another configuration has begun."""
    file = root / "config.json"
    if file.exists():
        try:
            old = configs.from_json(file.read_text())
        except (json.JSONDecodeError, ConfigError) as error:
            raise ConfigError(f"{file} cannot be read ({error}); use another --workdir") from error
        changed = [d for d in configs.differences(old, config) if not d.startswith(_FREE)]
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"{root} holds a run of another configuration: {changed[0]}{more}; use another --workdir, or that setting"
            )
    elif root.exists() and not root.is_dir():
        raise ConfigError(f"--workdir {root} is a file")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir {root} cannot be made: {error.strerror}") from error
    if jax.process_index() == 0:
        write_text(file, configs.to_json(config))


def _info(detector: Detector, source: Source, config: Config) -> dict[str, Any]:
    from kpjax.checkpoint import describe

    return describe(detector, source.classes, config)


def _init_from(path: str, detector: Detector, state: TrainState, shardings: Any) -> TrainState:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if path.endswith((".pth", ".pt", ".tar", ".pkl")):
        from kpjax.convert import load_backbone

        variables, lines = load_backbone(detector, variables, path)
    else:
        loaded = load_inference(path)
        variables, lines = _matching(variables, loaded.variables)
    print("\n".join([f"starting from {path}", *lines]))
    placed = jax.device_put(
        variables, {"params": shardings.params, "batch_stats": shardings.batch_stats}
    )
    average = placed["params"] if state.ema is not None else None
    return state.replace(params=placed["params"], batch_stats=placed["batch_stats"], ema=average)


def _matching(new: Any, old: Any) -> tuple[Any, list[str]]:
    """The leaves of `old` where names and shapes agree, and a line for each that stays as initialised."""
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(old)}
    lines = []

    def one(path: Any, leaf: Any) -> Any:
        key = jax.tree_util.keystr(path)
        if key in flat and flat[key].shape == leaf.shape:
            return flat[key]
        lines.append(f"  initialised anew: {key} {leaf.shape}")
        return leaf

    return jax.tree_util.tree_map_with_path(one, new), lines


def _warn_environment(before: dict[str, Any]) -> None:
    now = environment()
    changed = [f"{k} {before[k]} -> {now[k]}" for k in now if k in before and before[k] != now[k]]
    if changed:
        print(f"resuming on another set-up ({', '.join(changed)}): results go on, but not bit for bit")


def _report(
    detector: Detector,
    source: Source,
    config: Config,
    mesh: Any,
    steps: int,
    shapes: TrainState,
    step: Any,
    seconds: float,
    start: int,
) -> None:
    from kpjax.data.source import count_over

    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    boxes = sum(len(b) for b in source.boxes)
    over = count_over(source, config.data.max_boxes)
    dropped = dict(source.dropped) | ({f"over {config.data.max_boxes} in an image": over} if over else {})
    reasons = ", ".join(f"{n} {why}" for why, n in dropped.items() if n) or "none"
    memory, cost = step.memory_analysis(), step.cost_analysis() or {}
    print(f"model    {detector.name}, {detector.num_classes} classes, {count:,} parameters, {config.model.dtype}")
    print(f"data     {source.name}: {len(source):,} images, {boxes:,} boxes; boxes dropped: {reasons}")
    print(f"devices  {mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}")
    if memory is not None:
        print(
            f"step     {(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20:,.0f} MiB a device "
            f"({memory.argument_size_in_bytes / 2**20:,.0f} arguments, {memory.temp_size_in_bytes / 2**20:,.0f} temporaries), "
            f"{cost.get('flops', 0) / 1e9:,.1f} GFLOP, compiled in {seconds:.1f} s"
        )
    where = f"from step {start} to {steps}" if start else f"{steps:,} steps"
    print(f"run      {where} of {config.batch} images, {steps * config.batch / len(source):.1f} epochs", flush=True)


def _take(pending: Any, log: RunLog, clock: _Clock, config: Config, feed: Any) -> None:
    """Read the oldest step's metrics; stop the run where it was bad."""
    number, metrics = pending.popleft()
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if not values.pop("ok"):
        raise BadStep(_bad_step(number, values, config, feed))
    if number % config.log_every == 0:
        values |= clock.lap(number)
        log.numbers("train", number, values)
        log.progress(number, values)


def _drain(pending: Any, *rest: Any) -> None:
    while pending:
        _take(pending, *rest)


def _bad_step(number: int, values: dict[str, float], config: Config, feed: Any) -> str:
    parts = ", ".join(f"{k} {v:g}" for k, v in values.items())
    ids = getattr(feed, "image_ids", None)
    images = f"; image ids {list(map(int, ids(number - 1)))}" if ids else ""
    return (
        f"step {number} was not finite ({parts}){images}; nothing of it was kept. "
        "Lower config.optim.lr, set config.optim.clip, or look at these images"
    )


def _evaluate(evaluator: Any, state: TrainState, val: Any, log: RunLog, number: int, clock: _Clock) -> dict[str, float]:
    with clock.aside():
        params = state.params if state.ema is None else state.ema
        found = evaluator({"params": params, "batch_stats": state.batch_stats}, val, progress=False)
        log.numbers("eval", number, dict(found.stats))
        log.say(f"step {number}: AP {found.ap:.3f}, AP50 {found.ap50:.3f} on {found.images} images in {found.seconds:.1f} s")
    return dict(found.stats)


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


class _Clock:
    """Images a second and the share of time spent waiting for data, between two readings."""

    def __init__(self, batch: int):
        self._batch = batch
        self._waited = self._apart = 0.0
        self._since: float | None = None
        self._step = 0

    def waiting(self) -> _Span:
        return _Span(self, "_waited")

    def aside(self) -> _Span:
        """Time that is no training: evaluation and saving."""
        return _Span(self, "_apart")

    def lap(self, step: int) -> dict[str, float]:
        now = time.monotonic()
        if self._since is None:  # the first reading has no beginning: the first step's start-up is not counted
            result = {"images_per_s": 0.0, "data_wait": 0.0}
        else:
            spent = max(now - self._since - self._apart, 1e-9)
            result = {
                "images_per_s": self._batch * (step - self._step) / spent,
                "data_wait": min(self._waited / spent, 1.0),
            }
        self._since, self._step, self._waited, self._apart = now, step, 0.0, 0.0
        return result


class _Span:
    def __init__(self, clock: _Clock, field: str):
        self._clock, self._field = clock, field

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        spent = getattr(self._clock, self._field) + time.monotonic() - self._begun
        setattr(self._clock, self._field, spent)


class _StopSignal:
    """Within the block, SIGINT and SIGTERM set `asked` instead of raising; a second SIGINT raises."""

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name

    def __enter__(self) -> _StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


Batches = Callable[[int], Iterator[dict[str, np.ndarray]]]
