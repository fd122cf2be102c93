"""The training loop: step, log, evaluate, save, until the last step or a signal."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kpjax.config import Config
from kpjax.data.source import Source
from kpjax.errors import DataError, UserError
from kpjax.parallel import distributed
from kpjax.parallel.sharding import put_batch
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.lock import WorkdirLock
from kpjax.training.log import RunLog, StepClock, in_order, plain
from kpjax.training.signals import Stopped, StopSignal
from kpjax.training.step import TrainState

LONG_WAIT = 1.0  # seconds that a save may wait for the one before it without a word

Step = Callable[[TrainState, Any], tuple[TrainState, Any]]


class BadStep(UserError):
    """Loss or gradient was not finite.  Its text names the step, the loss parts and the images."""


@dataclasses.dataclass
class Loop:
    """A run between its first step and its last.

    step_of: how many steps were taken -> the compiled one that comes next, on the devices of `mesh`.  evaluate:
    variables -> what `Evaluator` returns; None without validation data.  steps: of the whole run.  state, number: the
    training state and the steps it has taken.  saved: the step whose checkpoint is on disk, if any.  stats: the last
    evaluation's numbers.
    """

    config: Config
    source: Source
    mesh: Mesh
    step_of: Callable[[int], Step]
    evaluate: Callable[[Any], Any] | None
    steps: int
    checkpoints: Checkpoints
    log: RunLog
    stop: StopSignal
    lock: WorkdirLock
    state: TrainState
    number: int
    saved: int | None
    stats: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clock = StepClock(self.config.batch)
        self._clock_runs = self._said_to_save_less = False
        self._unread: collections.deque[tuple[int, Any, np.ndarray | None]] = collections.deque()

    def run(self, feed: Iterator[dict[str, np.ndarray]], evaluate_first: bool) -> None:
        """Train until the last step or a signal, and leave a checkpoint of where it ended.

        feed: batches from step `number` on.  evaluate_first: make up for an evaluation that a signal had cut short.
        """
        every, skipped = self.config.eval.every, 0
        try:
            if evaluate_first:
                self._evaluate()
            while self.number < self.steps and not self.stop.reached():
                with self._clock.waiting():
                    raw = next(feed)
                bad_files = getattr(feed, "bad_files", [])
                for line in bad_files[skipped:]:
                    say_skipped(line, self.log)
                skipped = len(bad_files)
                batch = put_batch({k: v for k, v in raw.items() if k != "index"}, self.mesh)
                step = self.step_of(self.number)
                with jax.transfer_guard("disallow"):  # the step reads nothing of the host
                    self.state, metrics = step(self.state, batch)
                self.number += 1
                # Metrics are read two steps late: the device is never waited for.
                self._unread.append((self.number, metrics, raw.get("index")))
                if len(self._unread) > 2:
                    self._read_oldest()
                if self.evaluate and due(self.number, every, self.steps):
                    # Saved first: however long it evaluates, and however it is stopped there, no step is lost.
                    self._save()
                    self._evaluate()
                elif due(self.number, self.config.checkpoint.every, self.steps):
                    self._save()
        except Stopped:
            pass
        except DataError:
            # The steps so far are good: keep them, so that the same command goes on once the data are mended.
            # With several processes only this one knows, and the others have given away the state in a step.
            if jax.process_count() == 1:
                self._save()
                self.checkpoints.wait()
            raise
        self._save()
        self.checkpoints.wait()

    def _evaluate(self) -> None:
        """Measure the AP of the weights as they are.  Raises `Stopped` where a signal comes in the meantime."""
        assert self.evaluate is not None
        with self._clock.aside(), self.stop.interrupting():
            found = self.evaluate(averaged(self.state))
        self.stats = dict(found.stats)
        self.log.numbers("eval", self.number, self.stats)
        skipped = f", {found.skipped} unreadable" if found.skipped else ""
        self.log.say(f"step {self.number}: {found.in_short} on {found.images} images{skipped} in {found.seconds:.1f} s")
        self.checkpoints.score(self.number, self.stats.get("AP"))

    def _read_oldest(self) -> None:
        """Read and log the oldest unread metrics.  Raises BadStep."""
        number, metrics, records = self._unread.popleft()
        values = plain(jax.device_get(metrics))
        if not values.pop("ok"):
            raise BadStep(self._bad_step(number, values, records))
        if not self._clock_runs:
            self._clock_runs = True
            self._clock.begin(number)
        elif number % self.config.log_every == 0:
            values |= self._clock.lap(number)
            self.log.progress(number, values)
        if number % self.config.log_every == 0:
            self.log.numbers("train", number, values)

    def _save(self) -> None:
        """Save the state, once all its steps are known to be good; not twice.  Raises BadStep and WorkdirInUse."""
        while self._unread:
            self._read_oldest()
        if self.saved == self.number:
            return
        self.lock.check()
        with self._clock.aside():
            began = time.monotonic()
            self.checkpoints.wait()  # as Orbax would, which logs it each time
            waited = time.monotonic() - began
            if waited > LONG_WAIT and not self._said_to_save_less:
                self._said_to_save_less = True
                self.log.say(
                    f"step {self.number}: waited {waited:.1f} s for the checkpoint before to be written; "
                    "a larger config.checkpoint.every costs less time"
                )
            self.checkpoints.save(self.state)
        self.saved = self.number

    def _bad_step(self, number: int, values: dict[str, float], records: np.ndarray | None) -> str:
        parts = ", ".join(f"{k} {values[k]:g}" for k in in_order(values))
        # Each process knows its own images; all of them are here, at the same step.
        mine = None if records is None else self.source.image_ids[records].tolist()
        slices = distributed.gather(mine)
        ids = "" if records is None else f"; image ids {[i for of_process in slices for i in of_process]}"
        return (
            f"step {number} was not finite ({parts}){ids}; nothing of it was kept. "
            "Look at these images, or lower config.optim.lr or set config.optim.clip in another --workdir, "
            f"e.g. with --config.init_from={self.checkpoints.workdir}"
        )


def averaged(state: TrainState) -> dict[str, Any]:
    """The variables that are evaluated and exported: the parameters' moving average where there is one."""
    return {"params": state.params if state.ema is None else state.ema, "batch_stats": state.batch_stats}


def due(number: int, every: int, steps: int) -> bool:
    """Whether something that happens each `every` steps (0: never), and after the last, happens after this one."""
    return number == steps or (every > 0 and number % every == 0)


def say_skipped(line: str, log: RunLog) -> None:
    """Say which image was skipped.  Each process names its own images: no other one has read them."""
    text = f"skipped, and trained on as an empty image: {line}"
    if jax.process_index() == 0:
        log.say(text)
    else:
        print(f"process {jax.process_index()} of {jax.process_count()}: {text}", flush=True)
