"""Importing TensorFlow for the data pipeline: late, quietly, and off the accelerators."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from kpjax.errors import DataError

_IMPORTING = threading.Lock()
_GREETING = (b"oneDNN custom operations are on", b"All log messages before absl::InitializeLog() is called")
_FILTER = f"""
import sys
for line in sys.stdin.buffer:
    if not any(part in line for part in {_GREETING!r}):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """Filter from stderr the lines that TensorFlow prints while it is imported, at any log level.

    A child process passes all other lines on as they come, so that the reason of a crash, or of an exit by another
    thread, still reaches the terminal.
    """
    sys.stderr.flush()
    try:
        # -S -E: without site-packages and PYTHON* variables, it starts in some 20 ms.
        command = [sys.executable, "-S", "-E", "-c", _FILTER]
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
    except OSError:  # no child process could be started: the two lines are then seen
        yield
        return
    stderr = os.dup(2)
    assert child.stdin is not None
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process started meanwhile may hold the pipe open
            child.wait(1)


def import_tensorflow() -> Any:
    """TensorFlow, kept off the accelerators: it would take their memory from JAX, only to decode JPEG."""
    try:
        with _IMPORTING:
            first, level = "tensorflow" not in sys.modules, os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
            if first and level != "0":
                # TensorFlow raises its errors too, and logs a line for each broken JPEG. Only during the import:
                # JAX reads the variable too (and sets it to 1), and its errors are wanted.
                os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
            try:
                with _without_greeting() if first else contextlib.nullcontext():
                    import tensorflow as tf
            finally:
                if first:
                    os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
    except ImportError as error:
        raise DataError("the data pipeline needs TensorFlow; pip install tensorflow") from error
    for kind in ("GPU", "TPU"):
        # A program that uses TensorFlow itself may have initialised the devices already.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.set_visible_devices([], kind)
    return tf
