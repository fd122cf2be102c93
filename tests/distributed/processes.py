"""Programs of several processes on this machine, one CPU device each, with time limits on everything."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from tests.programs import environment

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 600.0  # seconds within which everything has to happen, on a busy machine too
SILENCE = 60  # seconds without a sign of life after which a process counts as gone (gloo notices at once)


_CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch={batch}, steps={steps}, log_every=1)
    config.model.name = "two_layers"
    config.data.canvas = 64
    config.data.max_boxes = 8
    config.data.threads = 1
    config.data.train.images = {folder!r} + "/train"
    config.data.train.annotations = {folder!r} + "/annotations/instances_train.json"
    config.augment.kind = "none"
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 64
{more}    return config
"""


def write_config(folder: pathlib.Path, batch: int, steps: int, *more: str) -> None:
    """FOLDER/config.py: `tests.distributed.program`'s two layers on the training images of FOLDER.

    more: further lines, e.g. "config.checkpoint.every = 4".
    """
    lines = "".join(f"    {line}\n" for line in more)
    (folder / "config.py").write_text(_CONFIG.format(folder=str(folder), batch=batch, steps=steps, more=lines))


@dataclasses.dataclass(frozen=True)
class Ended:
    """code: as `subprocess` gives it, minus the signal's number where one ended it.  seconds: since `wait` began."""

    code: int
    out: list[str]
    err: list[str]
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err if line.startswith("error: ")]


class Processes:
    """The processes of one run, as a context: what is left of them at its end is killed.

    count: 1 starts a process without flags.  devices: virtual devices of each.  own: arguments of single processes.
    """

    def __init__(
        self,
        count: int,
        *arguments: str,
        devices: int = 1,
        own: dict[int, Sequence[str]] | None = None,
        program: Sequence[str] = ("-m", "tests.distributed.program"),
        **more: str,
    ):
        place: list[list[str]] = [[]]
        if count > 1:
            address = f"127.0.0.1:{free_port()}"
            common = ["--coordinator", address, "--num-processes", str(count), "--peer-timeout", str(SILENCE)]
            place = [[*common, "--process-id", str(i)] for i in range(count)]
        program_name, *rest = arguments
        commands = [
            [sys.executable, *program, program_name, *p, *rest, *(own or {}).get(i, ())] for i, p in enumerate(place)
        ]
        given = environment(devices) | {"PYTHONPATH": str(ROOT)} | more
        self._processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=given)
            for command in commands
        ]
        self._lines: list[tuple[list[str], list[str]]] = [([], []) for _ in commands]
        self._readers = [
            threading.Thread(target=keep_lines, args=(file, to), daemon=True)
            for process, kept in zip(self._processes, self._lines, strict=True)
            for file, to in ((process.stdout, kept[0]), (process.stderr, kept[1]))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def until(self, pattern: str, process: int = 0, matches: int = 1) -> None:
        """Wait for lines of a process's output that match."""
        limit = time.monotonic() + LIMIT
        while sum(bool(re.search(pattern, line)) for line in list(self._lines[process][0])) < matches:
            assert time.monotonic() < limit and self._processes[process].poll() is None, self._lines
            time.sleep(0.02)

    def send(self, number: signal.Signals, process: int) -> None:
        self._processes[process].send_signal(number)

    def wait(self, limit: float = LIMIT) -> list[Ended]:
        """Wait until all have ended by themselves."""
        begun, ended = time.monotonic(), []
        for process in self._processes:
            try:
                process.wait(max(0.1, begun + limit - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise AssertionError(f"still running after {limit} s: {self._lines}") from error
            ended.append(time.monotonic() - begun)
        for reader in self._readers:
            reader.join(10)
        pairs = zip(self._processes, self._lines, ended, strict=True)
        return [Ended(process.returncode, out, err, seconds) for process, (out, err), seconds in pairs]


def keep_lines(file: IO[str], kept: list[str]) -> None:
    """Keep lines as they come, without their ends."""
    for line in file:
        kept.append(line.rstrip("\n"))


def run(count: int, *arguments: str, **more) -> list[Ended]:
    """All processes to their end; every one has to end with 0."""
    with Processes(count, *arguments, **more) as processes:
        ended = processes.wait()
    assert [e.code for e in ended] == [0] * len(ended), ended
    return ended


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
