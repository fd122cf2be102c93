"""Figures show what they are given, as files and as SVG that follows a page's colours."""

from __future__ import annotations

import pathlib
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from kpjax.metrics.analysis import RECALLS
from kpjax.metrics.calibration import reliability
from kpjax.show import figures
from kpjax.show.svg import as_svg

HALF = np.where(RECALLS <= 0.5, 1.0, 0.0)
NONE = np.full(101, np.nan)


def legend(figure: object) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]  # type: ignore[attr-defined]


def test_curves_of_precision() -> None:
    figure = figures.precision_recall({"steps": HALF, "none": NONE}, "title")
    line = figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), RECALLS)
    np.testing.assert_array_equal(line.get_ydata(), HALF)
    assert legend(figure) == ["0.505  steps", "-  none"]
    many = {f"class {k}": HALF * k / 80 for k in range(80)}
    figure = figures.precision_recall(many, "many", named=12)
    said = legend(figure)
    assert len(figure.axes[0].lines) == 81 and len(said) == 12
    assert said[0] == "0.000  class 0" and said[10].endswith("class 10") and said[-1] == "... and 69 of higher AP"
    assert figures.as_array(figures.precision_recall({}, "none")).ndim == 3


def test_confusion_matrix() -> None:
    figure = figures.matrix(np.array([[3, 0, 1], [0, 0, 0], [0, 2, 0]]), ["red", "green"], "title")
    axes = figure.axes[0]
    shades = axes.images[0].get_array()[..., 3] / figures.DEEPEST
    np.testing.assert_allclose(shades, [[0.75, 0, 0.25], [0, 0, 0], [0, 1, 0]])
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["red", "green", "missed"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["red", "green", "nothing"]
    large = figures.matrix(np.eye(81, dtype=int), [f"class {k}" for k in range(80)], "title")
    assert not large.axes[0].texts and len(large.axes[0].get_xticklabels()) == 81


def test_bars() -> None:
    figure = figures.bars([0, 5, 10_000], ["a", "b", "c"], "title", "unit")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0, 5, 10_000]
    assert [text.get_text() for text in figure.axes[0].texts] == ["", "5", "10k"]
    assert figure.axes[0].get_xlabel() == "unit"


def test_reliability_and_histograms() -> None:
    found = reliability(np.array([0.95, 0.95, 0.1]), np.array([True, False, False]))
    axes = figures.reliability(found).axes[0]
    assert [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in axes.patches] == [
        (0.15, 0.0),
        (0.95, 0.5),
    ]
    steps = figures.histograms({"train": np.array([0.1, 5, 99]), "val": np.zeros(0)}, np.arange(4.0), "x").axes[0]
    np.testing.assert_allclose(steps.patches[0].get_data().values, [100 / 3, 0, 200 / 3])  # 5 and 99 are in the last
    np.testing.assert_allclose(steps.patches[-1].get_data().values, 0)


def test_names_are_text_and_nothing_else() -> None:
    """No mathematics, no markup, one line; letters that the font lacks are no warning."""
    name = "<script>alert(1)</script> $x^2$\n\"&'"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = as_svg(figures.bars([1, 2], [name, "犬"]), "f1", 'a "label" <b>')
    assert "<script" not in text and "犬" in text and "$x^2" not in text.split("&lt;script&gt;")[0]
    root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    labels = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert "<script>alert(1)</script> $…" in labels
    assert root.get("aria-label") == 'a "label" <b>' and root.get("role") == "img"


def test_names_that_no_file_can_hold() -> None:
    text = as_svg(figures.bars([1, 2], ["gr\udcfcn", "a\x00\x1bb"]), "f1", "gr\udcfcn")
    assert "gr\\udcfcn" in text and "a··b" in text


def test_svg_follows_the_page() -> None:
    text = as_svg(figures.curves({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "x", "y"), "f7", "lines")
    assert "var(--ink)" in text and "var(--grid)" in text and "var(--series-1)" in text
    assert figures.INK not in text and figures.SERIES[0] not in text and figures.PAPER not in text
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert ids and len(set(ids)) == len(ids) and all(i.startswith("f7-") for i in ids)
    uses = [part.split('"')[0] for part in text.split('href="')[1:]]
    assert uses and all(use.startswith("#f7-") and use[1:] in ids for use in uses)
    assert "http" not in text.replace("http://www.w3.org/1999/xlink", "")


@pytest.mark.parametrize("name", ["a.png", "b.jpg"])
def test_files(tmp_path: pathlib.Path, name: str) -> None:
    figures.save_png(str(tmp_path / name), figures.bars([1], ["a"], "title"))
    with Image.open(tmp_path / name) as picture:
        assert min(picture.size) > 100
        assert picture.convert("L").getextrema()[1] > 250
