"""SIGTERM and Ctrl-C: when a run stops, and what it saves before."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kpjax.parallel import distributed
from kpjax.parallel.stopping import StopTogether


@contextlib.contextmanager
def leaving_on_sigterm(last: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A block with nothing to save: SIGTERM ends the program with 0, at once, after a call of `last`.

    Python's own handlers would wait for the compiler, which can take longer than the grace time; a thread does not.
    With several processes nothing happens here: all of them leave together, by `StopSignal`, once training begins.
    Within a `StopSignal` the signal is that one's from the end of this block on, without a moment between.
    """
    if distributed.connected() or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGTERM:
                print("stopped by SIGTERM before training began; the same command goes on from here", flush=True)
                with contextlib.suppress(Exception):
                    last()
                os._exit(0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(fd)
        writer.close()
        thread.join()
        reader.close()


class Stopped(BaseException):
    """Raised by a signal inside `StopSignal.interrupting`.  Not an Exception: nothing on the way may swallow it."""


class StopSignal:
    """Within the block, SIGINT and SIGTERM set `asked` instead of ending the program; a second SIGINT ends it.

    With several processes a signal to one is a signal to all: `reached` becomes true at the same call on each of them
    (kpjax.parallel.stopping), without a synchronisation a call.
    name: the signal that came.  begun: set by the caller once there is something to save; before, SIGINT ends the
    program at once.
    """

    def __init__(self) -> None:
        self.asked = self.begun = False
        self._together = StopTogether() if distributed.connected() else None
        self._passed_on = False  # a signal has gone to all processes
        self.name = ""
        self._raises = False  # within `interrupting`
        self._old: dict[int, Any] = {}

    def interrupting(self) -> _Interrupting:
        """A block of work that may be dropped: a signal raises `Stopped` out of it, at once."""
        return _Interrupting(self)

    def reached(self) -> bool:
        """Whether to stop here.  With several processes all have to ask, equally often."""
        if self._together and not self.asked:
            self.asked = self._together.reached()
            self.name = "SIGTERM or Ctrl-C"
        return self.asked

    def check(self) -> None:
        """Raise `Stopped` where `reached` is true."""
        if self.reached():
            raise Stopped

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and not self.begun:
            raise KeyboardInterrupt
        if self._together:
            if self._passed_on and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._passed_on = True
            self._together.ask()
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name
        if self._raises:
            self._raises = False
            raise Stopped

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        if self._together:
            self._together.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._together:
            self._together.close()
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one of C, which is lost


class _Interrupting:
    def __init__(self, stop: StopSignal):
        self._stop = stop

    def __enter__(self) -> None:
        self._stop._raises = True
        if self._stop.asked:
            self._stop._raises = False
            raise Stopped

    def __exit__(self, *_: Any) -> None:
        self._stop._raises = False
