"""TTFNet: targets against objects drawn one after another, loss, decoding, mirrored images, options."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpjax
from kpjax.config import Config
from kpjax.detectors import at_test, from_config
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.export.stablehlo import export
from kpjax.inference.evaluate import make_evaluator
from kpjax.objects import Placed
from kpjax.ops.losses import giou_loss
from kpjax.parallel.sharding import make_mesh
from kpjax.training.optimizer import is_bias
from kpjax.training.step import prepare
from tests import fakes
from tests.convert import released
from tests.records import objects_of
from tests.tiny import random_batch, random_variables

SIZE = (64, 96)  # input height, width
MAP = (16, 24)
CLASSES = 3
SLOTS = 6
SMALL = released.SMALL["ttfnet_r18"]

Box = tuple[float, float, float, float]


@functools.cache
def detector(**options: Any) -> Detector:
    return kpjax.build("ttfnet_r18", CLASSES, **SMALL, **options)


@functools.cache
def compiled_encode(**options: Any) -> Any:
    return jax.jit(lambda objects: detector(**options).encode(objects, Placed(SIZE)))


def encode(boxes: list[Box], labels: list[int] | None = None, **options: Any) -> dict[str, np.ndarray]:
    """Targets of one image, the slots after the given boxes filled with rubbish that is not valid."""
    padded = np.tile(np.array([8, 8, 40, 40], np.float32), (SLOTS, 1))
    padded[: len(boxes)] = np.asarray(boxes, np.float32).reshape(-1, 4)
    numbers = np.full(SLOTS, CLASSES - 1, np.int32)
    numbers[: len(boxes)] = 0 if labels is None else labels
    found = compiled_encode(**options)(objects_of(padded, numbers, np.arange(SLOTS) < len(boxes)))
    return {k: np.asarray(v) for k, v in found.items()}


def batched(*targets: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: jnp.stack([t[k] for t in targets]) for k in targets[0]}


# Targets


def draw_in_turn(boxes: list[Box], labels: list[int], by_class: bool) -> dict[str, np.ndarray]:
    """The original's way: objects in the order of their areas, the smallest last, each over what is there."""
    (height, width), groups = MAP, CLASSES if by_class else 1
    heat, box = np.zeros((*MAP, CLASSES)), np.full((*MAP, groups, 4), -1.0)
    weight = np.zeros((*MAP, groups))
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in boxes]
    for m in sorted(range(len(boxes)), key=lambda m: -areas[m]):
        b = boxes[m]
        x, y = int((b[0] + b[2]) / 2 / 4), int((b[1] + b[3]) / 2 / 4)
        on_map = np.clip(np.array(b) / 4, 0, [width - 1, height - 1] * 2)
        rx, ry = (int((on_map[i + 2] - on_map[i]) / 2 * 0.54) for i in (0, 1))
        own = np.zeros(MAP)
        for i in range(max(y - ry, 0), min(y + ry, height - 1) + 1):
            for j in range(max(x - rx, 0), min(x + rx, width - 1) + 1):
                sx, sy = (2 * rx + 1) / 6, (2 * ry + 1) / 6
                own[i, j] = np.exp(-((j - x) ** 2) / (2 * sx**2) - (i - y) ** 2 / (2 * sy**2))
        heat[..., labels[m]] = np.maximum(heat[..., labels[m]], own)
        group, covered = labels[m] if by_class else 0, own > 0
        box[covered, group] = b
        weight[covered, group] = own[covered] / own.sum() * np.log(areas[m])
    return {"heatmap": heat, "box": box.reshape(*MAP, -1), "weight": weight}


@st.composite
def some_boxes(draw: Any) -> tuple[list[Box], list[int]]:
    """Boxes of different areas that may overlap and leave the image, on odd eighths: no centre is on a cell's edge."""
    boxes, areas = [], set()
    for _ in range(draw(st.integers(0, SLOTS))):
        x, y = draw(st.integers(-60, 140)), draw(st.integers(-40, 100))
        w, h = draw(st.integers(0, 120)), draw(st.integers(0, 90))
        box = (x + 0.125, y + 0.125, x + w + 0.25, y + h + 0.25)
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
        if area not in areas and -20 < center[0] < SIZE[1] + 20 and -20 < center[1] < SIZE[0] + 20:
            boxes.append(box)
            areas.add(area)
    return boxes, [draw(st.integers(0, CLASSES - 1)) for _ in boxes]


@pytest.mark.parametrize("by_class", [False, True])
@settings(max_examples=30, deadline=None)
@given(case=some_boxes())
def test_smaller_objects_are_drawn_over_larger_ones(by_class: bool, case: tuple[list[Box], list[int]]) -> None:
    boxes, labels = case
    found, expected = encode(boxes, labels, class_specific_sides=by_class), draw_in_turn(boxes, labels, by_class)
    np.testing.assert_allclose(found["heatmap"], expected["heatmap"], atol=1e-5)
    np.testing.assert_allclose(found["box"], expected["box"], atol=1e-5)
    np.testing.assert_allclose(found["weight"], expected["weight"], rtol=1e-4, atol=1e-6)


def test_weights_of_one_object_sum_to_the_logarithm_of_its_area() -> None:
    box = (8, 8, 39, 55)
    size = 32 * 48
    for options, expected in (
        ({}, np.log(size)),
        ({"region": "box"}, np.log(size)),
        ({"area": "sqrt"}, np.sqrt(size)),
        ({"area": "plain", "region": "box"}, size),
        ({"area": "none"}, 1),
    ):
        weight = encode([box], **options)["weight"]
        assert weight.sum() == pytest.approx(expected, rel=1e-5) and (weight > 0).sum() > 1
    # A box of one pixel is a peak, and teaches no sides.
    pixel = encode([(9, 9, 9, 9)])
    assert (pixel["heatmap"] == 1).sum() == 1 and (pixel["box"] > 0).any() and not pixel["weight"].any()


@pytest.mark.parametrize("box", [(30, 10, 20, 30), (-60, 10, -20, 30), (10, 90, 30, 120), (np.nan, 10, 20, 30)])
def test_what_is_no_box_leaves_no_trace(box: Box) -> None:
    with_it, without = encode([(8, 8, 24, 40), box], [1, 2]), encode([(8, 8, 24, 40)], [1])
    for key in ("heatmap", "box", "weight", "mask"):
        np.testing.assert_array_equal(with_it[key], without[key], err_msg=key)


def test_empty_image() -> None:
    targets = encode([])
    assert not any(targets[key].any() for key in ("heatmap", "weight", "mask")) and (targets["box"] == -1).all()


# Loss


def perfect_maps(targets: dict[str, Any], by_class: bool = False) -> dict[str, Any]:
    """Maps (B, h, w, .) whose boxes are the targets' and whose scores are 0 or 1."""
    y, x = np.mgrid[: MAP[0], : MAP[1]] * 4.0
    groups = CLASSES if by_class else 1
    cells = np.tile(np.stack([x, y, x, y], -1), groups)
    sides = (np.asarray(targets["box"]) - cells) * np.tile([-1, -1, 1, 1], groups)
    known = np.repeat(np.asarray(targets["weight"]) > 0, 4, axis=-1)
    return {
        "heatmap": np.where(targets["heatmap"] == 1, 30, -30).astype(np.float32),
        "sides": np.where(known, sides, 7).astype(np.float32),
    }


@functools.cache
def compiled_loss(**options: Any) -> Any:
    d = detector(**options)
    return jax.jit(
        jax.value_and_grad(lambda maps, targets: d.loss([maps], targets, d.normaliser(targets)), has_aux=True)
    )


@pytest.mark.parametrize("by_class", [False, True])
def test_loss_is_nothing_for_perfect_maps(by_class: bool) -> None:
    options = {"class_specific_sides": by_class}
    images = ([(8, 8, 23, 39), (40, 4, 90, 60), (44, 8, 80, 50)], [1, 2, 0]), ([], [])
    targets = batched(*(encode(*image, **options) for image in images))
    maps = perfect_maps(targets, by_class)
    (loss, parts), slopes = compiled_loss(**options)(maps, targets)
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert not np.asarray(slopes["sides"])[np.repeat(np.asarray(targets["weight"]) == 0, 4, axis=-1)].any()
    # Boxes twice as wide lose by their own part alone: half of the box is shared, none of the hull is empty.
    wide = {**maps, "sides": maps["sides"].copy()}
    box = np.asarray(targets["box"])
    wide["sides"][..., 2::4] += box[..., 2::4] - box[..., 0::4] + 1
    (_, changed), _ = compiled_loss(**options)(wide, targets)
    assert float(changed["sides"]) == pytest.approx(0.5, rel=1e-3)
    assert float(changed["heatmap"]) == float(parts["heatmap"])


def test_batch_without_objects_trains_without_nan() -> None:
    targets = batched(encode([]), encode([]))
    rng = np.random.default_rng(0)
    maps = {k: rng.random((2, *MAP, n), np.float32) for k, n in (("heatmap", CLASSES), ("sides", 4))}
    (loss, parts), slopes = compiled_loss()(maps, targets)
    assert np.isfinite(float(loss)) and float(parts["heatmap"]) > 0 and float(parts["sides"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert np.abs(slopes["heatmap"]).max() > 0 and not np.asarray(slopes["sides"]).any()


def test_giou_of_boxes_apart() -> None:
    """Two boxes of 4 pixels in a hull of 24: 1 - (0 - 16 / 24); a box without weight may be anything."""
    found = jnp.asarray([[0, 0, 1, 1], [np.inf, 0, np.inf, 1]])
    target = jnp.asarray([[4, 2, 5, 3], [0, 0, 1, 1]], jnp.float32)
    value, slope = jax.jit(jax.value_and_grad(giou_loss))(found, target, jnp.asarray([3.0, 0.0]), 2.0)
    assert float(value) == pytest.approx(1.5 * (1 + 16 / 24))
    assert np.isfinite(slope[0]).all() and float(slope[0, 2]) < 0  # towards the other box


# Decoding and mirrored images


@pytest.mark.parametrize("by_class", [False, True])
def test_true_heads_give_the_boxes_back(by_class: bool) -> None:
    """Through the oracle's maps, as `--oracle heatmap,sides` has them."""
    boxes, labels = [(8.0, 8.0, 23.0, 39.0), (40.0, 4.0, 90.0, 60.0), (-20.0, 40.0, 30.0, 62.0)], [1, 2, 0]
    d = detector(class_specific_sides=by_class)
    assert d.oracle is not None
    maps = d.oracle(batched(encode(boxes, labels, class_specific_sides=by_class)), SIZE)
    found = jax.jit(lambda maps: d.decode(maps, top_k=3))(maps)
    assert (np.asarray(found.scores) == 1).all()
    got = {int(k): b.tolist() for b, k in zip(np.asarray(found.boxes[0]), np.asarray(found.labels[0]), strict=True)}
    assert got == {1: [8, 8, 23, 39], 2: [40, 4, 90, 60], 0: [0, 40, 30, 62]}  # cut to the image


def test_decode_keeps_what_scores_enough_and_cuts_to_the_window() -> None:
    heat = np.full((1, *MAP, CLASSES), 0.001, np.float32)
    heat[0, 4, 5, 1], heat[0, 10, 20, 2], heat[0, 14, 2, 0] = 0.9, 0.3, 0.2
    maps = {"scores": heat, "sides": np.full((1, *MAP, 4), 10, np.float32)}
    decode = functools.partial(detector(score_threshold=0.2).decode, top_k=3)
    found = jax.jit(decode)(maps, Placed(SIZE, np.array([[8, 12, 48, 96]])))
    np.testing.assert_allclose(found.scores[0], [0.9, 0.3, 0])
    np.testing.assert_allclose(found.boxes[0, :2], [[12, 8, 30, 26], [70, 30, 90, 47]])


def test_merge_flip_of_a_mirrored_twin_changes_nothing() -> None:
    """The mirror image's own maps, made of its boxes; a cell's corner is another pixel there."""
    boxes, labels = [(8, 8, 23, 39), (40, 4, 89, 60)], [1, 2]
    mirrored = [(SIZE[1] - 1 - x2, y1, SIZE[1] - 1 - x1, y2) for x1, y1, x2, y2 in boxes]
    d = detector()
    assert d.oracle is not None
    plain, other = (d.oracle(batched(encode(b, labels)), SIZE) for b in (boxes, mirrored))
    both = {k: jnp.concatenate([plain[k], other[k]]) for k in plain}
    # Nearest centres differ at ties, so the second image's sides are those of the first one, seen from the other side.
    merged = jax.jit(d.merge_flip)(both)
    found = jax.jit(functools.partial(d.decode, top_k=40))(merged)
    for box in boxes:
        assert np.abs(np.asarray(found.boxes[0]) - box).max(-1).min() < 1e-4
    sides = np.asarray(merged["sides"])
    assert (np.abs(sides - plain["sides"]).max(-1) < 1e-4).mean() > 0.9


def test_no_scales_are_tested_and_nms_is_an_option() -> None:
    assert set(detector().protocols) == {"na", "flip"} and detector().protocols["na"].merge is None
    assert at_test(detector(), "gaussian").protocols["na"].merge is not None
    assert at_test(detector(), "none").protocols["flip"].merge is None


# Boxes that end on their last pixel


def test_training_takes_the_last_pixel_away() -> None:
    """What is encoded is a box of the canvas without its last pixel, stretched to the input."""
    config = Config(steps=1, batch=4)
    config.augment.kind, config.augment.color, config.augment.lighting, config.augment.flip = "none", 0.0, 0.0, 0.0
    config.augment.height, config.augment.width, config.data.canvas = *SIZE, 64
    batch = random_batch(4, boxes=4)
    _, targets = jax.jit(lambda b: prepare(detector(), config, b))(batch)
    objects = batch["objects"]
    scale = np.array([SIZE[1] / 64, SIZE[0] / 64] * 2)
    expected = (objects.boxes - [0, 0, 1, 1]) * scale
    valid = np.asarray(objects.role) == 1
    assert valid.any()
    np.testing.assert_allclose(np.asarray(targets["corners"])[valid], expected[valid], atol=1e-4)


def test_predictor_and_exported_program_return_whole_boxes() -> None:
    """Of an image that needs no stretching: both a pixel further than `decode`."""
    d = kpjax.build("ttfnet_r18", 2, **SMALL, dcn=False, score_threshold=0.0)
    variables = random_variables(d.net)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    leaves, tree = jax.tree.flatten(variables)
    boxes, scores, _ = export(d, tree, leaves, SIZE, "na", 5).call(leaves, image[None])
    found = kpjax.Predictor(d, variables, size=SIZE, top_k=5)(image)
    np.testing.assert_allclose(boxes[0], found.boxes, atol=1e-3)
    np.testing.assert_allclose(scores[0], found.scores, atol=1e-5)
    (maps,) = jax.jit(d.net.apply)(variables, d.preprocess.normalise(image)[None])
    raw = jax.jit(functools.partial(d.decode, top_k=5))(maps)
    np.testing.assert_allclose(found.boxes - np.asarray(raw.boxes[0]), np.tile([0, 0, 1, 1], (5, 1)), atol=1e-3)


def test_evaluation_with_the_truth_in_place_of_the_heads_is_perfect() -> None:
    """Also at the highest IoU, at which a pixel of these small boxes counts."""
    items = [(20, 30, [(9, 9, 6, 0)]), (50, 20, [(10, 12, 7, 1), (8, 40, 5, 0)]), (40, 70, [(33, 20, 15, 1)])]
    source = fakes.marker_source(items)
    config = Config(steps=1)
    config.augment.height, config.augment.width, config.eval.resolution, config.eval.batch = *SIZE, "fixed", 1
    d = kpjax.build("ttfnet_r18", 2, **SMALL, dcn=False)
    run = make_evaluator(d, config, make_mesh(devices=jax.devices()[:1]), oracle=("heatmap", "sides"))
    assert run(random_variables(d.net), source, progress=False).ap == pytest.approx(1.0)


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 53}, "depth is 53; choose one of 18, 34, 50, 101"),
        ({"backbone": "dla"}, "no option 'backbone'"),
        ({"region": "circle"}, "region is 'circle'; choose one of 'gaussian', 'box'"),
        ({"area": "ln"}, "area is 'ln'; choose one of"),
        ({"stages": 5}, "stages is 5; give 2, 3 or 4"),
        ({"max_width": 63}, "max_width is 63; it is for ResNets, and at least their width 64"),
        ({"neck": (8, 8)}, r"neck is \(8, 8\) and shortcuts is \(1, 2, 3\) .* the same number of steps, 1 to 3"),
        ({"stages": 3}, "1 to 2$"),
        ({"neck": (8, 8, 0)}, "neck and shortcuts must be at least 1"),
        ({"sides_convs": 0}, "sides_convs is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be above 0 and at most 1"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"score_threshold": 1.0}, "score_threshold is 1.0"),
        ({"sides_weight": -1.0}, "sides_weight is -1.0"),
        ({"nms": "soft"}, "nms is 'soft'"),
    ],
)
def test_build_refuses_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        kpjax.build("ttfnet_r18", 3, **options)
    assert re.search(text, str(error.value)) and "\n" not in str(error.value)


def test_an_image_is_stretched_by_default() -> None:
    """Predictor's boxes are those of the image, whatever its shape."""
    d = detector(score_threshold=0.0)
    predictor = kpjax.Predictor(d, random_variables(d.net), size=SIZE)
    assert predictor.resolution == "fixed"
    found = predictor(np.random.default_rng(0).integers(0, 256, (50, 31, 3), np.uint8))
    assert len(found.boxes) and found.boxes[:, :2].min() >= 0
    # The last pixel of the canvas is 31 / 96 of one of the image from its end.
    assert found.boxes[:, 2].max() <= 31 - 31 / 96 + 1 + 1e-4 and found.boxes[:, 3].max() <= 50 - 50 / 64 + 1 + 1e-4


def test_evaluation_sees_images_as_training_does() -> None:
    """A recipe that leaves `eval.resolution` as it is would pad them."""
    config = Config(steps=1)
    config.model.name, config.model.options = "ttfnet_r18", {**SMALL, "dcn": False}
    with pytest.raises(ConfigError, match=r"eval\.resolution is 'keep'.*ttfnet_r18.*='fixed'"):
        from_config(config, 2)
    with pytest.raises(ConfigError, match=r"eval\.resolution is 'keep'"):
        make_evaluator(kpjax.build("ttfnet_r18", 2, **SMALL, dcn=False), config)
    config.eval.resolution = "fixed"
    assert from_config(config, 2).name == "ttfnet_r18"


def test_which_biases_learn_faster() -> None:
    """All but those of BatchNorms named bn, bn1, ...: the neck's and the shortcuts' BatchNorms count as others."""
    tree = is_bias(random_variables(detector().net)["params"])
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    marked = {jax.tree_util.keystr(k, simple=True, separator="/") for k, v in leaves if v}
    assert {"heads/heatmap/out/bias", "backbone/neck/conv1/offset/bias", "backbone/neck/conv1_bn/bias"} <= marked
    assert "backbone/trunk/layer2_0/downsample_bn/bias" in marked and "backbone/trunk/layer2_0/bn1/bias" not in marked
    assert all(key.endswith("/bias") for key in marked)
