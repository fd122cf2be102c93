"""The image files that a split lists: whether they are there, how large they are, and reading one."""

from __future__ import annotations

import posixpath

from kpjax.data import files
from kpjax.data.source import Mistake
from kpjax.data.spellings import Spellings, hint
from kpjax.errors import MISSING, PASSING, UNREADABLE, DataError
from kpjax.images.decode import size_of

_BEGINNING = 16384  # bytes that hold most headers


def require_images(folder: str, names: list[str], path: str, bad_images: str, mistake: Mistake) -> list[str]:
    """The names of the N images as the disk spells them.

    Calls `mistake` where images are missing; with `bad_images` "skip" only where all of them are.  A name that is not
    there stands for the one file that differs from it in spelling alone (see `Spellings`).

    folder: absolute path that the N names are relative to.  path: the file that lists them.
    One listing a folder instead of one look-up an image: seconds less on a network disk.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = posixpath.split(name)
        if parent not in there:
            try:
                there[parent] = set(files.names_in(files.join(folder, parent) if parent else folder))
            except OSError:
                there[parent] = set()
        if base not in there[parent]:
            missing.append(name)
    spellings = Spellings(folder)
    meant = spellings.meant(names, missing) if missing else {}
    missing = [name for name in missing if name not in meant]
    everything = len(missing) == len(names)  # no broken images, but the wrong folder
    if missing and (everything or bad_images == "stop"):
        more = f" and {len(missing) - 1} more of {len(names)}" if len(missing) > 1 else ""
        advice = "correct the folder" if everything else "or set config.data.bad_images='skip'"
        first, like = files.join(folder, missing[0]), hint(spellings.like(missing[0], set(names) | {*meant.values()}))
        mistake(DataError(f"{first}: image not found{more}; {path} lists it{like}; {advice}", MISSING))
    return [meant.get(name, name) for name in names]


def read_image(path: str) -> bytes:
    """An encoded image file.  Raises DataError where it cannot be read."""
    try:
        return files.read_bytes(path)
    except OSError as error:
        raise _unread(path, error) from error


def stored_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file's pixels, from its beginning.  Raises DataError where it states none."""

    def beginning() -> bytes:
        with files.opened(path) as file:
            return file.read(_BEGINNING)

    try:
        height, width, _ = size_of(files.with_retries(beginning), path)
    except OSError as error:
        raise _unread(path, error) from error
    except DataError:  # a long profile or preview may come first
        height, width, _ = size_of(read_image(path), path)
    return height, width


def _unread(path: str, error: OSError) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    kind = MISSING if missing else PASSING if files.is_transient(error) else UNREADABLE
    return DataError(f"{path}: cannot be read ({error.strerror})", kind)
