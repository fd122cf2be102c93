"""Figures by matplotlib: curves, confusion matrices, bars and histograms, for files and for the report's page.

Each function returns a `Figure` in the colours of `INK`, `GRID` and `SERIES`; `kpjax.show.svg` lets them follow a
page's light and dark, `save_png` writes them as they are.  No figure changes matplotlib's state or needs a display.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kpjax.metrics.analysis import RECALLS
from kpjax.metrics.calibration import BINS, Reliability, f1_of

INK, GRID, PAPER = "#1e1e1f", "#d9d9dc", "#fefeff"
# Told apart by most kinds of colour vision, on white and on black.
SERIES = ("#2070b4", "#d9730d", "#2e8b57", "#b8408a", "#7a5bc7", "#0f8f9c", "#9a7b00", "#737378")
NAMED = 26  # lines that a legend has room for in a file; of more classes the lowest AP are named
NAME_LENGTH = 28  # letters of a class's name that a figure has room for
WRITTEN = 15  # classes up to which a confusion matrix has its counts written in
DEEPEST = 0.75  # opacity of a cell that has all of its row: ink is read on it in light and in dark
_DASHES = ("-", "--", ":", "-.")
Values = np.ndarray | Sequence[float]


@contextlib.contextmanager
def style(size: float = 10.0) -> Iterator[None]:
    """Around making and around saving a figure: the settings of all figures.  size: of letters, in points."""
    import matplotlib

    settings: Any = {
        **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": size},
        **{"text.parse_math": False, "text.usetex": False, "text.color": INK, "axes.titlesize": size},
        **{"axes.labelcolor": INK, "axes.edgecolor": INK, "axes.facecolor": "none", "axes.linewidth": 0.8},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.labelsize": size},
        **{"xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 0.9 * size, "ytick.labelsize": 0.9 * size},
        **{"grid.color": GRID, "grid.linewidth": 0.7, "lines.linewidth": 1.6, "legend.frameon": False},
        **{"legend.fontsize": 0.9 * size, "figure.facecolor": PAPER, "svg.fonttype": "none", "path.simplify": True},
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of names in other scripts
        yield


def save_png(path: str, figure: Any) -> None:
    """Write a figure as PNG.  Raises UserError, one line, where that fails."""
    from kpjax.inference.outputs import write_picture

    write_picture(path, as_array(figure))


def as_array(figure: Any) -> np.ndarray:
    """A figure as (H, W, 3) uint8 RGB."""
    from PIL import Image

    file = io.BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=110)
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def curves(
    series: Mapping[str, tuple[Values, Values]],
    x_label: str,
    y_label: str,
    title: str = "",
    *,
    size: tuple[float, float] = (5.0, 3.1),
    limits: tuple[float, float] | None = None,
    marked: Mapping[str, tuple[float, float]] | None = None,
    log: bool = False,
) -> Any:
    """Lines by name, each (x, y).  limits: of both axes' y.  marked: name -> a point of that line to mark.  log: y."""
    with style():
        figure, axes = _axes(size, title)
        for i, (name, (x, y)) in enumerate(series.items()):
            few = "." if len(x) < 30 else ""
            axes.plot(x, y, label=_short(name), color=_color(i), linestyle=_dash(i), marker=few)
            if marked and name in marked:
                axes.plot(*marked[name], marker="o", markersize=6, color=_color(i), fillstyle="none")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(True)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
        if limits:
            axes.set_ylim(*limits)
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=min(len(series), 3))
    return figure


def precision_recall(
    series: Mapping[str, np.ndarray], title: str = "", *, named: int = NAMED, page: bool = False
) -> Any:
    """Precision (101,) at the recalls 0 .. 1 by name, with a legend that states each mean.

    A curve that is nan throughout (nothing of its kind in the images) is not drawn but is in the legend.  named: how
    many the legend names; of more, those of the lowest AP.  page: narrow, with the legend below.
    """
    means = {name: float(np.mean(curve)) for name, curve in series.items()}
    chosen = list(series)
    if len(chosen) > named:
        chosen = sorted(chosen, key=lambda name: (np.isnan(means[name]), means[name]))[: named - 1]
    with style():
        figure, axes = _axes((5.0, 5.0) if page else (9.0, 5.4), title)
        for name in (*(n for n in series if n not in chosen), *chosen):
            if name in chosen:
                i = chosen.index(name)
                label = f"{'-' if np.isnan(means[name]) else f'{means[name]:.3f}'}  {_short(name)}"
                axes.plot(RECALLS, series[name], label=label, color=_color(i), linestyle=_dash(i))
            else:
                axes.plot(RECALLS, series[name], color=GRID, linewidth=0.7)
        if len(chosen) < len(series):
            axes.plot([], [], color=GRID, label=f"... and {len(series) - len(chosen)} of higher AP")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(True)
        if series:
            figure.legend(loc="outside lower center" if page else "outside right upper", ncols=2 if page else 1)
    return figure


def matrix(counts: np.ndarray, classes: Sequence[str], title: str = "", *, page: bool = False) -> Any:
    """A confusion matrix (K + 1, K + 1), see `kpjax.metrics.analysis.confusion_matrix`.

    Shades are parts of a row (of the objects of a class); few classes have their counts written in.
    """
    import matplotlib.colors

    count = len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    blue = matplotlib.colors.to_rgb(SERIES[0])
    image = np.concatenate([np.broadcast_to(blue, (count, count, 3)), DEEPEST * share[..., None]], axis=-1)
    side = min(5.0, 2.2 + 0.42 * count) if page else max(4.0, min(14.0, 2.2 + (0.5 if count <= 22 else 0.17) * count))
    step = 1 if not page or count <= 31 else -(-count // 30)  # names of all rows would be too small to read
    letters = 8.0 if count <= 22 else 6.0
    with style():
        figure, axes = _axes((side, side), title)
        axes.imshow(image, interpolation="none", aspect="equal")
        axes.set_xticks(range(0, count, step), [_short(n) for n in (*classes, "missed")][::step], rotation=90)
        axes.set_yticks(range(0, count, step), [_short(n) for n in (*classes, "nothing")][::step])
        axes.tick_params(labelsize=letters, length=2)
        axes.set(xlabel="detected as", ylabel="annotated as")
        axes.spines[["top", "right"]].set_visible(True)
        if count <= WRITTEN + 1:
            for i, j in zip(*np.nonzero(counts), strict=True):
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=letters)
    return figure


def bars(counts: Values, names: Sequence[str], title: str = "", unit: str = "", *, page: bool = False) -> Any:
    """A bar for each name, from left to right, its count above it.  unit: what the names are, written below them."""
    wide = 5.0 if page else max(4.0, min(30.0, 0.42 * len(names) + 1))
    letters = 9.0 if len(names) <= 12 or not page else 7.0
    turned = sum(map(len, names)) > (55 if page else 14 * wide)
    with style():
        figure, axes = _axes((wide, 3.1 if page else 4.2), title)
        drawn = axes.bar(range(len(names)), counts, color=SERIES[0], width=0.85)
        if len(names) <= 24 or not page:
            axes.bar_label(drawn, [_short_count(c) if c else "" for c in counts], fontsize=letters - 1, padding=2)
        axes.set_xticks(range(len(names)), [_short(n) for n in names], rotation=90 if turned else 0)
        axes.tick_params(axis="x", labelsize=letters, length=0)
        axes.set(xlabel=unit)
        axes.set_xlim(-0.6 if len(names) > 3 else -1.5, len(names) - (0.4 if len(names) > 3 else -0.5))
        axes.grid(True, axis="y")
        axes.set_ylim(bottom=0)
    return figure


def lying_bars(values: Mapping[str, float], x_label: str, title: str = "") -> Any:
    """A bar for each name, from top to bottom, with its value (two or three digits behind the point)."""
    with style():
        figure, axes = _axes((5.0, 0.9 + 0.3 * max(len(values), 2)), title)
        drawn = axes.barh(range(len(values)), list(values.values()), color=SERIES[0], height=0.7)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values.values()], padding=3, fontsize=9)
        axes.set_yticks(range(len(values)), [_short(name) for name in values])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set(xlabel=x_label)
        axes.margins(x=0.15)
        axes.grid(True, axis="x")
        axes.set_xlim(left=min(0.0, *values.values(), 0.0))
    return figure


def reliability(found: Reliability, title: str = "") -> Any:
    """The share of right detections by score, beside the line on which both are equal; how many above it."""
    edges, known = np.linspace(0, 1, BINS + 1), found.count > 0
    with style():
        figure, axes = _axes((5.0, 3.6), title)
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1, label="score = share of right ones", zorder=3)
        drawn = axes.bar(
            (edges[:-1] + edges[1:])[known] / 2, found.correct[known], 0.9 / BINS, color=SERIES[0], label="right, share"
        )
        axes.bar_label(drawn, [_short_count(c) for c in found.count[known]], fontsize=8, padding=2)
        axes.set(xlabel="score", ylabel="share of right detections", xlim=(0, 1), ylim=(0, 1.08))
        axes.grid(True)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def by_threshold(thresholds: np.ndarray, precision: np.ndarray, recall: np.ndarray, best: float) -> Any:
    """Precision, recall and F1 against the least score of a detection, the best F1 marked."""
    f1 = f1_of(precision, recall)
    series: dict[str, tuple[Values, Values]] = {
        "F1": (thresholds, f1),
        "precision": (thresholds, precision),
        "recall": (thresholds, recall),
    }
    at = None if np.isnan(best) else {"F1": (best, float(f1.max()))}
    return curves(series, "least score of a detection", "", size=(5.0, 3.6), limits=(0, 1.04), marked=at)


def histograms(values: Mapping[str, np.ndarray], edges: np.ndarray, unit: str, *, log: bool = False) -> Any:
    """Shares of the values by name, as steps.  edges: (n + 1,), the outermost bins take what lies outside.  log: x."""
    with style():
        figure, axes = _axes((5.0, 3.1), "")
        for i, (name, given) in enumerate(values.items()):
            counts = np.histogram(np.clip(given, edges[0], np.nextafter(edges[-1], 0)), edges)[0]
            share = 100 * counts / max(counts.sum(), 1)
            axes.stairs(share, edges, color=_color(i), fill=i == 0, alpha=0.45 if i == 0 else None, label=_short(name))
            if i == 0:
                axes.stairs(share, edges, color=_color(i))
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.locator_params(axis="x", integer=True)
        axes.set(xlabel=unit, ylabel="%")
        axes.grid(True)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _axes(size: tuple[float, float], title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if title:
        figure.suptitle(title, fontsize=10, wrap=True)
    return figure, axes


def _color(i: int) -> str:
    return SERIES[i % len(SERIES)]


def _dash(i: int) -> str:
    return _DASHES[i // len(SERIES) % len(_DASHES)]


def _short(name: str) -> str:
    """A name as a figure can hold it: one line of letters that can be shown, at most NAME_LENGTH."""
    name = " ".join(str(name).encode("utf-8", "backslashreplace").decode().split())
    name = "".join(letter if letter.isprintable() else "·" for letter in name)
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"


def _short_count(count: float) -> str:
    if count < 10_000:
        return f"{count:g}"
    return f"{count / 1e3:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"
