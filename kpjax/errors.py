"""Mistakes that a user can put right.  The programs print the text and exit with 2, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Its text is one line: what is wrong, where, and what to do."""
