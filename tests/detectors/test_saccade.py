"""CornerNet-Saccade: what it learns from, where it looks, and what two looks find, against loops in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import kpjax
from kpjax.config import Config
from kpjax.detectors import at_test, from_config
from kpjax.detectors import saccade_looks as looks
from kpjax.detectors.base import Detector
from kpjax.detectors.saccade_targets import ATTENTION
from kpjax.errors import ConfigError
from kpjax.export.onnx_file import save_onnx
from kpjax.export.stablehlo import export
from kpjax.inference.program import make_infer, make_parts
from kpjax.objects import Placed
from kpjax.ops.heatmap import gaussian_radius
from tests.records import objects_of

SMALL: dict[str, Any] = {
    "features": (4, 4, 6, 6),
    "stem": 4,
    "stacks": 1,
    "branch": 4,
    "head_channels": 4,
    "view": 63,
    "crops": 6,
    "crops_at_once": 3,
}


def detector(**options: Any) -> Detector:
    return kpjax.build("cornernet_saccade", 3, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": (4, 4, 4), "blocks": (1, 1, 1)}, r"features is \(4, 4, 4\); give 4 levels, whose upper 3"),
        ({"view": 64}, "view is 64; it must be a multiple of 32, less 1"),
        ({"attention": 1.0}, "attention is 1.0; it must be at least 0 and below 1"),
        ({"crops": 10, "crops_at_once": 4}, "crops is 10 and crops_at_once is 4; .* the second divide the first"),
        ({"merge_exponent": 2.0}, "has no option 'merge_exponent'"),
    ],
)
def test_build_refuses_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model cornernet_saccade:? .*{text}"):
        detector(**options)


def test_training_sees_what_the_test_does() -> None:
    config = Config(steps=1)
    config.model.name, config.model.options = "cornernet_saccade", dict(SMALL)
    config.augment.height = config.augment.width = 63
    assert from_config(config, 3).view == 63
    config.augment.width = 95
    with pytest.raises(ConfigError, match=r"63 and 95, .* cornernet_saccade looks at squares of 63 pixels"):
        from_config(config, 3)


def test_presets() -> None:
    assert set(detector().protocols) == {"na", "first"}
    with pytest.raises(ConfigError, match=r"preset 'flip': cornernet_saccade has no such test protocol"):
        make_infer(detector(), Mesh(np.array(jax.devices()[:1]), ("data",)), preset="flip")


# --- targets ------------------------------------------------------------------------------------------------


def gaussian(shape: tuple[int, int], cell: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    sigma = (2 * radius + 1) / 6
    value = np.exp(-((x - cell[0]) ** 2 + (y - cell[1]) ** 2) / (2 * sigma**2))
    return np.where((np.abs(x - cell[0]) <= radius) & (np.abs(y - cell[1]) <= radius), value, 0)


def expected_targets(boxes: np.ndarray, labels: np.ndarray, window: Any, size: int) -> dict[str, np.ndarray]:
    """The original's sampling, box by box."""
    cells, unit = (size + 1) // 4, size / 255
    maps = {f"{side}_{k}": np.zeros((cells, cells, 3)) for side in ("tl", "br") for k in ("heat", "other")}
    maps |= {name: np.zeros((math.ceil(size / r), math.ceil(size / r), 1)) for name, r in ATTENTION.items()}
    learnt = []
    top, left, bottom, right = window
    for box, label in zip(boxes.astype(np.float64), labels, strict=True):
        x1, x2 = np.clip(box[[0, 2]], left, right - 1)
        y1, y2 = np.clip(box[[1, 3]], top, bottom - 1)
        if x2 <= x1 or y2 <= y1:
            learnt.append(False)
            continue
        longer = max(x2 - x1, y2 - y1)
        for (name, ratio), (low, high) in zip(ATTENTION.items(), ((96, 256), (32, 96), (0, 32)), strict=True):
            if low * unit <= longer <= high * unit:
                maps[name][int((y1 + y2) / 2 / ratio), int((x1 + x2) / 2 / ratio), 0] = 1
        seen = (x2 - x1) * (y2 - y1) / ((box[2] - box[0]) * (box[3] - box[1]))
        learnt.append(seen > 0.5 and max(int(x2) - int(x1), int(y2) - int(y1)) >= 16 * unit)
        ratio = cells / size
        sides = [jnp.float32(math.ceil(side * ratio)) for side in (y2 - y1, x2 - x1)]
        radius = max(0, int(gaussian_radius(*sides, 0.5, "fixed") * (1 + 1e-6)))
        for side, x, y in (("tl", x1, y1), ("br", x2, y2)):
            target = maps[f"{side}_{'heat' if learnt[-1] else 'other'}"][..., label]
            np.maximum(target, gaussian((cells, cells), (int(x * ratio), int(y * ratio)), radius), out=target)
    found = {"mask": np.array(learnt)}
    for side in ("tl", "br"):
        found |= {f"{side}_heat": maps[f"{side}_heat"], f"{side}_valid": maps[f"{side}_other"] == 0}
    return found | {name: maps[name] for name in ATTENTION}


@pytest.mark.parametrize("size", [63, 127])
def test_targets(size: int) -> None:
    rng, d = np.random.default_rng(size), detector()
    encode = jax.jit(lambda boxes, labels, window: d.encode(objects_of(boxes, labels), Placed((size, size), window)))
    states = set()
    for window in ((0, 0, size - 1, size - 1), (7.0, 0.0, size - 9.5, size - 20.25)):
        for _ in range(4):
            corner, sides = rng.uniform(-15, size, (6, 2)), np.exp(rng.uniform(0.5, np.log(size), (6, 2)))
            boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
            labels = rng.integers(0, 3, 6).astype(np.int32)
            found = encode(boxes, labels, np.asarray(window, np.float32))
            expected = expected_targets(boxes, labels, window, size)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
            states |= {bool(x) for x in expected["mask"]} | {bool(expected["tl_valid"].all())}
    assert states == {True, False}


def test_heatmaps_are_not_trained_around_what_is_too_small() -> None:
    d = detector()
    boxes = np.array([[20, 20, 22, 22], [30, 8, 50, 40]], np.float32)
    targets = d.encode(objects_of(boxes, np.zeros(2, np.int32)), Placed((63, 63)))
    targets = jax.tree.map(lambda x: x[None], targets)
    counts = d.normaliser(targets)
    maps = {f"{side}_heat": jnp.full((1, 16, 16, 3), -9.0) for side in ("tl", "br")}
    maps |= {f"{side}_{k}": jnp.zeros((1, 16, 16, n)) for side in ("tl", "br") for k, n in (("tag", 1), ("off", 2))}
    maps |= {name: jnp.zeros(targets[name].shape) for name in ATTENTION}
    slopes = jax.jit(jax.grad(lambda maps: d.loss([maps], targets, counts)[0]))(maps)
    slope = slopes["tl_heat"][0, :, :, 0]
    assert float(slope[5, 5]) == 0 and float(slope[12, 2]) > 0 and float(slope[2, 7]) < 0


# --- places -------------------------------------------------------------------------------------------------


def test_cells_are_where_float64_has_them() -> None:
    """To the last bit, when compiled: places a cell apart are compared with the size of a cell."""
    scales, corners = np.array([0.3, 0.51], np.float32), np.array([[-145, -82], [-63, 7]])
    sides = np.zeros(2, np.int32)
    seen = looks.Looks(jnp.asarray(corners, jnp.int32), jnp.asarray(scales), jnp.asarray(sides), jnp.ones(2, bool))
    maps = [jnp.full((2, side, side), 0.5) for side in (16, 32, 64)]
    rules: dict[str, Any] = {"least": 0.3, "ratios": (16, 8, 4), "factors": (1.0, 2.0, 4.0), "largest_scale": 4.0}
    found = jax.jit(lambda m, s: looks.attended_places(m, s, jnp.asarray([300, 400]), **rules))(maps, seen)
    rows = []
    for look in range(2):
        for ratio, factor, side in ((16, 1, 16), (8, 2, 32), (4, 4, 64)):
            y, x = (np.arange(side) * ratio / np.float64(scales[look]) + at for at in corners[look])
            rows += [(a, b, factor * np.float64(scales[look])) for a in y for b in x]
    np.testing.assert_array_equal(np.stack([found.ys, found.xs, found.scales], 1), rows)
    inside = np.array([0 <= y < 300 and 0 <= x < 400 for y, x, _ in rows])
    np.testing.assert_array_equal(found.valid, inside)


def test_places_one_after_another() -> None:
    """The best of those left, without all that is near it: the original's loop, in float64."""
    rng = np.random.default_rng(3)
    count, near = 60, 16.0
    scale = np.float64(np.float32(0.3))
    rows = np.stack(
        [
            rng.integers(0, 12, count) * 16 / scale - 145,
            rng.integers(0, 12, count) * 16 / scale - 82,
            rng.choice([1.0, 2.0, 4.0], count) * scale,
            rng.integers(1, 9, count) / 10,  # many of equal scores
        ],
        1,
    )
    left, expected = rows[np.argsort(rows[:, 3], kind="stable")[::-1]], []
    while len(left):
        best = left[0]
        expected.append(best)
        distance = np.minimum(abs(left[:, 0] - best[0]), abs(left[:, 1] - best[1]))
        ratio = best[2] / left[:, 2]
        left = left[(distance > near / best[2]) | (ratio > 1.2) | (ratio < 0.8)]
    with jax.enable_x64(True):
        ys, xs, scales = (jnp.asarray(rows[:, i], jnp.float64) for i in range(3))
    places = looks.Places(ys, xs, scales, jnp.asarray(rows[:, 3], jnp.float32), jnp.ones(count, bool))
    for most in (len(expected) + 4, 3):
        chosen, valid = jax.jit(functools.partial(looks.distant_places, count=most, near=near))(places)
        assert int(valid.sum()) == min(most, len(expected)) and bool(valid[: int(valid.sum())].all())
        np.testing.assert_array_equal(rows[np.asarray(chosen)[np.asarray(valid)]], expected[:most])


def test_a_window_at_the_border_is_black_outside() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    canvas = np.full((64, 80, 3), 255, np.uint8)
    canvas[3:43, 5:65] = image
    window, center, side = jnp.asarray([3, 5, 43, 65]), jnp.asarray([0, 59]), jnp.asarray(31)
    seen = np.asarray(looks.see(jnp.asarray(canvas), window, center, side, 63))
    shown = seen.any(-1)
    assert set(np.unique(seen.round(3))) == {0.0, 200.0}
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    assert (rows[0], rows[-1]) == (31, 31 + int(15 * 63 / 31) - 1)
    assert (columns[0], columns[-1]) == (31 - int(15 * 63 / 31), 31 + int(1 * 63 / 31) - 1)


# --- two looks ----------------------------------------------------------------------------------------------


class Squares(nn.Module):
    """In place of the network, without parameters: white squares on black have their corners where brightness begins.

    Squares of less than two cells are attended to and not found.
    """

    @nn.compact
    def __call__(self, images: Any, train: bool = False) -> Any:
        blank = images.min((1, 2, 3), keepdims=True)
        light = jnp.pad((images - blank).mean(-1), ((0, 0), (0, 1), (0, 1)))
        batch, side = images.shape[0], light.shape[1] // 4
        cells = light.reshape(batch, side, 4, side, 4)
        bright = (cells.mean((2, 4)) > 1.5).astype(jnp.float32)
        before = jnp.pad(bright, ((0, 0), (1, 1), (1, 1)))
        up, down, left, right = before[:, :-2, 1:-1], before[:, 2:, 1:-1], before[:, 1:-1, :-2], before[:, 1:-1, 2:]
        heat = {
            "tl": bright * (1 - up) * (1 - left) * down * right,
            "br": bright * (1 - down) * (1 - right) * up * left,
        }
        maps = {f"{k}_heat": jnp.pad(8 * x[..., None] - 4, ((0, 0),) * 3 + ((0, 2),)) - 4 for k, x in heat.items()}
        maps |= {f"{k}_tag": jnp.zeros((batch, side, side, 1)) for k in heat}
        maps |= {f"{k}_off": jnp.full((batch, side, side, 2), float(k == "br")) for k in heat}
        there = cells.max((2, 4)) > 0.5
        for name, ratio in ATTENTION.items():
            of_cell = there.reshape(batch, 4 * side // ratio, ratio // 4, 4 * side // ratio, ratio // 4).any((2, 4))
            maps[name] = jnp.where(of_cell & (ratio == 4), 4.0, -4.0)[..., None]
        return [maps]


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canvases, windows and boxes of four images with one white square each, the last image without."""
    canvases, windows = np.zeros((4, 191, 255, 3), np.uint8), np.zeros((4, 4), np.int32)
    boxes = np.array([[60, 40, 74, 54], [150, 100, 164, 114], [20, 90, 34, 104], [0, 0, 0, 0]], np.float32)
    for canvas, window, (x1, y1, x2, y2) in zip(canvases, windows, boxes.astype(int), strict=True):
        window[:] = 0, 0, 150, 250
        canvas[y1:y2, x1:x2] = 255
    return canvases, windows, boxes


def best_overlap(found: Any, image: int, box: np.ndarray) -> float:
    """The largest IoU of any box found with `box`."""
    boxes = np.asarray(found.boxes[image])[np.asarray(found.scores[image]) > 0]
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.maximum(high - low, 0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1) + (box[2:] - box[:2]).prod()
    return float((shared / (area - shared)).max(initial=0))


def found_by(preset: str, devices: int = 1, **options: Any) -> Any:
    d = dataclasses.replace(detector(**options), net=Squares())
    infer = make_infer(d, Mesh(np.array(jax.devices()[:devices]), ("data",)), preset=preset, top_k=10)
    canvases, windows, _ = pictures()
    found, tags = infer({}, canvases, windows, np.arange(8, dtype=np.int32).reshape(4, 2))
    assert tags.tolist() == np.arange(8).reshape(4, 2).tolist()
    return jax.device_get(found)


@functools.cache
def two_looks() -> Any:
    return found_by("na")


def test_the_second_look_finds_what_the_first_is_too_coarse_for() -> None:
    *_, boxes = pictures()
    first, both = found_by("first"), two_looks()
    for image in range(3):
        assert best_overlap(first, image, boxes[image]) == 0
        assert best_overlap(both, image, boxes[image]) > 0.6
    assert not (both.scores[3] > 0).any()


@pytest.mark.parametrize("options", [{"crops_at_once": 1}, {"devices": 4}])
def test_company_changes_nothing(options: dict[str, Any]) -> None:
    """However many looks share a pass, and however many devices the images."""
    other = found_by("na", **options)
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_allclose(getattr(other, name), getattr(two_looks(), name), atol=1e-4, err_msg=name)


def test_devices_exchange_nothing_but_detections() -> None:
    d = dataclasses.replace(detector(), net=Squares())
    looking, _ = make_parts(d, Mesh(np.array(jax.devices()[:4]), ("data",)))
    canvases, windows, _ = pictures()
    text = jax.jit(looking).lower({}, canvases, windows).compile().as_text()
    assert "while" in text and not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))


def test_both_looks_are_exported() -> None:
    """As one program for any batch; not as ONNX."""
    d = dataclasses.replace(detector(), net=Squares())
    canvases, _, _ = pictures()
    (height, width), tree = canvases.shape[1:3], jax.tree.structure({})
    exported = export(d, tree, [], (height, width), "na", 10)
    infer = make_infer(d, Mesh(np.array(jax.devices()[:1]), ("data",)), top_k=10)
    windows = np.tile(np.array([0, 0, height, width], np.int32), (4, 1))
    found, _ = infer({}, canvases, windows, np.zeros((4, 2), np.int32))
    boxes, scores, labels = jax.export.deserialize(exported.serialize()).call([], canvases[:3])
    np.testing.assert_allclose(boxes, found.boxes[:3], atol=1e-4)
    np.testing.assert_allclose(scores, found.scores[:3], atol=1e-5)
    assert (scores[0] > 0).any() and labels.tolist() == found.labels[:3].tolist()
    with pytest.raises(ConfigError, match=r"^ONNX: cornernet_saccade looks by itself, .* leave --onnx out$"):
        save_onnx(d, tree, [], (height, width), "na", 10, ("a",), "none.onnx")


def test_soft_nms_can_be_chosen() -> None:
    """The presets of another soft-NMS are its own."""
    found = {
        "boxes": np.tile([[10.0, 10, 30, 30]], (1, 2, 1)),
        "scores": np.array([[0.9, 0.8]]),
        "labels": np.zeros((1, 2), np.int32),
    }
    found = jax.tree.map(lambda x: jnp.asarray(x, x.dtype if x.dtype == np.int32 else np.float32), found)
    rows = {nms: at_test(detector(), nms).protocols["na"].rows for nms in ("", "none", "hard")}
    second = {nms: float(rows[nms](found, None, 10).scores[0, 1]) for nms in rows}  # type: ignore[misc]
    assert second["none"] == pytest.approx(0.8) and second["hard"] == 0
    assert second[""] == pytest.approx(0.8 * math.exp(-1 / 0.7), rel=1e-4)
