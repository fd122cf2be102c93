"""Pose: targets against a loop, maps that hold them decoded back, other points than a person's joints."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpjax
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.objects import Objects, Placed, PointSet
from kpjax.person import PERSON

SMALL: dict[str, Any] = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}
SIZE = (64, 96)
CORNERS = PointSet(("top_left", "top_right", "bottom_right", "bottom_left"), edges=((0, 1), (1, 2), (2, 3), (3, 0)))
SLOTS = 6


def detector(points: PointSet | dict[str, Any] = CORNERS, classes: int = 2, **options: Any) -> Detector:
    return kpjax.build("centernet_r18_pose", classes, points=points, **SMALL, **options)


def random_objects(seed: int, points: int = 4, count: int = 4) -> Objects:
    """`count` objects in `SLOTS` slots, some partly outside, with points in and around their boxes."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-8, 60, (SLOTS, 2)).astype(np.float32)
    side = rng.uniform(6, 40, (SLOTS, 2)).astype(np.float32)
    xy = low[:, None] + side[:, None] * rng.uniform(-0.1, 1.1, (SLOTS, points, 2)).astype(np.float32)
    return Objects(
        boxes=np.concatenate([low, low + side], 1),
        labels=rng.integers(0, 2, SLOTS).astype(np.int32),
        role=(np.arange(SLOTS) < count).astype(np.int32),
        points=xy.astype(np.float32),
        seen=rng.integers(0, 3, (SLOTS, points)).astype(np.int32),
    )


@functools.cache
def encoder(**options: Any) -> Any:
    det = detector(**options)
    return jax.jit(lambda objects: det.encode(objects, Placed(SIZE)))


def targets_of(objects: Objects, **options: Any) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in encoder(**options)(objects).items()}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_targets_against_a_loop(seed: int) -> None:
    objects, boxes = random_objects(seed), kpjax.build("centernet_r18", 2, **SMALL)
    targets = targets_of(objects)
    plain = boxes.encode(objects, Placed(SIZE))
    np.testing.assert_array_equal(targets["heatmap"], plain["heatmap"])
    height, width = SIZE[0] // 4, SIZE[1] // 4
    there = np.zeros((SLOTS, 4), bool)
    peaks = np.zeros((height, width, 4), bool)
    for m in range(SLOTS):
        labelled = bool((objects.seen[m] > 0).any())
        assert targets["mask"][m] == (bool(plain["mask"][m]) and labelled)
        if targets["mask"][m]:
            np.testing.assert_array_equal(targets["wh"][m], plain["wh"][m])
        cell = np.array([plain["index"][m] % width, plain["index"][m] // width])
        for j in range(4):
            x, y = objects.points[m, j] / 4
            if not (plain["mask"][m] and objects.seen[m, j] > 0 and 0 <= x < width and 0 <= y < height):
                continue
            there[m, j] = peaks[int(y), int(x), j] = True
            np.testing.assert_allclose(targets["keypoint_offset"][m, j], [x, y] - cell, atol=1e-5)
            np.testing.assert_allclose(targets["joint_offset"][m, j], [x - int(x), y - int(y)], atol=1e-5)
            assert targets["joint_index"][m, j] == int(y) * width + int(x)
    np.testing.assert_array_equal(targets["keypoint_mask"], there)
    np.testing.assert_array_equal(targets["joint_heatmap"] == 1, peaks)
    assert targets["joint_heatmap"].shape == (height, width, 4) and targets["joint_heatmap"].max() <= 1


def test_objects_without_points_can_train_their_boxes() -> None:
    objects = random_objects(0)
    objects = dataclasses.replace(objects, seen=np.zeros_like(objects.seen))
    assert not targets_of(objects)["mask"].any()
    assert targets_of(objects, box_without_points=True)["mask"].sum() == 4


def apart(points: int) -> Objects:
    """Three objects, all points inside and labelled, none in a cell with another: these have one offset a cell."""
    rng = np.random.default_rng(0)
    boxes = np.array([[4, 4, 32, 40], [40, 20, 64, 60], [62, 2, 90, 30], [0, 0, 0, 0]], np.float32)
    xy = np.zeros((4, points, 2), np.float32)
    for m, (x1, y1, x2, y2) in enumerate(boxes[:3]):
        cells = [(x, y) for x in np.arange(x1 + 2, x2 - 4, 4) for y in np.arange(y1 + 2, y2 - 4, 4)]
        xy[m] = rng.permutation(cells)[:points] // 4 * 4 + rng.uniform(0, 4, (points, 2))
    return Objects(
        boxes=boxes,
        labels=np.array([1, 0, 1, 0], np.int32),
        role=np.array([1, 1, 1, 0], np.int32),
        points=xy,
        seen=np.full((4, points), 2, np.int32),
    )


@pytest.mark.parametrize("points", [CORNERS, PERSON], ids=["corners", "person"])
def test_maps_that_hold_the_truth_give_it_back(points: PointSet) -> None:
    det, objects = detector(points), apart(len(points))

    @jax.jit
    def found_of(batch: Objects) -> Any:
        targets = jax.vmap(lambda one: det.encode(one, Placed(SIZE)))(batch)
        assert det.oracle is not None
        return det.decode(det.oracle(targets, SIZE), None, 5)

    found = jax.device_get(found_of(jax.tree.map(lambda x: x[None], objects)))
    assert (found.scores[0, :3] == 1).all() and (found.scores[0, 3:] == 0).all()
    for m in range(3):
        row = int(np.argmin(np.abs(found.boxes[0] - objects.boxes[m]).max(-1)))
        np.testing.assert_allclose(found.boxes[0, row], objects.boxes[m], atol=1e-4)
        np.testing.assert_allclose(found.keypoints[0, row, :, :2], objects.points[m], atol=1e-4)
        np.testing.assert_allclose(found.keypoints[0, row, :, 2], 1)
        assert found.labels[0, row] == objects.labels[m]


def one_object(peak: tuple[int, int] | None, score: float, points: tuple[float, float] = (3.0, 2.0)) -> dict[str, Any]:
    """Merged maps of one object at cell (10, 8), 8 x 12 cells, its one point regressed; perhaps a peak of that."""
    maps = {
        "scores": np.zeros((1, 16, 24, 1), np.float32),
        "wh": np.full((1, 16, 24, 2), (8.0, 12.0), np.float32),
        "offset": np.full((1, 16, 24, 2), 0.5, np.float32),
        "keypoint_offset": np.full((1, 16, 24, 2), points, np.float32),
        "joint_scores": np.zeros((1, 16, 24, 1), np.float32),
        "joint_offset": np.full((1, 16, 24, 2), 0.25, np.float32),
    }
    maps["scores"][0, 8, 10, 0] = 0.9
    if peak:
        maps["joint_scores"][0, peak[1], peak[0], 0] = score
    return maps


@pytest.mark.parametrize(
    ("peak", "score", "moves"),
    [
        ((12, 9), 0.6, True),
        ((12, 9), 0.1, False),  # not above the least score
        ((10, 4), 0.6, False),  # further than 0.3 of the longer side
        ((14, 11), 0.6, True),  # within the box's right edge at 14.5
        ((15, 10), 0.6, False),  # beyond it
        (None, 0.0, False),
    ],
)
def test_a_point_moves_to_a_peak_nearby(peak: tuple[int, int] | None, score: float, moves: bool) -> None:
    det = detector(PointSet(("tip",)), 1)
    found = det.decode(one_object(peak, score), None, 3)
    x, y, seen = np.asarray(found.keypoints[0, 0, 0])
    if moves:
        assert peak is not None and seen == pytest.approx(score)
        assert (x / 4, y / 4) == pytest.approx((peak[0] + 0.25, peak[1] + 0.25))
    else:
        assert (x / 4, y / 4) == (13.0, 10.0)
        assert seen == 0


def test_a_regressed_point_has_the_score_of_the_heatmap_where_it_lies() -> None:
    det = detector(PointSet(("tip",)), 1)
    found = det.decode(one_object((13, 10), 0.08), None, 1)
    assert found.keypoints[0, 0, 0, 2] == pytest.approx(0.08)
    outside = det.decode(one_object((13, 10), 0.08, points=(30.0, 0.0)), None, 1)
    assert outside.keypoints[0, 0, 0].tolist() == [160.0, 32.0, 0.0]


def test_a_mirror_image_adds_nothing() -> None:
    """Maps merged with those that an exact network has for the mirrored image are the maps themselves."""
    det, rng = detector(PERSON, 1), np.random.default_rng(0)
    heads = {"heatmap": 1, "wh": 2, "offset": 2, "keypoint_offset": 34, "joint_heatmap": 17, "joint_offset": 2}
    maps = {name: rng.normal(size=(2, 8, 12, count)).astype(np.float32) for name, count in heads.items()}
    partner = list(PERSON.mirror)
    mirrored = {name: value[:, :, ::-1].copy() for name, value in maps.items()}
    mirrored["joint_heatmap"] = mirrored["joint_heatmap"][..., partner]
    xy = mirrored["keypoint_offset"].reshape(2, 8, 12, 17, 2)[:, :, :, partner] * np.array([-1, 1], np.float32)
    mirrored["keypoint_offset"] = xy.reshape(2, 8, 12, 34)
    merged = det.merge_flip({name: jnp.concatenate([maps[name], mirrored[name]]) for name in maps})
    np.testing.assert_allclose(merged["scores"], jax.nn.sigmoid(maps["heatmap"]), atol=1e-6)
    np.testing.assert_allclose(merged["joint_scores"], jax.nn.sigmoid(maps["joint_heatmap"]), atol=1e-6)
    for name in ("wh", "offset", "keypoint_offset", "joint_offset"):
        np.testing.assert_allclose(merged[name], maps[name], atol=1e-6)


def test_training_lowers_each_part_of_the_loss() -> None:
    det, objects = detector(), apart(4)
    images = jax.random.normal(jax.random.key(1), (1, *SIZE, 3))
    variables = det.net.init(jax.random.key(0), images, train=False)
    targets = jax.vmap(lambda one: det.encode(one, Placed(SIZE)))(jax.tree.map(lambda x: jnp.asarray(x)[None], objects))
    counts = det.normaliser(targets)

    @jax.jit
    def step(params: Any) -> Any:
        def cost(params: Any) -> Any:
            outputs, _ = det.net.apply({**variables, "params": params}, images, train=True, mutable="batch_stats")
            return det.loss(outputs, targets, counts)

        (_, parts), slopes = jax.value_and_grad(cost, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g / (1e-6 + jnp.abs(g).max()), params, slopes), parts

    params, first = step(variables["params"])
    for _ in range(60):
        params, parts = step(params)
    assert set(parts) == {"heatmap", "wh", "offset", "keypoint_offset", "joint_heatmap", "joint_offset"}
    for name in ("heatmap", "wh", "keypoint_offset", "joint_heatmap"):
        assert parts[name] < 0.8 * first[name], (name, first[name], parts[name])


def test_options_build_the_same_detector_again() -> None:
    det = detector(dataclasses.replace(CORNERS, sigmas=(0.05,) * 4))
    again = kpjax.build(det.name, 2, **json.loads(json.dumps(det.options)))
    assert again.points == det.points and again.net == det.net
    assert "points" not in kpjax.build("centernet_r18_pose", 1).options
    assert kpjax.build("centernet_r18_pose", 1).points == PERSON


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"points": {"mirror": [0]}}, "points is .*; give names"),
        ({"points": {"names": ["a"], "joints": 1}}, "points is .*; give names"),
        ({"points": {"names": ["a", "b"], "edges": [[0, 2]]}}, "joins points that do not exist; there are 2"),
        ({"points": {"names": ["a", "b"], "edges": [1]}}, "values of another kind"),
        ({"points": {"names": ["a", "b"], "sigmas": [0.1]}}, "pose: points: 1 sigmas were given for 2 points"),
        ({"points": {"names": ["a"], "sigmas": [0.0]}}, "numbers above 0 and at most 1"),
        ({"points": {"names": ["a", "a"]}}, "the point 'a' is named twice"),
        ({"points": {"names": "abc"}}, "points is .*; give names"),
        ({"class_specific_wh": True}, "no option 'class_specific_wh'"),
    ],
)
def test_points_that_cannot_be_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        kpjax.build("centernet_r18_pose", 1, **options)
    assert "\n" not in str(error.value)


def test_objects_of_other_points_are_refused() -> None:
    with pytest.raises(ValueError, match="the objects have 3 points, the detector learns 4"):
        detector().encode(random_objects(0, points=3), Placed(SIZE))


@pytest.mark.parametrize(
    ("name", "parameters"), [("centernet_dla34_pose", 20_625_346), ("centernet_hg104_pose", 194_811_124)]
)
def test_parameter_counts_are_the_released_ones(name: str, parameters: int) -> None:
    """DLA: less ucbdrive's classifier and the two projections that the original holds and never uses."""
    det = kpjax.build(name, num_classes=1)
    shapes = jax.eval_shape(lambda: det.net.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3))))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))
    boxes = kpjax.build(name.removesuffix("_pose"), num_classes=80)
    boxes_shapes = jax.eval_shape(lambda: boxes.net.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3))))
    boxes_count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(boxes_shapes["params"]))
    released = {"centernet_dla34_pose": 20_188_892, "centernet_hg104_pose": 191_284_008}[name]
    assert count - boxes_count == parameters - released
