"""What a program settles before JAX and TensorFlow start."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import pkgutil
import platform
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.parallel import distributed


def quiet_tensorflow() -> None:
    """Keep TensorFlow's log off the terminal.

    oneDNN stays on, though it makes two lines more (see `kpjax.data.pipeline.import_tensorflow`): with it comes an
    allocator that keeps the batches' memory.  Without, the input pipeline has little more than half the speed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def escape_unprintable() -> None:
    """Print what the terminal's encoding lacks, such as a file's name that is not UTF-8, as an escape: no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr does so by itself
        sys.stdout.reconfigure(errors="backslashreplace")


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


def skip_absent_tpu() -> None:
    """Keep JAX from looking for a TPU where there is none, though libtpu is installed (the extra "plan").

    Else it would warn at every start.  Nothing changes where JAX_PLATFORMS is set, where something looks
    like a TPU, or where a plugin for another device than NVIDIA's is installed.  Has to come before the first array.
    """
    import jax

    if os.environ.get("JAX_PLATFORMS") or jax.config.values["jax_platforms"]:
        return
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")) or _may_have_tpu():
        return
    plugins = {name.split(".")[-1] for name in _jax_plugins()}
    if any("cuda" not in name for name in plugins):
        return
    gpu = plugins and any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))
    jax.config.update("jax_platforms", "cuda,cpu" if gpu else "cpu")


def _may_have_tpu() -> bool:
    """Whether this may be a TPU host: a device of Google's that is neither network nor disk, or a variable of its
    runtime."""
    if any(name in os.environ for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT")):
        return True
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return True
    for device in glob.glob("/sys/bus/pci/devices/*"):
        try:
            with (
                open(f"{device}/vendor", encoding="ascii") as vendor,
                open(f"{device}/class", encoding="ascii") as kind,
            ):
                if vendor.read().strip() == "0x1ae0" and not kind.read().startswith(("0x01", "0x02")):
                    return True
        except OSError:
            continue
    return False


def _jax_plugins() -> list[str]:
    """The modules of JAX's device plugins that are installed."""
    names = [point.value for point in importlib.metadata.entry_points(group="jax_plugins")]
    spec = importlib.util.find_spec("jax_plugins")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return names + [module.name for module in pkgutil.iter_modules(folders)]


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
    With several processes JAX keeps the signal for `StopSignal`, and all of them leave together once training begins.
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

    With several processes (kpjax.parallel.distributed) a signal to one is a signal to all: `reached` becomes true at
    the same call on each of them.  JAX catches SIGTERM there and spreads it, without a synchronisation a call.
    name: the signal that came.  begun: set by the caller once there is something to save; before, SIGINT ends the
    program at once.
    """

    def __init__(self) -> None:
        self.asked = self.begun = False
        self._many = distributed.connected()
        self._calls = 0
        self._passed_on = False  # one Ctrl-C has gone to all processes
        self.name = ""
        self._raises = False  # within `interrupting`
        self._old: dict[int, Any] = {}

    def interrupting(self) -> _Interrupting:
        """A block of work that may be dropped: a signal raises `Stopped` out of it, at once."""
        return _Interrupting(self)

    def reached(self) -> bool:
        """Whether to stop here.  With several processes all have to ask, equally often."""
        if self._many and not self.asked:
            from jax.experimental import multihost_utils

            self._calls += 1
            self.asked = multihost_utils.reached_preemption_sync_point(self._calls)
            self.name = "SIGTERM or Ctrl-C"
        return self.asked

    def check(self) -> None:
        """Raise `Stopped` where `reached` is true."""
        if self.reached():
            raise Stopped

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and not self.begun:
            raise KeyboardInterrupt
        if self._many:
            if self._passed_on:
                raise KeyboardInterrupt
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)  # JAX's handler
            return
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.name = True, signal.Signals(number).name
        if self._raises:
            self._raises = False
            raise Stopped

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


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
