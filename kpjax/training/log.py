"""What a run says: a progress line for people, metrics.jsonl and TensorBoard files for programs."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any, TextIO

import numpy as np
from etils import epath

from kpjax.checkpoint.orbax import plain_errors
from kpjax.checkpoint.scores import METRICS, read_metrics
from kpjax.parallel import distributed

# Shown first, in this order; the other parts of a detector's loss follow.  Those of _QUIET go to the files only.
_ORDER = ("loss", "heatmap", "wh", "offset")
_QUIET = ("grad_norm", "lr", "images_per_s", "data_wait")


class RunLog:
    """Writes the numbers of a run to `workdir`, and shows them.

    start: the step a resumed run begins after; lines of later steps, which a killed run had
    written, are dropped first so that each step is there once (TensorBoard's readers do
    the same).  silent: neither write nor show (all processes but the first).
    """

    def __init__(self, workdir: str, start: int, total: int, silent: bool = False):
        from tqdm import tqdm

        self._silent = silent
        self._live = sys.stderr.isatty() and sys.stdout.isatty() and not silent
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True, disable=not self._live, smoothing=0.05
        )
        self._total, self._first, self._shown = total, start, start
        self._begun = time.monotonic()
        if silent:
            return
        path = epath.Path(workdir) / METRICS
        self._writing = plain_errors(path)  # a write to a full disk fails without a name
        with self._writing:
            _drop_after(path, start)
            self._file: TextIO = path.open("a")
            self._events = _EventFile(workdir, start)

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Record scalars of one step.  kind: "train" or "eval"."""
        if self._silent:
            return
        with self._writing:
            self._file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
            self._file.flush()
            self._events.scalars(step, {f"{kind}/{key}": value for key, value in values.items()})

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Move the progress bar; where there is no terminal, print a line instead."""
        if self._silent:
            return
        parts = " ".join(f"{k} {values[k]:.3f}" for k in in_order(values) if k not in _QUIET)
        text = f"{parts} | {values['images_per_s']:.1f} img/s, data wait {100 * values['data_wait']:.0f}%"
        if self._live:
            self._bar.update(step - self._shown)
            self._bar.set_postfix_str(text)
        else:
            spent = time.monotonic() - self._begun
            left = spent / max(step - self._first, 1) * (self._total - step)
            print(f"step {step}/{self._total} {text}, ETA {_clock(left)}", flush=True)
        self._shown = step

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._live:
            self._bar.write(text)
        elif not self._silent:
            print(text, flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        self._bar.close()
        if not self._silent:
            with self._writing:
                self._file.close()
                self._events.close()


class StepClock:
    """Images a second and the share of time spent waiting for data, between two readings.

    batch: images a step.  The clock starts with `begin`, after the first step's start-up.
    """

    def __init__(self, batch: int):
        self._batch = batch
        self._waited = self._aside = 0.0
        self._since, self._step = time.monotonic(), 0

    def begin(self, step: int) -> None:
        """Count from the end of this step on."""
        self._since, self._step, self._waited, self._aside = time.monotonic(), step, 0.0, 0.0

    def waiting(self) -> _Span:
        """A block in which the loop waits for its next batch."""
        return _Span(self, "_waited")

    def aside(self) -> _Span:
        """A block that is no training: evaluation and saving."""
        return _Span(self, "_aside")

    def lap(self, step: int) -> dict[str, float]:
        """{"images_per_s", "data_wait"} since the last reading."""
        spent = max(time.monotonic() - self._since - self._aside, 1e-9)
        rates = {
            "images_per_s": self._batch * (step - self._step) / spent,
            "data_wait": min(self._waited / spent, 1.0),
        }
        self.begin(step)
        return rates


class _Span:
    def __init__(self, clock: StepClock, field: str):
        self._clock, self._field = clock, field

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        spent = getattr(self._clock, self._field) + time.monotonic() - self._begun
        setattr(self._clock, self._field, spent)


class _EventFile:
    """A TensorBoard event file, written at once: what a killed run had logged is all there.

    TensorBoard's own writer keeps lines back in a thread and imports TensorFlow where there is one.
    """

    def __init__(self, workdir: str, start: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._proto = event_pb2
        # Readers take the files in the order of these numbers, so a clock that was put back must not lower them.
        number = max(time.time_ns() // 10**9, 1 + max(map(_event_number, epath.Path(workdir).iterdir()), default=0))
        name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((epath.Path(workdir) / name).open("ab"))
        self._write(file_version="brain.Event:2")
        # Readers forget what an interrupted run had logged from this step on.
        self._write(step=start + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto import summary_pb2

        items = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._write(step=step, summary=summary_pb2.Summary(value=items))

    def close(self) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._proto.Event(wall_time=time.time(), **fields).SerializeToString())
        self._writer.flush()


def _event_number(path: epath.Path) -> int:
    number = path.name.removeprefix("events.out.tfevents.").partition(".")[0]
    return int(number) if number.isdigit() and path.name.startswith("events.out.tfevents.") else 0


def in_order(values: dict[str, float]) -> list[str]:
    """The keys as people read them: the loss, its parts, the rest.  Jitted functions return them sorted."""
    first = [k for k in _ORDER if k in values]
    last = [k for k in _QUIET if k in values]
    return first + [k for k in values if k not in first and k not in last] + last


def plain(metrics: dict[str, Any]) -> dict[str, float]:
    """Device scalars as Python floats, in the order of `in_order`."""
    values = {k: float(np.asarray(v)) for k, v in metrics.items()}
    return {k: values[k] for k in in_order(values)}


def _drop_after(path: epath.Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in read_metrics(os.fspath(path.parent)) if line["step"] <= step]
    part = path.parent / (path.name + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    part.replace(path)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def say(text: str) -> None:
    """Print on the first process."""
    if distributed.first():
        print(text, flush=True)
