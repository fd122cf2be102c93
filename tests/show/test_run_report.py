"""Reports of work directories and checkpoints: what is evaluated, what is used again, what is missing."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint.weights import Loaded, save_inference
from kpjax.commands import evaluate as eval_program
from kpjax.commands import flags
from kpjax.config import Config
from kpjax.show.run_report import report_run
from tests import fakes
from tests.kitti_folder import write_kitti
from tests.show.report_subjects import cells, logged
from tests.tiny import OPTIONS, random_variables

ITEMS = [(20, 30, [(9, 9, 6, 0)]), (50, 20, [(10, 12, 7, 1), (8, 40, 5, 0)]), (31, 31, [])]
Report = Callable[..., tuple[list[str], str]]


@pytest.fixture
def workdir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A work directory whose newest checkpoint is the marker detector's, with its data on disk and a history."""
    source = fakes.marker_source(ITEMS)
    truth = source.ground_truth()
    (tmp_path / "images").mkdir()
    for i, entry in enumerate(truth["images"]):
        (tmp_path / "images" / entry["file_name"]).write_bytes(source.read(i))
    (tmp_path / "val.json").write_text(json.dumps(truth))
    config = Config(steps=800)
    config.eval.batch = 3
    for split in (config.data.train, config.data.val):
        split.images, split.annotations = str(tmp_path / "images"), str(tmp_path / "val.json")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    logged(tmp_path / "run")

    def load(path: str, best: bool) -> Loaded:
        return Loaded(fakes.marker_detector(), fakes.variables(), fakes.CLASSES, copy.deepcopy(config), 400)

    monkeypatch.setattr("kpjax.show.run_report.load_inference", load)
    monkeypatch.setattr("kpjax.checkpoint.weights.load_inference", load)
    return tmp_path / "run"


@pytest.fixture
def report(workdir: pathlib.Path) -> Report:
    def run(**options: object) -> tuple[list[str], str]:
        said: list[str] = []
        path = report_run(str(workdir), say=said.append, **options)  # type: ignore[arg-type]
        return said, pathlib.Path(path).read_text()

    return run


def test_detections_are_made_once(report: Report, workdir: pathlib.Path) -> None:
    said, text = report()
    assert [line.split()[0] for line in said] == ["evaluating", "evaluating"]
    assert said[0].startswith("evaluating  3 images") and "3 training images" in said[1]
    assert ">1.000</dd>" in text and "AP on 3 training images" in text and "What this report lacks" not in text
    assert "The run is at step 400 of 800" in text
    again, second = report(train_images=0)
    assert again == [
        f"detections  {workdir / 'report_detections.json'}, made of the same checkpoint, split and settings"
    ]
    assert ">1.000</dd>" in second and "training images</dt>" not in second


def test_detections_of_eval_are_used(report: Report, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_eval(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--workdir", str(workdir), *arguments])
        with pytest.raises(SystemExit) as stopped:
            flags.run(eval_program.main, eval_program.define)
        return int(stopped.value.code or 0)

    assert run_eval("--report", str(workdir / "page")) == 0
    text = (workdir / "page" / "report.html").read_text()
    assert ">1.000</dd>" in text and '<section id="run"' in text
    assert (workdir / "detections.json").is_file() and report(train_images=0)[0][0].startswith("detections  ")
    assert run_eval("--report", str(workdir), "--oracle", "heatmap") == 2
    assert run_eval("--preset", "flip") == 0
    assert report(train_images=0)[0][0].startswith("evaluating  3 images"), "those of another preset are not"


def test_what_is_missing_is_said(
    report: Report, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads((workdir.parent / "val.json").read_text())
    for entry in truth["images"]:
        (workdir.parent / "images" / entry["file_name"]).unlink()
    (workdir / "metrics.jsonl").unlink()
    said, text = report()
    assert [line.split("  ")[0] for line in said] == ["missing"] * 3
    assert said[0].startswith("missing     the split train: ") and said[1].startswith("missing     the split val: ")
    assert said[2].endswith("has no metrics.jsonl, so that there are no curves of the run")
    assert text.count("the split val: ") == 1 and '<section id="numbers"' not in text
    config = Config(steps=1)
    said, text = report(config=config)
    assert any("config.data.val names no validation split" in line for line in said)


def test_a_split_without_annotations(report: Report, workdir: pathlib.Path) -> None:
    path = workdir.parent / "val.json"
    truth = json.loads(path.read_text())
    del truth["annotations"]
    path.write_text(json.dumps(truth))
    said, text = report(oracle=True)
    assert len(said) == 1 and "has no annotations for these images" in text


def test_the_command(workdir: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = workdir / "new" / "page.html"
    assert main(["report", str(workdir), "--out", str(out), "--train-images", "0", "--oracle"]) == 0
    said = capsys.readouterr().out
    assert "there is no oracle" in said and f"report      {out} (" in said and out.is_file()
    assert main(["report", str(workdir), "--pictures", "-1"]) == 2
    assert capsys.readouterr().err == "error: --pictures is -1; give 0 or more\n"
    assert main(["report", str(workdir), "--out", str(workdir / "metrics.jsonl" / "x.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_work_directory(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such checkpoint or work directory\n"
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_inference_checkpoint_with_its_oracle(tmp_path: pathlib.Path) -> None:
    """Random weights find nothing; with all heads from the annotations everything is found."""
    detector = kpjax.build("centernet_r18", num_classes=2, **OPTIONS)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "0.png")
    truth = {
        "images": [{"id": 1, "file_name": "0.png", "height": 64, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [9, 9, 24, 30], "area": 720, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    config = Config(steps=1)
    config.eval.batch = len(jax.devices())
    config.data.val = dataclasses.replace(config.data.val, images=str(tmp_path), annotations=str(tmp_path / "val.json"))
    save_inference(str(tmp_path / "model"), detector, random_variables(detector.net, 64, 64), ("cat", "dog"), config)
    said: list[str] = []
    path = report_run(str(tmp_path / "model"), oracle=True, say=said.append)
    assert path == str(tmp_path / "report.html")
    assert [line for line in said if line.startswith("oracle")] == [
        *("oracle      none", "oracle      heatmap", "oracle      offset", "oracle      wh"),
        "oracle      heatmap, offset, wh",
    ]
    assert cells(pathlib.Path(path).read_text(), "all heads")[0] == "1.000"
    assert any("the split train" in line for line in said)


def test_boxes_in_3d(tmp_path: pathlib.Path) -> None:
    """KITTI's table is the evaluation's, and scenes are shown; random weights find boxes of any kind."""
    data, _ = write_kitti(tmp_path, frames=4, size=(32, 96))
    config = Config(steps=1, data=data)
    config.model.name, config.model.options = "centernet_r18_3d", dict(OPTIONS)
    config.augment.height, config.augment.width = 32, 96
    config.eval.batch, config.eval.resolution, config.eval.top_k = len(jax.devices()), "fixed", 20
    detector = kpjax.build("centernet_r18_3d", len(data.kitti_classes), **OPTIONS)
    variables = random_variables(detector.net, 32, 96)
    save_inference(str(tmp_path / "model"), detector, variables, data.kitti_classes, config)
    path = report_run(str(tmp_path / "model"), say=lambda line: None, train_images=0)
    text = pathlib.Path(path).read_text()
    assert "KITTI&#39;s AP, %" in text and len(cells(text, "Car")) == 8 and cells(text, "Car")[0] == "2d"
    assert text.count('<figure class="scene">') == 1 and '<section id="confusion"' in text
    assert '<section id="data"' in text and "the split val: " not in text
