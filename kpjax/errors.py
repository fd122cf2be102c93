"""Errors that a user can fix.  The programs print the text and exit with code 2, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Its text is one line: what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A setting that cannot work.  Its text is one line that names the key and what to do."""


# Kinds of `DataError`, which `check-data` counts.
MALFORMED = "malformed entry"
DUPLICATE = "id that occurs twice"
UNKNOWN_IMAGE = "annotation of an image that is not listed"
UNKNOWN_CATEGORY = "annotation of a category that is not listed"
INCOMPLETE = "image without its label or calibration file"
MISSING = "image not found"
UNREADABLE = "unreadable image"
TRUNCATED = "truncated image"
WRONG_SIZE = "image of another size than annotated"
PASSING = "image that cannot be read at the moment"


class DataError(UserError):
    """Data that cannot be used.  Its text is one line that names the file or record and what to do.

    kind: one of the kinds above.
    """

    def __init__(self, text: str, kind: str = MALFORMED) -> None:
        super().__init__(text)
        self.kind = kind


def origins(error: BaseException) -> Iterator[BaseException]:
    """The error, then its cause (or context), and so on back to the first one."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's message on one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """ "; did you mean NEAREST?" for an error about `word`; "" where none of the choices resembles it."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""
