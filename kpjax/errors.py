"""Mistakes that a user can put right.  The programs print the text and exit with 2, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator


class UserError(ValueError):
    """Its text is one line: what is wrong, where, and what to do."""


def origins(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it came from, and so on back to the first."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
