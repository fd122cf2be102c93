"""The README's program runs as it is printed, and the files it names are there."""

from __future__ import annotations

import pathlib
import re

import pytest

import kpjax

REPOSITORY = pathlib.Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def test_the_parts_from_other_jax_code() -> None:
    block = README.split("## The parts, from other JAX code")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["found"].boxes.shape == (1, 10, 4)
    assert float(names["loss"]) > 0 and set(names["parts"]) == {"heatmap", "wh", "offset"}


def test_models_are_listed() -> None:
    table = README.split("## Models")[1]
    written = set(re.findall(r"`((?:centernet|cornernet|triplet)_\w+)`|`(_r\d+)`", table))
    named = {full or f"centernet{short}" for full, short in written}
    assert set(kpjax.list_models()) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configs_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists() and not link.endswith(".jpg")]
    # the code that a page names, too
    missing += [name for name in re.findall(r"configs/\w+\.py", text) if not (REPOSITORY / name).exists()]
    missing += [
        name
        for name in re.findall(r"`((?:kpjax|tests|benchmarks)/[\w/]+\.py)`", text)
        if not (REPOSITORY / name).exists()
    ]
    assert not missing
