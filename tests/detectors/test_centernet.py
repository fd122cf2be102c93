"""CenterNet: building, targets, loss, decoding, merging of mirrored images."""

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
from kpjax.detectors import at_test
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.nn.heads import Head, Heads, heatmap_head
from kpjax.nn.layers import NHWC
from kpjax.objects import Detections, Placed
from tests.records import objects_of

SIZE = (64, 96)  # input height, width
MAP = (16, 24)
CLASSES = 3
SLOTS = 6
NAMES = ("centernet_r18", "centernet_r18_mmdet")
SMALL: dict[str, Any] = {"width": 4, "deconv": (4, 4, 4), "head_channels": 4}

Box = tuple[float, float, float, float]


@functools.cache
def detector(name: str = "centernet_r18", **options: Any) -> Detector:
    return kpjax.build(name, CLASSES, **SMALL, **options)


@functools.cache
def compiled_encode(name: str) -> Any:
    return jax.jit(lambda objects: detector(name).encode(objects, Placed(SIZE)))


def encode(name: str, boxes: list[Box], labels: list[int] | None = None) -> dict[str, np.ndarray]:
    """Targets of one image, the slots after the given boxes filled with rubbish that is not valid."""
    padded = np.tile(np.array([8, 8, 40, 40], np.float32), (SLOTS, 1))
    padded[: len(boxes)] = np.asarray(boxes, np.float32).reshape(-1, 4)
    numbers = np.full(SLOTS, CLASSES - 1, np.int32)
    numbers[: len(boxes)] = 0 if labels is None else labels
    found = compiled_encode(name)(objects_of(padded, numbers, np.arange(SLOTS) < len(boxes)))
    return {k: np.asarray(v) for k, v in found.items()}


def batched(*targets: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: jnp.stack([t[k] for t in targets]) for k in targets[0]}


def perfect_maps(name: str, targets: dict[str, Any], certain: bool) -> dict[str, Any]:
    """Head maps (B, h, w, .) that say what the targets say.

    certain: every score is 0 or 1; otherwise the scores are the target heatmap's.
    """
    heat = np.asarray(targets["heatmap"], np.float64)
    score = np.where(heat == 1, 1.0, 0.0) if certain else np.clip(heat, 1e-7, 1 - 1e-7)
    if not detector(name).net.config.rules.probabilities:  # type: ignore[attr-defined]
        with np.errstate(divide="ignore"):
            score = np.clip(np.log(score) - np.log1p(-score), -30, 30)
    maps = {"heatmap": score.astype(np.float32)}
    for key in ("wh", "offset"):
        grid = np.zeros((len(heat), MAP[0] * MAP[1], 2), np.float32)
        for b, m in zip(*np.nonzero(np.asarray(targets["mask"])), strict=True):
            grid[b, targets["index"][b, m]] = targets[key][b, m]
        maps[key] = grid.reshape(len(heat), *MAP, 2)
    return maps


# --- building ------------------------------------------------------------------------------------


def test_list_models_can_all_be_built() -> None:
    assert kpjax.list_models() == sorted(kpjax.list_models())
    assert {"centernet_r18", "centernet_r18_mmdet"} <= set(kpjax.list_models())
    for name in kpjax.list_models():
        assert kpjax.build(name, 7).num_classes == 7


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("centernet_r81", 80), {}, "'centernet_r81'; did you mean 'centernet_r18'"),
        (("centernet_r18", 0), {}, "num_classes is 0"),
        (("centernet_r18", 80), {"widht": 32}, "no option 'widht'; it has .*width"),
        (("centernet_r18", 80), {"depth": 19}, "depth is 19; choose one of 18, 34, 50, 101"),
        (("centernet_r18", 80), {"radius": "legcy"}, "radius is 'legcy'; choose one of"),
        (("centernet_r18", 80), {"dtype": "float99"}, "dtype is 'float99'; choose one of 'float32', 'bfloat16'"),
        (("centernet_r18", 80), {"width": "x"}, "width is 'x'; give a value like 64"),
        (("centernet_r18", 80), {"width": 0}, "must be at least 1"),
        (("centernet_r18", 80), {"remat": 1}, "remat is 1; give a value like False"),
        (("centernet_r18", 80), {"deconv": (8, 8, 8, 8)}, "give one to three steps"),
        (("centernet_r18", 80), {"overlap": 3.0}, "overlap is 3.0"),
        (("centernet_r18", 80), {"rules": None}, "no option 'rules'"),
    ],
)
def test_build_refuses_in_one_line(arguments: tuple[Any, ...], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        kpjax.build(*arguments, **options)
    assert re.search(text, str(error.value)) and "\n" not in str(error.value)


def test_options_reach_the_network() -> None:
    # A list is what a tuple becomes in a checkpoint's JSON.
    d = kpjax.build("centernet_r18", 5, width=8, deconv=[8, 8, 6], head_channels=4, class_specific_wh=True)
    x = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: d.net.init(jax.random.key(0), x, train=False), x)
    (out,) = jax.eval_shape(lambda v, x: d.net.apply(v, x, train=False), variables, x)
    assert out["wh"].shape == (2, 16, 24, 10) and out["heatmap"].shape == (2, 16, 24, 5)
    assert variables["params"]["backbone"]["neck"]["deconv3"]["kernel"].shape == (4, 4, 8, 6)
    again = kpjax.build("centernet_r18", 5, **d.options)
    assert again.net == d.net


@pytest.mark.parametrize(("steps", "stride"), [((8,), 8), ((8, 8), 16), ((8, 8, 8), 32)])
def test_fewer_steps_leave_out_deep_stages(steps: tuple[int, ...], stride: int) -> None:
    d = kpjax.build("centernet_r18", 3, width=8, deconv=steps, head_channels=4)
    x = jax.ShapeDtypeStruct((1, 2 * stride, 4 * stride, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: d.net.init(jax.random.key(0), x, train=False), x)
    (out,) = jax.eval_shape(lambda v, x: d.net.apply(v, x, train=False), variables, x)
    assert out["heatmap"].shape == (1, stride // 2, stride, 3)  # the map's stride is 4 all the same
    stages = {name[5] for name in variables["params"]["backbone"]["trunk"] if name.startswith("layer")}
    assert stages == set("1234"[: len(steps) + 1])


def test_heads_are_separate_convolutions() -> None:
    """The heads' 3x3 convolutions run as one; each must come out as if it ran alone, in float32."""
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 4), np.float32)
    heads = Heads({"heatmap": heatmap_head(3), "wh": Head(2), "offset": Head(2)}, 8)
    params = jax.jit(heads.init)(jax.random.key(0), x)["params"]
    apply = jax.jit(heads.apply)
    # Before training every score is near 0.1 (bias -2.19), every size and offset near 0.
    start = apply({"params": params}, x)
    np.testing.assert_allclose(1 / (1 + np.exp(-start["heatmap"])), 0.1, atol=0.02)
    assert max(np.abs(start["wh"]).max(), np.abs(start["offset"]).max()) < 0.02
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)
    found = apply({"params": params}, x)
    for head, y in found.items():
        first, last = params[f"{head}_conv"], params[f"{head}_out"]
        hidden = jax.lax.conv_general_dilated(
            jnp.asarray(x), first["kernel"], (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC
        )
        hidden = np.maximum(np.asarray(hidden) + first["bias"], 0)
        np.testing.assert_allclose(y, hidden @ last["kernel"][0, 0] + last["bias"], rtol=1e-4, atol=1e-4)


# --- targets -------------------------------------------------------------------------------------


@st.composite
def inner_boxes(draw: Any) -> tuple[list[Box], list[int]]:
    """Boxes within the map's last cells whose centres are in different cells, corners on quarter pixels."""
    boxes, labels, cells = [], [], set()
    for _ in range(draw(st.integers(0, SLOTS))):
        x1, x2 = sorted((draw(st.integers(0, 4 * 92)), draw(st.integers(0, 4 * 92))))
        y1, y2 = sorted((draw(st.integers(0, 4 * 60)), draw(st.integers(0, 4 * 60))))
        cell = ((x1 + x2) // 32, (y1 + y2) // 32)
        if x2 - x1 < 4 or y2 - y1 < 4 or cell in cells:
            continue
        cells.add(cell)
        boxes.append((x1 / 4, y1 / 4, x2 / 4, y2 / 4))
        labels.append(draw(st.integers(0, CLASSES - 1)))
    return boxes, labels


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(case=inner_boxes())
def test_every_box_is_a_peak_and_comes_back(name: str, case: tuple[list[Box], list[int]]) -> None:
    """Encoded, each box is a 1 of its class at its centre's cell; decoding perfect maps gives the boxes back."""
    boxes, labels = case
    targets = encode(name, boxes, labels)
    assert targets["heatmap"].min() >= 0 and targets["heatmap"].max(initial=0) <= 1
    assert targets["mask"].sum() == len(boxes)
    for m, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x, y = (box[0] + box[2]) / 8, (box[1] + box[3]) / 8  # in cells
        assert targets["heatmap"][int(y), int(x), label] == 1
        assert targets["index"][m] == int(y) * MAP[1] + int(x) and targets["label"][m] == label
        np.testing.assert_allclose(targets["wh"][m], [(box[2] - box[0]) / 4, (box[3] - box[1]) / 4], atol=1e-5)
        np.testing.assert_allclose(targets["offset"][m], [x - int(x), y - int(y)], atol=1e-5)
    assert (targets["heatmap"] == 1).sum() == len(boxes)

    found = compiled_decode(name)(perfect_maps(name, batched(targets), certain=False))
    scores = np.asarray(found.scores[0])
    assert np.all(np.diff(scores) <= 0)
    assert (scores > 0.999).sum() == len(boxes)
    rows = zip(np.asarray(found.boxes[0]), np.asarray(found.labels[0]), strict=True)
    got = sorted((*np.round(b, 2).tolist(), int(k)) for b, k in list(rows)[: len(boxes)])
    np.testing.assert_allclose(got, sorted((*b, k) for b, k in zip(boxes, labels, strict=True)), atol=0.02)


@functools.cache
def compiled_decode(name: str) -> Any:
    return jax.jit(lambda maps: detector(name).decode(maps, top_k=10))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 30),  # no width
        (30, 10, 20, 30),  # corners exchanged
        (-60, 10, -20, 30),  # left of the image
        (200, 10, 300, 30),  # right of it
        (10, 70, 30, 120),  # below
        (np.nan, 10, 20, 30),
    ],
)
def test_what_is_no_box_leaves_no_trace(name: str, box: Box) -> None:
    with_it, without = encode(name, [(8, 8, 24, 40), box], [1, 2]), encode(name, [(8, 8, 24, 40)], [1])
    for key in with_it:
        np.testing.assert_array_equal(with_it[key], without[key], err_msg=key)


def test_boxes_over_the_edge() -> None:
    """xingyizhou clips to the map before the centre is taken, mmdetection does not."""
    box = (-40.0, 8.0, 48.0, 24.0)
    clipped, whole = encode(NAMES[0], [box]), encode(NAMES[1], [box])
    np.testing.assert_allclose(clipped["wh"][0], [12, 4])
    np.testing.assert_allclose(whole["wh"][0], [22, 4])
    assert clipped["index"][0] == 4 * MAP[1] + 6 and whole["index"][0] == 4 * MAP[1] + 1
    # A centre outside is no object of mmdetection's, what remains inside is one of xingyizhou's.
    box = (-60.0, 8.0, 48.0, 24.0)
    assert encode(NAMES[0], [box])["mask"].sum() == 1 and encode(NAMES[1], [box])["mask"].sum() == 0


def test_two_objects_in_one_cell() -> None:
    boxes: list[Box] = [(8, 8, 40, 40), (16, 16, 32, 32), (60, 20, 70, 30)]
    both, last = (encode(name, boxes, [0, 1, 2]) for name in NAMES)
    assert both["mask"].tolist() == [True] * 3 + [False] * 3
    assert last["mask"].tolist() == [False, True, True, False, False, False]
    for targets in (both, last):  # the heatmap has all of them
        assert targets["heatmap"][6, 6].tolist() == [1, 1, 0]


def test_empty_image() -> None:
    for name in NAMES:
        targets = encode(name, [])
        assert not any(targets[key].any() for key in targets)


# --- loss ----------------------------------------------------------------------------------------


@functools.cache
def compiled_loss(name: str, class_specific: bool = False) -> Any:
    d = detector(name, class_specific_wh=class_specific)

    def run(maps: Any, targets: Any) -> Any:
        return d.loss([maps], targets, d.normaliser(targets))

    return jax.jit(jax.value_and_grad(run, has_aux=True))


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_nothing_for_perfect_maps(name: str) -> None:
    targets = batched(encode(name, [(8, 8, 24, 40), (40, 4, 90, 60)], [1, 2]), encode(name, []))
    maps = perfect_maps(name, targets, certain=True)
    (loss, parts), _ = compiled_loss(name)(maps, targets)
    assert 0 <= float(loss) < 1e-4
    # Each part answers for its own head: one cell of width off by 2 in x at one of two objects.
    index = int(targets["index"][0, 0])
    for key in ("wh", "offset"):
        wrong = {k: v.copy() for k, v in maps.items()}
        wrong[key].reshape(2, -1, 2)[0, index, 0] += 2
        (total, changed), _ = compiled_loss(name)(wrong, targets)
        assert float(changed[key]) == pytest.approx(2 / (2 * 2), rel=1e-3)  # 2 D objects; 2 n + 1e-4 or 2 peaks
        weight = {"wh": 0.1, "offset": 1.0}[key]
        assert float(total - loss) == pytest.approx(weight * 0.5, rel=1e-2)
        assert float(changed["heatmap"]) == float(parts["heatmap"])
    shifted = {**maps, "heatmap": np.roll(maps["heatmap"], 3, axis=2)}
    assert float(compiled_loss(name)(shifted, targets)[0][0]) > 1


@pytest.mark.parametrize("name", NAMES)
def test_batch_without_objects_trains_without_nan(name: str) -> None:
    targets = batched(encode(name, []), encode(name, []))
    rng = np.random.default_rng(0)
    maps = {k: rng.random((2, *MAP, n), np.float32) for k, n in (("heatmap", CLASSES), ("wh", 2), ("offset", 2))}
    (loss, parts), grads = compiled_loss(name)(maps, targets)
    assert np.isfinite(float(loss)) and float(parts["heatmap"]) > 0
    assert float(parts["wh"]) == 0 and float(parts["offset"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads["heatmap"]).max() > 0  # the background is still learnt


def test_extreme_logits_have_finite_gradients() -> None:
    targets = batched(encode(NAMES[0], [(8, 8, 24, 40)]), encode(NAMES[0], []))
    for value in (-200.0, 200.0):
        maps = {k: np.zeros((2, *MAP, n), np.float32) for k, n in (("heatmap", CLASSES), ("wh", 2), ("offset", 2))}
        maps["heatmap"] += value
        (loss, _), grads = compiled_loss(NAMES[0])(maps, targets)
        assert np.isfinite(float(loss)) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_class_specific_sizes() -> None:
    """With one pair of sizes a class, loss and decoding read the pair of the object's own class."""
    d = detector(NAMES[0], class_specific_wh=True)
    targets = batched(encode(NAMES[0], [(8, 8, 24, 40), (40, 4, 88, 60)], [1, 2]))
    maps = perfect_maps(NAMES[0], targets, certain=True)
    pairs = np.full((1, *MAP, CLASSES, 2), 77, np.float32)  # wrong everywhere but at the objects' own classes
    for m, label in enumerate((1, 2)):
        y, x = divmod(int(targets["index"][0, m]), MAP[1])
        pairs[0, y, x, label] = targets["wh"][0, m]
    maps["wh"] = pairs.reshape(1, *MAP, 2 * CLASSES)
    (_, parts), grads = compiled_loss(NAMES[0], True)(maps, targets)
    assert float(parts["wh"]) == 0
    assert np.count_nonzero(np.asarray(grads["wh"])) <= 4  # nothing flows to other classes
    found = d.decode(maps, top_k=2)
    got = {int(k): b.tolist() for b, k in zip(np.asarray(found.boxes[0]), np.asarray(found.labels[0]), strict=True)}
    assert got == {1: [8, 8, 24, 40], 2: [40, 4, 88, 60]}


# --- decoding and mirrored images ----------------------------------------------------------------


def test_decode_keeps_peaks_only_and_fills_up() -> None:
    heat = np.full((1, *MAP, CLASSES), 0.05, np.float32)
    heat[0, 4, 5, 1], heat[0, 4, 6, 1], heat[0, 4, 6, 2] = 0.9, 0.8, 0.7  # the second is no peak of its class
    heat[0, 0, 0, 0] = 0.6
    maps = {"scores": heat, "wh": np.full((1, *MAP, 2), 2, np.float32)}
    found = detector().decode(maps, top_k=3)
    np.testing.assert_allclose(found.scores[0], [0.9, 0.7, 0.6])
    assert found.labels[0].tolist() == [1, 2, 0]
    # without an offset the centre is the middle of the cell; a box may leave the image
    np.testing.assert_allclose(found.boxes[0], [[18, 14, 26, 22], [22, 14, 30, 22], [-2, -2, 6, 6]])


@pytest.mark.parametrize("name", NAMES)
def test_merge_flip_of_a_mirrored_twin_changes_nothing(name: str) -> None:
    """Maps of the mirrored image that are exactly mirrored: detections are the plain image's."""
    d = detector(name)
    targets = batched(encode(name, [(8, 8, 24, 40), (40, 4, 88, 60)], [1, 2]), encode(name, [(50, 5, 70, 33)], [0]))
    plain = perfect_maps(name, targets, certain=False)
    both: dict[str, Any] = {k: np.concatenate([v, v[:, :, ::-1]]) for k, v in plain.items()}
    # the mirrored image's offset is not read (golden: flip merge)
    both["offset"][2:] = 9
    once, merged = d.decode(plain, top_k=2), d.decode(d.merge_flip(both), top_k=2)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_merge_flip_averages_scores_and_sizes() -> None:
    rng = np.random.default_rng(0)
    maps = {
        k: rng.standard_normal((4, *MAP, n)).astype(np.float32) for k, n in (("heatmap", 3), ("wh", 2), ("offset", 2))
    }
    merged = detector().merge_flip(jax.tree.map(jnp.asarray, maps))
    score = 1 / (1 + np.exp(-maps["heatmap"]))
    np.testing.assert_allclose(merged["scores"], (score[:2] + score[2:, :, ::-1]) / 2, atol=1e-6)
    np.testing.assert_allclose(merged["wh"], (maps["wh"][:2] + maps["wh"][2:, :, ::-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(merged["offset"], maps["offset"][:2])


@pytest.mark.parametrize("model", ["centernet_r18", "centernet_r18_mmdet"])
def test_pixels_are_normalised_to_the_last_bit(model: str) -> None:
    """As NumPy divides, and so the originals, inside a compiled program too; where XLA multiplies, 65% differ."""
    preprocess = kpjax.build(model).preprocess
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    pixels[:, 1] = pixels[::-1, 1]
    ordered = pixels[:, ::-1] if preprocess.order == "BGR" else pixels
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    expected = (ordered.astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(jax.jit(preprocess.normalise)(pixels), expected)
    np.testing.assert_allclose(jax.jit(preprocess.normalise)(pixels.astype(np.float32)), expected, atol=1e-6)


def twice(score: float) -> Detections:
    """Two boxes of one class that overlap by 0.6, and one of another class on the first."""
    boxes = [[0, 0, 80, 100], [0, 0, 80, 60], [0, 0, 80, 100]]
    return Detections(
        boxes=jnp.array(boxes, jnp.float32), scores=jnp.array([0.9, score, 0.7]), labels=jnp.array([0, 0, 1])
    )


@pytest.mark.parametrize("model", ["centernet_r18", "centernet_r18_mmdet"])
def test_another_nms_at_test(model: str) -> None:
    published = kpjax.build(model, num_classes=2)
    assert published.protocols["na"].merge is None
    assert at_test(published, "") is published

    def second(nms: str, preset: str) -> float:
        detector = at_test(published, nms)
        assert detector.net is published.net and detector.options == published.options
        found = detector.protocols[preset].merge((twice(0.6),), top_k=3)
        of_box = np.asarray(found.scores)[np.isclose(found.boxes[:, 3], 60, atol=1) & (found.labels == 0)]
        return float(of_box.max(initial=0))

    for preset in ("na", "flip", "ms"):
        assert second("hard", preset) == 0
        assert second("linear", preset) == pytest.approx(0.6 * 0.4, abs=0.01)
        assert second("gaussian", preset) == pytest.approx(0.6 * np.exp(-0.36 / 0.5), abs=0.01)
    assert second("none", "ms") == pytest.approx(0.6)
    with pytest.raises(ConfigError, match="nms is 'soft'; choose one of"):
        at_test(published, "soft")
