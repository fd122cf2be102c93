"""Pictures of errors: which are shown, and what is drawn."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from kpjax.data.source import Source
from kpjax.errors import DataError
from kpjax.metrics.findings import box_errors, findings
from kpjax.show.cases import FAINT, SIDE, Cases, worst_cases
from tests import fakes

# two images of 100 x 80; class 0 is category 3, class 1 category 8
ITEMS = [(80, 100, [(30, 30, 10, 0), (70, 50, 15, 1)]), (80, 100, [(50, 40, 20, 0), (20, 65, 6, 0)])]


def row(image: int, category: int, box: tuple[float, float, float], score: float) -> dict[str, Any]:
    x, y, half = box
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x - half, y - half, 2 * half, 2 * half],
        "score": score,
    }


ROWS = [
    row(100, 3, (30, 30, 10), 0.9),  # right
    row(100, 3, (70, 50, 15), 0.8),  # of the other class
    row(110, 3, (50, 40, 20), 0.7),  # right
    row(110, 8, (90, 10, 5), 0.65),  # of nothing
    row(110, 8, (91, 12, 5), 0.6),  # of nothing
    row(100, 8, (70, 50, 15), 0.05),  # right, with a low score
]


def cases(rows: list[dict[str, Any]], source: Source | None = None, most: int = 9) -> Cases:
    source = source or fakes.marker_source(ITEMS)
    truth, ids = source.ground_truth(), source.image_ids.tolist()
    found = findings(truth, rows, ids, dict(zip(source.category_ids, source.classes, strict=True)))
    return worst_cases(truth, rows, source, found, box_errors(truth, rows, ids, found), most=most)


def test_which_are_shown() -> None:
    low = [r | {"score": 0.7} if r["score"] == 0.65 else r for r in ROWS]
    # the best F1 is from 0.7 on: precision 2/4, recall 2/4; with all it would be 3/9 and 3/4
    found = cases([*low, *(row(110, 8, (91, 12 + n, 5), 0.1) for n in range(3))])
    assert found.totals == {"classification": 1, "background": 1, "missed": 1, FAINT: 1} and found.unreadable == 0
    one = {case.kind: case for case in found.shown}
    assert (one["classification"].name, one["classification"].other) == ("red", "green")
    assert one["classification"].score == 0.8 and one["classification"].overlap == 1
    assert one["background"].other == "" and one["background"].side == 10 and one["background"].image_id == 110
    assert one["missed"].name == "red" and one["missed"].side == 12 and np.isnan(one["missed"].score)
    assert one[FAINT].name == "green" and one[FAINT].score == 0.05


def test_each_kind_and_class_gets_its_turn() -> None:
    many = [*ROWS, *(row(110, 8, (90, 10 + n, 4), 0.9) for n in range(30)), row(110, 3, (85, 70, 4), 0.9)]
    found = cases(many, most=4)
    assert found.totals["background"] == 33 and len(found.shown) == 4
    background = [case.name for case in found.shown if case.kind == "background"]
    assert sorted(background) in (["green"], ["green", "red"]) and len({case.kind for case in found.shown}) == 3
    assert cases(many, most=0).shown == ()


def test_what_is_drawn() -> None:
    found = next(case for case in cases([ROWS[0], ROWS[1]]).shown if case.kind == "missed" and case.side == 40)
    with Image.open(io.BytesIO(found.jpeg)) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    assert max(picture.shape) == SIDE
    blue = (picture[..., 2] > 180) & (picture[..., 0] < 120)
    rows, columns = (np.flatnonzero(blue.sum(axis) > 60) for axis in (1, 0))  # thin lines are of other objects
    zoom = SIDE / 60  # the region is 1.5 times as wide as the object, which is 40 pixels wide
    assert abs((rows[-1] - rows[0]) / zoom - 40) < 3 and abs((columns[-1] - columns[0]) / zoom - 40) < 3


def test_images_that_cannot_be_read() -> None:
    source = fakes.marker_source(ITEMS)

    def read(index: int) -> bytes:
        if index:
            raise DataError("gone")
        return source.read(index)

    found = cases(ROWS, dataclasses.replace(source, read=read))
    assert found.unreadable == 1 and {case.image_id for case in found.shown} == {100}
