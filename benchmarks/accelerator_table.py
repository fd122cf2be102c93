"""The tables that accelerator.py prints: a line for each row of kpjax or PyTorch, and images a second side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = (
    *("batch", "ms", "spread", "images/s", "floor ms", "of floor", "of matmul", "decode"),
    *("launches", "plan MiB", "peak MiB"),
)


def header() -> str:
    """The table's first line."""
    return f"{'':40}" + "".join(f"{name:>10}" for name in COLUMNS)


def line(row: dict[str, Any]) -> str:
    """A line of the table: a row of kpjax or of PyTorch."""

    def percent(name: str) -> str:
        return f"{100 * row[name]:.1f}%" if row.get(name) is not None else "-"

    def number(name: str, scale: float, form: str) -> str:
        return f"{row[name] / scale:{form}}" if row.get(name) is not None else "-"

    cells = (
        *(f"{row['batch']}", number("seconds", 1e-3, ".2f"), percent("spread"), number("images_per_s", 1, ".1f")),
        *(number("floor_s", 1e-3, ".2f"), percent("of_floor"), percent("of_matmul"), percent("decode")),
        *(number("launches", 1, "d"), number("memory_bytes", 2**20, ".0f"), number("peak_bytes", 2**20, ".0f")),
    )
    return f"{row['model']:17}{row['kind']:11}{row['framework']:12}" + "".join(f"{cell:>10}" for cell in cells)


def summary(rows: Sequence[dict[str, Any]]) -> None:
    """Images a second at batch 1 and at the best: kpjax's, and those of PyTorch's fastest form."""
    print(
        "images/s                     " + "".join(f"{name:>30}" for name in ("batch 1: kpjax, PyTorch", "best batch"))
    )
    for model, kind in dict.fromkeys((row["model"], row["kind"]) for row in rows):
        cells = []
        for only in (1, None):
            for ours in (True, False):
                some = [row for row in rows if (row["model"], row["kind"]) == (model, kind)]
                some = [row for row in some if (row["framework"] == "kpjax") == ours and only in (None, row["batch"])]
                best = max(some, key=lambda row: row["images_per_s"], default=None)
                where = "" if only else f" ({best['batch']})" if best else ""
                cells.append(f"{best['images_per_s']:.1f}{where}" if best else "-")
        print(f"{model:18}{kind:11}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
