"""Reading the inputs of detection: paths, folders, globs and arrays as one list, and images read ahead by threads."""

from __future__ import annotations

import glob
import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES, decode


class ReadAhead:
    """Inputs read by threads, at most `ahead` of them beyond those taken; they come out in the order given.

        with ReadAhead(paths, read, threads=4, ahead=8) as inputs:
            while (image := inputs.take()) is not inputs.END: ...

    The iterable runs in a thread of its own, so that a slow one (a camera, a queue) does not hold back what has been
    read.  Leaving the block ends the threads; one that is blocked in the iterable ends when that returns.
    """

    END: Any = object()  # what `take` returns after the last input

    def __init__(
        self, items: Iterable[Any], read: Callable[[int, Any], Any], *, threads: int = 0, ahead: int = 8
    ) -> None:
        """read: (number of the item, item) -> what `take` returns.  threads: 0: one for each core."""
        self._room = threading.Semaphore(ahead)
        self._ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._next: Future[Any] | None = None
        self._closed = False
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "kpjax-read")
        self._walker = threading.Thread(target=self._walk, args=(items, read), name="kpjax-inputs", daemon=True)
        if isinstance(items, list) and len(items) == 1:  # starting threads would take longer than most of the rest
            self._walk(items, read, at_once)
        else:
            self._walker.start()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed = True
        self._room.release()
        self._pool.shutdown(cancel_futures=True)
        if self._walker.is_alive():
            self._walker.join(timeout=1.0)

    def take(self, wait: bool = True) -> Any:
        """What `read` made of the next input, or END.  wait: False: None where it has not been read yet.

        Raises what `read` or the iterable raised.
        """
        if self._next is None:
            try:
                self._next = self._ready.get(block=wait)
            except queue.Empty:
                return None
        if not wait and not self._next.done():
            return None
        result = self._next.result()
        if result is not self.END:
            self._next = None
            self._room.release()
        return result

    def _walk(self, items: Iterable[Any], read: Callable[[int, Any], Any], submit: Any = None) -> None:
        submit, last = submit or self._pool.submit, Future[Any]()
        try:
            numbered = enumerate(items)
            while self._room.acquire() and not self._closed:
                item = next(numbered, None)
                if item is None or self._closed:
                    break
                self._ready.put(submit(read, *item))
                del item  # an image of it may be large
            last.set_result(self.END)
        except BaseException as error:  # raised again by `take`
            last.set_exception(error)
        self._ready.put(last)


def at_once(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """As `Executor.submit`, but the function is called now."""
    done: Future[Any] = Future()
    try:
        done.set_result(function(*arguments))
    except Exception as error:
        done.set_exception(error)
    return done


def read_image(path: str) -> np.ndarray:
    """An image file as HWC uint8 RGB, turned as its EXIF orientation says.  Raises DataError, one line."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    return decode(data, path, exif=True)


def list_inputs(inputs: Any, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[str | np.ndarray], bool]:
    """What `Predictor` accepts -> (paths and arrays, whether it was one image).

    Folders and globs inside a list are expanded in their place; a folder's images are the files with
    an image's suffix (one of `suffixes`) directly in it.  A path that does not exist is kept: reading it reports it.
    Raises DataError where a folder or glob holds no image.
    """
    array = as_array(inputs)
    if array is not None:
        return (list(array), False) if array.ndim == 4 else ([array], True)
    if not isinstance(inputs, (str, os.PathLike)):
        if not isinstance(inputs, Iterable):
            raise DataError(f"cannot detect in a {type(inputs).__name__}; give a path, an array or a list of these")
        return [item for each in inputs for item in list_inputs(each, suffixes)[0]], False
    path = os.fspath(inputs)
    if os.path.isdir(path):
        files = sorted(n for n in os.listdir(path) if n.lower().endswith(suffixes))
        if not files:
            raise DataError(f"{path}: no image in this folder ({', '.join(suffixes)})")
        return [os.path.join(path, name) for name in files], False
    if not os.path.exists(path) and glob.has_magic(path):
        matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        if not matches:
            raise DataError(f"{path}: no file matches")
        return list(matches), False
    return [path], True


def as_array(item: Any) -> np.ndarray | None:
    """NumPy's, JAX's and other arrays as NumPy's; None for anything else."""
    if isinstance(item, (str, os.PathLike)) or not hasattr(item, "__array__"):
        return None
    return np.asarray(item)


def check_array(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"{name}: an array must be HWC uint8 RGB, (H, W, 3); this is {image.shape} {image.dtype}")
    return image
