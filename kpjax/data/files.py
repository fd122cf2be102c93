"""Reading and writing files: local ones through Python, URLs (`gs://`, ...) through TensorFlow.

Both raise OSError.  TensorFlow is imported for URLs only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

PAUSES = (0.1, 0.5, 2.0)  # seconds between the tries of reading a file
_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENFILE, errno.EMFILE, errno.ENOMEM),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}


def is_url(path: str) -> bool:
    """Whether TensorFlow has to open the path, e.g. gs://bucket/file."""
    return "://" in path


def absolute(path: str) -> str:
    """The absolute path; a URL without the slash at its end."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def join(folder: str, name: str) -> str:
    """A file in a folder."""
    return f"{folder}/{name}" if is_url(folder) else os.path.join(folder, name)


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    if not is_url(path):
        return os.path.isdir(path)
    with _system_errors(path) as tf:
        return tf.io.gfile.isdir(path)


def names_in(folder: str) -> list[str]:
    """The names of a folder's entries."""
    if not is_url(folder):
        return os.listdir(folder)
    with _system_errors(folder) as tf:
        return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]


def size_in_bytes(path: str) -> int:
    """The length of a file."""
    if not is_url(path):
        return os.path.getsize(path)
    with _system_errors(path) as tf:
        return int(tf.io.gfile.stat(path).length)


def modified(path: str) -> int:
    """When a file was last written, in nanoseconds."""
    if not is_url(path):
        return os.stat(path).st_mtime_ns
    with _system_errors(path) as tf:
        return int(tf.io.gfile.stat(path).mtime_nsec)


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes; it can be seeked."""
    if not is_url(path):
        with open(path, "rb") as file:
            yield file
        return
    with _system_errors(path) as tf, tf.io.gfile.GFile(path, "rb") as remote:
        yield remote


def read_bytes(path: str) -> bytes:
    """All of a file.  Reading is retried for some seconds after a transient error (`is_transient`)."""

    def read() -> bytes:
        with opened(path) as file:
            return file.read()

    return with_retries(read)


def is_transient(error: OSError) -> bool:
    """Whether the error may be gone a moment later: a disk or a network that did not answer."""
    return error.errno in _PASSING


def with_retries(read: Callable[[], bytes]) -> bytes:
    """What `read` returns, tried again after each of `PAUSES` seconds where its OSError is transient."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if not is_transient(error):
                raise
            time.sleep(pause)
    return read()


class Pieces:
    """Reads pieces of a few files, from any thread.

    Opening a file takes as long as reading an image from it, so that local files stay open after their first piece,
    unless there are very many: a process may often open only 1,024.

    paths: the files or URLs.
    """

    most_open = 300

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._stay = len(self.paths) <= self.most_open
        self._lock = threading.Lock()
        self._open: dict[int, IO[bytes]] = {}

    def read(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes of file `number` from `offset` on, fewer where it ends before.  Raises OSError."""
        path = self.paths[number]
        if is_url(path) or not self._stay:
            with opened(path) as file:
                file.seek(offset)
                return file.read(length)
        with self._lock:
            if number not in self._open:
                self._open[number] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed with this object)
            file = self._open[number]
        try:
            return os.pread(file.fileno(), length, offset)
        except OSError:
            # A file of a mount that was lost stays unreadable when the mount is back, unless it is opened again.
            with self._lock:
                self._open.pop(number, None)
            raise


def write_bytes(path: str, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing."""
    partial = f"{path}.{os.getpid()}.partial"
    if is_url(path):
        with _system_errors(path) as tf:
            with tf.io.gfile.GFile(partial, "wb") as remote:
                remote.write(data)
            tf.io.gfile.rename(partial, path, overwrite=True)
        return
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextlib.contextmanager
def _system_errors(path: str) -> Iterator[Any]:
    """TensorFlow, with its errors raised as OSError."""
    from kpjax.data.tensorflow import import_tensorflow

    tf = import_tensorflow()
    try:
        yield tf
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path) from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, in_words(error), path) from error


def in_words(error: BaseException) -> str:
    """The message of an error of TensorFlow or another library, as one short line without internal names."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:[^]]*\]( name: *$)?", "", getattr(error, "message", None) or str(error))
    text = " ".join(text.split()) or type(error).__name__
    unreachable = re.search(r"libcurl code \d+ meaning '(.*?)', error details:(?: (.*?))?(?: when reading .*)?$", text)
    return f"cannot be reached: {unreachable[2] or unreachable[1]}" if unreachable else text[:160]
