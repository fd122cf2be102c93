"""The data set of drawn shapes: what its annotations promise, and that it can be repeated."""

from __future__ import annotations

import json
import pathlib
import zlib

import numpy as np
import pytest
from PIL import Image

from kpjax.__main__ import main
from kpjax.datasets import shapes
from kpjax.errors import ConfigError

SIZE = 96


@pytest.fixture(scope="module")
def scenes() -> list[shapes.Scene]:
    return [shapes.render(5, "train", index, SIZE) for index in range(120)]


def test_counts_sides_and_visibility(scenes: list[shapes.Scene]) -> None:
    counts = [len(scene.boxes) for scene in scenes]
    assert [k for k, n in enumerate(counts) if n == 0] == list(range(9, 120, 10))  # one image of ten is empty
    assert set(counts) == set(range(7))
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (sides >= SIZE / 8).all() and (sides <= SIZE / 2).all()
        assert (scene.boxes >= 0).all() and (scene.boxes <= SIZE).all()
        assert (scene.visible >= shapes.MIN_VISIBLE).all()
        assert (scene.areas > 0).all() and (scene.areas <= sides.prod(1)).all()
    everything = np.concatenate([scene.labels for scene in scenes])
    assert (np.bincount(everything, minlength=len(shapes.CLASSES)) > 0.1 * len(everything)).all()
    assert any((scene.visible < 1).any() for scene in scenes)  # some overlap


def test_other_sides() -> None:
    boxes = np.concatenate([shapes.render(5, "train", index, SIZE, (0.4, 1.0)).boxes for index in range(60)])
    sides = (boxes[:, 2:] - boxes[:, :2]) / SIZE
    assert sides.min() >= 0.4 and 0.9 < sides.max() <= 1
    assert (boxes >= 0).all() and (boxes <= SIZE).all()


@pytest.mark.parametrize("sides", [(0.5, 0.4), (0.2, 1.1), (0.01, 0.5), (float("nan"), 0.5)])
def test_sides_that_cannot_be_drawn(sides: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="give two fractions"):
        shapes.render(5, "train", 0, SIZE, sides)


def test_boxes_are_the_extent_of_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint each object alone, in white on black: its pixels end where its box ends."""

    def white(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> None:
        under[:] = np.maximum(under, 255 * coverage[..., None])

    monkeypatch.setattr(shapes, "paint", white)
    monkeypatch.setattr(shapes, "surface", lambda rng, h, w, colour, strength: np.zeros((h, w, 3), np.float32))
    monkeypatch.setattr(shapes, "MAX_OBJECTS", 1)
    for index in range(40):
        scene = shapes.render(1, "val", index, SIZE)
        drawn = scene.image.max(-1) > 50  # above the noise; a subpixel's sixteenth of 255 is not
        if not len(scene.boxes):
            assert not drawn.any()
            continue
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        x1, y1, x2, y2 = scene.boxes[0]
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(seen, (x1, y1, x2, y2))).max() <= 2.0  # a star's thin tips fade
        assert abs(drawn.sum() - scene.areas[0]) <= 0.5 * np.sqrt(scene.areas[0]) * 4 + 4


@pytest.mark.parametrize("label", range(len(shapes.CLASSES)))
def test_masks_touch_all_four_sides_of_their_box(label: int) -> None:
    rng = np.random.default_rng(label)
    for _ in range(50):
        mask, x0, y0, _ = shapes._place(rng, label, SIZE, shapes.SIDES)
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
        coverage, left, top = shapes.to_pixels(mask, x0, y0)
        assert coverage.sum() * shapes.SUB**2 == pytest.approx(np.count_nonzero(mask))
        assert left == x0 // shapes.SUB and top == y0 // shapes.SUB
        assert left + coverage.shape[1] <= SIZE and top + coverage.shape[0] <= SIZE


def test_fill_of_the_box_tells_the_outlines_apart(scenes: list[shapes.Scene]) -> None:
    labels = np.concatenate([scene.labels for scene in scenes])
    fill = np.concatenate([s.areas / (s.boxes[:, 2:] - s.boxes[:, :2]).prod(1) for s in scenes])
    mean = {name: fill[labels == k].mean() for k, name in enumerate(shapes.CLASSES)}
    assert mean["rectangle"] > mean["ellipse"] > mean["cross"] > mean["triangle"] > mean["star"]


def test_colour_says_nothing_about_the_class() -> None:
    middles: list[list[np.ndarray]] = [[] for _ in shapes.CLASSES]
    for index in range(400):
        scene = shapes.render(2, "train", index, 64)
        for box, label, visible in zip(scene.boxes, scene.labels, scene.visible, strict=True):
            if visible == 1:
                x, y = ((box[:2] + box[2:]) / 2).astype(int)
                middles[label].append(scene.image[y, x])
    means = np.stack([np.mean(values, 0) for values in middles])
    counts = min(map(len, middles))
    assert counts > 50
    assert np.ptp(means, axis=0).max() < 6 * 75 / np.sqrt(counts)  # 75: the deviation of one colour


def test_every_seed_split_and_index_has_its_own_image() -> None:
    keys = [
        (0, "train", 0),
        (0, "val", 0),
        (1, "train", 0),
        (0, "train", 1),
        (2**32, "train", 0),
        (2**40 + 7, "val", 3),
    ]
    images = {shapes.render(seed, split, index, 64).image.tobytes() for seed, split, index in keys}
    assert len(images) == len(keys)
    again = shapes.render(2**40 + 7, "val", 3, 64)
    np.testing.assert_array_equal(again.image, shapes.render(2**40 + 7, "val", 3, 64).image)


@pytest.mark.parametrize(
    ("key", "checksum"),
    [((0, "train", 0, 128), 3051384700), ((0, "val", 3, 128), 3279935536), ((7, "train", 5, 64), 3891822596)],
)
def test_the_images_of_a_seed_stay_what_they_are(key: tuple[int, str, int, int], checksum: int) -> None:
    """Published figures are those of these images: whoever changes them raises the version."""
    assert shapes._VERSION == 1
    assert zlib.crc32(shapes.render(*key).image.tobytes()) == checksum


def test_written_files_agree_with_the_annotations(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "shapes"
    assert shapes.write(str(out), train=12, val=3, size=64, seed=4)
    for split, number in (("train", 12), ("val", 3)):
        content = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list(shapes.CLASSES)
        assert len(content["images"]) == number == len(list((out / split).iterdir()))
        for index, record in enumerate(content["images"]):
            with Image.open(out / split / record["file_name"]) as image:
                assert image.size == (record["width"], record["height"]) == (64, 64)
            scene = shapes.render(4, split, index, 64)
            rows = [a for a in content["annotations"] if a["image_id"] == record["id"]]
            assert [a["category_id"] - 1 for a in rows] == scene.labels.tolist()
            xywh = np.asarray([a["bbox"] for a in rows], np.float32).reshape(-1, 4)
            np.testing.assert_array_equal(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), scene.boxes)
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])


def test_a_complete_set_is_left_and_another_replaced(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "shapes"
    shapes.write(str(out), train=4, val=1, size=64)
    first = (out / "train" / "000002.jpg").read_bytes()
    assert not shapes.write(str(out), train=4, val=1, size=64)
    (out / "annotations" / "instances_val.json").unlink()  # as an interrupted run leaves it
    assert shapes.write(str(out), train=4, val=1, size=64)
    assert (out / "train" / "000002.jpg").read_bytes() == first
    assert shapes.write(str(out), train=3, val=1, size=64, seed=1)
    assert sorted(p.name for p in (out / "train").iterdir()) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert (out / "train" / "000002.jpg").read_bytes() != first


def test_other_peoples_files_are_never_touched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="not a shapes data set"):
        shapes.write(str(tmp_path), train=1, val=1, size=64)
    assert (tmp_path / "train" / "holiday.jpg").read_bytes() == b"precious"


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["shapes", "--out", str(tmp_path / "s"), "--train", "2", "--val", "1", "--size", "64"]
    assert main(call) == 0
    assert "written" in capsys.readouterr().out
    assert main(call) == 0
    assert "already there" in capsys.readouterr().out
    for flag, value in (("--size", "8"), ("--seed", "-1"), ("--val", "0")):
        assert main([*call, flag, value]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_sides_of_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["shapes", "--out", str(tmp_path / "s"), "--train", "2", "--val", "1", "--size", "64"]
    large = ["--sides", "0.6", "0.9"]
    assert main([*call, *large]) == 0
    content = json.loads((tmp_path / "s" / "annotations" / "instances_train.json").read_text())
    assert min(min(a["bbox"][2:]) for a in content["annotations"]) >= 0.6 * 64
    assert "written" in capsys.readouterr().out
    assert main([*call, *large]) == 0
    assert "already there" in capsys.readouterr().out
    assert main(call) == 0  # other sides are another set
    assert "written" in capsys.readouterr().out
    assert main([*call, "--kind", "figures", *large]) != 0
    assert "--sides is for --kind shapes" in capsys.readouterr().err
