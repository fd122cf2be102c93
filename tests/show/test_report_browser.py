"""The report in a real browser: it renders without an error, filters and sorting work, nothing is fetched."""

from __future__ import annotations

import itertools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from kpjax.show.report import write_page
from tests.show.report_subjects import HOSTILE, logged, source_of, subject_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run")
    subject = subject_of(source_of(40), workdir=logged(folder))
    return pathlib.Path(write_page(str(folder / "report.html"), subject, most_pictures=40))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-component-update"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, report: pathlib.Path) -> Iterator[tuple[Any, list[str]]]:
    """The page, and what went wrong or was asked of the network."""
    page, odd = browser.new_page(viewport={"width": 1400, "height": 900}), []
    page.on("console", lambda message: odd.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: odd.append(f"error: {error}"))
    page.on("request", lambda request: odd.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(report.as_uri())
    yield page, odd
    page.close()


def shown(page: Any, key: str) -> list[str]:
    script = f"[...document.querySelectorAll('#cases li:not([hidden])')].map((item) => item.dataset.{key})"
    found: list[str] = page.evaluate(script)
    return found


def test_it_renders_and_fetches_nothing(opened: tuple[Any, list[str]], report: pathlib.Path) -> None:
    page, odd = opened
    assert odd == [report.as_uri()]
    assert page.locator("h1").inner_text() == report.parent.name
    assert page.locator("svg").count() > 10
    images = page.evaluate("Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))")
    assert len(images) == 40 and min(images) > 0
    assert page.evaluate("window.hurt") is None, "a class's name ran as a script"
    heads = page.locator("#classes tbody th").all_inner_texts()
    assert heads[0] == HOSTILE[0] and heads[1] == HOSTILE[1]
    unnamed = "[...document.querySelectorAll('svg, img, select, button')].filter((e) => !(e.ariaLabel || e.alt || "
    assert page.evaluate(unnamed + "e.labels?.length || e.textContent.trim()))") == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_filters_and_order(opened: tuple[Any, list[str]]) -> None:
    page, odd = opened
    everything = len(shown(page, "kind"))
    assert page.locator("#filters output").inner_text() == f"{everything} of {everything} pictures"
    page.locator("#filters select[name=kind]").select_option("localisation")
    assert set(shown(page, "kind")) == {"localisation"}
    count = len(shown(page, "kind"))
    assert page.locator("#filters output").inner_text() == f"{count} of {everything} pictures"
    page.locator("#filters select[name=name]").select_option(HOSTILE[0])
    assert 0 < len(shown(page, "kind")) < count
    assert all(HOSTILE[0] in pair for pair in zip(shown(page, "name"), shown(page, "other"), strict=True))
    page.locator("#filters select[name=kind]").select_option("")
    page.locator("#filters select[name=name]").select_option("")
    page.locator("#filters select[name=order]").select_option(index=1)
    scores = [float(score) for score in shown(page, "score")]
    assert scores == sorted(scores, reverse=True) and len(scores) == everything
    page.locator("#filters select[name=order]").select_option(index=4)
    sides = [float(side) for side in shown(page, "side")]
    assert sides == sorted(sides)
    assert len(odd) == 1


def test_tables_sort_by_keyboard(opened: tuple[Any, list[str]]) -> None:
    page, _ = opened
    head = page.locator("#losses table").first.locator("thead button").last
    head.focus()
    values = "[...document.querySelector('#losses table').tBodies[0].rows].map((r) => Number(r.cells[3].dataset.value))"
    page.keyboard.press("Enter")
    down = page.evaluate(values)
    assert down == sorted(down, reverse=True) and page.locator("#losses th[aria-sort=descending]").count() == 1
    page.keyboard.press("Enter")
    assert page.evaluate(values) == down[::-1] or page.evaluate(values) == sorted(down)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_can_be_read(browser: Any, report: pathlib.Path, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "no sideways scrolling of the page"
    colors = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, "
        "getComputedStyle(document.querySelector('svg text')).fill]"
    )
    paper, ink, letters = (sum(map(int, color[4:-1].split(","))) / 3 for color in colors)
    assert abs(paper - ink) > 150 and abs(paper - letters) > 150 and (paper > ink) == (scheme == "light")
    sizes = page.evaluate("[...document.querySelectorAll('.figures svg')].map((s) => s.getBoundingClientRect().width)")
    assert min(sizes) > min(300, width / 2) and max(sizes) < width
    page.close()


def test_it_prints(browser: Any, report: pathlib.Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator("#filters").is_visible() and not page.locator("nav").is_visible()
    assert len(page.pdf()) > 10_000
    page.close()
