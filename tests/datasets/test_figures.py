"""The data set of drawn figures: what its joints and boxes promise, and that it can be repeated."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from kpjax.__main__ import main
from kpjax.config import DataConfig, SplitConfig
from kpjax.data.opening import open_source
from kpjax.datasets import figures, puppet, shapes
from kpjax.datasets.puppet import JOINTS
from kpjax.errors import ConfigError
from kpjax.objects import HIDDEN, UNLABELLED, VISIBLE, mirror_by_names

SIZE = 96
MIRROR = mirror_by_names(JOINTS)
J = {name: j for j, name in enumerate(JOINTS)}


@pytest.fixture(scope="module")
def scenes() -> list[figures.Scene]:
    return [figures.render(5, "train", index, SIZE) for index in range(120)]


def test_counts_sides_and_joints(scenes: list[figures.Scene]) -> None:
    counts = [len(scene.boxes) for scene in scenes]
    assert [k for k, n in enumerate(counts) if n == 0] == list(range(9, 120, 10))  # one image of ten is empty
    assert set(counts) == set(range(figures.MAX_FIGURES + 1))
    for scene in scenes:
        n = len(scene.boxes)
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.points.shape == (n, len(JOINTS), 2) and scene.points.dtype == np.float32
        assert scene.seen.shape == (n, len(JOINTS)) and scene.seen.dtype == np.int32
        assert (scene.boxes >= 0).all() and (scene.boxes <= SIZE).all()
        assert (scene.visible >= figures.MIN_VISIBLE).all() and (scene.visible <= 1).all()
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (scene.areas > 0).all() and (scene.areas <= sides.prod(1)).all()
        there = scene.seen > UNLABELLED
        assert (scene.points[~there] == 0).all()
        low, high = scene.boxes[:, None, :2], scene.boxes[:, None, 2:]
        assert ((scene.points >= low) & (scene.points <= high)).all(-1)[there].all()
        assert (there.sum(1) >= 6).all()
    boxes, seen = (np.concatenate([getattr(scene, name) for scene in scenes]) for name in ("boxes", "seen"))
    assert np.mean(boxes[:, 3] - boxes[:, 1] >= 0.4 * SIZE) > 0.8
    shares = [np.mean(seen == v) for v in (UNLABELLED, HIDDEN, VISIBLE)]
    assert 0 < shares[0] < 0.05 and 0.05 < shares[1] < 0.2


def test_boxes_are_the_extent_of_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint each figure alone, in white on black: its pixels end where its box ends, at the border too."""

    def white(under: np.ndarray, coverage: np.ndarray, over: np.ndarray) -> None:
        under[:] = np.maximum(under, 255 * coverage[..., None])

    monkeypatch.setattr(figures, "blend", white)
    monkeypatch.setattr(figures, "surface", lambda rng, h, w, colour, strength: np.zeros((h, w, 3), np.float32))
    monkeypatch.setattr(figures, "MAX_FIGURES", 1)
    monkeypatch.setattr(figures, "OCCLUDED", 0.0)
    monkeypatch.setattr(figures, "CUT", 0.5)
    cut = 0
    for index in range(40):
        scene = figures.render(1, "val", index, SIZE)
        drawn = scene.image.max(-1) > 50  # above the noise; a subpixel's sixteenth of 255 is not
        if not len(scene.boxes):
            assert not drawn.any()
            continue
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(seen, scene.boxes[0])).max() <= 1.0
        assert abs(drawn.sum() - scene.areas[0]) <= 0.2 * scene.areas[0]  # the rim's pixels are covered in part
        cut += (scene.seen == UNLABELLED).any()
    assert cut > 3


def test_a_joint_is_visible_where_its_own_limb_is_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint limbs in colours that say whose they are, occluders in black, and read them at the joints."""
    number = [0]

    def numbered(rng: np.random.Generator, canvas: np.ndarray, layers: list) -> None:
        number[0] += 1
        for layer in layers:
            code = 1 + 5 * (number[0] - 1) + layer.limb  # three digits of base 3, far apart for the noise
            canvas[layer.window][layer.coverage >= 0.5] = [127 * (code // 3**k % 3) for k in range(3)]

    def black(rng: np.random.Generator, under: np.ndarray, coverage: np.ndarray) -> None:
        under[coverage >= 0.5] = 0

    monkeypatch.setattr(figures, "_dress", numbered)
    monkeypatch.setattr(figures, "paint", black)
    limbs = {"left_elbow": (1,), "left_hand": (1,), "right_elbow": (2,), "right_hand": (2,)}
    limbs |= {"left_foot": (3,), "right_foot": (4,), "left_hip": (0, 3), "right_hip": (0, 4)}
    limbs |= {"head": (0,), "left_shoulder": (0, 1), "right_shoulder": (0, 2)}
    hidden_by = {"its own limb": 0, "another figure": 0, "an occluder": 0}
    for index in range(80):
        number[0] = 0
        scene = figures.render(3, "train", index, SIZE)
        for figure, (points, seen) in enumerate(zip(scene.points, scene.seen, strict=True)):
            for j, name in enumerate(JOINTS):
                if seen[j] == UNLABELLED:
                    continue
                colour = scene.image[int(points[j, 1]), int(points[j, 0])]
                code = sum(round(float(c) / 127) * 3**k for k, c in enumerate(colour))
                owner, limb = divmod(code - 1, 5)
                assert (seen[j] == VISIBLE) == (owner == figure and limb in limbs[name]), (index, figure, name)
                if seen[j] == HIDDEN:
                    who = "an occluder" if not code else "its own limb" if owner == figure else "another figure"
                    hidden_by[who] += 1
    assert min(hidden_by.values()) > 10


def test_figures_face_the_viewer_and_so_do_their_mirror_images() -> None:
    crossed, bends = 0, []
    for k in range(300):
        joints = puppet.random_puppet(np.random.default_rng(k)).joints
        mirrored = np.stack([-joints[list(MIRROR), 0], joints[list(MIRROR), 1]], axis=1)
        for xy in (joints, mirrored):
            up = xy[J["head"]] - (xy[J["left_hip"]] + xy[J["right_hip"]]) / 2
            # the picture's right, for somebody upright who faces the viewer
            to_its_left = np.array([-up[1], up[0]]) / np.linalg.norm(up)
            for name in ("shoulder", "hip"):
                assert (xy[J[f"left_{name}"]] - xy[J[f"right_{name}"]]) @ to_its_left > 0.1
            assert abs(np.degrees(np.arctan2(up[0], -up[1]))) < 27  # the lean, and how the head is held
        lengths = {
            side: [
                np.linalg.norm(joints[J[f"{side}_{a}"]] - joints[J[f"{side}_{b}"]])
                for a, b in (("shoulder", "elbow"), ("elbow", "hand"), ("hip", "foot"))
            ]
            for side in ("left", "right")
        }
        np.testing.assert_allclose(lengths["left"], lengths["right"])
        crossed += (joints[J["left_hand"]] - joints[J["right_hand"]]) @ to_its_left < 0
        upper, fore = (
            joints[J[f"left_{b}"]] - joints[J[f"left_{a}"]] for a, b in (("shoulder", "elbow"), ("elbow", "hand"))
        )
        bends.append(np.degrees(np.arctan2(upper[0] * fore[1] - upper[1] * fore[0], upper @ fore)))
    assert crossed > 3  # the hands alone do not say which is which
    assert np.ptp(bends) > 180 and np.std(bends) > 45


def test_both_sides_of_a_figure_look_alike(scenes: list[figures.Scene]) -> None:
    """Colours of left and right hands: equal but for texture and noise, and unlike those of others."""

    def at(scene: figures.Scene, figure: int, name: str) -> np.ndarray:
        x, y = scene.points[figure, J[name]].astype(int)
        return scene.image[y, x].astype(float)

    def seen_hands(scene: figures.Scene) -> list[int]:
        hands = scene.seen[:, [J["left_hand"], J["right_hand"]]]
        return np.flatnonzero((hands == VISIBLE).all(1)).tolist()

    same, other = [], []
    for scene in scenes:
        for figure in seen_hands(scene):
            left = at(scene, figure, "left_hand")
            same.append(np.linalg.norm(left - at(scene, figure, "right_hand")))
            other += [np.linalg.norm(left - at(scene, k, "right_hand")) for k in seen_hands(scene) if k != figure]
    assert len(same) > 100 and np.median(same) < 30 and np.median(other) > 90


def test_every_seed_split_and_index_has_its_own_image() -> None:
    keys = [
        (0, "train", 0),
        (0, "val", 0),
        (1, "train", 0),
        (0, "train", 1),
        (2**32, "train", 0),
        (2**40 + 7, "val", 3),
    ]
    images = {figures.render(seed, split, index, 64).image.tobytes() for seed, split, index in keys}
    assert len(images) == len(keys)
    one, again = (figures.render(2**40 + 7, "val", 3, 64) for _ in range(2))
    for name in ("image", "boxes", "points", "seen"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))


@pytest.mark.parametrize(("seed", "split", "size"), [(-1, "train", 64), (0, "test", 64), (0, "train", 32)])
def test_settings_out_of_range(seed: int, split: str, size: int) -> None:
    with pytest.raises(ConfigError):
        figures.render(seed, split, 0, size)


def test_written_files_agree_with_the_annotations_and_open(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "figures"
    assert figures.write(str(out), train=12, val=3, size=64, seed=4)
    for split, number in (("train", 12), ("val", 3)):
        content = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        (category,) = content["categories"]
        assert category["keypoints"] == list(JOINTS) and len(category["skeleton"]) == len(puppet.EDGES)
        assert len(content["images"]) == number == len(list((out / split).iterdir()))
        for annotation in content["annotations"]:
            assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3])
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    folder = SplitConfig(str(out / "train"), str(out / "annotations" / "instances_train.json"))
    source = open_source(DataConfig(train=folder), "train", keypoints=True)
    assert source.points is not None and source.points.names == JOINTS and source.points.mirror == MIRROR
    assert {(JOINTS[a], JOINTS[b]) for a, b in source.points.edges} == set(puppet.EDGES)
    for index, objects in enumerate(source.objects):
        scene = figures.render(4, "train", index, 64)
        np.testing.assert_array_equal(objects.boxes, scene.boxes)
        np.testing.assert_array_equal(objects.points, scene.points)
        np.testing.assert_array_equal(objects.seen, scene.seen)
        with Image.open(source.files[index]) as image:
            assert np.abs(np.asarray(image, float) - scene.image).mean() < 15  # JPEG keeps noise and colour roughly


def test_the_two_kinds_do_not_replace_each_other(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "set"
    shapes.write(str(out), train=1, val=1, size=64)
    with pytest.raises(ConfigError, match="not a figures data set"):
        figures.write(str(out), train=1, val=1, size=64)
    assert not shapes.write(str(out), train=1, val=1, size=64)  # nothing of it was touched


def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["shapes", "--kind", "figures", "--out", str(tmp_path / "s"), "--train", "2", "--val", "1", "--size", "64"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "written" in said and "left_hand" in said and "classes figure" in said
    first = (tmp_path / "s" / "train" / "000001.jpg").read_bytes()
    assert main(call) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*call, "--train", "3"]) == 0
    assert (tmp_path / "s" / "train" / "000001.jpg").read_bytes() == first  # a longer set begins with the shorter one
