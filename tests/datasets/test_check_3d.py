"""check-data on 3D boxes: types, depths and sizes counted, odd objects named, and cameras that do not fit found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kpjax
from kpjax.__main__ import main
from kpjax.config import Config, DataConfig
from kpjax.data.opening import open_source
from kpjax.data.source import REGION
from kpjax.datasets.check import NO_BOXES, NOT_JPEG, SplitReport, check_split
from kpjax.datasets.check_3d import AWAY, BEHIND, NO_CLASS, NO_SIZE, beyond_box, look_at_solids
from kpjax.errors import INCOMPLETE, MALFORMED, MISSING, UNREADABLE
from kpjax.objects import PointSet
from tests import fakes
from tests.kitti_folder import write_kitti

CARE = "DontCare -1 -1 -10 1 2 30 40 -1 -1 -1 -1000 -1000 -1000 -10"


def detector_of(classes: int, points: PointSet | None = None) -> kpjax.Detector:
    return kpjax.build("centernet_r18", classes)


def found(data: DataConfig, split: str = "train") -> tuple[dict[str, list[str]], SplitReport]:
    config = Config(steps=1, data=data)
    config.augment.height, config.augment.width = 96, 320
    report, _ = check_split(config, split, detector_of, progress=False)
    return {o.kind: o.cases for o in report.oddities}, report


def change(root: Path, frame: int, edit: Callable[[list[list[str]]], object], kind: str = "label_2") -> None:
    """Change the fields of a frame's lines."""
    path = root / "training" / kind / f"{frame:06d}.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(" ".join(row) + "\n" for row in rows))


def test_a_drawn_set_has_its_regions_only(tmp_path: Path) -> None:
    data, labels = write_kitti(tmp_path)
    cases, report = found(data)
    assert {kind: len(lines) for kind, lines in cases.items()} == {REGION: 6, NOT_JPEG: 3}
    assert "000000.png: annotation 4, Car, bbox" in cases[REGION][0] and ", all classes, bbox" in cases[REGION][1]
    solids = report.solids
    assert solids is not None and report.stop == "" and report.class_counts.tolist() == [3, 3, 3]
    assert solids.objects == {"Pedestrian": 3, "Car": 3, "Cyclist": 3} and solids.no_class == {}
    assert solids.regions == {"Van": 3, "DontCare": 3} and solids.cameras == 2 and solids.without == 0
    depths = np.concatenate([o.location[:3, 2] for o in labels[:3]])
    np.testing.assert_array_equal(np.sort(solids.depths), np.sort(depths))
    np.testing.assert_array_equal(solids.sizes["Car"], np.median([o.size[1] for o in labels[:3]], axis=0))
    text = "\n".join(solids.lines())
    assert "in 3D: 3 Pedestrian, 3 Car, 3 Cyclist\nregions to ignore: 3 DontCare, 3 Van\ndepth: least" in text
    assert f"least {depths.min():.1f} m, median {np.median(depths):.1f} m, most {depths.max():.1f} m" in text
    assert "different cameras: 2; images without an object: 0" in text and "calibrations" not in text


def test_odd_objects_are_counted_and_named(tmp_path: Path) -> None:
    data, _ = write_kitti(tmp_path, frames=8)

    def edit(rows: list[list[str]]) -> None:
        rows[0][13] = "-3.5"  # z of the Pedestrian
        rows[1][10] = "0"  # length of the Car
        rows[2][11] = "9.99"  # x of the Cyclist
        rows[3][11] = "99"  # of the Van, which is no object
        rows.append(["Tram", *rows[1][1:]])

    change(tmp_path, 0, edit)
    (tmp_path / "training" / "label_2" / "000001.txt").write_text(f"{CARE}\n")
    cases, report = found(data)
    counts = {kind: len(lines) for kind, lines in cases.items()}
    assert counts == {REGION: 11, NOT_JPEG: 6, NO_CLASS: 1, BEHIND: 1, NO_SIZE: 1, AWAY: 1, NO_BOXES: 1}
    assert cases[BEHIND][0].endswith("000000.png: object 1, Pedestrian, -3.5 m before it")
    assert "object 2, Car, height, width, length" in cases[NO_SIZE][0] and cases[NO_SIZE][0].endswith(" 0 m")
    assert "object 3, Cyclist" in cases[AWAY][0] and "times its box's side beyond it" in cases[AWAY][0]
    assert cases[NO_CLASS][0].endswith("000000.png: object 6, Tram")
    solids = report.solids
    assert solids is not None and (solids.behind, solids.no_size, solids.away, solids.without) == (1, 1, 1, 1)
    assert solids.no_class == {"Tram": 1} and "left out, of no class: 1 Tram" in solids.lines()


@pytest.mark.parametrize("scale", [0.5, 1.6])
def test_cameras_that_are_not_those_of_the_images(tmp_path: Path, scale: float) -> None:
    data, _ = write_kitti(tmp_path, frames=8)

    def edit(rows: list[list[str]]) -> None:
        rows[2][1:9] = [f"{float(value) * scale:.12e}" for value in rows[2][1:9]]

    for frame in range(6):
        change(tmp_path, frame, edit, "calib")
    solids, cases = look_at_solids(open_source(data, "train", solid=None))
    assert solids is not None and solids.away == len(cases[AWAY]) > 9
    assert solids.lines()[-1].endswith("are the calibrations those of these images?")


def test_the_distance_from_a_box() -> None:
    camera = np.array([[100.0, 0, 50, 0], [0, 100, 40, 0], [0, 0, 1, 0]])
    location = np.array([[0.0, 1, 10], [2, 1, 10], [0, 1, -10], [-100, 1, 10]])
    size = np.full((4, 3), 2.0)  # the middle is a metre above the bottom: y is 0
    boxes = np.array([[40.0, 30, 60, 50]] * 3 + [[0, 30, 20, 50]])
    # Middles at x = 50 and 70, behind the camera, and left of the image, where the box is cut too.
    np.testing.assert_allclose(beyond_box(camera, location, size, boxes, 80, 100), [0, 0.5, 0, 0])
    assert not beyond_box(np.full((3, 4), np.nan), location, size, boxes, 80, 100).any()
    assert beyond_box(camera, location[:0], size[:0], boxes[:0], 80, 100).shape == (0,)


def test_sets_without_3d_have_no_such_report() -> None:
    assert look_at_solids(fakes.marker_source([(20, 30, [(9, 9, 6, 0)])])) == (None, {})


def test_all_mistakes_are_counted_and_the_first_is_what_training_says(tmp_path: Path) -> None:
    data, _ = write_kitti(tmp_path, frames=8)
    change(tmp_path, 0, lambda rows: [row.pop() for row in rows[:2]])
    for kind, frame in (("label_2", 1), ("calib", 2), ("calib", 3)):
        (tmp_path / "training" / kind / f"{frame:06d}.txt").unlink()
    (tmp_path / "training" / "image_2" / "000004.png").write_bytes(b"")
    (tmp_path / "training" / "image_2" / "000005.png").unlink()
    cases, report = found(data)
    counts = {kind: len(lines) for kind, lines in cases.items()}
    assert counts[MALFORMED] == 2 and counts[INCOMPLETE] == 3 and counts[MISSING] == 1 and report.stop
    assert sum(counts.get(kind, 0) for kind in (UNREADABLE, "truncated image")) == 1
    with pytest.raises(ValueError) as caught:
        open_source(data, "train")
    assert report.stop == str(caught.value) and report.solids is not None and report.solids.cameras == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_kitti(tmp_path / "kitti")
    recipe, out = str(Path(__file__).parents[2] / "configs" / "shapes_r18.py"), tmp_path / "out"
    line = ["check-data", "--config", recipe, "--out", str(out), "--config.data.source=kitti"]
    assert main([*line, f"--config.data.kitti_dir={tmp_path / 'kitti'}"]) == 0
    said = capsys.readouterr().out
    assert said.count("  in 3D: ") == 2 and "training would run" in said
    splits = json.loads((out / "report.json").read_text())["splits"]
    assert [split["solids"]["objects"]["Car"] for split in splits] == [3, 1]
    assert splits[0]["solids"]["depth"]["least"] > 0 and set(splits[0]["solids"]["median_size"]["Car"]) == {
        "height",
        "width",
        "length",
    }
    assert main([*line, f"--config.data.kitti_dir={tmp_path / 'kiti'}"]) == 2
    assert "kiti: no such folder; give KITTI's" in capsys.readouterr().err
    records = ["records", "--config", recipe, "--out", str(out), "--config.data.source=kitti"]
    assert main(records) == 2
    assert "3D boxes are not kept in records: train on the folder" in capsys.readouterr().err
