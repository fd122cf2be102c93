"""Importing TensorFlow for the data pipeline: late, quietly, and off the accelerators."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

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


def element_reader(tf: Any, dataset: Any) -> Callable[[], list[np.ndarray]]:
    """Start the dataset, of flat tuples of tensors; each call gives its next element, as `as_numpy_iterator` does.

    The raw operations are called directly: `as_numpy_iterator` costs half as much again in Python, 10 us an image, on
    the cores that decode.
    """
    types, shapes = [spec.dtype for spec in dataset.element_spec], [spec.shape for spec in dataset.element_spec]
    iterator = tf.raw_ops.AnonymousIteratorV3(output_types=types, output_shapes=shapes)
    tf.raw_ops.MakeIterator(dataset=tf.data.experimental.to_variant(dataset), iterator=iterator)

    def following() -> list[np.ndarray]:
        tensors = tf.raw_ops.IteratorGetNext(iterator=iterator, output_types=types, output_shapes=shapes)
        return [np.asarray(memoryview(tensor)) for tensor in tensors]  # views of their memory, not copies

    return following
