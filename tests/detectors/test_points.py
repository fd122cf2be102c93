"""Which models learn points of objects, and whose points they are."""

from __future__ import annotations

import pytest

from kpjax import detectors
from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.objects import PointSet
from tests import fakes

PLATE = PointSet(("top_left", "top_right", "bottom_right", "bottom_left"))


def test_models_say_whether_they_learn_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detectors.MODELS, "marker_points", fakes.build_points)
    assert detectors.learns_points("marker_points")
    for name in detectors.list_models():
        assert detectors.learns_points(name) == (name.endswith("_pose") or name == "marker_points")
    with pytest.raises(ConfigError, match="no model 'centernet_r81'"):
        detectors.learns_points("centernet_r81")


def test_the_points_are_the_datas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detectors.MODELS, "marker_points", fakes.build_points)
    config = Config(steps=1)
    assert detectors.from_config(config, 1, PLATE).points is None
    config.model.name = "marker_points"
    assert detectors.from_config(config, 1, PLATE).points == PLATE
    assert detectors.from_config(config, 1).points == fakes.POINTS
