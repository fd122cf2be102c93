"""The record of an object: four points of a plate go from a COCO JSON to the augmented batch and back to the image.

No stage knows of plates: what is tested is that every one passes on whatever the record holds.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kpjax.config import AugmentConfig, DataConfig, SplitConfig
from kpjax.data.augment import augment
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.datasets.records import write_records
from kpjax.errors import ConfigError, DataError
from kpjax.images.geometry import square_crop, window_crop
from kpjax.images.preprocess import COCO_BGR
from kpjax.images.views import fixed_view, keep_view
from kpjax.inference.program import mirror_in_window
from kpjax.objects import (
    BOX,
    PER_POINT,
    POINT,
    Detections,
    Geometry,
    Objects,
    PointSet,
    distinct_names,
    in_mirror_order,
    map_coordinates,
    mirror_by_names,
)

NAMES = ["left_top", "right_top", "right_bottom", "left_bottom"]
PLATE = PointSet(tuple(NAMES), edges=((0, 1), (1, 2), (2, 3), (3, 0)))
SIZES = [(48, 64), (60, 40)]  # height, width


def plates(folder: pathlib.Path, edit: Any = None) -> DataConfig:
    """Two images, with two plates and one; the second plate's third corner is hidden, its last one unlabelled."""
    (folder / "images").mkdir()
    instances: dict[str, Any] = {"images": [], "annotations": []}
    for n, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{n}.png")
        instances["images"].append({"id": n + 1, "file_name": f"{n}.png", "height": height, "width": width})
    for n, (image, corners) in enumerate(
        [
            (1, [10, 12, 2, 30, 14, 2, 29, 24, 2, 9, 22, 2]),
            (1, [40, 30, 2, 55, 30, 2, 55, 40, 1, 0, 0, 0]),
            (2, [5.5, 7.25, 2, 25, 7, 2, 25, 20, 2, 5, 20, 2]),
        ]
    ):
        xs, ys = [v for v in corners[::3] if v], [v for v in corners[1::3] if v]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        annotation = {"id": n + 1, "image_id": image, "category_id": 1, "bbox": box, "keypoints": corners}
        instances["annotations"].append(annotation)
    skeleton = [[a + 1, b + 1] for a, b in PLATE.edges]
    instances["categories"] = [{"id": 1, "name": "plate", "keypoints": NAMES, "skeleton": skeleton}]
    if edit:
        edit(instances)
    (folder / "plates.json").write_text(json.dumps(instances))
    split = SplitConfig(str(folder / "images"), str(folder / "plates.json"))
    return DataConfig(train=split, val=split, canvas=64, max_boxes=4, threads=1)


def test_points_go_from_the_file_to_the_augmented_batch_and_back(tmp_path: pathlib.Path) -> None:
    config = plates(tmp_path)
    source = open_source(config, "train", keypoints=True)
    assert source.points == PLATE and PLATE.mirror == (1, 0, 3, 2)
    np.testing.assert_array_equal(source.objects[0].points[0], [[10, 12], [30, 14], [29, 24], [9, 22]])
    assert source.objects[0].seen.tolist() == [[2, 2, 2, 2], [2, 2, 1, 0]]
    batch = next(train_batches(source, config, batch=2, seed=0, shuffle=False))
    in_memory = next(memory_batches(source, config, batch=2, seed=0, shuffle=False))
    jax.tree.map(np.testing.assert_array_equal, batch["objects"], in_memory["objects"])
    objects = batch["objects"]
    assert objects.points.shape == (2, 4, 4, 2) and objects.seen.shape == (2, 4, 4)

    for kind in ("crop", "shift", "window", "none"):
        settings = AugmentConfig(kind=kind, height=64, width=96, border=16, color=0.0, lighting=0.0)

        @jax.jit
        def run(key: Any, settings: AugmentConfig = settings) -> Any:
            one = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
            return augment(key, one["canvas"], one["size"], one["objects"], settings, COCO_BGR, PLATE)[1]

        mirrored = 0
        for seed in range(12):
            moved = jax.device_get(run(jax.random.key(seed)))
            box, given = moved.boxes[0], objects.boxes[0, 0]
            # Where the corners of the box went says where every point has to be.
            scale = (box[2:] - box[:2]) / (given[2:] - given[:2])
            flip = moved.points[0, 0, 0] > moved.points[0, 1, 0]
            assert not flip, "after a mirror the left corner is the one that is left in the picture"
            order = np.array(PLATE.mirror)
            plain = (objects.points[0, 0] - given[:2]) * scale + box[:2]
            turned = np.stack([box[2] - (objects.points[0, 0, :, 0] - given[0]) * scale[0], plain[:, 1]], 1)[order]
            fits = [np.abs(moved.points[0] - want).max() < 1e-3 for want in (plain, turned)]
            assert any(fits), (kind, seed)
            mirrored += fits[1] and not fits[0]
            seen = objects.seen[0, 1]
            assert moved.seen[1].tolist() == (seen[order] if fits[1] else seen).tolist()
        assert 1 <= mirrored <= 11, kind

    # Test time: from the canvas back to the image's pixels.
    keypoints = np.concatenate([objects.points[0], np.ones((4, 4, 1), np.float32)], axis=-1)
    found = Detections(objects.boxes[0], np.ones(4), objects.labels[0], keypoints=keypoints)
    for view in (keep_view(COCO_BGR, SIZES[0], 1.5), fixed_view(SIZES[0], (128, 96))):
        there = view.to_canvas(found)
        assert np.abs(there.keypoints - found.keypoints).max() > 1
        np.testing.assert_allclose(view.to_image(there).keypoints, found.keypoints, atol=1e-4)
        np.testing.assert_allclose(view.to_image(there).boxes, found.boxes, atol=1e-4)


def test_points_survive_records_to_the_last_bit(tmp_path: pathlib.Path) -> None:
    config = plates(tmp_path)
    source = open_source(config, "train", keypoints=True)
    write_records({"train": source}, str(tmp_path / "out"), file_format="tfrecord")
    config.source, config.tfds_name, config.tfds_dir = "tfds", "kpjax_records", str(tmp_path / "out")
    again = open_source(config, "train", keypoints=True)
    assert again.points == PLATE
    jax.tree.map(np.testing.assert_array_equal, again.objects, source.objects)
    assert again.ground_truth() == source.ground_truth()
    assert open_source(config, "train").objects[0].points is None


def test_without_being_asked_for_points_are_not_read(tmp_path: pathlib.Path) -> None:
    config = plates(tmp_path, lambda d: d["annotations"][0].update(keypoints="rubbish"))
    assert open_source(config, "train").objects[0].points is None


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda d: d["annotations"][0]["keypoints"].pop(), "annotation 1 has keypoints of 11 numbers; give x, y"),
        (lambda d: d["annotations"][1]["keypoints"].__setitem__(2, 3), "visibility 3 at keypoint 1; give 0 unlabelled"),
        (
            lambda d: d["annotations"][1]["keypoints"].__setitem__(0, float("nan")),
            "2 has nan at keypoint 1; give numbers",
        ),
        (lambda d: d["annotations"][1].update(keypoints="rubbish"), "has the keypoints 'rubbish'; give x, y, visib"),
        (lambda d: d["categories"][0].update(keypoints=["left_top"] * 4), "names the keypoint 'left_top' twice"),
        (lambda d: d["categories"][0].pop("keypoints"), "no category has 'keypoints'"),
        (lambda d: d["categories"][0]["skeleton"].append([1, 5]), r"joins keypoints which are not there .*from 1 to 4"),
        (
            lambda d: d["categories"].append({"id": 2, "name": "face", "keypoints": ["nose"]}),
            r"categories\[1\] has 1 keypoints and categories\[0\] 4",
        ),
    ],
)
def test_keypoints_that_cannot_be_are_one_line(tmp_path: pathlib.Path, edit: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as error:
        open_source(plates(tmp_path, edit), "train", keypoints=True)
    assert "\n" not in str(error.value)


def test_crowds_are_ignored_or_trained_on(tmp_path: pathlib.Path) -> None:
    """The authors' programs ask for all annotations of an image; mmdetection leaves crowds out."""
    config = plates(tmp_path, lambda d: d["annotations"][0].update(iscrowd=1))
    ignored = open_source(config, "train")
    assert ignored.objects[0].role.tolist() == [1, 2] and ignored.dropped == {"crowd": 1}
    np.testing.assert_array_equal(ignored.objects[0].boxes[1], [9, 12, 30, 24])  # the crowd comes last
    config.crowds = "train"
    trained = open_source(config, "train")
    assert trained.objects[0].role.tolist() == [1, 1] and trained.dropped == {}
    np.testing.assert_array_equal(trained.objects[0].boxes[0], [9, 12, 30, 24])  # in the file's order
    batch = next(memory_batches(trained, config, batch=1, seed=0, shuffle=False))
    assert batch["objects"].valid.sum() == 2


@flax.struct.dataclass
class Quad:
    """A record that no module knows, with two kinds of coordinates and a value a point."""

    box: Any = flax.struct.field(metadata=BOX)
    corners: Any = flax.struct.field(metadata=POINT)
    sharp: Any = flax.struct.field(metadata=PER_POINT)
    weight: Any = flax.struct.field()


def quad(xs: list[float]) -> Quad:
    xy = np.array(xs, np.float32).reshape(1, 4, 2)
    box = np.concatenate([xy.min(1), xy.max(1)], -1)
    return Quad(box, xy, np.arange(4.0).reshape(1, 4), np.ones(1))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 100, width=32), min_size=8, max_size=8),
    st.floats(10, 90, width=32),
    st.floats(20, 150, width=32),
    st.booleans(),
)
def test_mirrored_twice_is_the_identity_for_every_field(xs: list[float], c: float, side: float, flip: bool) -> None:
    record = quad(xs)
    size = jnp.asarray([100, 120], jnp.int32)
    crops = (
        square_crop(jnp.asarray([c, 50.0]), jnp.float32(side), jnp.bool_(flip), size, (64, 96)),
        window_crop(jnp.asarray([round(c), 50.0]), jnp.floor(jnp.full(2, side)), jnp.bool_(flip), size, (64, 96)),
    )
    for geometry in (crop.geometry for crop in crops):
        moved = geometry.move(record, PLATE)
        assert (moved.box[:, 2:] >= moved.box[:, :2]).all()
        back = Geometry(geometry.target, 1 / geometry.scale, geometry.source, geometry.mirrored, geometry.changed)
        again = back.move(moved, PLATE)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(record), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-3)


JOINTS = 5  # one number: another would be another program to compile


@st.composite
def mirrored_points(draw: Any) -> PointSet:
    """Points under names that say nothing, some of which change places in a mirror."""
    order, mirror = draw(st.permutations(range(JOINTS))), list(range(JOINTS))
    for pair in range(draw(st.integers(0, JOINTS // 2))):
        one, other = order[2 * pair : 2 * pair + 2]
        mirror[one], mirror[other] = other, one
    return PointSet(tuple(f"point {j}" for j in range(JOINTS)), tuple(mirror))


@settings(max_examples=50, deadline=None)
@given(mirrored_points(), st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(61, 128))
def test_objects_and_detections_mirrored_twice_are_themselves(
    points: PointSet, seed: int, left: int, right: int
) -> None:
    """In training (`Geometry.move`), on a canvas (`mirror_in_window`); once is another record, bit for bit back."""
    rng = np.random.default_rng(seed)

    def coordinates(*shape: int) -> np.ndarray:  # whole pixels: sums with these are exact
        return rng.integers(0, 512, (2, 3, *shape)).astype(np.float32)

    boxes, labels = coordinates(2), rng.integers(0, 9, (2, 3)).astype(np.int32)
    boxes = np.concatenate([boxes, boxes + 1 + coordinates(2)], axis=-1)
    seen = rng.integers(0, 3, (2, 3, JOINTS)).astype(np.int32)
    objects = Objects(boxes, labels, np.ones_like(labels), coordinates(JOINTS, 2), seen)
    found = Detections(boxes, rng.random((2, 3), np.float32), labels, keypoints=coordinates(JOINTS, 3))

    turn = Geometry(jnp.zeros(2), jnp.array([-1.0, 1.0]), jnp.array([300.0, 0.0]), jnp.bool_(True), jnp.bool_(False))
    windows = np.array([[0, left, 99, right]] * 2, np.int32)
    for record in (objects, found):
        for mirror in (lambda x: turn.move(x, points), lambda x: mirror_in_window(x, windows, points)):
            once = mirror(record)
            assert (once.boxes[..., 2] > once.boxes[..., 0]).all()
            jax.tree.map(np.testing.assert_array_equal, mirror(once), record)
            for j, partner in enumerate(points.mirror):
                if isinstance(record, Objects):
                    np.testing.assert_array_equal(once.seen[..., j], record.seen[..., partner])
                else:
                    np.testing.assert_array_equal(once.keypoints[..., j, 1:], record.keypoints[..., partner, 1:])


def test_a_mirror_needs_to_know_the_points() -> None:
    record = quad([0, 0, 9, 0, 9, 9, 0, 9])
    with pytest.raises(ValueError, match="corners has 4 points, and no point set says"):
        in_mirror_order(record, True)
    with pytest.raises(ValueError, match="the point set of 2 points cannot say"):
        in_mirror_order(record, True, PointSet(("left", "right")))


def test_partners_by_name() -> None:
    assert mirror_by_names(["nose", "left_eye", "right_eye"]) == (0, 2, 1)
    assert mirror_by_names(["L_hand", "R_hand", "tail", "foot_l", "foot_r"]) == (1, 0, 2, 4, 3)
    assert mirror_by_names(["leftmost", "centre"]) == (0, 1)  # it has no partner
    assert mirror_by_names(["LeftEye", "RightEye"]) == (1, 0)
    # Both sides of a name change; "right" within another word is none, and what has no way back stays.
    eyes = [f"{side}_eye_{end}_corner" for side in ("left", "right") for end in ("left", "right")]
    assert mirror_by_names(eyes) == (3, 2, 1, 0)
    assert mirror_by_names(["l_ear_left", "l_ear_right", "r_ear_left", "r_ear_right"]) == (3, 2, 1, 0)
    assert mirror_by_names(["bright_left", "bright_right"]) == (1, 0)
    PointSet(("left_front_left", "left_front_right", "right_front_left", "left_back"))
    for wrong in ({"mirror": (1, 2, 0)}, {"edges": ((0, 3),)}, {"sigmas": (0.1,)}):
        with pytest.raises(ConfigError):
            PointSet(("a", "b", "c"), **wrong)  # type: ignore[arg-type]


def test_fields_that_are_none_stay_none() -> None:
    objects = Objects(np.zeros((2, 4), np.float32), np.zeros(2, np.int32), np.ones(2, np.int32))
    moved = map_coordinates(objects, lambda xy: xy + 1)
    assert moved.points is None and moved.solid is None and (moved.boxes == 1).all()
    assert len(jax.tree.leaves(objects)) == 3 and len(dataclasses.fields(objects)) == 6


def test_names_of_classes_are_made_different() -> None:
    assert distinct_names({1: "other", 2: "car", 3: "other"}) == {1: "other (id 1)", 2: "car", 3: "other (id 3)"}
    assert distinct_names({4: "a", 5: "b"}) == {4: "a", 5: "b"} and distinct_names({}) == {}
    odd = distinct_names({1: "a", 2: "a", 3: "a (id 1)"})
    assert len(set(odd.values())) == 3
