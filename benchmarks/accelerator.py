"""The first run on an accelerator: is kpjax right there, how fast is it, and what does PyTorch reach.

    python benchmarks/accelerator.py --json accelerator.json       within ten minutes; everything below
    python benchmarks/accelerator.py --minutes 30 --profile traces
    python benchmarks/accelerator.py --models centernet_r18 --batches 1 64 --no-heads --no-torch
    python benchmarks/accelerator.py --tiny                narrow networks at 64 pixels, also on a CPU: a check
    python benchmarks/accelerator.py --write-heads         on a CPU: write the values that heads are compared with

Needs this working tree, JAX, Flax and Optax; no installation of kpjax, no TensorFlow, no network; PyTorch for its
columns.  Three parts, each model's in a process of its own, so that none holds another's memory:

    heads    every network at precision "highest" against a CPU's values (accelerator_heads.py): pass or FAIL
    steps    five models at the size they were published with (512x512, corner methods 511x511), random weights,
             batches of 1, 16 and 64 images (--batches), until one does not fit the memory or the time
    torch    the same networks in PyTorch (torch_step.py says what its steps hold): as it is, with channels last, and
             compiled

Rows are printed, and --json written, as they come.  --minutes are divided over the parts; what there was no time for is
named, and a second run goes on faster, since compiled programs are kept.  The most important models come first.
Medians of rounds; a round starts --steps steps and waits for the last, so that the host's work is done beside the
device's.  Training is the whole step of train.py, its state donated; inference goes from uint8 canvases to detections.

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
    launches  kernels, copies and calls of libraries of one step, on GPUs, from the compiled program
    plan MiB  the step's memory by the compiler's account, as `python -m kpjax plan` gives it
    peak MiB  what the device's allocator held at most, where this step raised it

Of each kind's best batch follow the ten longest operations of one step (--profile DIR keeps the traces, --json the
operations of all; profile_step.py sums them by layer) and, for training, how much of a step in train.py's own loop
(batches from the host's memory, metrics read two steps late, its log) is not the step; not measured where JAX sees
more than one device.

Goals: HG-104 at 40% of matmul in training and 50% in inference; every model at 50% of its floor; decode under 3%; loop
under 2% (centernet_r18).  A goal missed is no error: the exit code is 0.  It is 1 where heads differ, or a part failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import accelerator_table

ROOT = pathlib.Path(__file__).parents[1]
HERE = ROOT / "benchmarks"
MODELS = ("centernet_r18", "centernet_dla34", "centernet_hg104", "cornernet_hg104", "triplet_hg104")
BATCHES = [1, 16, 64]
_HEADS_SHARE, _STEPS_SHARE = 0.2, 0.65  # of the time that is left, and of a model's
_LONGER = 120.0, 60.0  # seconds that kpjax's steps and PyTorch may take beyond their shares, when they compile
_LAST = 15.0  # seconds before the end: nothing is begun, and then what still runs is stopped


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; give a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="*", default=list(MODELS), help="whose steps are measured; none: heads alone")
    made.add_argument("--batches", nargs="+", type=positive, help="images a step (default: 1, 16, 64)")
    made.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    made.add_argument("--steps", type=positive, default=20, help="a round")
    made.add_argument("--rounds", type=positive, default=5)
    made.add_argument("--minutes", type=float, default=10, help="for all of it (default 10)")
    made.add_argument("--tiny", action="store_true", help="narrow networks at 64 pixels, on any device")
    made.add_argument("--cpu", action="store_true", help="measure a CPU all the same")
    made.add_argument("--no-heads", action="store_true", help="leave the heads out")
    made.add_argument("--heads", nargs="+", help="models whose heads are compared (default: all)")
    made.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    made.add_argument("--forms", nargs="+", help="of PyTorch: torch, torch-nhwc, compiled (default: all)")
    made.add_argument("--profile", help="a folder for traces")
    made.add_argument("--json", help="write the figures here")
    made.add_argument("--write-heads", action="store_true", help="write accelerator_heads.npz, on a CPU")
    # What a part is told by the command.
    made.add_argument("--part", choices=("device", "steps", "write"), help=argparse.SUPPRESS)
    made.add_argument("--seconds", type=float, default=float("inf"), help=argparse.SUPPRESS)
    made.add_argument("--rows", help=argparse.SUPPRESS)
    made.add_argument("--rates", nargs=2, type=float, help=argparse.SUPPRESS)
    return made


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a part, whatever became of it; of rows that were written again the last."""
    rows: dict[str, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(text)
        except ValueError:  # it was stopped as it wrote
            continue
        rows[" ".join(str(row.get(key)) for key in ("framework", "model", "kind", "batch"))] = row
    return list(rows.values())


@dataclasses.dataclass
class Command:
    """The whole run.  arguments: as given.  end: by `time.monotonic`.  failed: parts that did not do their work."""

    arguments: Sequence[str]
    args: argparse.Namespace
    end: float
    result: dict[str, Any]
    failed: list[str] = dataclasses.field(default_factory=list)

    def left(self) -> float:
        """Seconds in which something may be begun."""
        return self.end - _LAST - time.monotonic()

    def start(
        self, what: str, program: list[str], share: float, longer: float = float("inf")
    ) -> tuple[list[dict[str, Any]], int]:
        """Run a part in a process of its own for a share of the time that is left: its rows, and its exit code.

        longer: seconds after which it is stopped when its share is over; never later than the end.
        """
        seconds = share * self.left()
        if seconds <= 0:
            print(f"{what}: no time left", flush=True)
            return [], 0
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "rows"
            command = [sys.executable, *program, "--seconds", f"{seconds:.0f}", "--rows", str(path)]
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # kpjax need not be installed
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            timeout = min(self.end - time.monotonic(), seconds + longer)
            try:
                code = subprocess.run(command, env=environment, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                print(f"{what}: stopped, since the time is over", flush=True)
                code = 0
            rows = _read(path)
        if code and not (code == 2 and not self.result.get("rates")):  # 2 at the beginning: a mistake, told in a line
            print(f"{what}: failed, exit code {code}", flush=True)
            self.failed.append(what)
        return rows, code

    def part(
        self, name: str, what: str, share: float, *options: str, longer: float = float("inf")
    ) -> tuple[list[dict[str, Any]], int]:
        """Run a part of accelerator_part.py."""
        program = [str(HERE / "accelerator_part.py"), *self.arguments, "--part", name, *options]
        return self.start(what, program, share, longer)

    def keep(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add rows to the result, and write it."""
        self.result[name] += rows
        if self.args.json:
            pathlib.Path(self.args.json).write_text(json.dumps(self.result, indent=1), encoding="utf-8")

    def run(self) -> int:
        """All parts."""
        args = self.args
        found, code = self.part("device", "heads", 1.0 if not args.models else _HEADS_SHARE)
        if code == 2 or not found:
            return code or 1
        device, *heads = found
        self.result |= device
        self.keep("heads", heads)
        torch = "" if args.no_torch else _torch_missing()
        if torch:
            print(f"no columns of PyTorch: {torch}", flush=True)
        if args.models:
            print(accelerator_table.header(), flush=True)
        rates = [str(rate) for rate in device["rates"].values()]
        for number, name in enumerate(args.models):
            share = 1 / (len(args.models) - number)
            with_torch = not (args.no_torch or torch) and name in MODELS
            model_end = self.left() * (1 - share)  # what is left for the others
            options = ("--models", name, "--rates", *rates)
            of_model = _STEPS_SHARE if with_torch else 1.0
            rows, _ = self.part("steps", f"{name}, steps", share * of_model, *options, longer=_LONGER[0])
            self.keep("rows", rows)
            if with_torch:
                share = max(0.0, 1 - model_end / self.left()) if self.left() > 0 else 0.0
                rows, _ = self.start(f"{name}, PyTorch", self._torch_program(name, rows), share, _LONGER[1])
                self.keep("rows", rows)
        if self.result["rows"]:
            accelerator_table.summary(self.result["rows"])
        return 1 if self.failed else 0

    def _torch_program(self, name: str, rows: list[dict[str, Any]]) -> list[str]:
        """The command of torch_step.py with this one's options, and the batches that kpjax had."""
        args = self.args
        batches = sorted({row["batch"] for row in rows} or set(args.batches or BATCHES[:2]))
        program = [str(HERE / "torch_step.py"), "--model", name, "--dtype", args.dtype]
        program += ["--steps", str(args.steps), "--rounds", str(args.rounds), "--batches", *map(str, batches)]
        return program + ["--tiny"] * args.tiny + (["--forms", *args.forms] if args.forms else [])


def _torch_missing() -> str:
    """Why PyTorch cannot be measured; empty where it can."""
    return "" if importlib.util.find_spec("torch") else "torch is not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "part", "rows", "rates")}
    settings.pop("seconds")
    result: dict[str, Any] = {"benchmark": "accelerator", "settings": settings, "heads": [], "rows": []}
    if args.write_heads:
        return Command(arguments, args, float("inf"), result).part("write", "the heads' values", 1.0)[1]
    return Command(arguments, args, time.monotonic() + 60 * args.minutes, result).run()


if __name__ == "__main__":
    sys.exit(main())
