"""check-data on keypoints: every joint counted, odd ones named, and cells that joints share."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.__main__ import main
from kpjax.config import Config, DataConfig
from kpjax.data.opening import open_source
from kpjax.datasets import figures
from kpjax.datasets.check import check_split, count_collisions
from kpjax.datasets.check_points import NO_POINTS, OUTSIDE_BOX, OUTSIDE_IMAGE, look_at_points
from kpjax.datasets.puppet import JOINTS
from kpjax.objects import PointSet

NAMES = ["nose", "left_hand", "right_hand"]


def detector_of(classes: int, points: PointSet | None = None) -> kpjax.Detector:
    return kpjax.build("centernet_r18_pose", classes, points=points)


def with_keypoints(change: Callable[[list[dict]], object] = lambda annotations: None) -> Callable[[dict], None]:
    """Give the folder's nine objects three visible keypoints each, inside their boxes."""

    def edit(d: dict) -> None:
        for category in d["categories"]:
            category |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
        for a in d["annotations"]:
            x, y = a["bbox"][:2]
            a["keypoints"] = [x + 5, y + 1, 2, x + 9, y + 4, 2, x + 1, y + 4, 2]
        change(d["annotations"])

    return edit


def settings(data: DataConfig) -> Config:
    config = Config(steps=1, data=data)
    config.augment.height = config.augment.width = 64
    return config


def test_joints_are_counted_and_odd_ones_named(folder: Callable[..., DataConfig]) -> None:
    def change(a: list[dict]) -> None:
        a[0]["keypoints"][2] = 1  # hidden
        a[1]["keypoints"][:3] = [30, 3, 1]  # hidden and right of its box, which ends at 11.5
        a[2]["keypoints"][3:6] = [0, 0, 0]
        a[3]["keypoints"] = [0] * 9
        del a[4]["keypoints"]
        a[5]["keypoints"][3:6] = [1000, 4, 2]
        a[6]["iscrowd"] = 1
        a[6]["keypoints"] = [500, 500, 2] * 3  # a crowd: not learnt, not counted
        a[7]["keypoints"][:3] = [a[7]["bbox"][0] - 0.4, 4, 2]  # rounding

    data = folder(with_keypoints(change))
    report, _ = check_split(settings(data), "train", detector_of, keypoints=True, progress=False)
    points = report.points
    assert points is not None and points.names == tuple(NAMES) and len(points.of_object) == 8
    assert sorted(points.of_object.tolist()) == [0, 0, 2, 3, 3, 3, 3, 3] and points.without == 2
    assert points.labelled.tolist() == [6, 5, 6] and points.hidden.tolist() == [2, 0, 0]
    assert points.outside_box.tolist() == [1, 1, 0]
    cases = {o.kind: o.cases for o in report.oddities}
    assert len(cases[OUTSIDE_BOX]) == 2 and len(cases[OUTSIDE_IMAGE]) == 1 and len(cases[NO_POINTS]) == 2
    assert "annotation 21, seven, nose at (30, 3), bbox [1.5, 2.0, 10.0, 7.0]" in cases[OUTSIDE_BOX][0]
    assert "left_hand at (1000, 4)" in cases[OUTSIDE_IMAGE][0] and not any(o.stops for o in report.oddities)
    text = "\n".join(points.lines())
    assert "17 labelled, 71% of 3 an object, 2 of them hidden, 2 outside their box" in text
    assert "least 0, 10% have at most 0, median 3, most 3; 2 objects have none" in text
    stated = points.as_json()
    assert stated["objects_by_number"] == [2, 0, 1, 5] and stated["by_name"]["nose"]["outside_box"] == 1
    assert json.loads(json.dumps(stated)) == stated


def test_crowds_that_are_trained_on_count(folder: Callable[..., DataConfig]) -> None:
    source = open_source(folder(with_keypoints(lambda a: a[0].update(iscrowd=1))), "train", keypoints=True)
    both = [look_at_points(source, crowds)[0] for crowds in ("ignore", "train")]
    assert [len(report.of_object) for report in both if report] == [8, 9]


def test_a_model_of_boxes_has_no_report_of_joints(folder: Callable[..., DataConfig]) -> None:
    data = folder(with_keypoints())
    report, source = check_split(
        settings(data), "train", lambda classes, points: kpjax.build("centernet_r18", classes), progress=False
    )
    assert report.points is None and source.points is None and "joint" not in report.collisions
    assert not {OUTSIDE_BOX, OUTSIDE_IMAGE, NO_POINTS} & {o.kind for o in report.oddities}


def test_wrong_keypoints_stop_as_training_would(folder: Callable[..., DataConfig]) -> None:
    data = folder(with_keypoints(lambda a: a[2]["keypoints"].pop()))
    report, _ = check_split(settings(data), "train", detector_of, keypoints=True, progress=False)
    assert "keypoints of 8 numbers" in report.stop and report.oddities[0].stops


def test_joints_in_one_cell_against_counting_by_hand(folder: Callable[..., DataConfig]) -> None:
    rng = np.random.default_rng(0)

    def scatter(annotations: list[dict]) -> None:
        for a in annotations:
            xy, seen = rng.uniform(2, 9, (3, 2)), rng.choice([0, 1, 2], (3, 1), p=[0.2, 0.2, 0.6])
            a["keypoints"] = np.concatenate([xy, seen], 1).ravel().tolist()

    config = settings(folder(with_keypoints(scatter)))
    source = open_source(config.data, "train", keypoints=True)
    there = same = other = 0
    for objects, height, width in zip(source.objects, source.heights, source.widths, strict=True):
        scale, middle = 64 / max(height, width), np.array([width, height]) / 2
        cells: dict[tuple[int, ...], list[int]] = {}
        for xy, seen in zip(objects.points, objects.seen, strict=True):
            for j in np.flatnonzero(seen):
                cell = tuple(np.floor(((xy[j] - middle) * scale + 32) / 4).astype(int).tolist())
                cells.setdefault(cell, []).append(int(j))
        there += sum(map(len, cells.values()))
        same += sum(len(found) - len(set(found)) for found in cells.values())
        other += sum(len(set(found)) - 1 for found in cells.values())
    found = count_collisions(source, config, detector_of(3, source.points))
    joint = found["joint"]
    assert (joint.objects, joint.same_class, joint.other_class) == (there, same, other)
    assert same > 0 and other > 0 and set(found) == {"", "joint"}


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> str:
    out = tmp_path / "figures"
    figures.write(str(out), train=12, val=4, size=64)
    path = tmp_path / "recipe.py"
    path.write_text(
        "from kpjax.config import Config, DataConfig, SplitConfig\n"
        "def get_config():\n"
        + "".join(
            f"    {s} = SplitConfig({str(out / s)!r}, {str(out / 'annotations' / f'instances_{s}.json')!r})\n"
            for s in ("train", "val")
        )
        + "    config = Config(steps=1, data=DataConfig(train=train, val=val, canvas=64))\n"
        "    config.model.name = 'centernet_r18_pose'\n"
        "    config.augment.height = config.augment.width = 64\n"
        "    return config\n"
    )
    return str(path)


def test_the_command_reports_joints(recipe: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["check-data", "--config", recipe, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("  keypoints: ") == 2 and said.count("  keypoints an object: ") == 2
    assert "joint: of " in said and "of another name" in said and "training would run" in said
    with Image.open(out / "train_keypoints.png") as picture:
        assert picture.size[0] > 20 * len(JOINTS)
    train, val = json.loads((out / "report.json").read_text())["splits"]
    content = json.loads((tmp_path / "figures" / "annotations" / "instances_train.json").read_text())
    assert train["keypoints"]["labelled"] == sum(a["num_keypoints"] for a in content["annotations"])
    hidden = sum(v == 1 for a in content["annotations"] for v in a["keypoints"][2::3])
    assert train["keypoints"]["hidden"] == hidden and list(val["keypoints"]["by_name"]) == list(JOINTS)
    assert main(["check-data", "--config", recipe, "--out", str(out), "--config.model.name=centernet_r18"]) == 0
    assert "keypoints" not in capsys.readouterr().out.replace("_keypoints", "")
    content["categories"][0]["keypoints"][0] = "nose"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert main(["check-data", "--config", recipe, "--out", str(out), f"--config.data.train.annotations={other}"]) == 2
    assert "other keypoints" in capsys.readouterr().err
    for annotation in content["annotations"]:
        annotation["keypoints"][2::3] = [0] * len(JOINTS)
    content["categories"][0]["keypoints"][0] = JOINTS[0]
    other.write_text(json.dumps(content))
    assert main(["check-data", "--config", recipe, "--out", str(out), f"--config.data.train.annotations={other}"]) == 2
    assert "no labelled keypoint to train on" in capsys.readouterr().err
