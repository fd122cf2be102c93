"""What a run says: a progress line for people, metrics.jsonl and TensorBoard files for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from etils import epath


class RunLog:
    """Writes the numbers of a run to `workdir`, and shows them.

    start: the step a resumed run begins after; lines of later steps, which a killed run had
    written, are dropped first so that each step is there once.
    """

    def __init__(self, workdir: str, start: int, total: int):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
        from tqdm import tqdm

        self._path = epath.Path(workdir) / "metrics.jsonl"
        _drop_after(self._path, start)
        self._file: TextIO = open(os.fspath(self._path), "a", buffering=1)
        self._events = EventFileWriter(os.fspath(workdir))
        self._total = total
        self._shown = start
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True, disable=not self._live, smoothing=0.05
        )
        self._begun, self._first = time.monotonic(), start

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Record scalars of one step.  kind: "train" or "eval"."""
        self._file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        self._event(step, {f"{kind}/{key}": value for key, value in values.items()})

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Move the progress bar; where there is no terminal, print a line instead."""
        parts = " ".join(f"{k} {v:.3f}" for k, v in values.items() if k in ("loss", "heatmap", "wh", "offset"))
        text = f"{parts} | {values['images_per_s']:.1f} img/s, data wait {100 * values['data_wait']:.0f}%"
        if self._live:
            self._bar.update(step - self._shown)
            self._bar.set_postfix_str(text, refresh=False)
        else:
            spent = time.monotonic() - self._begun
            left = spent / max(step - self._first, 1) * (self._total - step)
            print(f"step {step}/{self._total} {text}, ETA {_clock(left)}", flush=True)
        self._shown = step

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self._live:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        self._bar.close()
        self._file.close()
        self._events.close()

    def _event(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        )
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.  A last line cut off by a kill is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


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
