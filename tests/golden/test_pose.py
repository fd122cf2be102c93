"""Pose of Objects as Points: targets, losses, decoding, merging and whole pipelines of xingyizhou's multi_pose."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.detectors.base import Detector, Protocol
from kpjax.images.geometry import square_crop
from kpjax.images.views import View, affine
from kpjax.objects import Detections, Objects, Placed
from kpjax.ops.merge import merge_scales

from .cases import GOLDEN, each_case, fill, load_case, nhwc
from .test_ctnet_losses import assert_gradient, assert_loss, heat_target, leaf
from .test_forward import DLA_DCN_TOLERANCE, check_between, check_heads, dla_dcn, forward
from .test_pipelines import picture

HEADS = {
    "hm": "heatmap",
    "wh": "wh",
    "reg": "offset",
    "hps": "keypoint_offset",
    "hm_hp": "joint_heatmap",
    "hp_offset": "joint_offset",
}
SLOTS = 32  # max_objs of the reference
MODEL = "centernet_r18_pose"


def detector(**options: Any) -> Detector:
    return kpjax.build(MODEL, num_classes=1, **options)


# Networks


@each_case("fwd_dla34_multi_pose")
def test_dla(case: Any) -> None:
    outputs, between = forward(case, "centernet_dla34_pose", head_channels=case.info["head_conv"])
    check_heads(case, outputs, HEADS, DLA_DCN_TOLERANCE)
    check_between(case, dla_dcn(between), DLA_DCN_TOLERANCE)


# Targets


def annotations(case: Any, flip: bool) -> tuple[Objects, int]:
    """The case's persons in 32 slots, in image pixels, mirrored by the rule of the original where `flip`."""
    rows = case.info["details"]["annotations"][:SLOTS]
    boxes, points, seen = np.zeros((SLOTS, 4)), np.zeros((SLOTS, 17, 2)), np.zeros((SLOTS, 17), np.int32)
    for slot, row in enumerate(rows):
        x, y, w, h = row["bbox"]
        boxes[slot] = x, y, x + w, y + h
        keypoints = np.array(row["keypoints"]).reshape(-1, 3)
        points[slot], seen[slot] = keypoints[:, :2], keypoints[:, 2]
    role = (np.arange(SLOTS) < len(rows)).astype(np.int32)
    labels = np.zeros(SLOTS, np.int32)
    return Objects(boxes.astype(np.float32), labels, role, points.astype(np.float32), seen), len(rows)


def rotated(case: Any, name: str, objects: Objects, stride: int) -> Objects:
    """The objects in input pixels, the joints turned as in the case: by the similarity that its joints show."""
    slots = case[f"{name}/hp_mask"].reshape(SLOTS, -1) > 0
    width = case[f"{name}/hm_hp"].shape[-1]
    index = case[f"{name}/hp_ind"].reshape(SLOTS, -1)[slots]
    there = np.stack([index % width, index // width], -1) + case[f"{name}/hp_offset"].reshape(SLOTS, -1, 2)[slots]
    x, y = objects.points[slots].astype(np.float64).T
    zero, one = np.zeros_like(x), np.ones_like(x)
    left = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    (a, b, c, d), *_ = np.linalg.lstsq(left, np.concatenate([there[:, 0], there[:, 1]]), rcond=None)
    x, y = np.moveaxis(objects.points.astype(np.float64), -1, 0)
    turned = np.stack([a * x - b * y + c, b * x + a * y + d], -1) * stride
    return dataclasses.replace(objects, points=turned.astype(np.float32))


def encoded(case: Any, name: str) -> dict[str, np.ndarray]:
    """Our targets of a sub-case, by the way that a training example takes."""
    details, det = case.info["details"], detector()
    opt = details[name]
    size = tuple(details[f"{name}/input_shape"][1:])
    objects, _ = annotations(case, opt["flip"])
    image = jnp.asarray(details["image"]["shape_hwc"][:2], jnp.int32)
    scale = jnp.float32(np.ravel(case[f"{name}/meta_s"])[0])
    crop = square_crop(jnp.asarray(case[f"{name}/meta_c"]), scale, jnp.asarray(opt["flip"]), image, size)
    moved = crop.geometry.move(objects, det.points)
    if opt["rotation"]:  # boxes go through the map without the rotation
        moved = dataclasses.replace(moved, points=rotated(case, name, objects, det.stride).points)
    targets = jax.jit(lambda objects: det.encode(objects, Placed(size)))(moved)
    return {key: np.asarray(value) for key, value in targets.items()}


@each_case("fn_multi_pose_targets")
def test_targets(case: Any) -> None:
    """With a rotation the original turns off the centres, which kpjax never rotates; its joints are compared."""
    names = [name.removesuffix("/ind") for name in case.arrays if name.endswith("/ind")]
    assert names
    for name in names:
        targets = encoded(case, name)
        mask = targets["keypoint_mask"]
        np.testing.assert_array_equal(mask.reshape(-1), case[f"{name}/hp_mask"] > 0, err_msg=name)
        np.testing.assert_array_equal(targets["joint_index"].reshape(-1), case[f"{name}/hp_ind"], err_msg=name)
        offset = targets["joint_offset"].reshape(-1, 2)
        np.testing.assert_allclose(offset, case[f"{name}/hp_offset"], atol=1e-5, err_msg=name)
        heat = np.moveaxis(targets["joint_heatmap"], -1, 0)
        np.testing.assert_allclose(heat, case[f"{name}/hm_hp"], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(heat == 1, case[f"{name}/hm_hp"] == 1, err_msg=name)
        if case.info["details"][name]["rotation"]:
            continue
        trained = case[f"{name}/reg_mask"] > 0
        np.testing.assert_array_equal(targets["mask"], trained, err_msg=name)
        for ours, theirs in (("index", "ind"), ("wh", "wh"), ("offset", "reg")):
            expected = case[f"{name}/{theirs}"]
            np.testing.assert_allclose(targets[ours][trained], expected[trained], atol=1e-5, err_msg=f"{name} {ours}")
        heat = np.moveaxis(targets["heatmap"], -1, 0)
        np.testing.assert_allclose(heat, case[f"{name}/hm"], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(heat == 1, case[f"{name}/hm"] == 1, err_msg=name)
        if f"{name}/hps" in case.arrays:
            points = targets["keypoint_offset"].reshape(SLOTS, -1)
            np.testing.assert_allclose(points, case[f"{name}/hps"], atol=1e-5, err_msg=name)
            pairs = np.repeat(mask, 2, axis=1)
            np.testing.assert_array_equal(pairs, case[f"{name}/hps_mask"] > 0, err_msg=name)


# Losses


@each_case("fn_ctnet_losses")
def test_total(case: Any) -> None:
    names = [n.split("/")[0] for n in case.arrays if n.startswith("multi_pose_total") and n.endswith("/hm_loss")]
    assert names
    parts_of = {
        "heatmap": "hm",
        "wh": "wh",
        "offset": "off",
        "keypoint_offset": "hp",
        "joint_heatmap": "hm_hp",
        "joint_offset": "hp_offset",
    }
    det, joints = detector(), len(case["in/hps_mask"][0, 0]) // 2
    mask = jnp.asarray(case["in/mask"] > 0)
    slots = (*mask.shape, joints)
    pairs = case["in/hps_mask"].reshape(*slots, 2) > 0
    np.testing.assert_array_equal(pairs[..., 0], pairs[..., 1])
    np.testing.assert_array_equal(pairs[..., 0], case["in/hp_mask"].reshape(slots) > 0)
    for name in names:
        targets = {
            "heatmap": heat_target(case, name)[..., :1],
            "index": jnp.asarray(case["in/ind"], jnp.int32),
            "mask": mask,
            "wh": jnp.asarray(case["in/wh_target"]),
            "offset": jnp.asarray(case["in/reg_target"]),
            "label": jnp.zeros(mask.shape, jnp.int32),
            "keypoint_offset": jnp.asarray(leaf_target(case, "hps_target")).reshape(*slots, 2),
            "keypoint_mask": jnp.asarray(pairs[..., 0]),
            "joint_heatmap": jnp.asarray(nhwc(case["in/hm_hp_target"])),
            "joint_index": jnp.asarray(case["in/hp_ind"], jnp.int32).reshape(slots),
            "joint_offset": jnp.asarray(case["in/hp_offset_target"]).reshape(*slots, 2),
        }
        counts = det.normaliser(targets)
        stacks = case.info["details"][name].get("num_stacks", 1)

        def total(maps: Any, targets: Any = targets, counts: Any = counts, n: int = stacks) -> Any:
            outputs = [{key: value * 0.5**stack for key, value in maps.items()} for stack in range(n)]
            return det.loss(outputs, targets, counts)

        tags = {"hm": "hm1"} | {key: key for key in HEADS if key != "hm"}
        leaves = {HEADS[key]: leaf(case, tag) for key, tag in tags.items()}
        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(leaves)
        assert_loss(case, f"{name}/loss", value)
        for ours, theirs in parts_of.items():
            assert_loss(case, f"{name}/{theirs}_loss", parts[ours])
        for theirs, ours in HEADS.items():
            assert_gradient(case, f"{name}/grad_{theirs}", slopes[ours])


def leaf_target(case: Any, name: str) -> np.ndarray:
    spec = case.info["details"]["tags"][name]
    return fill(spec["tag"], spec["shape"], *spec["range"])


# Decoding and merging


def decode(det: Detector, maps: dict[str, Any], count: int) -> Detections:
    """Compiled, as it always is in use: a compiler may not turn a peak into none."""
    return jax.jit(functools.partial(det.decode, top_k=count))(maps)


def rows_of(found: Detections, scale: float = 1.0) -> np.ndarray:
    """(..., N, 5 + 2 J): box times `scale`, score, points times `scale`."""
    boxes, scores, points = (np.asarray(x) for x in (found.boxes, found.scores, found.keypoints))
    xy = points[..., :2].reshape(*points.shape[:-2], -1)
    return np.concatenate([boxes * scale, scores[..., None], xy * scale], -1)


def assert_same_rows(found: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float, float], name: str) -> None:
    """Equal as sets: rows of box, score and points within (score, box, point)."""
    assert found.shape == expected.shape, name
    free = list(range(len(found)))
    limits = np.full(expected.shape[1], tolerance[2])
    limits[:4], limits[4] = tolerance[1], tolerance[0]
    for row in expected:
        fits = [i for i in free if (np.abs(found[i] - row) <= limits).all()]
        assert fits, f"{name}: no detection like {row}"
        free.remove(min(fits, key=lambda i: np.abs(found[i] - row).max()))


def decode_maps(case: Any, name: str) -> dict[str, Any]:
    """The maps of a sub-case such as multi_pose_sparse_no_hp_offset."""
    tags = case.info["details"]["mp_tags"]
    maps = {HEADS[key]: jnp.asarray(nhwc(fill(*spec))) for key, spec in tags.items()}
    kind = "sparse" if "sparse" in name else "diffuse"
    maps["scores"] = jnp.asarray(nhwc(case["in/mp_heat"]))
    maps["joint_scores"] = jnp.asarray(nhwc(case[f"in/mp_hm_hp_{kind}"]))
    if name.endswith("no_hp_offset"):
        del maps["joint_offset"]
    if name.endswith("no_hm_hp"):
        del maps["joint_scores"]
    return maps


@each_case("fn_ctnet_decode")
def test_decode(case: Any) -> None:
    names = [n for n in case.arrays if n.startswith("multi_pose_") and "post" not in n]
    assert names
    det = detector()
    for name in names:
        expected = case[name]
        found = rows_of(decode(det, decode_maps(case, name), expected.shape[1]), 1 / det.stride)
        for image, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same_rows(ours, theirs[:, :-1], (1e-5, 1e-5, 1e-5), f"{name} image {image}")


@each_case("fn_ctnet_decode")
def test_decode_in_image_pixels(case: Any) -> None:
    names = [n for n in case.arrays if n.startswith("multi_pose_post_")]
    assert names
    det = detector()
    for name in names:
        maps = decode_maps(case, name)
        height, width = maps["scores"].shape[1:3]
        canvas = (height * det.stride, width * det.stride)
        center, scale = case["in/post_c"][0], case["in/post_s"][0]
        matrix = affine((float(center[0]), float(center[1])), float(scale[0]), canvas)
        shift = (float(matrix[0, 2]), float(matrix[1, 2]))
        view = View(canvas, canvas, canvas, float(matrix[0, 0]), shift, (1.0, 1.0), (0, 0, *canvas))
        found = view.to_image(jax.device_get(decode(det, maps, len(case[name]))))
        assert_same_rows(rows_of(found)[0], case[name], (1e-5, 1e-3, 1e-3), name)


@each_case("fn_ctnet_merge")
def test_flip(case: Any) -> None:
    details = case.info["details"]
    maps = {
        HEADS[key]: jnp.asarray(nhwc(fill(spec["tag"], spec["shape"], *details["mpflip_ranges"][key])))
        for key, spec in details["mpflip"].items()
    }
    det, expected = detector(), case["flip/multi_pose"]
    found = rows_of(decode(det, jax.jit(det.merge_flip)(maps), expected.shape[1]), 1 / det.stride)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_rows(ours, theirs[:, :-1], (1e-5, 1e-5, 1e-5), "flip/multi_pose")


@each_case("fn_ctnet_merge")
def test_scales_are_merged_with_their_points(case: Any) -> None:
    """soft_nms_39, row for row: what is left behind the kept rows has another row's points."""
    views = []
    for name in sorted(n for n in case.arrays if n.startswith("in/mpms/")):
        rows = case[name]
        xy = rows[:, 5:].reshape(len(rows), -1, 2)
        points = np.concatenate([xy, np.ones((*xy.shape[:2], 1), np.float32)], -1)
        views.append(Detections(rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int32), keypoints=points))
    expected = case["merge/multi_pose"]
    merge = detector().protocols["ms"].merge
    assert views and merge is not None
    found = jax.jit(functools.partial(merge, top_k=1))(tuple(views))
    assert_same_rows(rows_of(found), expected, (1e-5, 1e-5, 1e-5), "merge/multi_pose")


# From an image file to poses

KIND = "pipe_res18_multi_pose"
TOLERANCE = (5e-5, 5e-3, 1e-2)  # score, box and joint in pixels


def runs() -> Iterator[Any]:
    """(case, run) for every run of every case; those of several views are marked golden_full."""
    found = False
    for path in sorted(GOLDEN.glob(f"{KIND}*/case.json")):
        for run, settings in json.loads(path.read_text())["details"]["runs"].items():
            found = True
            marks = [pytest.mark.golden_full] if settings["options"] else []
            yield pytest.param(path.parent.name, run, marks=marks, id=f"{path.parent.name}-{run.replace('/', '-')}")
    if not found:
        reason = f"no case of {KIND} in {GOLDEN.name}" if GOLDEN.is_dir() else "the golden folder is not there"
        yield pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="none")


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[Any, Any, Any]:
    case = load_case(name)
    depth = case.info["arch"].removeprefix("res_")
    det = kpjax.build(
        f"centernet_r{depth}_pose", num_classes=case.info["heads"]["hm"], head_channels=case.info["head_conv"]
    )
    return case, det, kpjax.import_torch(det, case.params)


@pytest.mark.parametrize(("name", "run"), list(runs()))
def test_pipeline(name: str, run: str) -> None:
    case, det, variables = network(name)
    settings = case.info["details"]["runs"][run]
    options, first = settings["options"], settings["scales"][0]
    preset = "flip" if options.get("flip_test") else "na"
    scales = tuple(options.get("test_scales", (1.0,)))
    if len(scales) > 1:
        mirror = "maps" if options.get("flip_test") else ""
        merge = functools.partial(merge_scales, capped=False)
        preset, det = "ms", dataclasses.replace(det, protocols={"ms": Protocol(mirror, scales, merge=merge)})
    view: dict[str, Any] = {}
    if options.get("fix_res"):
        view = {"resolution": "fixed", "size": tuple(first["input_shape"][2:])}
    nms = "gaussian" if options.get("nms") else ""
    expected = case[f"{run}/detections"]
    predictor = kpjax.Predictor(det, variables, preset, nms=nms, **view)
    found: Any = predictor(picture(case.info["details"]["images"][run.split("/")[0]]))
    assert found.keypoints.shape == (len(expected), 17, 3) and (found.labels == 0).all()
    assert ((found.keypoints[..., 2] >= 0) & (found.keypoints[..., 2] <= 1)).all()
    assert_same_rows(rows_of(found), expected, TOLERANCE, run)
