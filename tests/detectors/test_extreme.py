"""ExtremeNet: building, targets, decoding, mirrored views and several scales."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax import detectors
from kpjax.detectors import extreme
from kpjax.detectors.base import Detector
from kpjax.detectors.extreme_targets import KEYPOINTS
from kpjax.errors import ConfigError
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.objects import UNLABELLED, VISIBLE, Detections, Geometry, Objects, Placed
from tests.records import objects_of

SIZE = (63, 95)  # input height, width
CLASSES = 3
SMALL: dict[str, Any] = {
    "features": (4, 4),
    "blocks": (1, 1),
    "stem": 4,
    "stacks": 1,
    "head_channels": 4,
    "peaks": 8,
    "groups": 20,
    "aggregation": 0.0,  # else the truth's Gaussians add up to scores above 1 beside their peaks
}
LABELS = np.array([0, 2, 0, 1], np.int32)
# Top, left, bottom, right; the last object has no outline.
POINTS = np.array(
    [
        [(20, 6), (5, 18), (25, 31), (40, 12)],
        [(70, 10), (50, 30), (66, 58), (90, 44)],
        [(12, 36), (8, 50), (22, 58), (30, 40)],
        [(0, 0), (0, 0), (0, 0), (0, 0)],
    ],
    np.float32,
)
BOXES = extreme.box_of(POINTS[:3])


@functools.cache
def detector(**options: Any) -> Detector:
    return kpjax.build("extremenet_hg104", CLASSES, **(SMALL | options))


def objects(points: np.ndarray = POINTS) -> Objects:
    boxes = np.concatenate([extreme.box_of(points[:3]), [[33, 33, 44, 44]]]).astype(np.float32)
    seen = np.full((4, 4), VISIBLE, np.int32)
    seen[3] = UNLABELLED
    return dataclasses.replace(objects_of(boxes, LABELS), points=points, seen=seen)


@functools.cache
def compiled_encode() -> Any:
    return jax.jit(lambda o: jax.tree.map(lambda x: x[None], detector().encode(o, Placed(SIZE))))


@functools.cache
def compiled_decode(**options: Any) -> Any:
    d = detector(**options)
    return jax.jit(lambda maps: d.decode(maps, Placed(SIZE), 10))


def truth(points: np.ndarray = POINTS) -> dict[str, np.ndarray]:
    oracle = detector().oracle
    assert oracle is not None
    maps = oracle(compiled_encode()(objects(points)), SIZE)
    return {name: np.clip(np.asarray(x), -20, 20) for name, x in maps.items()}


def assert_found(found: Detections, times: int = 1, least: float = 0.9) -> None:
    """Boxes, labels and points of what scores above `least` are those of the three objects, each so many times."""
    kept = np.asarray(found.scores[0]) > least
    assert found.keypoints is not None
    order = np.lexsort(np.asarray(found.boxes[0])[kept].round().T)
    rows = [np.asarray(x)[0][kept][order] for x in (found.boxes, found.labels, found.keypoints)]
    wanted = np.lexsort(np.asarray(BOXES).T)
    np.testing.assert_allclose(rows[0], np.repeat(BOXES[wanted], times, axis=0), atol=1e-3)
    np.testing.assert_array_equal(rows[1], np.repeat(LABELS[:3][wanted], times))
    np.testing.assert_allclose(rows[2][..., :2], np.repeat(POINTS[:3][wanted], times, axis=0), atol=1e-3)
    assert (rows[2][..., 2] > 0.9).all()


def test_what_it_learns_and_needs() -> None:
    d = detector()
    assert d.points is EXTREME_POINTS and d.outlines and d.metric == "boxes"
    assert detectors.data_needed("extremenet_hg104") == {"keypoints": False, "solid": False, "outlines": True}
    assert detectors.to_measure(d) == {"keypoints": False, "solid": False, "outlines": None}
    assert not detectors.learns_points("extremenet_hg104")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 3}, "has no option 'width'"),
        ({"peaks": 0}, "peaks is 0; it must be at least 1"),
        ({"groups": 0}, "groups is 0"),
        ({"aggregation": -0.1}, "aggregation is -0.1; it must lie between 0 and 1"),
        ({"least_center": 1.5}, "least_center is 1.5"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"kernel": 5}, "kernel is 5"),
        ({"nms": "soft"}, "nms is 'soft'; choose one of 'none', 'hard', 'linear', 'gaussian'"),
        ({"features": (4,)}, "give both the same number of levels"),
        ({"ghosts": 1}, "ghosts is 1; give a value like True"),
    ],
)
def test_build_refuses_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as raised:
        kpjax.build("extremenet_hg104", CLASSES, **options)
    assert "\n" not in str(raised.value)


def test_options_survive_json() -> None:
    d = detector()
    again = kpjax.build(d.name, CLASSES, **json.loads(json.dumps(d.options)))
    assert again.net == d.net


def test_targets_name_the_points() -> None:
    targets = {name: np.asarray(x[0]) for name, x in compiled_encode()(objects()).items()}
    np.testing.assert_array_equal(targets["mask"], [True, True, True, False])
    for kind, name in enumerate(EXTREME_POINTS.names):
        cells = POINTS[:3, kind] * (24 / 95, 16 / 63)
        np.testing.assert_array_equal(
            targets[f"{name}_index"][:3], cells[:, 1].astype(int) * 24 + cells[:, 0].astype(int)
        )
        np.testing.assert_allclose(targets[f"{name}_off"][:3], cells % 1, atol=1e-5)
    middle = np.stack([POINTS[:3, [1, 3], 0].mean(1), POINTS[:3, [0, 2], 1].mean(1)], 1) * (24 / 95, 16 / 63)
    peaks = np.argwhere(targets["center_heat"] == 1)
    expected = [(int(y), int(x), k) for (x, y), k in zip(middle, LABELS[:3], strict=True)]
    assert sorted(map(tuple, peaks.tolist())) == sorted(expected)  # the object without an outline teaches nothing
    assert "center_off" not in targets and "center_index" not in targets


def test_an_object_without_area_moves_out_of_the_way() -> None:
    moved = POINTS.copy()
    moved[0] += (-60, 0)  # outside the input
    targets = compiled_encode()(objects(moved))
    np.testing.assert_array_equal(targets["mask"][0], [True, True, False, False])
    np.testing.assert_array_equal(targets["top_index"][0, :2], compiled_encode()(objects())["top_index"][0, 1:3])


def test_objects_of_other_points_are_refused() -> None:
    with pytest.raises(ValueError, match="the objects have no points"):
        detector().encode(objects_of(np.zeros((2, 4)), np.zeros(2, int)), Placed(SIZE))


def test_loss_of_a_perfect_answer() -> None:
    d, targets = detector(), compiled_encode()(objects())
    counts = d.normaliser(targets)
    assert counts["objects"] == 3 and {counts[f"{name}_peaks"].item() for name in KEYPOINTS} == {3.0}
    value, parts = jax.jit(lambda m: d.loss([m, m], targets, counts))(truth())
    assert set(parts) == {"heatmap", "offset"} and parts["offset"] < 1e-6
    silent = {name: np.full_like(x, -9) if name.endswith("heat") else x + 1 for name, x in truth().items()}
    worse, of_silent = jax.jit(lambda m: d.loss([m, m], targets, counts))(silent)
    assert of_silent["offset"] == pytest.approx(4 * 2 * 0.5, rel=1e-3) and worse > 5 * value


def test_maps_that_hold_the_truth_give_it_back() -> None:
    found = compiled_decode(nms="none")(truth())
    assert found.scores.shape == (1, 20) and (np.diff(found.scores) <= 0).all()
    assert_found(found)


def test_a_program_may_leave_the_batch_open() -> None:
    """As `kpjax export` writes it."""
    (batch,) = jax.export.symbolic_shape("batch")
    maps = truth()
    shapes = {name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), np.float32) for name, x in maps.items()}
    program = jax.export.export(jax.jit(lambda m: detector().decode(m, Placed(SIZE), 10)))(shapes)
    twice = program.call({name: np.concatenate([x, x]) for name, x in maps.items()})
    once = compiled_decode()(maps)
    np.testing.assert_allclose(twice.scores, np.repeat(once.scores, 2, axis=0), atol=1e-6)
    np.testing.assert_allclose(twice.boxes, np.repeat(once.boxes, 2, axis=0), atol=1e-4)


def test_a_group_needs_its_centre() -> None:
    maps = truth()
    maps["center_heat"] = np.full_like(maps["center_heat"], -9)
    assert not (np.asarray(compiled_decode(nms="none")(maps).scores) > 0).any()


def test_mirrored_views_are_decoded_apart_and_merged() -> None:
    """The plain view alone, the mirrored one alone, and both: points of the plain image, left and right in place."""
    d = detector(nms="none")
    turned = (POINTS * np.array([-1, 1]) + np.array([SIZE[1], 0]))[:, EXTREME_POINTS.mirror].astype(np.float32)
    plain, mirrored = truth(), truth(turned)
    silent = {name: np.full_like(x, -12) if name.endswith("heat") else x for name, x in plain.items()}
    decode = jax.jit(lambda maps: d.decode(d.merge_flip(maps), Placed(SIZE), 10))
    for one, other, times in ((plain, silent, 1), (silent, mirrored, 1), (plain, mirrored, 2)):
        maps = {name: np.concatenate([one[name], other[name]]) for name in plain}
        # The cell of the middle of two cells can be the one beside the centre's, where the Gaussian is lower.
        assert_found(decode(maps), times, least=0.6)


def test_soft_nms_takes_points_along() -> None:
    """Of two views' copies one of each is left with its score."""
    d, maps = detector(), truth()
    twice = {name: np.concatenate([x, x]) for name, x in maps.items()}
    views = {name: x[None] for name, x in twice.items()}  # two plain views, as if of an image of two scales
    rows = d.protocols["ms"].rows
    assert rows is not None
    found = jax.jit(lambda m: rows(m, Placed(SIZE), 10))({name: x[:, :1] for name, x in views.items()})
    one = jax.tree.map(lambda x: np.asarray(x[0]), found)
    merge = d.protocols["ms"].merge
    assert merge is not None and d.protocols["ms"].scales == (0.5, 0.75, 1.0, 1.25, 1.5)
    nothing = dataclasses.replace(one, scores=np.zeros_like(one.scores))
    merged = jax.jit(lambda *views: merge(views, 10))(one, nothing, one, nothing, nothing)
    assert merged.scores.shape == (20,)
    assert_found(jax.tree.map(lambda x: x[None], merged))


def test_points_are_cut_to_the_image() -> None:
    """An image that fills a part of the input: nothing reaches beyond it, nor do its points."""
    d = detector(nms="none")
    window = np.array([[10, 12, 50, 80]], np.int32)
    found = jax.jit(lambda maps, w: d.decode(maps, Placed(SIZE, w), 10))(truth(), window)
    kept = np.asarray(found.scores[0]) > 0.9
    assert kept.sum() == 3 and found.keypoints is not None
    xy = np.concatenate(
        [np.asarray(found.boxes[0])[kept].reshape(-1, 2), np.asarray(found.keypoints)[0][kept].reshape(-1, 3)[:, :2]]
    )
    assert (xy >= (12, 10)).all() and (xy <= (80, 50)).all() and (xy == (12, 10)).any() and (xy == (80, 50)).any()


def test_a_mirror_of_the_data_exchanges_left_and_right() -> None:
    turn = Geometry(
        source=jnp.zeros(2),
        scale=jnp.asarray([-1.0, 1.0]),
        target=jnp.asarray([SIZE[1] - 1.0, 0.0]),
        mirrored=jnp.asarray(True),
        changed=jnp.asarray(True),
    )
    moved = turn.move(jax.tree.map(jnp.asarray, objects()), EXTREME_POINTS)
    np.testing.assert_allclose(moved.points[0], [(74, 6), (54, 12), (69, 31), (89, 18)])
    np.testing.assert_allclose(moved.boxes[:3], extreme.box_of(moved.points[:3]))
