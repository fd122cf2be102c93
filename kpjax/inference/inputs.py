"""Reading the inputs of detection: paths, folders, globs, arrays, Pillow's images and encoded files as one list.

`ReadAhead` reads them ahead of the device, in threads.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES, decode_stored, from_pillow, turned

_reading = threading.Lock()  # one list may hold an open file, or Pillow's image of one, twice


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


def read_image(item: Any, name: str, exif: bool = True) -> tuple[np.ndarray, int]:
    """One of the items of `list_inputs` as HWC uint8 RGB, and its EXIF orientation, 1..8.

    name: what an error calls it.  exif: turn it as that says.  Raises DataError, one line.
    """
    array = as_array(item)
    if array is not None:
        return check_array(array, name), 1
    if isinstance(item, Image.Image):
        with _reading:
            pixels, orientation = from_pillow(item, name)
    else:
        pixels, orientation = decode_stored(_encoded(item, name), name)
    return check_array(turned(pixels, orientation) if exif else pixels, name), orientation


def _encoded(item: Any, name: str) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    try:
        if isinstance(item, (str, os.PathLike)):
            with open(item, "rb") as file:
                return file.read()
        with _reading:
            item.seek(0)  # as Pillow does: what was written to it is often not yet rewound
            data = item.read()
    except OSError as error:
        raise DataError(f"{name}: {(error.strerror or str(error) or 'cannot be read').lower()}") from None
    except ValueError as error:  # of a closed one
        raise DataError(f"{name}: cannot be read ({error})") from None
    if not isinstance(data, bytes):
        raise DataError(f"{name}: the file was opened as text; open it as bytes, with mode 'rb'")
    return data


def name_of(index: int, item: Any) -> str:
    """What results and errors call item number `index`: its path, or `image 3`."""
    return os.fspath(item) if isinstance(item, (str, os.PathLike)) else f"image {index}"


def list_inputs(
    inputs: Any, suffixes: tuple[str, ...] = SUFFIXES, left_out: Counter[str] | None = None
) -> tuple[list[Any], bool]:
    """What `Predictor` accepts -> (paths, arrays, Pillow's images, encoded files; whether it was one image).

    Folders and globs inside a list are expanded in their place; a folder's images are the files with
    an image's suffix (one of `suffixes`) directly in it.  Brackets that are part of a name are taken as they stand.
    A path that does not exist is kept: reading it reports it.  left_out: counts, by suffix, a folder's other files.
    Raises DataError where a folder or glob holds no image, or where a pattern with brackets has two meanings.
    """
    array = as_array(inputs)
    if array is not None:
        return (list(array), False) if array.ndim == 4 else ([array], True)
    if _is_encoded(inputs):
        return [inputs], True
    if not isinstance(inputs, (str, os.PathLike)):
        if not isinstance(inputs, Iterable):
            raise DataError(
                f"cannot detect in a {type(inputs).__name__}; give a path, an array, an image of Pillow's, the bytes "
                "of a file, or a list of these"
            )
        return [item for each in inputs for item in list_inputs(each, suffixes, left_out)[0]], False
    path = os.fspath(inputs)
    if not path:
        raise DataError("the path of an input is empty; name an image, a folder or a pattern")
    if os.path.isdir(path):
        return _images_in(path, suffixes, left_out), False
    if not os.path.exists(path) and glob.has_magic(path):
        matches = _matches(path)
        if not matches:
            raise DataError(f"{path}: no file matches")
        return list(matches), False
    return [path], True


def in_words(left_out: Counter[str]) -> str:
    """What `list_inputs` left out, e.g. "3 files of other kinds left out: .txt 2, .heic 1"; "" for nothing."""
    count = left_out.total()
    kinds = ", ".join(f"{suffix or 'without a suffix'} {n}" for suffix, n in left_out.most_common())
    return f"{count} file{'s' if count > 1 else ''} of other kinds left out: {kinds}" if count else ""


def _is_encoded(item: Any) -> bool:
    """Whether an item is one image that is neither a path nor an array."""
    return isinstance(item, (Image.Image, bytes, bytearray, memoryview, io.IOBase)) or (
        hasattr(item, "read") and hasattr(item, "seek")
    )


def _images_in(folder: str, suffixes: tuple[str, ...], left_out: Counter[str] | None) -> list[str]:
    found, others = [], Counter[str]()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: {(error.strerror or 'cannot be read').lower()}") from None
    for entry in entries:
        if entry.name.lower().endswith(suffixes):
            found.append(os.path.join(folder, entry.name))
        elif not entry.name.startswith(".") and entry.is_file():  # .DS_Store and the like
            others[os.path.splitext(entry.name)[1].lower()] += 1
    if not found:
        more = f"; {in_words(others)}" if others else ""
        inner = [entry.name for entry in entries if entry.is_dir()]
        deeper = f"; for those of its folders ({', '.join(inner[:3])}) give '{folder}/*/*'" if inner else ""
        raise DataError(f"{folder}: no image in this folder ({', '.join(suffixes)}){more}{deeper}")
    if left_out is not None:
        left_out.update(others)
    return found


_MOST_READINGS = 16


def _matches(pattern: str) -> list[str]:
    """The files that a glob means, sorted.  Brackets may stand for one of several characters, or for themselves.

    Raises DataError where both are there.
    """
    parts = pattern.split(os.sep)
    ways = [(part, part.replace("[", "[[]")) if "[" in part else (part,) for part in parts]
    readings = itertools.islice(itertools.product(*ways), _MOST_READINGS)
    found: dict[str, list[str]] = {}
    for reading in map(os.sep.join, readings):
        files = sorted(path for path in glob.glob(reading, recursive=True) if os.path.isfile(path))
        if files and files not in found.values():
            found[reading] = files
    if len(found) > 1:
        (one, files), (other, others) = list(found.items())[:2]
        raise DataError(
            f"{pattern} can mean {files[0]} or, with brackets as part of a name, {others[0]}; write a bracket of a "
            f"name as [[], e.g. {other if '[[]' in other else one}, or rename one of them"
        )
    return next(iter(found.values()), [])


def as_array(item: Any) -> np.ndarray | None:
    """NumPy's, JAX's and other arrays as NumPy's; None for anything else."""
    if isinstance(item, (str, os.PathLike, Image.Image)) or not hasattr(item, "__array__"):  # some Pillow have it
        return None
    return np.asarray(item)


def check_array(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"{name}: an array must be HWC uint8 RGB, (H, W, 3); this is {image.shape} {image.dtype}")
    return image
