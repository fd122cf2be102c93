"""3D boxes: evaluated by two processes, detected with the cameras of images, and what is refused."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kpjax
import kpjax.training.run
from detect import main as detect_main
from kpjax.checkpoint.weights import save_inference
from kpjax.config import Config
from kpjax.data.kitti_files import read_objects
from kpjax.data.opening import open_source
from kpjax.errors import ConfigError, DataError
from kpjax.metrics import kitti
from kpjax.training.run import run
from tests.distributed.processes import run as run_processes
from tests.kitti_folder import write_kitti
from tests.tiny import OPTIONS, random_variables

CLASSES = ("Pedestrian", "Car", "Cyclist")
CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=6)
    config.model.name = "centernet_r18_3d"
    config.model.options = {{"width": 8, "deconv": (8,), "head_channels": 8}}
    config.data.source = "kitti"
    config.data.kitti_dir = {folder!r}
    config.data.canvas = 96
    config.data.max_boxes = 8
    config.data.threads = 1
    config.augment.kind = "none"
    config.augment.flip = 0.0
    config.augment.color = config.augment.lighting = 0.0
    config.augment.height, config.augment.width = 32, 96
    config.checkpoint.every = 2
    config.eval.batch = 4
    config.eval.resolution = "fixed"
    config.eval.top_k = 20
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("kitti")
    write_kitti(folder, frames=16, size=(32, 96))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


def config_of(folder: pathlib.Path) -> Config:
    names: dict[str, Any] = {}
    exec(compile((folder / "config.py").read_text(), "config.py", "exec"), names)
    return names["get_config"]()


@pytest.fixture(scope="module")
def model(folder: pathlib.Path) -> pathlib.Path:
    """A checkpoint of random weights that finds 20 objects in each image."""
    detector = kpjax.build("centernet_r18_3d", len(CLASSES), **OPTIONS)
    variables = random_variables(detector.net, 32, 96)
    variables["params"]["heads"]["wh_out"]["bias"] += 8.0
    variables["params"]["heads"]["size3d_out"]["bias"] += 1.0
    variables["params"]["heads"]["depth_out"]["bias"] -= 2.5
    save_inference(str(folder / "model"), detector, variables, CLASSES, config_of(folder))
    return folder / "model"


@pytest.mark.slow
def test_two_processes_find_the_same(folder: pathlib.Path, model: pathlib.Path) -> None:
    rows = {}
    for count in (1, 2):
        out = folder / f"detections{count}.json"
        command = ["--config", str(folder / "config.py"), "--checkpoint", str(model), "--out", str(out)]
        first, *_ = run_processes(count, "eval.py", *command, "--config.eval.score_threshold=0.1")
        assert any(line.startswith("4 images in") for line in first.out), (first.out, first.err)
        assert any(line.startswith("Car ") and "3d" in line for line in first.out), first.out
        rows[count] = json.loads(out.read_text())
        # the result files hold what was measured
        results = [read_objects(str(p), results=True) for p in sorted((folder / f"detections{count}_kitti").iterdir())]
        assert [len(found) for found in results] == [20] * 4
        labels = open_source(config_of(folder).data, "val", solid=True).labels3d
        assert labels is not None
        stats = kitti.stats(kitti.evaluate_kitti(labels, results, CLASSES))
        assert set(stats) > {"AP"} and all(0 <= value <= 1 for value in stats.values() if not np.isnan(value))
    assert len(rows[1]) == len(rows[2]) == 4 * 20
    for a, b in zip(rows[1], rows[2], strict=True):
        assert a["image_id"] == b["image_id"]
        assert b["score"] == pytest.approx(a["score"], abs=2e-6)
        np.testing.assert_allclose(b["bbox"], a["bbox"], atol=2e-3)
        np.testing.assert_allclose(b["box3d"], a["box3d"], rtol=1e-3, atol=2e-3)
        assert b["alpha"] == pytest.approx(a["alpha"], abs=2e-3)


def detected(model: pathlib.Path, out: pathlib.Path, *more: str) -> dict[str, Any]:
    folder = model.parent / "training"
    images = [str(folder / "image_2" / f"00000{i}.png") for i in (0, 1)]
    command = ["--checkpoint", str(model), "--out", str(out), "--score-thr", "0.05", *more, *images]
    assert detect_main(command) == 0
    return json.loads((out / "detections.json").read_text())


def test_detect_with_the_cameras_of_the_images(model: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    calib = model.parent / "training" / "calib"
    plain = detected(model, tmp_path / "plain")
    assert "camera of KITTI's usual images" in capsys.readouterr().out
    of_folder = detected(model, tmp_path / "folder", "--calib", str(calib))
    assert "camera of KITTI's" not in capsys.readouterr().out
    alone = detected(model, tmp_path / "file", "--calib", str(calib / "000001.txt"))
    for result in (plain, of_folder, alone):
        assert [len(image["detections"]) for image in result["images"]] == [20, 20]
    first, second = (
        np.array([row["box3d"] for row in result["images"][1]["detections"]]) for result in (of_folder, alone)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)
    for result, other in ((plain, of_folder), (of_folder, alone)):
        boxes = [np.array([row["box3d"] for row in r["images"][0]["detections"]]) for r in (result, other)]
        assert np.abs(boxes[0] - boxes[1]).max() > 0.1
    picture = np.asarray(Image.open(tmp_path / "folder" / "000000.jpg"))
    assert picture.shape[0] > picture.shape[1] * 0.7  # the bird's-eye view below the image


def test_pictures_of_a_split(folder: pathlib.Path, model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    from kpjax.commands import evaluate as eval_program
    from kpjax.commands import flags

    command = ["eval.py", "--checkpoint", str(model), "--show-dir", str(tmp_path / "shown"), "--out"]
    argv = [*command, str(tmp_path / "found.json"), "--config", str(folder / "config.py"), "--oracle", "depth,rotation"]
    assert eval_program.main(flags.parse(argv, eval_program.define)) == 0
    assert len(list((tmp_path / "shown").iterdir())) == 4


# What is refused


def test_calibrations_that_do_not_fit(model: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    image = str(model.parent / "training" / "image_2" / "000000.png")
    (tmp_path / "bad.txt").write_text("1 0 0 0\n0 1 0 0\n")
    (tmp_path / "empty").mkdir()
    boxes = kpjax.build("centernet_r18", 3, **OPTIONS)
    save_inference(str(tmp_path / "boxes"), boxes, random_variables(boxes.net), CLASSES)
    for checkpoint, calib, words in (
        (model, tmp_path / "bad.txt", "give KITTI's calibration"),
        (model, tmp_path / "no.txt", "no such calibration file"),
        (model, tmp_path / "empty", "000000.txt: no such calibration file"),
        (tmp_path / "boxes", tmp_path / "bad.txt", "--calib is for models of 3D boxes"),
    ):
        command = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--calib", str(calib), image]
        assert detect_main(command) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and len(error.splitlines()) == 1, error


def test_data_without_3d_boxes(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = config_of(folder)
    config.data.source = "coco"
    config.data.train.images = str(folder / "training" / "image_2")
    config.data.train.annotations = str(tmp_path / "instances.json")
    instances = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Car"}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ConfigError, match=r"config\.data\.source is 'coco', whose objects have no 3D boxes"):
        run(config, str(tmp_path / "run"))


def test_a_detector_of_boxes_reads_kitti_too(folder: pathlib.Path) -> None:
    source = open_source(config_of(folder).data, "train")
    assert source.cameras is None and source.labels3d is None
    assert all(objects.solid is None for objects in source.objects)
    assert any((objects.role == 2).any() for objects in source.objects)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augment.kind": "crop"}, "learn no depth and no size"),
        ({"augment.kind": "shift"}, "shift_probability below 1"),
        ({"eval.resolution": "keep"}, r"set config\.eval\.resolution='fixed'"),
    ],
)
def test_settings_with_which_no_metres_are_learnt(
    folder: pathlib.Path, tmp_path: pathlib.Path, settings: dict[str, str], words: str
) -> None:
    config = config_of(folder)
    for key, value in settings.items():
        group, name = key.split(".")
        setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError, match=words):
        run(config, str(tmp_path / "run"))


def test_an_object_without_a_3d_box(tmp_path: pathlib.Path, capsys: Any) -> None:
    from kpjax.__main__ import main

    write_kitti(tmp_path, frames=2, size=(32, 96))
    path = tmp_path / "training" / "label_2" / "000000.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    for line in lines:
        if line[0] == "Car":
            line[3], line[8:15] = "-10", ["-1", "-1", "-1", "-1000", "-1000", "-1000", "-10"]
    path.write_text("\n".join(" ".join(line) for line in lines))
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    with pytest.raises(
        DataError, match=r"000000\.png: a Car has no 3D box .*; complete its label, or call it DontCare"
    ):
        run(config_of(tmp_path), str(tmp_path / "run"))
    assert main(["check-data", "--config", str(tmp_path / "config.py"), "--out", str(tmp_path / "check")]) == 2
    assert "a Car has no 3D box" in capsys.readouterr().err


def test_results_of_an_earlier_evaluation_are_removed(
    folder: pathlib.Path, model: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    from kpjax.commands import evaluate as eval_program
    from kpjax.commands import flags

    text = (folder / "config.py").read_text()
    (tmp_path / "config.py").write_text(text.replace("return config", "config.eval.images = 1\n    return config"))
    out = ["eval.py", "--checkpoint", str(model), "--out", str(tmp_path / "found.json")]
    for config, count in ((folder / "config.py", 4), (tmp_path / "config.py", 1)):
        command = [*out, "--config", str(config)]
        assert eval_program.main(flags.parse(command, eval_program.define)) == 0
        assert len(list((tmp_path / "found_kitti").iterdir())) == count
    for option, words in ((["--max-dets", "1,10,100"], "measured by KITTI's"), (["--nms", "linear"], "leave it out")):
        with pytest.raises(ConfigError, match=words):
            eval_program.main(flags.parse([*command, *option], eval_program.define))


def test_an_image_that_exif_turns_has_no_camera(model: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    image = Image.fromarray(np.zeros((32, 96, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    calib = model.parent / "training" / "calib" / "000000.txt"
    command = ["--checkpoint", str(model), "--out", str(tmp_path / "out"), "--calib", str(calib)]
    assert detect_main([*command, str(tmp_path / "turned.jpg")]) == 2
    assert "turned by its EXIF orientation" in capsys.readouterr().err
