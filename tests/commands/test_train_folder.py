"""`kpjax train --data FOLDER` in this process: every layout trains, with a network of two layers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import kpjax
import kpjax.detectors
import kpjax.training.run
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import save_inference
from kpjax.commands import folder_choices, train_folder
from kpjax.commands.flags import config_of
from kpjax.config import from_json, recipe
from kpjax.data.opening import open_source
from kpjax.errors import ConfigError, UserError
from kpjax.training.choices import Machine
from kpjax.training.step_speed import StepSpeed, try_step
from tests.convert import released, torch_bytes
from tests.layouts import LAYOUTS, POSE, SOLID, coco, dump, make, write
from tests.tiny import TwoLayers


@pytest.fixture(autouse=True)
def quick_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CenterNet's and TTFNet's heads on one convolution; all programs are kept: equal ones are compiled once."""
    real = kpjax.detectors.from_config

    def build(config, classes, points=None):
        detector = real(config, classes, points)
        more = (("depth", 1), ("rotation", 8), ("size3d", 3)) if detector.solid else (("sides", 4),)
        if detector.points is not None:
            count = len(detector.points)
            more = (("keypoint_offset", 2 * count), ("joint_heatmap", count), ("joint_offset", 2))
        return dataclasses.replace(detector, net=TwoLayers(classes=classes, more=more))

    monkeypatch.setattr(folder_choices, "from_config", build)
    monkeypatch.setattr(kpjax.training.run, "from_config", build)
    monkeypatch.setattr(folder_choices, "_TRIED", 0.0)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    train_folder.add_arguments(parser)
    return train_folder.run(parser.parse_args([str(argument) for argument in arguments]))


def options(root: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    return ("--data", str(root), "--workdir", str(workdir), *more)


# One of each way from a folder to a source; the others take the same ways (tests/datasets/test_folders.py).
QUICK = ("coco2017", "voc_without_lists", "roboflow_yolo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in [*LAYOUTS, *POSE, *SOLID]]
)
def test_every_layout_trains_two_steps(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, workdir = make(tmp_path, name), tmp_path / "run"
    assert command(*options(root, workdir, "--epochs", "2.5")) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"took {root}") and "next:\n  kpjax detect --checkpoint" in said
    logged = read_metrics(str(workdir))
    assert max(line["step"] for line in logged if line["kind"] == "train") == 2
    assert [line["step"] for line in logged if line["kind"] == "eval"][-1] == 2


def without_trying(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.5) -> None:
    """Nothing is compiled to choose: a step takes so many seconds."""
    speed = StepSpeed(batch=8, seconds=seconds, compiling=1.0, memory=2**20)
    monkeypatch.setattr(folder_choices, "try_step", lambda *args, **more: speed)


def test_the_model_follows_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_trying(monkeypatch)
    expected = (
        ("ultralytics_pose", "centernet_r18_pose", "all 12 objects have keypoints"),
        ("kitti", "centernet_r18_3d", "KITTI's labels and calibrations"),
        ("kitti_without_calib", "ttfnet_r18", "boxes"),
    )
    for name, model, reason in expected:
        workdir = tmp_path / "runs" / name
        assert command(*options(make(tmp_path, name), workdir, "--dry-run")) == 0
        config = config_of(str(workdir / "config.py"))
        assert config.model.name == model and reason in capsys.readouterr().out
        if name == "ultralytics_pose":
            assert config.data.mirror_pairs == "0:1"
        if name == "kitti":
            assert config.data.kitti_classes == ("Pedestrian", "Car", "Cyclist")
            assert (tmp_path / "kitti" / "training").samefile(Path(config.data.kitti_dir) / "training")
    as_boxes = tmp_path / "boxes"
    assert command(*options(tmp_path / "kitti", as_boxes, "--dry-run", "--model", "centernet_r18")) == 0
    assert config_of(str(as_boxes / "config.py")).data.source == "coco"
    # Calibrations beside labels that know no metres.
    calibrated = tmp_path / "kitti_without_calib" / "training"
    (calibrated / "calib").mkdir()
    for label in (calibrated / "label_2").iterdir():
        shutil.copy(tmp_path / "kitti" / "training" / "calib" / "000000.txt", calibrated / "calib" / label.name)
    flat = tmp_path / "flat"
    assert command(*options(calibrated.parent, flat, "--dry-run")) == 0
    assert config_of(str(flat / "config.py")).model.name == "ttfnet_r18"
    assert "boxes; not all objects are known in 3D" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="learns 3D boxes, which need one folder of KITTI's"):
        command(*options(tmp_path / "ultralytics_pose", tmp_path / "no", "--model", "centernet_r18_3d"))


def test_a_run_is_chosen_edited_finished_and_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, workdir = make(tmp_path, "label_studio_coco"), tmp_path / "run"
    arguments = options(root, workdir, "--epochs", "4")
    assert command(*arguments, "--dry-run") == 0
    assert "the same command without --dry-run trains" in capsys.readouterr().out
    assert not (workdir / "checkpoints").exists() and not (workdir / "metrics.jsonl").exists()
    split = {name: json.loads((workdir / "data" / f"{name}.json").read_text()) for name in ("train", "val")}
    chosen = config_of(str(workdir / "config.py"))

    # Other options before anything was trained or edited: chosen anew.
    assert command(*options(root, workdir, "--epochs", "2"), "--dry-run") == 0
    assert config_of(str(workdir / "config.py")).steps == round(2 * len(split["train"]["images"]) / 8) != chosen.steps
    file = workdir / "config.py"
    file.write_text(file.read_text().replace("return config", "config.seed = 5\n    return config"))
    with pytest.raises(ConfigError, match=r"was begun with --epochs 2, and this command has --epochs 4"):
        command(*arguments)

    arguments = options(root, workdir, "--epochs", "2")
    capsys.readouterr()
    assert command(*arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"going on with the choices in {file}, edited since") and "took" not in said
    assert from_json((workdir / "config.json").read_text()).seed == 5
    assert command(*arguments) == 0
    assert "this run has finished; nothing to do" in capsys.readouterr().out
    for other in (("--size", "128"), ("--minutes", "3"), ("--from", str(workdir))):
        with pytest.raises(ConfigError, match=f"begun with .*{other[0]}"):
            command(*arguments[: 4 if other[0] == "--minutes" else None], *other)

    # The file is an ordinary configuration: it gives the same run.
    again = tmp_path / "again"
    kpjax.training.run.run(config_of(str(file)), str(again))
    assert len(losses(again)) == 2 and losses(again) == losses(workdir)
    assert {name: json.loads((workdir / "data" / f"{name}.json").read_text()) for name in split} == split


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(str(workdir)) if line["kind"] == "train"]


def test_minutes_set_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_trying(monkeypatch)
    root = make(tmp_path, "voc")
    for minutes, evaluations in ((1, 3), (10, 5)):
        workdir = tmp_path / str(minutes)
        assert command(*options(root, workdir, "--minutes", str(minutes), "--dry-run")) == 0
        config = config_of(str(workdir / "config.py"))
        spent = 1.4 + 5.0 + (evaluations - 1) * 2.05
        assert (60 * minutes - spent - 8) / 0.5 < config.steps <= (60 * minutes - spent) / 0.5
        assert config.eval.every == -(-config.steps // evaluations)
    with pytest.raises(ConfigError, match="give more minutes"):
        command(*options(root, tmp_path / "short", "--minutes", "0.1"))


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        without_trying(patch)
        command(*options(make(tmp_path, "coco2017"), workdir, "--dry-run"))
    config = config_of(str(workdir / "config.py"))
    config.batch = 16
    source = open_source(config.data, "train")
    build = lambda c, s: folder_choices.from_config(c, len(s.classes))  # noqa: E731
    whole = try_step(config, source, Machine("cpu", 8, 2**40), build, seconds=0)
    assert (whole.batch, config.batch) == (16, 16) and whole.seconds > 0 and whole.memory > 0
    half = try_step(config, source, Machine("cpu", 8, int(whole.memory / 0.8) - 1), build, seconds=0)
    assert (half.batch, config.batch) == (8, 8) and half.memory < whole.memory
    with pytest.raises(ConfigError, match="not even 8 images of 128x128 fit"):
        try_step(config, source, Machine("cpu", 8, 1000), build, seconds=0)


def test_joined_folders_and_the_network_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_trying(monkeypatch)
    one, other = make(tmp_path, "voc"), make(tmp_path, "label_studio_yolo")
    detector = kpjax.build("centernet_r18", num_classes=2, width=8, deconv=(8,), head_channels=8)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), "float32")
    shapes = jax.eval_shape(lambda x: detector.net.init(jax.random.key(0), x), images)
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    save_inference(str(tmp_path / "small"), detector, variables, ("cat", "dog"))
    workdir = tmp_path / "run"
    more = ("--data", str(other), "--from", str(tmp_path / "small"), "--dry-run")
    assert command(*options(one, workdir, *more)) == 0
    config = config_of(str(workdir / "config.py"))
    assert config.model.options["width"] == 8 and config.init_from == str(tmp_path / "small")
    train, val = (open_source(config.data, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog") and len(train) + len(val) == 8 + 6


def test_the_model_of_a_released_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_trying(monkeypatch)
    root, path = make(tmp_path, "voc"), tmp_path / "weights"
    torch_bytes.save(path, released.arrays("centernet_r18_mmdet", 80))
    assert command(*options(root, tmp_path / "run", "--from", str(path), "--dry-run")) == 0
    config = config_of(str(tmp_path / "run" / "config.py"))
    assert (config.model.name, config.init_from) == ("centernet_r18_mmdet", str(path))
    # A released TTFNet stays as it is; without weights the network is small, and has no deformable convolution.
    torch_bytes.save(path, released.arrays("ttfnet_r18", 80))
    assert command(*options(root, tmp_path / "whole", "--from", str(path), "--dry-run")) == 0
    assert config_of(str(tmp_path / "whole" / "config.py")).model.options == {}
    assert command(*options(root, tmp_path / "own", "--dry-run")) == 0
    assert config_of(str(tmp_path / "own" / "config.py")).model == recipe("own").model
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(ConfigError, match=r"--from .*weights: .*a web page"):
        command(*options(root, tmp_path / "other", "--from", str(path)))


def _of_nothing(root: Path) -> tuple[str, ...]:
    data = coco(write(root / "images", 3)) | {"annotations": []}
    dump(root / "labels.json", data)
    return ()


def _of_unreadable_images(root: Path) -> tuple[str, ...]:
    dump(root / "labels.json", coco(write(root / "images", 3)))
    (root / "images" / "frame_001.jpg").write_text("no picture")
    return ()


def _of_bad_boxes(root: Path) -> tuple[str, ...]:
    data = coco(write(root / "images", 3))
    data["annotations"][3]["bbox"] = [1, 2, "x", 4]
    dump(root / "labels.json", data)
    return ()


def _of_an_unlisted_image(root: Path) -> tuple[str, ...]:
    data = coco(write(root / "images", 3))
    data["annotations"][3]["image_id"] = 77
    dump(root / "labels.json", data)
    return ()


def _asked_for(*more: str) -> Callable[[Path], tuple[str, ...]]:
    def make_it(root: Path) -> tuple[str, ...]:
        dump(root / "labels.json", coco(write(root / "images", 3)))
        return more

    return make_it


@pytest.mark.parametrize(
    ("make_it", "pattern"),
    [
        (_of_nothing, "has no box to train on"),
        (_of_unreadable_images, r"frame_001\.jpg"),
        (_of_bad_boxes, "has the bbox"),
        (_of_an_unlisted_image, "image id 77, which 'images' does not list"),
        (_asked_for("--model", "centernet_r17"), "did you mean 'centernet_r18'"),
        (_asked_for("--model", "centernet_r18_pose"), "no category has 'keypoints'"),
        (_asked_for("--size", "20"), "--size is 20; give a number from 32 on"),
        (_asked_for("--size", "100"), r"--size 100: ttfnet_r18 takes sides that are multiples of 32 .* 128"),
        (_asked_for("--from", "nowhere.pth"), "--from nowhere.pth: no such file"),
        (_asked_for("--minutes", "-3"), "--minutes is -3"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(
    make_it: Callable[[Path], tuple[str, ...]], pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    root, workdir = tmp_path / "set", tmp_path / "run"
    root.mkdir()
    more = make_it(root)
    with pytest.raises(UserError, match=pattern) as caught:
        command(*options(root, workdir, *more))
    assert "\n" not in str(caught.value)
    assert not (workdir / "config.py").exists() and not (workdir / "checkpoints").exists()


def test_work_directories_of_others_are_left_alone(tmp_path: Path) -> None:
    root, workdir = make(tmp_path, "cvat_coco"), tmp_path / "run"
    dump(workdir / "config.json", "{}")
    with pytest.raises(ConfigError, match=r"holds config\.json of another run"):
        command(*options(root, workdir))
    dump(tmp_path / "damaged" / "command.json", "{")
    dump(tmp_path / "damaged" / "config.py", "")
    with pytest.raises(ConfigError, match=r"command\.json: cannot be read"):
        command(*options(root, tmp_path / "damaged"))
    with pytest.raises(ConfigError, match="given twice"):
        command("--data", str(root), "--data", str(root))
