"""CornerNet and the keypoint triplets: building, targets, loss, decoding, mirrored views."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import kpjax
from kpjax.detectors import corner_decode, corner_targets
from kpjax.detectors.base import Detector
from kpjax.detectors.corner_config import KEYPOINTS, MMDET, ORIGINAL
from kpjax.errors import ConfigError
from kpjax.inference.program import make_infer
from kpjax.objects import Placed
from kpjax.ops.corners import Candidates
from kpjax.parallel.sharding import make_mesh
from tests.records import objects_of
from tests.tiny import random_variables

SIZE = (63, 95)  # input height, width
MAP = (16, 24)
CLASSES = 3
SLOTS = 6
NAMES = ("cornernet_hg104", "cornernet_hg104_mmdet", "triplet_hg52")
SMALL: dict[str, Any] = {
    "features": (4, 4),
    "blocks": (1, 1),
    "stem": 4,
    "stacks": 1,
    "branch": 4,
    "head_channels": 4,
    "corners": 20,
    "nms": "none",
}
BOXES = [(5.0, 6.0, 40.0, 31.0), (50.0, 10.0, 90.0, 60.0), (8.0, 36.0, 30.0, 58.0)]
LABELS = [0, 2, 0]


@functools.cache
def detector(name: str = "cornernet_hg104", **options: Any) -> Detector:
    return kpjax.build(name, CLASSES, **(SMALL | options))


def keypoints(name: str) -> tuple[str, ...]:
    return KEYPOINTS if name.startswith("triplet") else KEYPOINTS[:2]


@functools.cache
def compiled_encode(name: str) -> Any:
    return jax.jit(lambda objects: detector(name).encode(objects, Placed(SIZE)))


def encode(name: str, boxes: Any, labels: Any = None) -> dict[str, np.ndarray]:
    """Targets of one image, the slots after the given boxes filled with rubbish that is not valid."""
    padded = np.tile(np.array([8, 8, 40, 40], np.float32), (SLOTS, 1))
    padded[: len(boxes)] = np.asarray(boxes, np.float32).reshape(-1, 4)
    numbers = np.full(SLOTS, CLASSES - 1, np.int32)
    numbers[: len(boxes)] = 0 if labels is None else labels
    found = compiled_encode(name)(objects_of(padded, numbers, np.arange(SLOTS) < len(boxes)))
    return {k: np.asarray(v) for k, v in found.items()}


def batched(*targets: dict[str, np.ndarray]) -> dict[str, Any]:
    return {k: jnp.stack([t[k] for t in targets]) for k in targets[0]}


def perfect_maps(name: str, targets: dict[str, Any], certain: float = 12.0) -> dict[str, Any]:
    """Head maps (B, h, w, .) that say what the targets say: logits of +-certain, one embedding an object."""
    maps: dict[str, Any] = {}
    for point in keypoints(name):
        heat = np.asarray(targets[f"{point}_heat"])
        maps[f"{point}_heat"] = np.where(heat == 1, certain, -certain).astype(np.float32)
        for head, channels in (("tag", 1), ("off", 2)):
            grid = np.zeros((len(heat), MAP[0] * MAP[1], channels), np.float32)
            for b, m in zip(*np.nonzero(np.asarray(targets["mask"])), strict=True):
                value = 2.0 * m if head == "tag" else targets[f"{point}_off"][b, m]
                grid[b, targets[f"{point}_index"][b, m]] = value
            maps[f"{point}_{head}"] = grid.reshape(len(heat), *MAP, channels)
    maps.pop("center_tag", None)
    return maps


# --- building ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"widht": 32}, "no option 'widht'; it has .*branch"),
        ({"features": (4, 4, 4)}, r"features is \(4, 4, 4\) and blocks is \(1, 1\); give both the same"),
        ({"features": (4,), "blocks": (1,)}, "two at least"),
        ({"blocks": (1, 0)}, "features and blocks must be at least 1"),
        ({"stacks": 0}, "stacks is 0; it must be at least 1"),
        ({"kernel": 5}, "kernel is 5; choose one of 1, 3"),
        ({"radius": "legcy"}, "radius is 'legcy'; choose one of"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"embedding_images": -1}, "embedding_images is -1"),
        ({"distance": "x"}, "distance is 'x'; give a value like 0.5"),
        ({"rules": None}, "no option 'rules'"),
        ({"dtype": "float99"}, "dtype is 'float99'"),
    ],
)
@pytest.mark.parametrize("name", ["cornernet_hg104", "triplet_hg52"])
def test_build_refuses_in_one_line(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        kpjax.build(name, 3, **(SMALL | options))
    assert re.search(text, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cornernet_hg104", "triplet_hg52"])
def test_options_survive_json(name: str) -> None:
    """A list is what a tuple becomes in a checkpoint's JSON."""
    d = kpjax.build(name, 5, **(SMALL | {"features": [4, 4], "blocks": [1, 1]}))
    assert d.net == kpjax.build(name, 5, **SMALL).net
    assert kpjax.build(name, 5, **d.options).net == d.net


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_targets_name_the_corners(name: str) -> None:
    targets = encode(name, BOXES, LABELS)
    ratio = np.array([MAP[1] / SIZE[1], MAP[0] / SIZE[0]])
    np.testing.assert_array_equal(targets["mask"], np.arange(SLOTS) < len(BOXES))
    for point in keypoints(name):
        for m, (x1, y1, x2, y2) in enumerate(BOXES):
            pixel = {"tl": (x1, y1), "br": (x2, y2), "center": ((x1 + x2) / 2, (y1 + y2) / 2)}[point]
            where = np.array(pixel) * ratio
            cell = where.astype(int)
            assert targets[f"{point}_index"][m] == cell[1] * MAP[1] + cell[0]
            np.testing.assert_allclose(targets[f"{point}_off"][m], where - cell, atol=1e-5)
            assert targets[f"{point}_heat"][cell[1], cell[0], LABELS[m]] == 1
        assert (targets[f"{point}_heat"] == 1).sum() == len(BOXES)
        assert not targets[f"{point}_heat"][..., 1].any()


def test_boxes_without_area_move_out_of_the_way() -> None:
    """CornerNet's: cut to the input, dropped where nothing is left, and no hole stays; mmdetection's keeps slots."""
    boxes = [(-30, -20, -5, 30), BOXES[0], (70, 20, 70, 40), (-10, -10, 30, 200)]
    targets = encode("cornernet_hg104", boxes, [0, 1, 0, 2])
    assert targets["mask"].tolist() == [True, True, False, False, False, False]
    alone = encode("cornernet_hg104", [BOXES[0], (0, 0, 30, SIZE[0] - 1)], [1, 2])
    for key, value in targets.items():
        np.testing.assert_allclose(value, alone[key], atol=1e-6, err_msg=key)
    kept = encode("cornernet_hg104_mmdet", [BOXES[0], (70, 20, 70, 40), BOXES[1]])
    assert kept["mask"].tolist() == [True, False, True, False, False, False]


def test_offsets_of_one_cell() -> None:
    """mmdetection keeps a cell's last offset, and all embeddings; the original trains on each."""
    for name, expected in (("cornernet_hg104", [True, True]), ("cornernet_hg104_mmdet", [False, True])):
        targets = encode(name, [(5, 6, 40, 31), (5.5, 6.5, 60, 50)], [0, 1])
        assert targets["tl_mask"][:2].tolist() == expected and targets["br_mask"][:2].tolist() == [True, True]
        assert targets["mask"][:2].tolist() == [True, True]


# --- loss ----------------------------------------------------------------------------------------


@functools.cache
def compiled_loss(name: str, **options: Any) -> Any:
    d = detector(name, **options)

    def run(maps: Any, targets: Any) -> Any:
        return jax.value_and_grad(lambda m: d.loss([m], targets, d.normaliser(targets)), has_aux=True)(maps)

    return jax.jit(run)


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_a_perfect_answer(name: str) -> None:
    targets = batched(encode(name, BOXES, LABELS), encode(name, BOXES[1:], LABELS[1:]))
    (_, parts), _ = compiled_loss(name)(perfect_maps(name, targets), targets)
    assert float(parts["heatmap"]) < 1e-3 and float(parts["pull"]) < 1e-6 and float(parts["offset"]) < 1e-9
    assert abs(float(parts["push"])) < 1e-3  # embeddings are 2 apart, the margin is 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
    reach=st.sampled_from([1, 100]),
)
def test_never_a_nan(name: str, counts: list[int], seed: int, reach: int) -> None:
    """Any number of objects, none in the whole batch too, and logits whose sigmoid is 0 or 1 in float32."""
    rng = np.random.default_rng(seed)
    targets = batched(*(encode(name, BOXES[:n], LABELS[:n]) for n in counts))
    shapes = perfect_maps(name, targets)
    maps = {k: (reach * rng.standard_normal(v.shape)).astype(np.float32) for k, v in shapes.items()}
    (value, parts), slopes = compiled_loss(name)(maps, targets)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves((parts, slopes)))


def test_one_object_pushes_nothing() -> None:
    """CornerNet counts about 1 for an image of one object, without a gradient; mmdetection nothing."""
    for name, expected in (("cornernet_hg104", 1.0), ("cornernet_hg104_mmdet", 0.0)):
        targets = batched(encode(name, BOXES[:1]))
        maps = perfect_maps(name, targets)
        (_, parts), _ = compiled_loss(name)(maps, targets)
        assert float(parts["push"]) == pytest.approx(expected, abs=2e-3)
        d = detector(name)
        slope = jax.jit(jax.grad(lambda m, d=d, t=targets: d.loss([m], t, d.normaliser(t))[1]["push"]))(maps)
        assert not any(np.abs(x).any() for x in jax.tree.leaves(slope))


def test_pull_and_push_for_so_many_images() -> None:
    """embedding_images=1: a batch of the same image twice has the sums of one."""
    rng = np.random.default_rng(0)
    one = batched(encode("cornernet_hg104", BOXES, LABELS))
    twice = {k: jnp.concatenate([v, v]) for k, v in one.items()}
    maps = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in perfect_maps("cornernet_hg104", one).items()}
    doubled = {k: np.concatenate([v, v]) for k, v in maps.items()}
    plain = compiled_loss("cornernet_hg104")(maps, one)[0][1]
    sums = compiled_loss("cornernet_hg104")(doubled, twice)[0][1]
    scaled = compiled_loss("cornernet_hg104", embedding_images=1)(doubled, twice)[0][1]
    for key in ("pull", "push"):
        assert float(sums[key]) == pytest.approx(2 * float(plain[key]), rel=1e-5)
        assert float(scaled[key]) == pytest.approx(float(plain[key]), rel=1e-5)
    for key in ("heatmap", "offset"):  # these are means over the batch's objects anyhow
        assert float(sums[key]) == pytest.approx(float(plain[key]), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up(name: str) -> None:
    """With the whole batch's counts, the losses of its halves sum to its own; pull and push too, scaled or not."""
    rng = np.random.default_rng(1)
    images = [encode(name, BOXES[:n], LABELS[:n]) for n in (3, 0, 1, 2)]
    whole = batched(*images)
    maps = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in perfect_maps(name, whole).items()}
    for share in (0, 2):
        d = detector(name, embedding_images=share)
        run = jax.jit(lambda m, t, c, d=d: d.loss([m], t, c))
        total, parts = run(maps, whole, d.normaliser(whole))
        halves = [tuple({k: v[i : i + 2] for k, v in x.items()} for x in (maps, whole)) for i in (0, 2)]
        counts = jax.tree.map(jnp.add, *(d.normaliser(t) for _, t in halves))
        found = [run(m, t, counts) for m, t in halves]
        assert float(sum(f[0] for f in found)) == pytest.approx(float(total), rel=1e-5)
        for key, value in parts.items():
            assert float(sum(f[1][key] for f in found)) == pytest.approx(float(value), rel=1e-4), key


# --- decoding ------------------------------------------------------------------------------------


@functools.cache
def compiled_decode(name: str, flip: bool = False, sized: bool = True, **options: Any) -> Any:
    d = detector(name, **options)

    def run(maps: Any, windows: Any) -> Any:
        return d.decode(d.merge_flip(maps) if flip else maps, Placed(SIZE, windows) if sized else None, 10)

    return jax.jit(run)


def found_boxes(found: Any, image: int, least: float = 0.9) -> list[tuple[float, ...]]:
    kept = np.asarray(found.scores[image]) > least
    return sorted(zip(found.labels[image][kept].tolist(), *found.boxes[image][kept].T.tolist(), strict=True))


def expected_boxes(boxes: Any, labels: Any) -> list[tuple[float, ...]]:
    return sorted((k, *b) for k, b in zip(labels, boxes, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_targets_decode_to_their_boxes(name: str) -> None:
    targets = batched(encode(name, BOXES, LABELS), encode(name, BOXES[2:], LABELS[2:]))
    maps = perfect_maps(name, targets)
    for sized in (True, False):  # the originals' inputs have sides 4 w - 1
        found = compiled_decode(name, sized=sized)(maps, None)
        np.testing.assert_allclose(found_boxes(found, 0), expected_boxes(BOXES, LABELS), atol=1e-3)
        np.testing.assert_allclose(found_boxes(found, 1), expected_boxes(BOXES[2:], LABELS[2:]), atol=1e-3)
        slots = 10 if name.endswith("mmdet") else 20  # the originals keep ties with the tenth
        assert (np.diff(found.scores) <= 0).all() and found.scores.shape == (2, slots)


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_decodes_to_the_boxes(name: str) -> None:
    targets = batched(encode(name, BOXES, LABELS), encode(name, BOXES[2:], LABELS[2:]))
    oracle = detector(name).oracle
    assert oracle is not None
    maps = jax.jit(lambda t: oracle(t, SIZE))(targets)
    wanted = jax.eval_shape(lambda: detector(name).net.init_with_output(jax.random.key(0), jnp.zeros((2, *SIZE, 3)))[0])
    assert {k: v.shape for k, v in maps.items()} == {k: v.shape for k, v in wanted[-1].items()}
    found = compiled_decode(name)(maps, None)
    for image, first in ((0, 0), (1, 2)):
        np.testing.assert_allclose(found_boxes(found, image), expected_boxes(BOXES[first:], LABELS[first:]), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_decide_which_corners_belong_together(name: str) -> None:
    """Two objects of one class side by side have four pairs in order; embeddings leave two."""
    boxes = [(5, 6, 30, 31), (40, 10, 80, 40)]
    targets = batched(encode(name, boxes, [1, 1]))
    maps = perfect_maps(name, targets)
    np.testing.assert_allclose(
        found_boxes(compiled_decode(name)(maps, None), 0), expected_boxes(boxes, [1, 1]), atol=1e-3
    )
    for side in ("tl", "br"):
        maps[f"{side}_tag"] = np.zeros_like(maps[f"{side}_tag"])
    found = found_boxes(compiled_decode(name)(maps, None), 0)
    # The pair of the outermost corners is a box too; the triplets see that nothing is in its middle.
    assert len(found) == (2 if name.startswith("triplet") else 3)


def test_a_triplet_needs_its_centre() -> None:
    targets = batched(encode("triplet_hg52", BOXES, LABELS))
    maps = perfect_maps("triplet_hg52", targets)
    cell = np.argwhere(maps["center_heat"][0] > 0)[-1]
    maps["center_heat"][0][tuple(cell)] = -12
    found = compiled_decode("triplet_hg52")(maps, None)
    assert len(found_boxes(found, 0)) == len(BOXES) - 1
    maps["center_heat"][0][tuple(cell)] = 0.0  # a score of a half
    scores = np.asarray(compiled_decode("triplet_hg52")(maps, None).scores[0])
    np.testing.assert_allclose(scores[: len(BOXES)], [1, 1, (2 + 0.5) / 3], atol=1e-4)


def mirrored(maps: dict[str, Any], name: str) -> tuple[Any, Any]:
    """What a network would say of the mirrored input: boxes and their maps."""
    flipped = [(SIZE[1] - x2, y1, SIZE[1] - x1, y2) for x1, y1, x2, y2 in BOXES]
    return flipped, perfect_maps(name, batched(encode(name, flipped, LABELS)))


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_views_are_decoded_apart_and_merged(name: str) -> None:
    """The plain view alone, the mirrored one alone, and both: boxes of the plain image in each."""
    targets = batched(encode(name, BOXES, LABELS))
    plain = perfect_maps(name, targets)
    _, flipped = mirrored(plain, name)
    silent = {k: np.full_like(v, -12) if k.endswith("heat") else v for k, v in plain.items()}
    wanted = expected_boxes(BOXES, LABELS)
    for one, other, times in ((plain, silent, 1), (silent, flipped, 1), (plain, flipped, 2)):
        maps = {k: np.concatenate([one[k], other[k]]) for k in plain}
        found = found_boxes(compiled_decode(name, flip=True)(maps, None), 0)
        np.testing.assert_allclose(found, sorted(times * wanted), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_soft_nms_leaves_one_of_two_views(name: str) -> None:
    """The same boxes from both views: the second of each pair loses its score to the first."""
    plain = perfect_maps(name, batched(encode(name, BOXES, LABELS)))
    _, flipped = mirrored(plain, name)
    maps = {k: np.concatenate([plain[k], flipped[k]]) for k in plain}
    found = compiled_decode(name, flip=True, nms="gaussian")(maps, None)
    np.testing.assert_allclose(found_boxes(found, 0), expected_boxes(BOXES, LABELS), atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("name", ["cornernet_hg104", "triplet_hg52"])
def test_boxes_are_cut_to_the_image(name: str) -> None:
    """An image on rows 8 .. 55 and columns 4 .. 86 of its input, plain and mirrored; boxes stay in input pixels."""
    windows = np.array([[8, 4, 56, 87]], np.int32)
    plain = perfect_maps(name, batched(encode(name, BOXES, LABELS)))
    _, flipped = mirrored(plain, name)
    maps = {k: np.concatenate([plain[k], flipped[k]]) for k in plain}
    cut = [(max(x1, 4), max(y1, 8), min(x2, 87), min(y2, 56)) for x1, y1, x2, y2 in BOXES]
    for flip, times in ((False, 1), (True, 2)):
        found = found_boxes(compiled_decode(name, flip)(maps if flip else plain, windows), 0)
        np.testing.assert_allclose(found, sorted(times * expected_boxes(cut, LABELS)), atol=1e-3)
    beyond = np.array([[8, 4, 54, 87]], np.int32)  # the second box ends 6 pixels below this image
    found = found_boxes(compiled_decode(name)(plain, beyond), 0)
    assert len(found) == (2 if name.startswith("triplet") else 3)


# --- several scales ------------------------------------------------------------------------------


def rows_of_scale(d: Detector, maps: dict[str, Any], windows: Any = None) -> Any:
    """What the preset "ms" decodes of one image and its mirror image at one scale."""
    protocol = d.protocols["ms"]
    assert protocol.rows is not None
    run = jax.jit(lambda m: protocol.rows(d.merge_flip(m), Placed(SIZE, windows), 10))
    return jax.tree.map(lambda x: np.asarray(x[0]), run(maps))


def merged(d: Detector, views: tuple[Any, ...], **options: Any) -> Any:
    """Detections of one image with a batch axis."""
    merge = d.protocols["ms"].merge
    assert merge is not None
    return jax.tree.map(lambda x: x[None], jax.jit(functools.partial(merge, top_k=10, **options))(views))


def both_views(name: str) -> dict[str, Any]:
    plain = perfect_maps(name, batched(encode(name, BOXES, LABELS)))
    _, flipped = mirrored(plain, name)
    return {k: np.concatenate([plain[k], flipped[k]]) for k in plain}


@pytest.mark.parametrize("name", ["cornernet_hg104", "triplet_hg52"])
def test_one_scale_merged_is_what_decode_finds(name: str) -> None:
    d = detector(name, nms="gaussian", merge_exponent=0.0)
    maps, windows = both_views(name), jnp.asarray([[8, 4, 56, 87]])
    only = {"plain": 0} if name.startswith("triplet") else {}
    found = merged(d, (rows_of_scale(d, maps, windows),), **only)
    wanted = jax.jit(lambda m: d.decode(d.merge_flip(m), Placed(SIZE, windows), 10))(maps)
    assert len(found_boxes(wanted, 0)) > 1
    np.testing.assert_allclose(found_boxes(found, 0, 0.01), found_boxes(wanted, 0, 0.01), atol=1e-4)
    np.testing.assert_allclose(found.scores[0][:20], wanted.scores[0], atol=1e-6)


def test_boxes_of_several_scales_are_averaged() -> None:
    """A weaker box near another draws it to itself, the more the lower the exponent; a distant one does not."""
    near, far = (10.0, 10.0, 50.0, 50.0), (60.0, 5.0, 80.0, 25.0)

    def view(box: tuple[float, ...], score: float) -> Candidates:
        boxes = np.array([box, far], np.float32)
        scores = np.array([score, -1.0], np.float32)
        return Candidates(boxes, scores, np.zeros(2, np.int32), np.full((2, 2), score, np.float32))

    views = (view(near, 0.9), view((12.0, 10.0, 52.0, 50.0), 0.6), view(far, 0.8))
    moved = []
    for exponent in (0.0, 10.0, 1.0):
        found = merged(detector(nms="gaussian", merge_exponent=exponent), views)
        np.testing.assert_allclose(found.scores[0][:2], [0.9, 0.8], atol=1e-6)
        np.testing.assert_allclose(found.boxes[0][1], far, atol=1e-4)
        moved.append(float(found.boxes[0][0][0]))
    assert moved[0] == 10.0 and 10.0 < moved[1] < moved[2] < 12.0


def test_centres_of_other_scales_do_not_count() -> None:
    name = "triplet_hg52"
    d = detector(name, nms="gaussian")
    with_centers = rows_of_scale(d, both_views(name))
    none = dataclasses.replace(with_centers, points=with_centers.points + 1000)
    assert len(found_boxes(merged(d, (none, with_centers, none, none, none)), 0)) == len(BOXES)
    found = merged(d, (with_centers, none, with_centers, with_centers, with_centers))
    assert not (np.asarray(found.scores) > 0).any()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in NAMES[:2]] + [NAMES[2]])
def test_presets_through_predictor(name: str) -> None:
    """All scales of an image, with pairs and centres of each, come together."""
    d = detector(name, nms="gaussian")
    assert set(d.protocols) == {"na", "flip", "ms"}
    image = np.random.default_rng(0).integers(0, 256, (47, 61, 3), dtype=np.uint8)
    # Drawn as for training: of NumPy's, without the heat maps' biases, cornernet_hg104 pairs no corners.
    variables = jax.jit(d.net.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    found = kpjax.Predictor(d, variables, "ms", top_k=20)(image)
    assert isinstance(found, kpjax.Detections)
    assert len(found) >= (0 if name.startswith("triplet") else 20)
    assert (np.diff(found.scores) <= 0).all() and np.isfinite(found.boxes).all()


# --- the whole program ---------------------------------------------------------------------------


@functools.cache
def variables_of(name: str) -> Any:
    return random_variables(detector(name).net, *SIZE)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs the eight (virtual) devices of tests/conftest.py")
def test_eight_devices_gather_no_heatmap_and_compile_once() -> None:
    """The triplets' program, which holds CornerNet's, with flip: only detections are replicated, and a batch of
    another content compiles nothing."""
    name = "triplet_hg52"
    mesh = make_mesh()
    rows = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    infer = make_infer(detector(name), mesh, preset="flip", top_k=10)
    rng = np.random.default_rng(0)

    def batch() -> list[Any]:
        canvases = rng.integers(0, 256, (8, *SIZE, 3), np.uint8)
        windows = np.sort(rng.integers(0, 60, (8, 2, 2)), axis=1).reshape(8, 4).astype(np.int32)
        return [jax.device_put(x, rows) for x in (canvases, windows, np.arange(8, dtype=np.int32)[:, None])]

    inputs = batch()
    text = infer.lower(variables_of(name), *inputs).compile().as_text()
    gathered = re.findall(r"= (\S+) all-gather\(", text)
    sizes = [np.prod([int(n) for n in re.search(r"\[([\d,]*)\]", g)[1].split(",")]) for g in gathered]  # type: ignore[index]
    assert sizes and max(sizes) <= 8 * 20 * 4, gathered
    assert not re.search("all-to-all|collective-permute", text)
    for each in (inputs, batch(), batch()):
        jax.block_until_ready(infer(variables_of(name), *each))
    assert infer._cache_size() == 1


def test_boxes_beyond_the_input_without_clipping() -> None:
    """mmdetection's rules leave boxes as they are: corners outside move to the border, boxes outside are none."""
    boxes = jnp.asarray([[-200.0, -40.0, 30.0, 30.0], [-90.0, 4.0, -10.0, 30.0], [20.0, 70.0, 40.0, 90.0]])
    objects = objects_of(boxes, jnp.zeros(3, jnp.int32))
    targets = corner_targets.encode(objects, Placed((63, 63)), rules=MMDET, num_classes=2)
    assert targets["mask"].tolist() == [True, False, False]
    assert int(targets["tl_index"][0]) == 0 and int(targets["tl_index"].min()) >= 0
    assert float((targets["tl_heat"] == 1).sum()) == 1


def test_rows_level_with_the_last_one_stay() -> None:
    """The originals' cap compares scores; mmdetection's counts rows."""
    scores = jnp.asarray([[0.9, 0.5, 0.7, 0.5, 0.5, 0.2]])
    found = Candidates(jnp.arange(24.0).reshape(1, 6, 4), scores, jnp.zeros((1, 6), jnp.int32), jnp.zeros((1, 6, 2)))
    kept = corner_decode.select(found, None, 3, ORIGINAL)
    np.testing.assert_allclose(kept.scores, [[0.9, 0.7, 0.5, 0.5, 0.5, 0.0]])
    np.testing.assert_allclose(corner_decode.select(found, None, 3, MMDET).scores, [[0.9, 0.7, 0.5]])
