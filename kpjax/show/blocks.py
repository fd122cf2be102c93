"""What a report's sections are made of: figures and tables, and numbers as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.show.svg import as_svg

_DASH = "–"


@dataclasses.dataclass(frozen=True)
class Figure:
    """svg: the element, as markup.  caption: text beneath it."""

    svg: Any
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """head: names of columns.  rows: cells, text or numbers (nan: none).  digits: behind the point of a float."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str | float | int, ...]]
    digits: int = 3


@dataclasses.dataclass(frozen=True)
class Section:
    """name: its anchor.  text: paragraphs, before the figures and the tables."""

    name: str
    title: str
    text: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


class Maker:
    """Makes figures of a page, each with ids of its own."""

    def __init__(self) -> None:
        self._count = 0

    def figure(self, drawn: Any, label: str, caption: str = "") -> Figure:
        """label: what a reader hears who does not see it.  caption: beneath it; "": the label."""
        import markupsafe

        self._count += 1
        return Figure(markupsafe.Markup(as_svg(drawn, f"f{self._count}", label)), caption or label)


def known(value: float) -> float:
    """COCO's -1 stands for none."""
    return float("nan") if value < 0 else value


def number(value: Any, digits: int = 3) -> str:
    """A cell as text: floats with so many digits behind the point, whole numbers with commas, a dash for nan."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    return _DASH if np.isnan(value) else f"{float(value):.{digits}f}"
