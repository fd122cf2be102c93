"""check-data: every oddity counted and named, and the verdict that of training itself."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.__main__ import main
from kpjax.commands.check_data import as_json, count_bins, shared_images, size_bins
from kpjax.config import Config, DataConfig
from kpjax.data.opening import open_source, training_images
from kpjax.data.pipeline import train_batches
from kpjax.datasets import check
from kpjax.datasets.check import Collisions, check_split, count_collisions
from kpjax.errors import DataError
from kpjax.objects import PointSet
from tests.folders import SIZES, picture


def settings(data: DataConfig, side: int = 64) -> Config:
    config = Config(steps=1, data=data)
    config.augment.height = config.augment.width = side
    return config


def detector_of(classes: int, points: PointSet | None = None) -> kpjax.Detector:
    return kpjax.build("centernet_r18", classes)


def found(config: Config, split: str = "train", **more) -> tuple[dict[str, list[str]], check.SplitReport]:
    report, _ = check_split(config, split, detector_of, progress=False, **more)
    return {o.kind: o.cases for o in report.oddities}, report


def first_epoch(data: DataConfig) -> str:
    """The line with which training ends within its first epoch, or ""."""
    try:
        stream = train_batches(open_source(data, "train"), data, batch=1, seed=0, shuffle=False)
        for _ in range(7):
            next(stream)
    except DataError as error:
        return str(error)
    return ""


def test_a_clean_set_has_its_images_without_boxes_only(folder: Callable[..., DataConfig]) -> None:
    cases, report = found(settings(folder()))
    assert {kind: len(c) for kind, c in cases.items()} == {check.NO_BOXES: 2}
    assert cases[check.NO_BOXES][0].endswith("images/0.jpg") and cases[check.NO_BOXES][1].endswith("images/4.jpg")
    assert report.objects.tolist() == [0, 1, 2, 3, 0, 1, 2] and report.max_boxes == 3 and report.stop == ""
    assert report.class_counts.tolist() == [3, 6, 0] and report.classes == ("three", "seven", "none")


def test_empty_images_that_training_drops_are_left_out_not_unlisted(folder: Callable[..., DataConfig]) -> None:
    data = folder(empty_images="drop")
    report, _ = check_split(settings(data), "train", detector_of, progress=False)
    (oddity,) = report.oddities
    assert (oddity.kind, len(oddity.cases)) == (check.NO_BOXES, 2) and "empty_images" in oddity.action
    assert report.images == len(training_images(open_source(data, "train"), data)) == 5 and report.objects.tolist() == [
        1,
        2,
        3,
        1,
        2,
    ]
    report, _ = check_split(settings(data), "val", detector_of, progress=False)
    assert report.images == 7 and report.oddities[0].action == "used"
    nothing = folder(lambda d: d["annotations"].clear(), empty_images="drop")
    report, _ = check_split(settings(nothing), "train", detector_of, progress=False)
    assert len(report.oddities[0].cases) == 7 and report.objects.sum() == 0


def test_the_home_folder_may_be_a_tilde(
    folder: Callable[..., DataConfig], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder()
    plain, _ = found(settings(data))
    monkeypatch.setenv("HOME", str(tmp_path))
    data.train.images, data.train.annotations = "~/images", "~/instances.json"
    assert found(settings(data))[0] == plain


def test_odd_boxes_are_counted_by_what_is_done_with_them(folder: Callable[..., DataConfig]) -> None:
    def edit(d: dict) -> None:
        a = d["annotations"]
        a[0]["iscrowd"] = 1
        a[1]["bbox"] = [5, 5, 0, 8]
        a[2]["bbox"] = [900, 3, 10, 10]
        a[3]["bbox"] = [-4, 3, 20, 10]
        a[4]["bbox"] = [-0.4, 3, 20, 10]  # rounding

    config = settings(folder(edit, max_boxes=1))
    cases, report = found(config)
    counts = {kind: len(c) for kind, c in cases.items()}
    assert counts == {
        "crowd": 1,
        "box without area": 1,
        "box wholly outside the image": 1,
        check.PARTLY: 1,
        check.OVER: 2,
        check.NO_BOXES: 4,
    }
    assert "annotation 11, seven, bbox [1.5, 2.0, 10.0, 7.0]" in cases["crowd"][0]
    assert cases[check.OVER][0].endswith("3.jpg: 3 boxes, 2 beyond it") and report.max_boxes == 3 and report.stop == ""
    assert sum(open_source(config.data, "train").dropped.values()) == 3
    evaluated = {o.kind: o.action for o in check_split(config, "val", detector_of, progress=False)[0].oddities}
    assert "neither way" in evaluated["crowd"] and "missed" in evaluated["box without area"]


REFUSED = {
    "unlisted categories": (lambda d: [a.update(category_id=4) for a in d["annotations"][2:4]], 2),
    "unlisted image": (lambda d: d["annotations"][2].update(image_id=999), 1),
    "image twice": (lambda d: d["images"][0].update(id=47), 1),
    "annotation thrice": (lambda d: [a.update(id=11) for a in d["annotations"][4:6]], 2),
    "nan": (lambda d: d["annotations"][0].update(bbox=[0, 0, math.nan, 3]), 1),
    "outside the folder": (lambda d: d["images"][4].update(file_name="../x.jpg"), 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_counted_and_ends_with_the_same_line(
    folder: Callable[..., DataConfig], case: str
) -> None:
    edit, count = REFUSED[case]
    data = folder(edit)
    with pytest.raises(DataError) as caught:
        open_source(data, "train")
    _, report = found(settings(data))
    assert report.stop == str(caught.value)
    refused = [o for o in report.oddities if o.stops]
    assert refused[0].kind == caught.value.kind and len(refused[0].cases) == count
    assert refused[0].cases[0] == str(caught.value) and refused[0].action == "stops before the first step"


def _bytes(image: Image.Image, kind: str, **more) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _bytes(picture(3, 57, 64), "JPEG", exif=exif)


BAD = {  # what is in place of 3.jpg, 57 x 64
    "truncated": (lambda: _bytes(picture(3, 57, 64), "JPEG")[:-300], check.TRUNCATED),
    "without its end": (lambda: _bytes(picture(3, 57, 64), "JPEG")[:-2], None),
    "zeros after the end": (lambda: _bytes(picture(3, 57, 64), "JPEG") + b"\0" * 16, None),
    "its beginning": (lambda: _bytes(picture(3, 57, 64), "JPEG")[:100], check.TRUNCATED),
    "empty": (lambda: b"", check.TRUNCATED),
    "text": (lambda: b"<html>not found</html>", check.UNREADABLE),
    "another size": (lambda: _bytes(picture(3, 58, 64), "JPEG"), check.WRONG_SIZE),
    "cut PNG": (lambda: _bytes(picture(3, 57, 64), "PNG")[:-60], check.TRUNCATED),
    "floats": (lambda: _bytes(Image.fromarray(np.ones((57, 64), np.float32)), "TIFF"), check.UNREADABLE),
    "turned": (lambda: _turned(3), None),
}


@pytest.mark.parametrize("case", BAD)
def test_images_are_judged_as_training_judges_them(folder: Callable[..., DataConfig], case: str) -> None:
    make, kind = BAD[case]
    data = folder()
    (pathlib.Path(data.train.images) / "3.jpg").write_bytes(make())
    ends = first_epoch(data)
    cases, report = found(settings(data))
    if kind is not None:
        assert ends and report.stop == ends
        assert len(cases[kind]) == 1 and cases[kind][0] in ends and "3.jpg" in ends
    else:  # what it makes of a file without its end, it makes of it here too
        assert report.stop == ends
        assert bool(ends) == any(o.stops for o in report.oddities)
    skipping = dataclasses.replace(data, bad_images="skip")
    _, report = found(settings(skipping))
    assert report.stop == "" and first_epoch(skipping) == ""
    if kind is not None:
        assert next(o.action for o in report.oddities if o.kind == kind) == "an empty image"


def test_missing_files(folder: Callable[..., DataConfig]) -> None:
    data = folder()
    for name in ("sub/1.jpg", "6.jpg"):
        (pathlib.Path(data.train.images) / name).unlink()
    cases, report = found(settings(data))
    assert [pathlib.Path(c.split(":")[0]).name for c in cases[check.MISSING]] == ["1.jpg", "6.jpg"]
    assert report.stop == first_epoch(data) and "1.jpg: image not found and 1 more of 7" in report.stop
    cases, report = found(settings(dataclasses.replace(data, bad_images="skip")))
    assert len(cases[check.MISSING]) == 2 and report.stop == ""


def test_odd_formats_turned_images_and_files_that_nobody_lists(folder: Callable[..., DataConfig]) -> None:
    data = folder()
    images = pathlib.Path(data.train.images)
    picture(0, 40, 60).convert("L").save(images / "0.jpg")
    picture(1, 64, 48).convert("CMYK").save(images / "sub/1.jpg")
    picture(2, 30, 30).convert("P").save(images / "2.png")
    picture(3, 57, 64).convert("RGBA").save(images / "3.png")
    Image.fromarray(np.full((20, 51), 999, np.uint16)).save(images / "4.png")
    (images / "6.jpg").write_bytes(_turned(6))  # 57 x 64 as stored; the JSON states 64 x 57

    def edit(d: dict) -> None:
        for n in (2, 3, 4):
            d["images"][n]["file_name"] = f"{n}.png"
        d["images"][6].update(height=64, width=57)

    (images / "notes.txt").write_text("no image")
    config = settings(folder(edit, canvas=60, bad_images="skip"))
    cases, _ = found(config)
    names = {kind: [pathlib.Path(c.split(":")[0]).name for c in cs] for kind, cs in cases.items()}
    assert names[check.GREY] == ["0.jpg"] and names[check.CMYK] == ["1.jpg"] and names[check.PALETTE] == ["2.png"]
    assert names[check.ALPHA] == ["3.png"] and names[check.DEEP] == ["4.png"]
    assert names[check.NOT_JPEG] == ["2.png", "3.png", "4.png"]
    assert names[check.LARGE] == ["1.jpg", "3.png", "6.jpg"]
    assert names[check.UNLISTED] == ["2.jpg", "3.jpg", "4.jpg"]
    assert names[check.AS_SHOWN] == ["6.jpg"] and check.WRONG_SIZE not in names
    assert first_epoch(config.data) == ""


def test_images_that_exif_turns_are_judged_as_the_setting_has_them(folder: Callable[..., DataConfig]) -> None:
    images = pathlib.Path(folder().train.images)
    for n, orientation in ((0, 6), (1, 8), (2, 5), (3, 3)):  # 2 is square
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(n, *SIZES[n]).save(images / (f"sub/{n}.jpg" if n == 1 else f"{n}.jpg"), exif=exif)

    def edit(d: dict) -> None:
        d["images"][0].update(height=60, width=40)  # annotated as shown
        d["annotations"][0]["bbox"] = [40, 20, 20, 10]  # of image 1, which has 64 x 48: it fits 48 x 64 alone

    kinds = (check.AS_SHOWN, check.AS_STORED, check.UNCLEAR, check.FITS_TURNED)
    for exif, stops in (("size", ""), ("apply", "1.jpg"), ("ignore", "0.jpg")):
        data = folder(edit, exif=exif)
        cases, report = found(settings(data))
        names = [[pathlib.Path(case.split(":")[0]).name for case in cases[kind]] for kind in kinds]
        assert names == [["0.jpg"], ["1.jpg"], ["2.jpg", "3.jpg"], ["1.jpg"]]
        assert (stops in report.stop) if stops else not report.stop
        assert report.stop == first_epoch(data) and (not stops or "config.data.exif" in report.stop)
        actions = {o.kind: o.action for o in report.oddities}
        assert actions[check.UNCLEAR].startswith("turned" if exif == "apply" else "used as stored")


def test_classes_of_one_name_are_told_and_counted_apart(folder: Callable[..., DataConfig]) -> None:
    config = settings(folder(lambda d: [c.update(name="seven") for c in d["categories"] if c["id"] == 3]))
    cases, report = found(config)
    assert [case.partition(": ")[2] for case in cases[check.ONE_NAME]] == ["category 3, 'seven'", "category 7, 'seven'"]
    assert report.classes == ("seven (id 3)", "seven (id 7)", "none")
    assert as_json(report)["boxes_by_class"] == {"seven (id 3)": 3, "seven (id 7)": 6, "none": 0}
    cases, _ = found(settings(folder(lambda d: d["categories"][0].update(name=" Three"))))
    assert len(cases[check.ONE_NAME]) == 2


def test_decode_finds_what_headers_do_not_show(folder: Callable[..., DataConfig]) -> None:
    data = folder()
    path = pathlib.Path(data.train.images) / "5.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[-2:])  # the middle is gone, its end is there
    ends = first_epoch(data)
    _, report = found(settings(data), decode=True)
    assert report.stop == ends and ends


def test_objects_in_one_cell_against_counting_by_hand(folder: Callable[..., DataConfig]) -> None:
    def edit(d: dict) -> None:
        rng = np.random.default_rng(0)
        d["annotations"] = [
            {
                "id": n + 1,
                "image_id": 50 - int(rng.integers(0, 7)),
                "category_id": int(rng.choice([3, 7, 90])),
                "bbox": [*rng.uniform(0, 10, 2).tolist(), *rng.uniform(2, 7, 2).tolist()],
            }
            for n in range(200)
        ]

    config = settings(folder(edit))
    source = open_source(config.data, "train")
    same = other = 0
    for objects, height, width in zip(source.objects, source.heights, source.widths, strict=True):
        scale = 64 / max(height, width)
        middle = np.array([width, height]) / 2
        cells: dict[tuple[int, int], list[int]] = {}
        for box, label in zip(objects.boxes, objects.labels, strict=True):
            corners = (box.reshape(2, 2) - middle) * scale + 32
            corners = np.clip(corners / 4, 0, 15)
            cells.setdefault(tuple(corners.mean(0).astype(int).tolist()), []).append(int(label))
        same += sum(len(c) - len(set(c)) for c in cells.values())
        other += sum(len(set(c)) - 1 for c in cells.values())
    assert same > 20 and other > 20
    assert count_collisions(source, config, detector_of(3)) == {"": Collisions(200, same, other)}
    corners = count_collisions(source, settings(config.data, 127), kpjax.build("triplet_hg52", 3))
    assert set(corners) == {"tl", "br", "center"} and all(c.objects == 200 for c in corners.values())
    _, report = found(config)
    assert report.collisions[""].objects == 200 and report.stride == 4 and len(report.sizes) == 200


@pytest.mark.parametrize("key, field", [("images", "width"), ("categories", "name")])
def test_where_every_entry_is_wrong_the_first_is_told(folder: Callable[..., DataConfig], key: str, field: str) -> None:
    data = folder(lambda d: [entry.pop(field) for entry in d[key]])
    with pytest.raises(DataError) as training:
        open_source(data, "train")
    with pytest.raises(DataError) as checked:
        found(settings(data))
    assert str(checked.value) == str(training.value) and f"{key}[0]" in str(training.value)


@pytest.fixture
def recipe(tmp_path: pathlib.Path) -> Callable[[DataConfig], str]:
    def write(data: DataConfig) -> str:
        path = tmp_path / "recipe.py"
        path.write_text(
            "from kpjax.config import Config, DataConfig, SplitConfig\n"
            f"def get_config():\n    train = SplitConfig({data.train.images!r}, {data.train.annotations!r})\n"
            "    config = Config(steps=1, data=DataConfig(train=train, canvas=64))\n"
            "    config.augment.height = config.augment.width = 64\n    return config\n"
        )
        return str(path)

    return write


def test_the_command_prints_writes_and_ends_as_training_would(
    folder: Callable[..., DataConfig],
    recipe: Callable[[DataConfig], str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = folder()
    command = ["check-data", "--config", recipe(data), "--out", str(tmp_path / "out")]
    val = [f"--config.data.val.{key}={value}" for key, value in dataclasses.asdict(data.val).items()]
    assert main([*command, *val]) == 0
    said = capsys.readouterr()
    assert "training would run" in said.out and said.out.count("max_boxes that loses none: 3") == 2 and not said.err
    assert "classes without a box: none" in said.out and "cells of 4 pixels" in said.out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"report.json"} | {
        f"{s}_{p}.png" for s in ("train", "val") for p in ("objects", "sizes", "classes")
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stops"] == [] and report["splits"][0]["oddities"][0]["count"] == 2

    (pathlib.Path(data.train.images) / "3.jpg").write_bytes(b"")
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "3.jpg: the image file is empty" in said.err
    assert main([*command, "--config.data.bad_images", "skip"]) == 0
    assert main([*command, "--config.model.num_classes=7", "--config.data.bad_images=skip"]) == 2
    assert "config.model.num_classes is 7" in capsys.readouterr().err
    assert main([*command, "--config.data.train.annotations=none.json"]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
    folder(lambda d: d["annotations"].clear())
    assert main([*command, "--config.data.bad_images=skip"]) == 2
    assert "no box to train on" in capsys.readouterr().err


def test_histograms() -> None:
    counts, names = count_bins(np.array([0, 0, 1, 15, 16, 40]))
    assert names[:3] == ["0", "1", "2"] and names[15:17] == ["15", "16-19"] and names[-1] == "40-49"
    assert counts[0] == 2 and counts[1] == 1 and counts[15:17] == [1, 1] and counts[-1] == 1 and sum(counts) == 6
    counts, names = size_bins(np.array([0.5, 1.0, 30.0, 1e6]))
    assert sum(counts) == 4 and names[0] == "<1" and counts[0] == 1 and names[-1].startswith(">")


def test_names_that_the_terminal_cannot_show_are_escaped(
    folder: Callable[..., DataConfig],
    recipe: Callable[[DataConfig], str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = folder(lambda d: d["images"][2].update(file_name="gr\udcfcn.jpg"))
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["check-data", "--config", recipe(data), "--out", str(tmp_path / "out")]) == 2
    terminal.seek(0)
    assert "gr\\udcfcn.jpg: cannot be read (No such file" in terminal.read()


def test_images_of_both_splits_are_told(folder: Callable[..., DataConfig], tmp_path: pathlib.Path) -> None:
    data = folder()
    train = open_source(data, "train")
    assert shared_images({"train": train}) == 0 and shared_images({"train": train, "val": train}) == 7
    (tmp_path / "link").symlink_to(data.train.images)
    data.val = dataclasses.replace(data.val, images=str(tmp_path / "link"))
    assert shared_images({"train": train, "val": open_source(data, "val")}) == 7
