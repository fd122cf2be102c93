"""What a program settles before JAX and TensorFlow start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from kpjax.config import Config, ConfigError


def quiet_tensorflow() -> None:
    """Keep TensorFlow's start-up lines off the terminal.  It only decodes images here: oneDNN changes nothing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def keep_compiled() -> None:
    """Keep compiled programs between runs, so that a resumed run starts at once.

    In ~/.cache/kpjax/compiled-PROCESSOR (it may be deleted at any time), or where JAX_COMPILATION_CACHE_DIR
    says; JAX_ENABLE_COMPILATION_CACHE=false turns it off.  All of them, however quickly they were compiled (JAX leaves
    out what took less than a second): a second run compiles nothing.
    """
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kpjax")
    # A home shared by unlike machines: a program compiled for one may use instructions that another has not.
    cache = os.path.join(cache, f"compiled-{_processor()}")
    try:
        os.makedirs(cache, exist_ok=True)
    except OSError:  # no home directory to write to: compile each time
        return
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", cache)


def _processor() -> str:
    """Eight hex digits that differ where the processor's instructions do."""
    features = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        pass
    text = f"{platform.machine()} {features or platform.processor()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_deterministic(config: Config) -> None:
    """With config.deterministic: XLA uses repeatable GPU operations only.  Has to come before the first array.

    Raises ConfigError where XLA_FLAGS asks for the opposite.
    """
    # It implies exclude_nondeterministic_ops, and also keeps autotuning from choosing another algorithm each run.
    flag, given = "--xla_gpu_deterministic_ops", os.environ.get("XLA_FLAGS", "")
    if not config.deterministic:
        return
    if f"{flag}=false" in given:
        raise ConfigError(f"config.deterministic is set, but the environment's XLA_FLAGS say {flag}=false; remove one")
    if flag not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}=true".strip()


@contextlib.contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """A block with nothing to save: SIGTERM ends the program with 0, at once.

    Python's own handlers would wait for the compiler, which can take longer than the grace time; a thread does not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGTERM:
                print("stopped by SIGTERM before training began; the same command goes on from here", flush=True)
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

    name: the signal that came.
    """

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._interrupt = False
        self._old: dict[int, Any] = {}

    def interrupting(self) -> _Interrupting:
        """A block of work that may be dropped: a signal raises `Stopped` out of it, at once."""
        return _Interrupting(self)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name
        if self._interrupt:
            self._interrupt = False
            raise Stopped

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class _Interrupting:
    def __init__(self, stop: StopSignal):
        self._stop = stop

    def __enter__(self) -> None:
        self._stop._interrupt = True
        if self._stop.asked:
            self._stop._interrupt = False
            raise Stopped

    def __exit__(self, *_: Any) -> None:
        self._stop._interrupt = False
