"""`Predictor` and detect.py with a detector that reads its boxes from the pixels (tests/fakes.py)."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import kpjax
from kpjax.commands import detect
from kpjax.errors import ConfigError, DataError
from kpjax.inference import predict
from kpjax.inference.inputs import list_inputs, read_image
from kpjax.inference.predict import Predictor
from kpjax.objects import Detections, PointSet
from tests import fakes
from tests.folders import picture
from tests.tiny import random_variables

OBJECTS = [(11, 7, 5, 0), (30, 20, 9, 1)]


def boxes_of(objects):
    return {(float(x - r), float(y - r), float(x + r), float(y + r), label) for x, y, r, label in objects}


def as_set(found):
    return {(*map(float, box), int(label)) for box, label in zip(found.boxes, found.labels, strict=True)}


@pytest.fixture
def predictor():
    return Predictor(fakes.marker_detector(), fakes.variables(), names=fakes.CLASSES)


@pytest.mark.parametrize("preset", ["na", "flip"])
@pytest.mark.parametrize("size", [(33, 45), (40, 64), (31, 32)])
def test_boxes_are_in_image_pixels(preset, size):
    pred = Predictor(fakes.marker_detector(), fakes.variables(), preset)
    found = pred(fakes.picture(*size, OBJECTS))
    assert as_set(found) == boxes_of(OBJECTS)
    assert found.boxes.dtype == np.float32 and found.labels.dtype == np.int32 and len(found) == 2
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_fixed_resolution_scales_boxes_back():
    pred = Predictor(fakes.marker_detector(), fakes.variables(), resolution="fixed", size=(64, 64))
    image = np.zeros((32, 32, 3), np.uint8)
    image[7:10, 11:14, 0] = 255  # wide enough to survive the interpolation of a doubling
    image[7:10, 11:14, 2] = 10  # half a side, in canvas pixels
    found = pred(image)
    assert len(found) >= 1
    np.testing.assert_allclose((found.boxes[0][:2] + found.boxes[0][2:]) / 2, [12, 8], atol=1.0)
    np.testing.assert_allclose(found.boxes[0][2:] - found.boxes[0][:2], [10, 10], atol=1e-4)


def test_flip_averages_both_views():
    """A net that answers to the left half only halves its score when the mirror image disagrees."""
    plain, flip = (Predictor(fakes.marker_detector(), fakes.variables(), p) for p in ("na", "flip"))
    image = fakes.picture(32, 64, OBJECTS)
    np.testing.assert_allclose(plain(image).scores, flip(image).scores, rtol=1e-5)
    assert as_set(plain(image)) == as_set(flip(image))


def test_list_keeps_order_and_fills_batches():
    pred = Predictor(fakes.marker_detector(), fakes.variables(), batch=3)
    shapes = [(20, 20), (40, 40), (25, 30), (20, 31), (64, 20), (22, 22), (41, 50)]
    images = [fakes.picture(h, w, [(i + 2, 5, 3, i % 2)]) for i, (h, w) in enumerate(shapes)]
    for i, found in enumerate(pred(images)):
        assert as_set(found) == boxes_of([(i + 2, 5, 3, i % 2)])
    assert [as_set(f) for f in pred(np.stack([images[0]] * 2))] == [boxes_of([(2, 5, 3, 0)])] * 2
    assert pred([]) == []
    assert as_set(pred(jax.numpy.asarray(images[0]))) == boxes_of([(2, 5, 3, 0)])
    assert [as_set(f) for f in pred(jax.numpy.stack([images[0]] * 2))] == [boxes_of([(2, 5, 3, 0)])] * 2
    assert [as_set(f) for f in pred([jax.numpy.asarray(images[0])])] == [boxes_of([(2, 5, 3, 0)])]


def test_one_program_a_canvas():
    pred = Predictor(fakes.marker_detector(), fakes.variables(), batch=2)
    for count in (1, 2, 5):
        pred([fakes.picture(20 + i, 25, []) for i in range(count)])  # all on 32x32
    assert pred.engine.infer._cache_size() == 1
    pred(fakes.picture(40, 25, []))
    assert pred.engine.infer._cache_size() == 2


@pytest.mark.parametrize(("name", "preset"), [("centernet_r18", "na"), ("centernet_r18_mmdet", "flip")])
def test_a_real_network(name, preset):
    """Random weights: shapes, order and types; and an image is not changed by its neighbours in the batch."""
    detector = kpjax.build(name, num_classes=3, width=8, deconv=(8, 8, 8), head_channels=8)
    shapes = jax.eval_shape(detector.net.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)  # filled here: compiling `init` takes longer than the rest of the test
    variables = jax.tree.map(lambda leaf: np.abs(rng.normal(0.1, 0.1, leaf.shape)).astype(leaf.dtype), shapes)
    images = [np.random.default_rng(i).integers(0, 256, (20 + i, 60 - i, 3), dtype=np.uint8) for i in range(3)]
    pred = kpjax.Predictor(detector, variables, preset, ("a", "b", "c"), batch=2, top_k=20)
    together = pred(images)
    alone = [pred(image) for image in images]
    for one, other in zip(alone, together, strict=True):
        assert one.boxes.shape == (len(one), 4) and 0 < len(one) <= 20 and one.names == ("a", "b", "c")
        assert (np.diff(one.scores) <= 0).all() and set(one.labels) <= {0, 1, 2}
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_paths_folders_globs(tmp_path, predictor):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(fakes.png(fakes.picture(30, 30, [(i + 5, 9, 4, 0)])))
    (tmp_path / "notes.txt").write_text("no image")
    assert as_set(predictor(str(tmp_path / "1.png"))) == boxes_of([(6, 9, 4, 0)])
    assert as_set(predictor(tmp_path / "1.png")) == boxes_of([(6, 9, 4, 0)])
    for many in (tmp_path, str(tmp_path / "*.png"), [tmp_path / f"{i}.png" for i in range(3)]):
        assert [as_set(f) for f in predictor(many)] == [boxes_of([(i + 5, 9, 4, 0)]) for i in range(3)]
    (tmp_path / "odd[1].png").write_bytes(fakes.png(fakes.picture(30, 30, OBJECTS[:1])))
    assert as_set(predictor(str(tmp_path / "odd[1].png"))) == boxes_of(OBJECTS[:1])


def test_exif_orientation_is_applied(tmp_path, predictor):
    upright = fakes.picture(40, 30, OBJECTS[:1])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; to be shown rotated by 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert as_set(predictor(tmp_path / "turned.png")) == boxes_of(OBJECTS[:1])


def turned_file(kind="PNG"):
    """A file of a picture of OBJECTS, stored turned, to be shown rotated by 90 degrees clockwise."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(fakes.picture(40, 30, OBJECTS[:1]))).save(out, kind, exif=exif)
    return out  # at its end


def test_pillow_s_images_and_encoded_files(tmp_path, predictor):
    out = turned_file()
    (tmp_path / "a.png").write_bytes(out.getvalue())
    wanted = boxes_of(OBJECTS[:1])
    with open(tmp_path / "a.png", "rb") as file, Image.open(tmp_path / "a.png") as opened:
        items = [opened, out, out.getvalue(), bytearray(out.getvalue()), memoryview(out.getvalue()), file]
        for item in items:
            assert as_set(predictor(item)) == wanted, type(item)
        mixed = [*items, file, opened, str(tmp_path / "a.png"), fakes.picture(40, 30, OBJECTS[:1])]
        assert [as_set(found) for found in predictor(mixed)] == [wanted] * len(mixed)
        assert opened.size == (40, 30)  # as it was
    found = {one.index: one for one in predictor.stream([out.getvalue(), mixed[-1]])}
    assert [(found[i].name, found[i].orientation) for i in (0, 1)] == [("image 0", 6), ("image 1", 1)]
    stored = Predictor(fakes.marker_detector(), fakes.variables(), exif=False)
    assert as_set(stored(out)) == boxes_of([(7, 30 - 1 - 11, 5, 0)])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_pillow_s_modes_are_read_as_files_of_them(tmp_path, mode):
    grey = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80)
    image = grey if mode == "I;16" else picture(0, 24, 32).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "I") else "a.png")
    image.save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode
        ours, _ = read_image(opened, "ours")
    np.testing.assert_array_equal(ours, read_image(path, "theirs")[0])
    np.testing.assert_array_equal(read_image(image, "ours")[0], ours)


def test_what_is_no_encoded_image_is_one_line(tmp_path, predictor):
    whole = turned_file("JPEG").getvalue()
    (tmp_path / "cut.png").write_bytes(whole[:-20])
    closed = io.BytesIO(b"x")
    closed.close()
    with open(tmp_path / "cut.png", "rb") as file, Image.open(file) as cut, open(__file__, encoding="utf-8") as text:
        cases = {
            r"image 0: not an image": b"<html>",
            r"image 0: the image file is empty": io.BytesIO(),
            r"image 0: cannot be read \(I/O operation on closed file": closed,
            r"image 0: the file was opened as text; .*'rb'": text,
            r"image 0: (the image file is truncated|the image cannot be decoded)": cut,
            r"image 0: a floating-point image": Image.new("F", (4, 4)),
            r"image 0: an array must be HWC": Image.new("RGB", (0, 4)),
            r"cannot detect in a object": object(),
            r"the path of an input is empty": "",
        }
        for match, bad in cases.items():
            with pytest.raises(DataError, match=match) as caught:
                predictor(bad)
            assert "\n" not in str(caught.value)


def test_brackets_in_names_of_folders_and_files(tmp_path):
    folder = tmp_path / "photos[1]"
    folder.mkdir()
    for name in ("a.png", "b[2].png", "b7.png"):
        (folder / name).touch()

    def names(pattern):
        return [Path(path).name for path in list_inputs(str(tmp_path / pattern))[0]]

    assert names("photos[1]") == names("photos[1]/") == names("photos[1]/*.png") == ["a.png", "b7.png", "b[2].png"]
    assert names("photos[1]/b[2]*") == ["b[2].png"] and names("photos[1]/b[0-9].png") == ["b7.png"]
    assert names("photos[[]1]/[ab]*") == ["a.png", "b7.png", "b[2].png"]
    with pytest.raises(DataError, match=r"\*\.gif: no file matches"):
        names("photos[1]/*.gif")
    (tmp_path / "photos1").mkdir()
    (tmp_path / "photos1" / "c.png").touch()
    assert names("photos[1]") == ["a.png", "b7.png", "b[2].png"]  # it is there
    with pytest.raises(DataError, match=r"can mean .*photos1/c\.png or, with brackets .*photos\[1\]/a\.png; .*\[\[\]"):
        names("photos[1]/*.png")


def test_files_of_other_kinds_in_a_folder_are_counted(tmp_path, predictor, monkeypatch, capsys):
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    for name in ("notes.txt", "more.TXT", "x.heic", "README", ".DS_Store"):
        (photos / name).write_text("no image")
    with pytest.raises(DataError, match=r"no image in this folder .*4 files of other kinds .*its folders \(inner\)"):
        predictor(photos)
    (photos / "a.png").write_bytes(fakes.png(fakes.picture(30, 30, OBJECTS[:1])))
    said = "4 files of other kinds left out: .txt 2, without a suffix 1, .heic 1"
    with pytest.warns(UserWarning, match=said):
        assert len(predictor(photos)) == 1
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    assert detect.main([str(photos), "--checkpoint", "x", "--out", str(tmp_path / "out")]) == 0
    assert said in capsys.readouterr().out


def test_detect_says_which_images_it_turned(tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    (tmp_path / "a.png").write_bytes(turned_file().getvalue())
    (tmp_path / "b.png").write_bytes(fakes.png(fakes.picture(30, 30, OBJECTS[:1])))
    command = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--checkpoint", "x", "--out", str(tmp_path / "out")]
    for exif, words in (
        (True, "1 images are shown turned by their EXIF orientation and were turned"),
        (False, "stored"),
    ):
        predictor.exif = exif
        assert detect.main(command) == 0
        assert words in capsys.readouterr().out
        rows = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
        assert [row.get("exif_orientation") for row in rows] == [6, None]
        assert (rows[0]["height"], rows[0]["width"]) == ((40, 30) if exif else (30, 40))


@pytest.mark.parametrize(("exif", "wanted"), [("size", True), ("apply", True), ("ignore", False)])
def test_a_checkpoint_of_stored_pixels_is_used_on_them(tmp_path, exif, wanted):
    from kpjax.config import Config

    detector = kpjax.build("centernet_r18", num_classes=1, width=4, deconv=(4,), head_channels=4)
    config = Config(steps=1)
    config.data.exif = exif
    kpjax.save_inference(str(tmp_path / "m"), detector, random_variables(detector.net, 32, 32), ("a",), config)
    assert kpjax.load(str(tmp_path / "m")).exif == wanted


def test_bad_input_is_one_line(tmp_path, predictor):
    (tmp_path / "cut.png").write_bytes(fakes.png(fakes.picture(40, 40, OBJECTS))[:60])
    cases = {
        "cut.png": tmp_path / "cut.png",
        "missing.png": tmp_path / "missing.png",
        "no file matches": str(tmp_path / "*.gif"),
        "float32": np.zeros((4, 4, 3), np.float32),
        r"\(4, 4\)": np.zeros((4, 4), np.uint8),
        "cannot detect in a float": 1.5,
    }
    for match, bad in cases.items():
        with pytest.raises(DataError, match=match) as caught:
            predictor(bad)
        assert "\n" not in str(caught.value)


def test_a_fixed_size_that_the_network_cannot_take():
    detector = kpjax.build("centernet_r18", num_classes=3)
    with pytest.raises(ConfigError, match=r"size\[1\] \(the width\) is 500; .* multiples of 32 .*: 480 or 512$"):
        Predictor(detector, {}, resolution="fixed", size=(512, 500))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "ms"}, "preset 'ms': marker has no such test protocol; choose one of 'na', 'flip'"),
        ({"names": ("one",)}, "1 class names"),
        ({"batch": 0}, "batch is 0"),
        ({"resolution": "half"}, "'half'"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ConfigError, match=match):
        Predictor(fakes.marker_detector(), fakes.variables(), **options)


def test_detect_writes_pictures_and_json(tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        (photos / f"{i}.png").write_bytes(fakes.png(fakes.picture(30, 36, [(i + 8, 9, 4, 1)])))
    (photos / "broken.jpg").write_bytes(b"no jpeg")
    out = tmp_path / "out"
    code = detect.main([str(photos), str(photos / "0.png"), "--checkpoint", "x", "--out", str(out)])
    assert code == 1
    errors = capsys.readouterr().err
    assert "broken.jpg" in errors and "Traceback" not in errors and "1 of 4 images" in errors
    written = json.loads((out / "detections.json").read_text())
    assert written["names"] == list(fakes.CLASSES)
    assert [Path(row["file"]).name for row in written["images"]] == ["0.png", "1.png", "0.png"]
    assert [Path(row["file"]).name for row in written["unreadable"]] == ["broken.jpg"]
    for row, x in zip(written["images"], (8, 9, 8), strict=True):
        assert (row["width"], row["height"]) == (36, 30)
        (only,) = row["detections"]
        assert (only["box"], only["label"], only["name"]) == ([x - 4, 5, x + 4, 13], 1, "green")
        with Image.open(out / row["picture"]) as picture:
            assert picture.size == (11 * 36, 11 * 30)  # small pictures are enlarged
    assert len({row["picture"] for row in written["images"]}) == 3


def test_detect_shows_the_chosen_classes_alone(tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    photo, out = tmp_path / "0.png", tmp_path / "out"
    photo.write_bytes(fakes.png(fakes.picture(30, 40, OBJECTS)))

    def run(*more):
        return detect.main([str(photo), "--checkpoint", "x", "--out", str(out), *more])

    assert run("--classes", "yellow") == 2
    error = capsys.readouterr().err
    assert "no 'yellow'; it has red, green" in error and error.count("\n") == 1 and not out.exists()
    for given, wanted in (("", ["red", "green"]), ("green", ["green"]), (" Green ,red", ["red", "green"])):
        assert run("--classes", given) == 0
        row = json.loads((out / "detections.json").read_text())["images"][0]
        assert sorted(d["name"] for d in row["detections"]) == sorted(wanted)
        with Image.open(out / row["picture"]) as picture:
            drawn = np.asarray(picture)[10 * 3 : 10 * 11, 10 * 5 : 10 * 8].astype(int)  # the red box's left edge
        # JPEG dilutes a line of one pixel; the other class is blue
        assert (drawn[..., 0] - drawn[..., 2] > 50).any() == ("red" in wanted)


def test_the_most_detections_of_an_image_are_set_and_said(tmp_path, monkeypatch, capsys):
    given = []

    def load(path, preset, **options):
        given.append(options)
        return Predictor(fakes.marker_detector(), fakes.variables(), names=fakes.CLASSES, **options)

    monkeypatch.setattr(predict, "load", load)
    photo, out = tmp_path / "0.png", tmp_path / "out"
    photo.write_bytes(
        fakes.png(fakes.picture(160, 160, [(8 + 12 * x, 8 + 12 * y, 3, 0) for x in range(12) for y in range(12)]))
    )
    for more, count in (
        ((), 100),
        (("--max-dets", "120"), 120),
        (("--max-dets", "1000"), 144),
        (("--max-dets", "1"), 1),
    ):
        assert detect.main([str(photo), "--checkpoint", "x", "--out", str(out), *more]) == 0
        assert len(json.loads((out / "detections.json").read_text())["images"][0]["detections"]) == count
        said = "1 of them have 100 objects, the most there can be; --max-dets raises that"
        assert (said in capsys.readouterr().out) == (not more)
        assert given.pop() == {"batch": 1} | ({"top_k": int(more[1])} if more else {})
    assert detect.main([str(photo), "--checkpoint", "x", "--out", str(out), "--max-dets", "0"]) == 2
    assert "--max-dets is 0; it must be at least 1" in capsys.readouterr().err
    crowded = Detections(np.zeros((5, 4), np.float32), np.ones(5, np.float32), np.zeros(5, np.int32))
    assert len(detect.Shown((), 0.3, None, most=3).kept(crowded)) == 3  # a pose model's scales are merged uncut


def test_unknown_classes_are_told_with_some_known_ones():
    names = tuple(f"thing {i}" for i in range(80))
    with pytest.raises(ConfigError, match=r"no 'thnig 7'; did you mean 'thing 7'\? it has thing 0, .* and 72 more"):
        detect.class_labels("thing 1,thnig 7", names, 80)
    assert detect.class_labels("thing 3, THING 5", names, 80) == {3, 5}
    assert detect.class_labels("other", ("other", "car", "other"), 3) == {0, 2}  # both classes of the name
    assert detect.class_labels("OTHER", ("other", "car", "Other"), 3) == {0, 2}
    assert detect.class_labels("other", ("other", "car", "Other"), 3) == {0}
    assert detect.class_labels("1,2", (), 3) == {1, 2} and detect.class_labels("", names, 80) is None
    with pytest.raises(ConfigError, match=r"--classes is ' , ', which names no class"):
        detect.class_labels(" , ", names, 80)
    with pytest.raises(ConfigError, match=r"no '3'; .*it has 0, 1, 2$"):
        detect.class_labels("3", (), 3)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--score-thr", "1.5"], "--score-thr is 1.5"),
        (["--preset", "tta"], "preset 'tta': marker has no such test protocol; choose one of 'na', 'flip'"),
        (["--batch", "0"], "batch is 0"),
    ],
)
def test_detect_refuses_settings_in_one_line(tmp_path, monkeypatch, capsys, more, match):
    def load(path, preset, **options):
        return Predictor(fakes.marker_detector(), fakes.variables(), preset, **options)

    monkeypatch.setattr(predict, "load", load)
    photo = tmp_path / "0.png"
    photo.write_bytes(fakes.png(fakes.picture(30, 40, OBJECTS)))
    assert detect.main([str(photo), "--checkpoint", "x", "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert match in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_batch_of_images_is_one_call_of_one_program():
    pred = Predictor(fakes.marker_detector(), fakes.variables(), names=fakes.CLASSES, batch=4)
    calls, inner = [], pred.engine.infer
    pred.engine.infer = lambda *a: calls.append(a[1].shape) or inner(*a)
    found = pred(np.stack([fakes.picture(30, 40, OBJECTS)] * 4))
    assert calls == [(4, 32, 64, 3)] and inner._cache_size() == 1
    assert all(as_set(f) == boxes_of(OBJECTS) and f.names == fakes.CLASSES for f in found)


def saved_with(path, preset):
    """A tiny CornerNet on disk whose configuration evaluates with `preset`; None: it holds none."""
    from kpjax.config import Config

    small = {"features": (4, 6), "blocks": (1, 1), "stem": 5, "stacks": 1, "branch": 3, "head_channels": 7}
    detector = kpjax.build("cornernet_hg104", num_classes=2, **small)
    config = None
    if preset:
        config = Config(steps=1)
        config.eval.preset = preset
    kpjax.save_inference(str(path), detector, random_variables(detector.net, 7, 7), ("cat", "dog"), config)
    return str(path)


@pytest.mark.parametrize(
    ("stored", "given", "wanted"),
    [("flip", None, "flip"), ("ms", None, "ms"), ("flip", "na", "na"), (None, None, "na"), (None, "flip", "flip")],
)
def test_the_preset_is_the_checkpoint_s_own(tmp_path, stored, given, wanted):
    path = saved_with(tmp_path / "model", stored)
    pred = kpjax.load(path) if given is None else kpjax.load(path, given)
    assert pred.preset == wanted
    assert len(pred.engine.scales) == len(pred.detector.protocols[wanted].scales)
    assert Predictor(pred.detector, pred.variables).preset == "na"


def test_detect_follows_the_checkpoint_s_preset_and_says_so(tmp_path, capsys):
    path, photo = saved_with(tmp_path / "model", "flip"), tmp_path / "0.png"
    photo.write_bytes(fakes.png(fakes.picture(30, 30, OBJECTS[:1])))
    arguments = [str(photo), "--checkpoint", path, "--out", str(tmp_path / "out")]
    assert detect.main(arguments) == 0
    assert capsys.readouterr().out.startswith("cornernet_hg104, preset flip, resolution keep\n")


def test_detect_draws_and_counts_only_what_is_shown(tmp_path):
    points = PointSet(("a", "b"), edges=((0, 1),))
    boxes = np.array([[10, 10, 60, 60], [70, 20, 90, 50]], np.float32)
    corners = np.concatenate([boxes.reshape(2, 2, 2), np.ones((2, 2, 1), np.float32)], axis=-1)
    found = Detections(boxes, np.array([0.9, 0.2], np.float32), np.array([1, 0], np.int32), keypoints=corners)
    shown = detect.Shown(("x", "y"), 0.3, None, points)
    kept = shown.kept(found)
    np.testing.assert_array_equal(kept.keypoints, corners[:1])
    assert [row["name"] for row in shown.rows(found)] == ["y"]
    image = np.zeros((400, 400, 3), np.uint8)
    assert shown.picture(image, found)[35, 35].any(), "the line between the two points"
    assert not shown.picture(image, dataclasses.replace(found, keypoints=None))[35, 35].any()


def test_detect_reports_a_useless_call_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect.main([str(tmp_path), "--checkpoint", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nor is a folder made


@pytest.mark.parametrize("linked", [False, True])
def test_detect_does_not_overwrite_its_inputs(tmp_path, predictor, monkeypatch, capsys, linked):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(fakes.picture(30, 36, OBJECTS)).save(photos / "beach.jpg")
    before = (photos / "beach.jpg").read_bytes()
    out = tmp_path / "link" if linked else photos
    if linked:
        out.symlink_to(photos)
    assert detect.main([str(photos), "--checkpoint", "x", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "beach.jpg is one of the inputs" in error and "--out" in error
    assert (photos / "beach.jpg").read_bytes() == before and len(list(photos.iterdir())) == 1


@pytest.mark.parametrize("name", ["beach.jpg", "detections.json", ""])
def test_detect_writes_to_no_folder_of_a_result_s_name_nor_among_its_inputs(
    tmp_path, predictor, monkeypatch, capsys, name
):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "beach.png").write_bytes(fakes.png(fakes.picture(30, 36, OBJECTS)))
    out = tmp_path / "out" if name else tmp_path / "photos"
    (out / name).mkdir(parents=True, exist_ok=True)
    assert detect.main([str(tmp_path / "photos"), "--checkpoint", "x", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    wanted = f"{out / name} is a folder" if name else "holds images of the input"
    assert error.startswith("error: ") and error.count("\n") == 1 and wanted in error and "--out" in error
    assert [p.name for p in out.iterdir()] == [name or "beach.png"]


def three(folder):
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(fakes.png(fakes.picture(30, 36, [(i + 8, 9, 4, 1)])))
    return folder


def test_a_full_disk_costs_the_pictures_and_no_detections(tmp_path, predictor, monkeypatch, capsys):
    """Each picture is named, nothing of it is left, the rest is done, and detections.json has all of them."""
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    real, out, photos = Image.Image.save, tmp_path / "out", three(tmp_path / "photos")

    def full(self, path, **options):
        if not str(path).endswith("1.jpg"):
            return real(self, path, **options)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")  # as from a write, which knows no name

    monkeypatch.setattr(Image.Image, "save", full)
    assert detect.main([str(photos), "--checkpoint", "x", "--out", str(out)]) == 1
    errors = capsys.readouterr().err
    assert f"error: {out / '1.jpg'}: No space left on device" in errors and "Traceback" not in errors
    assert sorted(p.name for p in out.iterdir()) == ["0.jpg", "2.jpg", "detections.json"]
    written = json.loads((out / "detections.json").read_text())
    assert [row["picture"] for row in written["images"]] == ["0.jpg", None, "2.jpg"]
    assert [len(row["detections"]) for row in written["images"]] == [1, 1, 1]
    assert [Path(row["file"]).name for row in written["unwritten"]] == ["1.png"] and not written["unreadable"]


def test_a_report_that_cannot_be_written_is_named(tmp_path, predictor, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    out = tmp_path / "out"
    out.mkdir()
    (out / "detections.json").write_text("older")

    def full(content, file, **options):
        file.write("[")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        assert detect.main([str(three(tmp_path / "photos")), "--checkpoint", "x", "--out", str(out)]) == 1
    assert f"error: {out / 'detections.json'}: No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "detections.json"]
    assert (out / "detections.json").read_text() == "older"


def test_what_was_found_is_written_whatever_ends_the_run(tmp_path, predictor, monkeypatch):
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    real, drawn = detect.Shown.picture, []

    def stopped(self, *arguments):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(detect.Shown, "picture", stopped)
    out = tmp_path / "out"
    assert detect.main([str(three(tmp_path / "photos")), "--checkpoint", "x", "--out", str(out)]) == 130
    assert len(json.loads((out / "detections.json").read_text())["images"]) == 2


def test_the_public_names():
    for name in kpjax.__all__:
        assert getattr(kpjax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kpjax.nothing  # noqa: B018
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "import kpjax\n"
        "assert 'orbax' not in sys.modules and 'cv2' not in sys.modules\n"
        "from kpjax.checkpoint import CheckpointError, Loaded, load_inference, save_inference\n"
        "assert kpjax.load_inference is load_inference and kpjax.save_inference is save_inference\n"
        "assert kpjax.read_torch_file and kpjax.import_torch\n"
        "assert not [name for name in sys.modules if name.startswith('kpjax.training')]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)


def test_prediction_needs_neither_tensorflow_nor_pycocotools():
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['pycocotools'] = None\n"
        "from tests import fakes\n"
        "from kpjax.inference.predict import Predictor\n"
        "pred = Predictor(fakes.marker_detector(), fakes.variables())\n"
        "assert len(pred(fakes.picture(20, 20, [(5, 6, 3, 1)]))) == 1\n"
        "import kpjax.inference.evaluate\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_scales_are_merged_on_the_device_that_was_chosen():
    kept = []

    def merge(views, top_k):
        return jax.tree.map(lambda x: x[:top_k], views[0])

    det = fakes.marker_detector()
    protocols = {"ms": dataclasses.replace(det.protocols["na"], merge=merge)}
    device = jax.devices()[-1]
    pred = Predictor(dataclasses.replace(det, protocols=protocols), fakes.variables(), "ms", device=device)
    inner = pred.engine.merge
    pred.engine.merge = lambda rows: kept.append(inner(rows)) or kept[-1]
    assert as_set(pred(fakes.picture(40, 64, OBJECTS))) == boxes_of(OBJECTS)
    assert device != jax.devices()[0] and kept[0].boxes.devices() == {device}
