"""Access to Orbax for all of kpjax: loading it, its errors as one line each, its logging and its time limit."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from kpjax.data import files
from kpjax.errors import UserError, origins
from kpjax.parallel import distributed


def load_orbax() -> Any:
    """Orbax's API v1."""
    from orbax.checkpoint import v1 as ocp

    return ocp


@functools.cache
def quiet_writing() -> None:
    """Silence what Orbax logs about a failed write, for the rest of this process.

    Its threads log each failure in full, several times, and then it raises the first one, which `plain_errors` turns
    into one line.  asyncio reports the other arrays' failures, Python those after the end of Orbax's event loop.  A
    process that only reads keeps its logging as it is.
    """
    logging.getLogger("absl").addFilter(_worth_saying)
    logging.getLogger("asyncio").addFilter(lambda record: not record.exc_info or "OCDBT" not in str(record.exc_info[1]))
    usual = sys.unraisablehook
    sys.unraisablehook = lambda found: None if str(found.exc_value) == "Event loop is closed" else usual(found)


def _worth_saying(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    raised = record.filename in ("future.py", "async_checkpointer.py", "checkpoint_manager.py")
    # kpjax.training.loop says once that a save waited for the one before.
    return not (record.exc_info and raised) and not str(record.msg).startswith("Waiting for previous save")


def call_on_failure(checkpointer: Any, action: Callable[[Exception], None]) -> None:
    """Call `action`, in Orbax's thread, with the error that kept this process from writing its part.

    Orbax raises it in the main thread only after a barrier, which the other processes reach when all have written;
    that times out after 20 minutes.  There is no option for this, so a method of its manager is wrapped.
    """
    manager = checkpointer._manager
    wait = manager._wait_for_checkpointers

    def wait_or_call() -> None:
        try:
            wait()
        except Exception as error:
            action(error)
            raise

    manager._wait_for_checkpointers = wait_or_call


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written.  Its text is one line."""


class DamagedCheckpoint(CheckpointError):
    """A step of a run that is on disk but not as it was written."""


def absolute(path: str) -> epath.Path:
    """Orbax refuses relative paths."""
    return epath.Path(files.absolute(path))


def write_text(path: epath.Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    part = path.parent / (path.name + ".part")  # through epath as Orbax does it, so that a bucket needs no TensorFlow
    with plain_errors(path):
        part.write_text(text)
        part.replace(path)


def on_host(tree: Any) -> Any:
    # NumPy leaves ask Orbax for host arrays: no device layout of the writer is needed.
    return jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def plain_error(error: BaseException, path: Any) -> CheckpointError | None:
    """What `plain_errors` raises in place of an error; None: the error itself is raised."""
    try:
        with plain_errors(path):
            raise error
    except CheckpointError as found:
        return found
    except BaseException:
        return None


class plain_errors:
    """Turn a refusal to write into one line; the checkpoints before stay as they are."""

    def __init__(self, path: Any):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, CheckpointError):
            return
        texts = "\n".join(str(one) for one in origins(error))
        if distributed.of_peers(error) and "DEADLINE_EXCEEDED" not in texts:
            return
        if isinstance(error, TimeoutError) and not error.errno:
            raise CheckpointError(
                f"{self.path} was not written in time (a slow disk, or a clock that was put forward); earlier "
                "checkpoints are intact, the same command goes on from there"
            ) from error
        # Orbax wraps the system's error, and TensorStore's errors are texts.
        numbers = [one.errno for one in origins(error) if isinstance(one, OSError) and one.errno]
        refused = [text for text in _REFUSALS if text.lower() in texts.lower()]
        reasons = [os.strerror(number) for number in numbers] or refused
        if reasons:
            text = f"{self.path} cannot be written: {reasons[0]}; earlier checkpoints are intact"
            raise CheckpointError(text) from error


def refuse_passing(error: Exception, path: epath.Path) -> None:
    """Raise where reading failed for lack of memory (`error` itself), permission or connection (CheckpointError).

    The checkpoint may be complete then, and must not count as damaged.
    """
    if any(isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one) for one in origins(error)):
        raise error
    numbers = {getattr(one, "errno", None) for one in origins(error)}
    if numbers & _PASSING_NUMBERS or any(word in str(error) for word in _PASSING_WORDS):
        raise CheckpointError(
            f"{path} cannot be read now ({first_line(error)}); it was left as it is, and the same command tries again"
        ) from error


def step_metadata(checkpointer: Any, step: int, folder: Any) -> Any:
    try:
        return checkpointer.checkpointables_metadata(step)
    except Exception as error:  # Orbax's readers raise many kinds for a damaged file
        refuse_passing(error, folder / str(step))
        raise DamagedCheckpoint(
            f"{folder / str(step)} cannot be read ({first_line(error)}); "
            "remove that folder to go on from the checkpoint before it"
        ) from error


_PASSING_NUMBERS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM}


_PASSING_WORDS = ("PERMISSION_DENIED", "Permission denied", "UNAVAILABLE", "DEADLINE_EXCEEDED")


_REFUSALS = tuple(
    os.strerror(e) for e in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
)


# Orbax measures its limit of 20 minutes for a write by the wall clock, so that setting the clock could end a save at
# once.  (Its limit of 10 minutes for making folders cannot be set; that takes milliseconds.)
WRITE_TIMEOUT = 10**9
