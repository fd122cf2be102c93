"""What ExtremeNet needs of data: outlines, of which check-data looks at the extreme points."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from kpjax.__main__ import main
from kpjax.errors import ConfigError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.training.run import run

from .methods import METHODS, config_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("shapes")
    METHODS["extreme"].write(folder)
    return folder


def test_data_without_outlines_stop_the_run(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(folder)
    path = pathlib.Path(config.data.train.annotations)
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        del row["segmentation"]
    config.data.train.annotations = str(tmp_path / "boxes.json")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"boxes\.json has no object with an outline"):
        run(config, str(tmp_path / "run"))


def test_checking_the_data_looks_at_the_points(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    assert main(["check-data", "--config", str(folder / "config.py"), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())["splits"][0]
    assert set(report["keypoints"]["by_name"]) == set(EXTREME_POINTS.names)
    assert not any("keypoint" in oddity["kind"] for oddity in report["oddities"]), report["oddities"]
    assert "training would run" in capsys.readouterr().out
