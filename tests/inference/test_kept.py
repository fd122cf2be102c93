"""Detections in a file are used again only where they are of the same weights, split and settings."""

from __future__ import annotations

import copy
import json
import pathlib

import numpy as np
import pytest

from kpjax.config import Config
from kpjax.inference.kept import keep_detections, kept_detections, made_of
from kpjax.inference.outputs import Evaluation
from tests import fakes

ITEMS = [(20, 30, [(9, 9, 6, 0)]), (50, 20, [(10, 12, 7, 1)])]
ROWS = [{"image_id": 100, "category_id": 3, "bbox": [3.0, 3.0, 12.0, 12.0], "score": 0.5}]
FOUND = Evaluation({}, "", {}, ROWS, images=2, skipped=1, seconds=3.5)


def test_detections_of_the_same(tmp_path: pathlib.Path) -> None:
    path, source, config = str(tmp_path / "detections.json"), fakes.marker_source(ITEMS), Config(steps=1)
    about = made_of(fakes.marker_detector(), fakes.variables(), config, source)
    assert kept_detections(path, about, "boxes") is None
    keep_detections(path, FOUND, about)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.about.json", "detections.json"]
    assert kept_detections(path, about, "boxes") == FOUND
    config.eval.every, config.eval.batch, config.optim.lr = 7, 3, 0.5  # change nothing of what is found
    assert made_of(fakes.marker_detector(), fakes.variables(), config, source) == about


def test_detections_of_another(tmp_path: pathlib.Path) -> None:
    path, source, config = str(tmp_path / "detections.json"), fakes.marker_source(ITEMS), Config(steps=1)
    detector, variables = fakes.marker_detector(), fakes.variables()
    keep_detections(path, FOUND, made_of(detector, variables, config, source))
    flipped = copy.deepcopy(config)
    flipped.eval.preset = "flip"
    for other in (
        made_of(detector, {"params": {"gain": np.full((), 0.5, np.float32)}}, config, source),
        made_of(detector, variables, flipped, source),
        made_of(detector, variables, config, fakes.marker_source(ITEMS[:1])),
        made_of(fakes.marker_detector(points=True), variables, config, source),
        made_of(detector, variables, config, source, ("wh",)),
    ):
        assert kept_detections(path, other, "boxes") is None


@pytest.mark.parametrize("name", ["detections.json", "detections.about.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', None])
def test_files_that_are_not_what_was_written(tmp_path: pathlib.Path, name: str, text: str | None) -> None:
    path, source = str(tmp_path / "detections.json"), fakes.marker_source(ITEMS)
    about = made_of(fakes.marker_detector(), fakes.variables(), Config(steps=1), source)
    keep_detections(path, FOUND, about)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    assert kept_detections(path, about, "boxes") is None


def test_other_detections_of_that_name(tmp_path: pathlib.Path) -> None:
    """A file that something else has written over is not taken for the first one."""
    path, source = str(tmp_path / "detections.json"), fakes.marker_source(ITEMS)
    about = made_of(fakes.marker_detector(), fakes.variables(), Config(steps=1), source)
    keep_detections(path, FOUND, about)
    (tmp_path / "detections.json").write_text(json.dumps([ROWS[0] | {"score": 0.9}]))
    assert kept_detections(path, about, "boxes") is None
