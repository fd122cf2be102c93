"""3D boxes: maps that hold them decoded back to metres, mirrors, crops that change sizes, and regions to ignore."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpjax
from kpjax.config import AugmentConfig
from kpjax.data.augment import augment
from kpjax.detectors import box3d
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.images.geometry import draw_crop
from kpjax.images.preprocess import KITTI_BGR
from kpjax.images.views import View, make_view
from kpjax.objects import ALL_CLASSES, IGNORE, NONE, OBJECT, Detections, Objects, Placed, Solid
from kpjax.ops.heatmap import IGNORED, draw_in_turn, gaussian_profile

SMALL: dict[str, Any] = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}
SIZE = (64, 192)
IMAGE = (130, 400)
CAMERA = np.array([[230.0, 0, 195, 15], [0, 225, 60, -0.2], [0, 0, 1, 0.004]])
CLASSES = 3


def detector(**options: Any) -> Detector:
    return kpjax.build("centernet_r18_3d", CLASSES, **SMALL, **options)


def project(camera: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(..., 3) metres -> (..., 2) pixels."""
    found = np.concatenate([xyz, np.ones((*xyz.shape[:-1], 1))], -1) @ camera.T
    return found[..., :2] / found[..., 2:]


def corners(box: np.ndarray) -> np.ndarray:
    """(8, 3) of one box x, y, z, h, w, l, yaw."""
    x, y, z, h, w, length, yaw = box
    along = np.array([1, 1, 1, 1, -1, -1, -1, -1]) * length / 2
    across = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * w / 2
    up = np.array([0, 1, 0, 1, 0, 1, 0, 1]) * h
    return np.stack(
        [x + np.cos(yaw) * along + np.sin(yaw) * across, y - up, z - np.sin(yaw) * along + np.cos(yaw) * across], 1
    )


def scene(seed: int, count: int = 4) -> tuple[Objects, np.ndarray]:
    """Objects (count, ...) whose middle in space is the middle of their 2D box, and their 3D boxes (count, 7)."""
    rng = np.random.default_rng(seed)
    size = rng.uniform([1.4, 0.5, 0.6], [1.9, 1.8, 4.5], (count, 3))
    z = rng.uniform(8, 40, count)
    x = np.linspace(-0.6, 0.6, count) * z + rng.uniform(-0.2, 0.2, count)
    y = rng.uniform(1.4, 1.9, count)
    yaw = rng.uniform(-np.pi, np.pi, count)
    boxes3d = np.column_stack([x, y, z, size, yaw])
    middle = np.stack([x, y - size[:, 0] / 2, z], -1)
    depth = z + CAMERA[2, 3]  # the annotated one is that of the projection
    center = project(CAMERA, middle)
    sides = np.stack([CAMERA[0, 0] * np.maximum(size[:, 1], size[:, 2]) / z, CAMERA[1, 1] * size[:, 0] / z], -1)
    alpha = yaw - np.arctan2(center[:, 0] - CAMERA[0, 2], CAMERA[0, 0])
    alpha = np.angle(np.exp(1j * alpha))
    objects = Objects(
        boxes=np.concatenate([center - sides / 2, center + sides / 2], 1).astype(np.float32),
        labels=rng.integers(0, CLASSES, count).astype(np.int32),
        role=np.full(count, OBJECT, np.int32),
        solid=Solid(*(np.float32(v) for v in (depth, size, alpha))),
    )
    return objects, boxes3d


def placed_in(view: View) -> Placed:
    return Placed(
        view.canvas,
        camera=jnp.asarray(CAMERA, jnp.float32)[None],
        zoom=jnp.full((1, 2), view.zoom, jnp.float32),
        shift=jnp.asarray(view.shift, jnp.float32)[None],
    )


@functools.cache
def round_trip(resolution: str) -> tuple[View, Any]:
    det = detector(wh_as_point=False)
    view = make_view(KITTI_BGR, IMAGE, resolution=resolution, fixed=(160, 416) if resolution == "keep" else SIZE)

    @jax.jit
    def run(objects: Objects) -> Detections:
        targets = jax.tree.map(lambda x: x[None], det.encode(objects, Placed(view.canvas)))
        assert det.oracle is not None
        return det.decode(det.oracle(targets, view.canvas), placed_in(view), 8)

    return view, run


@pytest.mark.parametrize("resolution", ["fixed", "keep"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_maps_that_hold_the_truth_give_it_back(resolution: str, seed: int) -> None:
    view, run = round_trip(resolution)
    objects, boxes3d = scene(seed)
    found = view.to_image(jax.tree.map(lambda x: np.asarray(x)[0], run(view.to_canvas(objects))))
    for box, truth, label, alpha in zip(objects.boxes, boxes3d, objects.labels, objects.solid.orientation, strict=True):
        row = int(np.argmin(np.abs(found.boxes - box).max(-1) + (found.scores < 0.99) * 1e6))
        cut = np.clip(box, 0, [IMAGE[1] - 6, IMAGE[0] - 6] * 2)  # the last cell's end
        if np.abs(cut - box).max() > 0:
            continue  # boxes are cut to the map, as in the original, and have another centre then
        np.testing.assert_allclose(found.boxes[row], box, atol=1e-2)
        assert found.labels[row] == label
        np.testing.assert_allclose(found.boxes3d[row, :3], truth[:3], atol=2e-4 * truth[2])
        np.testing.assert_allclose(found.boxes3d[row, 3:6], truth[3:6], atol=1e-5)
        assert abs(np.angle(np.exp(1j * (found.boxes3d[row, 6] - truth[6])))) < 1e-3
        assert abs(found.boxes3d[row, 6]) <= np.pi + 1e-6
        assert abs(np.angle(np.exp(1j * (found.alpha[row] - alpha)))) < 1e-4


def test_a_mirror_image_of_the_world() -> None:
    """The angles at which objects are seen in a mirrored image are those of the mirrored boxes."""
    objects, boxes3d = scene(3)
    crop = draw_crop(jax.random.key(0), jnp.asarray(IMAGE), AugmentConfig(kind="none", flip=1.0, height=64, width=192))
    moved = jax.device_get(crop.geometry.move(objects))
    assert bool(crop.geometry.mirrored) and not bool(crop.geometry.changed)
    np.testing.assert_array_equal(moved.solid.depth, objects.solid.depth)
    np.testing.assert_array_equal(moved.solid.size, objects.solid.size)
    for box, alpha in zip(boxes3d, moved.solid.orientation, strict=True):
        mirrored = corners(box) * [-1, 1, 1]
        front = mirrored[:4].mean(0) - mirrored[4:].mean(0)
        yaw = np.arctan2(-front[2], front[0])
        seen = yaw - np.arctan2(-project(CAMERA, box[:3] - [0, box[3] / 2, 0])[0] + CAMERA[0, 2], CAMERA[0, 0])
        assert abs(np.angle(np.exp(1j * (alpha - seen)))) < 1e-5
        assert -np.pi <= alpha <= np.pi + 1e-6
    twice = jax.device_get(moved.solid.mirrored(True))
    np.testing.assert_allclose(twice.orientation, objects.solid.orientation, atol=1e-6)


def test_a_crop_that_scales_or_moves_trains_no_metres() -> None:
    objects, _ = scene(1)
    det = detector()
    for changed in (False, True):
        targets = jax.device_get(jax.jit(lambda o, c: det.encode(o, Placed(IMAGE_CANVAS, changed=c)))(objects, changed))
        assert targets["mask"].all() and targets["bins"].any(-1).all()
        assert (targets["solid"] == (not changed)).all()


IMAGE_CANVAS = (128, 416)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_how_often_images_are_scaled_and_moved(probability: float) -> None:
    config = AugmentConfig(
        kind="shift", shift_unit="side", flip=0.0, shift_probability=probability, height=32, width=96
    )
    size = jnp.asarray((50, 160))

    def crop_of(key: Any) -> Any:
        geometry = draw_crop(key, size, config, "width").geometry
        return geometry.changed, geometry.source, geometry.scale

    changed, source, scale = jax.device_get(jax.jit(jax.vmap(crop_of))(jax.random.split(jax.random.key(0), 400)))
    assert abs(changed.mean() - probability) < 0.08
    whole = ~changed
    np.testing.assert_allclose(source[whole], np.tile([80.0, 25.0], (whole.sum(), 1)))
    np.testing.assert_allclose(scale[whole], 96 / 160, rtol=1e-6)
    if probability == 1.0:
        moves = (source - [80, 25]) / [160, 50]  # clipped at two standard deviations, along each axis of its own side
        assert np.abs(moves).max() <= 0.2 + 1e-6 and (np.abs(moves) > 0.15).any(0).all()
        assert (96 / 160 / scale).min() >= 0.6 - 1e-6 and (96 / 160 / scale).max() <= 1.4 + 1e-6


def test_an_upright_image_fills_the_width() -> None:
    """The original's scale is always that of the width, in training and at test time."""
    assert make_view(KITTI_BGR, (500, 375), resolution="fixed", fixed=(96, 320)).zoom == pytest.approx(320 / 375)
    config = AugmentConfig(kind="none", flip=0.0, color=0.0, lighting=0.0, height=96, width=320)
    objects, _ = scene(0)
    canvas = jnp.zeros((500, 500, 3), jnp.uint8)
    _, moved, placed = augment(jax.random.key(0), canvas, jnp.asarray((500, 375)), objects, config, KITTI_BGR)
    np.testing.assert_allclose(
        moved.boxes[:, 2] - moved.boxes[:, 0], np.ptp(objects.boxes[:, ::2], 1) * 320 / 375, 1e-4
    )
    assert not bool(placed.changed)


# Regions to ignore


def one_after_the_other(
    cells: np.ndarray, radii: np.ndarray, classes: np.ndarray, ignored: np.ndarray, rectangles: np.ndarray, shape: Any
) -> np.ndarray:
    """`draw_in_turn` as a loop."""
    heat = np.zeros((*shape, classes.shape[1]), np.float32)
    for m in range(len(cells)):
        profiles = [
            gaussian_profile(jnp.asarray(cells[m : m + 1, i]), jnp.asarray(radii[m : m + 1]), shape[1 - i])
            for i in (0, 1)
        ]
        drawn = np.asarray(profiles[1]).reshape(-1, 1) * np.asarray(profiles[0]).reshape(1, -1)
        for k in np.flatnonzero(classes[m]):
            heat[..., k] = np.maximum(heat[..., k], drawn)
            if ignored[m]:
                x1, y1, x2, y2 = rectangles[m]
                heat[y1 : y2 + 1, x1 : x2 + 1, k] = IGNORED
    return heat


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_drawing_in_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, [12, 8], (6, 2)).astype(np.int32)
    radii = rng.integers(-1, 4, 6).astype(np.int32)
    classes, ignored = rng.uniform(size=(6, 3)) < 0.5, rng.uniform(size=6) < 0.5
    low = rng.integers(0, [12, 8], (6, 2))
    rectangles = np.concatenate([low, np.minimum(low + rng.integers(0, 5, (6, 2)), [11, 7])], 1).astype(np.int32)
    found = jax.jit(draw_in_turn, static_argnums=5)(cells, radii, classes, ignored, rectangles, (8, 12))
    np.testing.assert_allclose(
        found, one_after_the_other(cells, radii, classes, ignored, rectangles, (8, 12)), atol=1e-6
    )


def test_an_ignored_region_is_neither_object_nor_background() -> None:
    objects, _ = scene(5)
    role = np.array([OBJECT, IGNORE, IGNORE, NONE], np.int32)
    labels = np.array([1, 0, ALL_CLASSES, 2], np.int32)
    objects = dataclasses.replace(objects, role=role, labels=labels)
    for rectangles in (False, True):
        det = detector(ignore_rectangles=rectangles)
        targets = jax.device_get(jax.jit(lambda o, d=det: d.encode(o, Placed(IMAGE_CANVAS)))(objects))
        assert targets["mask"].tolist() == [True, False, False, False]
        heat = targets["heatmap"]
        assert (heat == 1).sum() == 1
        x, y = (np.clip(objects.boxes, 0, [415, 127] * 2) / 4).reshape(4, 2, 2).mean(1).astype(int).T
        assert heat[y[1], x[1], 0] == np.float32(IGNORED) and heat[y[1], x[1], 2] == 0
        assert (heat[y[2], x[2]] == np.float32(IGNORED)).all()
        assert (heat == np.float32(IGNORED)).sum() == 4 if not rectangles else (heat == np.float32(IGNORED)).sum() > 4
        # a centre drawn before the region that covers it is none any more
        over = dataclasses.replace(objects, boxes=objects.boxes[[0, 1, 0, 3]])
        covered = jax.device_get(jax.jit(lambda o, d=det: d.encode(o, Placed(IMAGE_CANVAS)))(over))
        assert (covered["heatmap"] == 1).sum() == 0 and covered["mask"].sum() == 1


def test_an_image_without_objects() -> None:
    det = detector()
    objects = dataclasses.replace(scene(0)[0], role=np.zeros(4, np.int32))
    targets = jax.tree.map(lambda x: x[None], jax.jit(lambda o: det.encode(o, Placed(SIZE)))(objects))
    shapes = {name: head.channels for name, head in box3d.heads_3d(box3d.R18, CLASSES)}
    maps = {name: jnp.full((1, SIZE[0] // 4, SIZE[1] // 4, n), 0.3) for name, n in shapes.items()}

    def total(maps: Any) -> Any:
        return det.loss([maps], targets, det.normaliser(targets))

    (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(maps)
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes.values())
    np.testing.assert_allclose(parts["rotation"], 2 * np.log(2), rtol=1e-6)  # as in the original
    assert all(float(parts[name]) == 0 for name in ("wh", "offset", "depth", "size3d"))
    assert not any(np.abs(slopes[name]).max() > 0 for name in slopes if name != "heatmap")


# What is refused


def test_what_is_refused() -> None:
    det = detector()
    objects, _ = scene(0)
    with pytest.raises(ValueError, match="no solid"):
        det.encode(dataclasses.replace(objects, solid=None), Placed(SIZE))
    with pytest.raises(ValueError, match=r"placed\.camera"):
        det.decode({}, None)
    for options, words in (({"class_specific_wh": True}, "class_specific_wh"), ({"nms": "linear"}, "nms")):
        with pytest.raises(ConfigError, match=words):
            detector(**options)


def predictor(det: Detector | None = None, **options: Any) -> kpjax.Predictor:
    from tests.tiny import random_variables

    det = det or detector()
    return kpjax.Predictor(det, random_variables(det.net, *SIZE), resolution="fixed", size=SIZE, top_k=5, **options)


def test_the_camera_moves_the_boxes_and_nothing_else() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE, 3), np.uint8)
    run = predictor(batch=2)
    known: Any = run(image, camera=box3d.KITTI_CAMERA)
    plain, other = run(image), run(image, camera=CAMERA)
    both: Any = run([image, image], camera=[CAMERA, box3d.KITTI_CAMERA])
    np.testing.assert_array_equal(plain.boxes3d, known.boxes3d)
    np.testing.assert_allclose(both[0].boxes3d, other.boxes3d, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(both[1].boxes3d, known.boxes3d, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(other.boxes, plain.boxes)
    np.testing.assert_array_equal(other.alpha, plain.alpha)
    assert np.abs(other.boxes3d[:, 0] - plain.boxes3d[:, 0]).max() > 0.01
    assert plain.boxes3d.shape == (5, 7) and plain.alpha.shape == (5,)


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        (np.eye(3), "the shape \\(3, 3\\)"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.zeros((3, 4)), "focal lengths 0 and 0"),
    ],
)
def test_cameras_that_cannot_be(camera: np.ndarray, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        predictor(camera=camera)


def test_cameras_for_each_image() -> None:
    images = [np.zeros((*IMAGE, 3), np.uint8)] * 3
    run = predictor()
    for cameras in ([CAMERA] * 2, [CAMERA] * 5, np.stack([CAMERA] * 2)):
        with pytest.raises(ConfigError, match=r"[25] cameras were given for 3 images; give one, or one for each"):
            run(images, camera=cameras)
    with pytest.raises(ConfigError, match="1 cameras were given, and there are more images"):
        list(run.stream(iter(images), [CAMERA]))
    for odd in ([CAMERA, np.eye(3), CAMERA], "calib.txt", [[1, 2], [3]]):
        with pytest.raises(ConfigError, match="give a 3x4 projection matrix"):
            run(images, camera=odd)


def test_a_camera_for_boxes_alone_and_a_preset_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="finds no 3D boxes; leave it out"):
        predictor(kpjax.build("centernet_r18", CLASSES, **SMALL), camera=CAMERA)
    with pytest.raises(ConfigError, match="has no such test protocol"):
        predictor(preset="flip")
