"""Keypoints from the network to every output, with a detector that finds the marked points (tests/fakes.py)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax import detectors
from kpjax.checkpoint.weights import load_inference, save_inference
from kpjax.commands import detect, flags
from kpjax.commands import evaluate as eval_program
from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.inference import evaluate as ev
from kpjax.inference.outputs import class_table, coco_rows
from kpjax.metrics.coco import KEYPOINT_STATS, STATS
from kpjax.objects import Detections, PointSet
from tests import fakes

# Objects of COCO's small, medium and large; one image without any.
ITEMS = [
    (40, 50, [(20, 19, 12, 0)]),
    (100, 90, [(45, 40, 30, 1), (8, 80, 5, 0)]),
    (31, 31, []),
    (130, 140, [(66, 61, 60, 0)]),
]
OTHER = PointSet(("top", "left_hand", "right_hand", "tail"))


def settings(**changes: Any) -> Config:
    config = Config(steps=1)
    config.model.name = "marker_points"
    config.eval.batch = 2
    for key, value in changes.items():
        setattr(config.eval, key, value)
    return config


def evaluate(source: Any, detector: Any = None, **changes: Any) -> ev.Evaluation:
    detector = detector or fakes.marker_detector(points=True)
    return ev.evaluate(detector, fakes.variables(), source, settings(**changes), progress=False)


def swapped() -> Any:
    """The detector, but its left hands are right hands."""
    detector = fakes.marker_detector(points=True)

    def decode(*arguments: Any, **options: Any) -> Detections:
        found = detector.decode(*arguments, **options)
        return dataclasses.replace(found, keypoints=found.keypoints[..., [0, 2, 1, 3], :])

    return dataclasses.replace(detector, decode=decode)


@pytest.mark.parametrize("preset", ["na", "flip"])
def test_perfect_keypoints_are_perfect(preset: str) -> None:
    result = evaluate(fakes.marker_source(ITEMS, points=fakes.POINTS), preset=preset)
    assert tuple(result.stats) == (*KEYPOINT_STATS, *(f"box_{name}" for name in STATS))
    assert result.stats == pytest.approx(dict.fromkeys(result.stats, 1.0))
    assert result.per_class == pytest.approx({"red": 1.0, "green": 1.0})
    assert class_table(result).splitlines()[1] == "red    1.000"
    assert result.in_short == "keypoints AP 1.000, AP50 1.000, boxes AP 1.000"
    lines = result.text.splitlines()
    assert lines[0] == "keypoints, by object keypoint similarity:" and lines[11] == "boxes, by IoU:"
    assert len(lines) == 24 and "maxDets= 20" in lines[1] and "maxDets=100" in lines[12]
    wanted = {
        (100 + 10 * i, (3, 8)[label], *(x + r * dx, y + r * dy))
        for i, (_, _, objects) in enumerate(ITEMS)
        for x, y, r, label in objects
        for dx, dy in fakes.PLACES.tolist()
    }
    found = [
        (row["image_id"], row["category_id"], *row["keypoints"][3 * j : 3 * j + 2])
        for row in result.detections
        for j in range(4)
    ]
    assert set(found) == wanted and len(found) == len(wanted)
    assert {row["keypoints"][k] for row in result.detections for k in (2, 5, 8, 11)} == {0.75}


def test_hands_that_are_exchanged_cost_keypoints_and_no_boxes() -> None:
    """Top and foot are right: an OKS of a half, which the first of ten thresholds takes."""
    source = fakes.marker_source(ITEMS, points=fakes.POINTS)
    result = evaluate(source, swapped())
    assert result.stats["AP"] == pytest.approx(0.1) and result.stats["box_AP"] == pytest.approx(1.0)
    wide = dataclasses.replace(source, points=dataclasses.replace(fakes.POINTS, sigmas=(1.0,) * 4))
    assert evaluate(wide, swapped()).stats["AP"] > 0.5, "the source's sigmas count"


def test_a_detector_of_boxes_is_measured_by_boxes() -> None:
    result = evaluate(fakes.marker_source(ITEMS), fakes.marker_detector())
    assert tuple(result.stats) == STATS and result.in_short == "AP 1.000, AP50 1.000"
    assert not any("keypoints" in row for row in result.detections)


def test_the_keypoints_have_to_be_the_detectors() -> None:
    for points, match in (
        (OTHER, r"the detector has 4 keypoints and markers lists 4, other ones \(foot, tail\); evaluate on"),
        (PointSet(fakes.POINTS.names[::-1]), r"other ones \(in another order\)"),
        (None, "marker_points finds 4 keypoints and markers was opened without"),
    ):
        with pytest.raises(ConfigError, match=match):
            evaluate(fakes.marker_source(ITEMS, points=points))
    assert evaluate(fakes.marker_source(ITEMS, annotated=False)).stats == {}


def test_rows_are_rounded() -> None:
    third = np.float32(100 / 3)
    found = Detections(
        boxes=np.full((1, 4), third),
        scores=np.array([1 / 3], np.float32),
        labels=np.array([1]),
        keypoints=np.array([[[third, 2.0, 1 / 3], [0.005, -3.14159, 0.99999]]], np.float32),
    )
    (row,) = coco_rows(found, 7, (3, 8))
    assert row["keypoints"] == [33.33, 2.0, 0.3333, 0.0, -3.14, 1.0]
    assert json.loads(json.dumps(row)) == row


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A split on disk with keypoints, and an inference checkpoint of the detector, whose model has a name."""
    monkeypatch.setitem(detectors.MODELS, "marker_points", fakes.build_points)
    source = fakes.marker_source(ITEMS, points=fakes.POINTS)
    truth = source.ground_truth()
    (tmp_path / "images").mkdir()
    for i, entry in enumerate(truth["images"]):
        (tmp_path / "images" / entry["file_name"]).write_bytes(source.read(i))
    (tmp_path / "val.json").write_text(json.dumps(truth))
    config = settings()
    config.data.val.images, config.data.val.annotations = str(tmp_path / "images"), str(tmp_path / "val.json")
    detector = detectors.from_config(config, 2, fakes.POINTS)
    save_inference(str(tmp_path / "model"), detector, fakes.variables() | {"batch_stats": {}}, fakes.CLASSES, config)
    return tmp_path


def run_eval(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["eval.py", "--checkpoint", str(folder / "model"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        flags.run(eval_program.main, eval_program.define)
    return stopped.value.code


def test_a_checkpoint_knows_its_keypoints(folder: pathlib.Path) -> None:
    loaded = load_inference(str(folder / "model"))
    assert loaded.detector.points == fakes.POINTS and loaded.detector.metric == "keypoints"


def test_eval_program(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    plots, shown = folder / "plots", folder / "shown"
    assert run_eval(folder, monkeypatch, "--plots", str(plots), "--show-dir", str(shown), "--per-class") == 0
    said = capsys.readouterr().out
    assert "keypoints, by object keypoint similarity:\n Average Precision" in said and "boxes, by IoU:\n" in said
    rows = json.loads((folder / "detections.json").read_text())
    assert len(rows) == 4 and all(len(row["keypoints"]) == 12 for row in rows)
    curves = {"precision_recall.png", "precision_recall_classes.png"}
    of_keypoints = {f"keypoints_{name}" for name in (*curves, "correct.png")}
    assert {path.name for path in plots.iterdir()} == curves | {"confusion_matrix.png"} | of_keypoints
    with Image.open(shown / "130.jpg") as picture:
        factor = picture.size[0] // 140
        drawn = np.asarray(picture).max(-1)
    line = drawn[factor * 61, factor * 20 : factor * 110]  # from hand to hand, in the middle of the box
    assert line.min() > 50, "an edge between two keypoints is drawn"


def test_eval_program_with_other_keypoints(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    truth = json.loads((folder / "val.json").read_text())
    other = json.loads(json.dumps(truth))
    for category in other["categories"]:
        category["keypoints"][3] = "tail"
    without = json.loads(json.dumps(truth))
    for category in without["categories"]:
        del category["keypoints"]
    for instances, match in ((other, "other ones (foot, tail)"), (without, "no category has 'keypoints'")):
        (folder / "val.json").write_text(json.dumps(instances))
        assert run_eval(folder, monkeypatch) == 2
        error = capsys.readouterr().err
        assert match in error and error.startswith("error: ") and error.count("\n") == 1


def test_sigmas_are_the_settings_and_the_mirror_the_checkpoints(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen = []
    monkeypatch.setattr("kpjax.metrics.coco.oks_sigmas", lambda points: seen.append(points) or np.full(4, 0.5))
    (folder / "config.py").write_text(
        "from kpjax.config import Config\n\n\ndef get_config():\n    config = Config(steps=1)\n"
        "    config.model.name, config.eval.preset = 'marker_points', 'flip'\n"
        "    config.data.sigmas, config.data.mirror_pairs = (0.1, 0.2, 0.3, 0.4), 'none'\n"
        f"    config.data.val.images, config.data.val.annotations = {str(folder / 'images')!r}, "
        f"{str(folder / 'val.json')!r}\n    return config\n"
    )
    assert run_eval(folder, monkeypatch, "--config", str(folder / "config.py")) == 0
    assert {points.sigmas for points in seen} == {(0.1, 0.2, 0.3, 0.4)}
    assert "Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= 20 ] = 1.000" in capsys.readouterr().out


def test_predictor_and_detect(folder: pathlib.Path) -> None:
    predictor = kpjax.load(folder / "model")
    image = fakes.picture(*ITEMS[1])
    found = predictor(image)
    assert isinstance(found, Detections) and found.keypoints.shape == (2, 4, 3)
    out = folder / "out"
    photo = folder / "photo.png"
    photo.write_bytes(fakes.png(image))
    assert detect.main([str(photo), "--checkpoint", str(folder / "model"), "--out", str(out)]) == 0
    written = json.loads((out / "detections.json").read_text())
    assert written["keypoint_names"] == ["top", "left_hand", "right_hand", "foot"]
    given = {row["label"]: row["keypoints"] for row in written["images"][0]["detections"]}
    assert given[1] == [[45 + 30 * dx, 40 + 30 * dy, 0.75] for dx, dy in fakes.PLACES.tolist()]
    assert given[0] == [[8 + 5 * dx, 80 + 5 * dy, 0.75] for dx, dy in fakes.PLACES.tolist()]
