"""A figure as SVG inside a page: its colours follow the page's, and its letters are text."""

from __future__ import annotations

import html
import io
import re
from typing import Any

from kpjax.show.figures import GRID, INK, PAPER, SERIES, style

# The page's style sheet sets these variables, for light and for dark.
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    color: f"var(--series-{i})" for i, color in enumerate(SERIES)
}
_IDS = re.compile(r'(\bid="|url\(#|href="#)')


def as_svg(figure: Any, name: str, label: str) -> str:
    """The <svg> element of a figure, without a background.

    name: letters, digits and dashes, different for each figure of a page: its ids begin with it.  label: what a reader
    hears who does not see it.
    """
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)  # matplotlib repeats in them what labels say
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    rest = _IDS.sub(rf"\g<1>{name}-", rest)
    for color, variable in VARIABLES.items():
        rest = rest.replace(color, variable)
    # the widths that matplotlib computed are of other letters: the page's own
    rest = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", rest)
    shown = f'role="img" aria-label="{html.escape(label)}"'
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box[0]} {shown}>{rest.strip()}'
