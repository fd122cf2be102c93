"""3D boxes of Objects as Points: targets, losses, decoding and whole pipelines of xingyizhou's ddd."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.detectors import box3d
from kpjax.detectors.base import Detector
from kpjax.images.geometry import square_crop
from kpjax.images.preprocess import KITTI_BGR
from kpjax.images.views import View, affine, make_view, place
from kpjax.inference.inputs import read_image
from kpjax.objects import ALL_CLASSES, IGNORE, NONE, OBJECT, Detections, Objects, Placed, Solid

from .cases import GOLDEN, each_case, fill, load_case, nhwc
from .test_ctnet_losses import assert_gradient, assert_loss, heat_target, leaf
from .test_forward import DLA_DCN_TOLERANCE, check_between, check_heads, dla_dcn, forward
from .test_pipelines import picture

HEADS = {"hm": "heatmap", "wh": "wh", "reg": "offset", "dep": "depth", "rot": "rotation", "dim": "size3d"}
SLOTS = 50  # max_objs of the reference
MODEL = "centernet_r18_3d"


def detector(classes: int = 3, **options: Any) -> Detector:
    return kpjax.build(MODEL, num_classes=classes, **options)


# Networks


@each_case("fwd_dla34_ddd")
def test_dla(case: Any) -> None:
    outputs, between = forward(case, "centernet_dla34_3d", head_channels=case.info["head_conv"])
    check_heads(case, outputs, HEADS, DLA_DCN_TOLERANCE)
    check_between(case, dla_dcn(between), DLA_DCN_TOLERANCE)


# Targets


def annotations(case: Any) -> Objects:
    """The case's objects in 50 slots, in image pixels and in the case's order."""
    details = case.info["details"]
    rows = details["annotations"][:SLOTS]
    boxes, labels, role = np.zeros((SLOTS, 4)), np.zeros(SLOTS, np.int32), np.full(SLOTS, NONE, np.int32)
    depth, size, alpha = np.zeros(SLOTS), np.zeros((SLOTS, 3)), np.zeros(SLOTS)
    for slot, row in enumerate(rows):
        x, y, w, h = row["bbox"]
        boxes[slot] = x, y, x + w, y + h
        depth[slot], size[slot], alpha[slot] = row["depth"], row["dim"], row["alpha"]
        number = details["cat_ids"][str(row["category_id"])]
        if number <= -99:
            continue
        role[slot] = OBJECT if number >= 0 else IGNORE
        labels[slot] = number if number >= 0 else ALL_CLASSES if number == -1 else -number - 2
    solid = Solid(*(np.float32(x) for x in (depth, size, alpha)))
    return Objects(boxes.astype(np.float32), labels, role, solid=solid)


def placed_image(case: Any, name: str) -> tuple[Any, tuple[int, int], bool]:
    """The crop of a sub-case, the input's size, and whether it was scaled or moved."""
    details = case.info["details"]
    height, width = details[f"{name}/input_shape"][1:]
    image = details["image"]["shape_hwc"][:2]
    center, scale = case[f"{name}/meta_c"], float(np.ravel(case[f"{name}/meta_s"])[0])
    size, flip = jnp.asarray(image, jnp.int32), jnp.asarray(False)
    crop = square_crop(jnp.asarray(center), jnp.float32(scale), flip, size, (height, width), "width")
    whole = width if details[name]["keep_res"] else image[1]
    moved = scale != whole or center.tolist() != [image[1] / 2, image[0] / 2]
    return crop, (height, width), moved


@each_case("fn_ddd_targets")
def test_targets(case: Any) -> None:
    names = [name.removesuffix("/ind") for name in case.arrays if name.endswith("/ind")]
    assert names
    for name in names:
        crop, size, moved = placed_image(case, name)
        det = detector(case[f"{name}/hm"].shape[0], ignore_rectangles=bool(case.info["details"][name]["rect_mask"]))
        placed = Placed(size, changed=jnp.asarray(moved))
        objects = crop.geometry.move(annotations(case))
        targets = jax.tree.map(np.asarray, jax.jit(lambda o, d=det, p=placed: d.encode(o, p))(objects))
        mask = targets["mask"]
        np.testing.assert_array_equal(mask, case[f"{name}/rot_mask"] > 0, err_msg=name)
        np.testing.assert_array_equal(targets["solid"], case[f"{name}/reg_mask"] > 0, err_msg=name)
        np.testing.assert_array_equal(targets["bins"], case[f"{name}/rotbin"] > 0, err_msg=name)
        np.testing.assert_array_equal(targets["index"], case[f"{name}/ind"], err_msg=name)
        for ours, theirs in (
            ("wh", "wh"),
            ("offset", "reg"),
            ("depth", "dep"),
            ("size3d", "dim"),
            ("angles", "rotres"),
        ):
            np.testing.assert_allclose(targets[ours], case[f"{name}/{theirs}"], atol=1e-5, err_msg=f"{name} {ours}")
        heat = np.moveaxis(targets["heatmap"], -1, 0)
        np.testing.assert_allclose(heat, case[f"{name}/hm"], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(heat == 1, case[f"{name}/hm"] == 1, err_msg=name)


@each_case("fn_ddd_targets")
def test_inputs(case: Any) -> None:
    spec = case.info["details"]["image"]
    bgr = fill(spec["tag"], spec["shape_hwc"], 0, 256).astype(np.uint8)
    names = [name.removesuffix("/input_sub") for name in case.arrays if name.endswith("/input_sub")]
    assert names
    for name in names:
        _, size, moved = placed_image(case, name)
        if moved:
            continue  # resampled on the device: test_ctdet_targets compares that
        keep = case.info["details"][name]["keep_res"]
        view = make_view(KITTI_BGR, bgr.shape[:2], resolution="keep" if keep else "fixed", fixed=size)
        pixels = place(np.ascontiguousarray(bgr[..., ::-1]), view, KITTI_BGR)
        found = np.moveaxis(np.asarray(KITTI_BGR.normalise(pixels)), -1, 0)
        # OpenCV's versions round a warp differently that scales, or lands between pixels
        level = 1 / 255 / min(KITTI_BGR.std)
        expected = case[f"{name}/input_sub"]
        np.testing.assert_allclose(found[:, ::4, ::4], expected, rtol=0, atol=1.01 * level, err_msg=name)
        statistics = [found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()]
        np.testing.assert_allclose(statistics[:2], case[f"{name}/input_stats"][:2], atol=2e-3, err_msg=name)
        np.testing.assert_allclose(statistics[2], case[f"{name}/input_stats"][2], atol=1.01 * level, err_msg=name)


# Losses


def rotation_targets(case: Any, mask: Any) -> dict[str, Any]:
    return {
        "index": jnp.asarray(case["in/ind"], jnp.int32),
        "mask": mask,
        "solid": mask,
        "bins": jnp.asarray(case["in/rotbin"] > 0),
        "angles": jnp.asarray(case["in/rotres"]),
    }


@each_case("fn_ctnet_losses")
def test_rotation_loss(case: Any) -> None:
    names = [n.split("/")[0] for n in case.arrays if n.startswith("bin_rot") and n.endswith("/loss")]
    if not names:
        pytest.skip("the case has no loss of rotations")
    for name in names:
        mask = jnp.asarray(case["in/mask"] > 0)
        targets = rotation_targets(case, mask) | {"heatmap": heat_target(case, name)}
        if name.endswith("no_object"):
            targets |= {"mask": mask & False, "bins": targets["bins"] & False}
        counts = box3d.normaliser(targets)
        value, slope = jax.jit(jax.value_and_grad(box3d.rotation_loss))(leaf(case, "rot"), targets, counts)
        assert_loss(case, f"{name}/loss", value)
        assert_gradient(case, f"{name}/grad_rot", slope)


def filled_target(case: Any, name: str) -> jax.Array:
    spec = case.info["details"]["tags"][name]
    return jnp.asarray(fill(spec["tag"], spec["shape"], *spec["range"]))


@each_case("fn_ctnet_losses")
def test_total(case: Any) -> None:
    names = [n.split("/")[0] for n in case.arrays if n.startswith("ddd_total") and n.endswith("/hm_loss")]
    if not names:
        pytest.skip("the case has no loss of 3D boxes")
    for name in names:
        mask = jnp.asarray(case["in/mask"] > 0) & (not name.endswith("empty"))
        heat = heat_target(case, name)[..., : leaf(case, "hm3").shape[-1]]
        targets = rotation_targets(case, mask) | {
            "heatmap": heat,
            "wh": jnp.asarray(case["in/wh_target"]),
            "offset": jnp.asarray(case["in/reg_target"]),
            "depth": filled_target(case, "dep_target"),
            "size3d": filled_target(case, "dim_target"),
        }
        det = detector(heat.shape[-1])
        counts = det.normaliser(targets)
        stacks = case.info["details"][name].get("num_stacks", 1)

        def total(maps: Any, det: Any = det, targets: Any = targets, counts: Any = counts, n: int = stacks) -> Any:
            outputs = [{key: value * 0.5**stack for key, value in maps.items()} for stack in range(n)]
            return det.loss(outputs, targets, counts)

        leaves = {ours: leaf(case, "hm3" if theirs == "hm" else theirs) for theirs, ours in HEADS.items()}
        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(leaves)
        assert_loss(case, f"{name}/loss", value)
        for ours, theirs in {ours: "off" if theirs == "reg" else theirs for theirs, ours in HEADS.items()}.items():
            assert_loss(case, f"{name}/{theirs}_loss", parts[ours])
        for theirs, ours in HEADS.items():
            assert_gradient(case, f"{name}/grad_{theirs}", slopes[ours])


# Decoding


def decode_maps(case: Any) -> dict[str, jax.Array]:
    """The case's maps; its depth is in metres, and becomes what the head says for them."""
    details = case.info["details"]
    maps = {"scores": jnp.asarray(nhwc(case["in/ddd_heat"]))}
    for key, name in (("wh", "wh"), ("reg", "offset"), ("depth", "depth"), ("rot", "rotation"), ("dim", "size3d")):
        tag, shape = details["ddd_tags"][key]
        values = nhwc(fill(tag, shape, *details["ddd_ranges"][key])).astype(np.float64)
        if key == "depth":
            likely = 1 / (1 + values) - 1e-6
            values = np.log(likely) - np.log1p(-likely)
        maps[name] = jnp.asarray(values, jnp.float32)
    return maps


def decoded(det: Detector, maps: dict[str, Any], case: Any, count: int) -> Detections:
    """In image pixels and metres, as the case's post-processing has them."""
    height, width = maps["scores"].shape[1:3]
    canvas, spec = (height * det.stride, width * det.stride), case.info["details"]["ddd"]
    matrix = affine(tuple(spec["c"]), float(spec["s"][0]), canvas)
    zoom, shift = float(matrix[0, 0]), (float(matrix[0, 2]), float(matrix[1, 2]))
    view = View(canvas, canvas, canvas, zoom, shift, (1.0, 1.0), (0, 0, *canvas))
    camera = {
        "camera": jnp.asarray(spec["calib"], jnp.float32)[None],
        "zoom": jnp.full((1, 2), zoom, jnp.float32),
        "shift": jnp.asarray(shift, jnp.float32)[None],
    }
    run = jax.jit(lambda maps, camera: det.decode(maps, Placed(canvas, **camera), count))
    return view.to_image(jax.tree.map(lambda x: np.asarray(x)[0], run(maps, camera)))


@each_case("fn_ctnet_decode")
def test_decode(case: Any) -> None:
    names = [n for n in case.arrays if n.startswith("ddd_post")]
    if not names:
        pytest.skip("the case has no 3D boxes")
    for name in names:
        expected = case[name]
        found = decoded(detector(), decode_maps(case), case, len(expected))
        assert_same_rows(found, expected, (1e-5, 2e-3, 1e-5, 1e-5, 1e-5), name)


@each_case("fn_ctnet_decode")
def test_decode_without_sizes_and_offsets(case: Any) -> None:
    """Columns x, y, score, 8 of rotation, depth, 3 of size, class: the centres and what is read at them."""
    names = [n for n in case.arrays if n.startswith("ddd_no_wh_no_reg")]
    if not names:
        pytest.skip("the case has no 3D boxes without sizes")
    det, maps = detector(wh_as_point=False), decode_maps(case)
    maps["wh"] = jnp.zeros_like(maps.pop("offset"))
    shape = maps["scores"].shape[1:3]
    camera = {"camera": jnp.eye(3, 4)[None], "zoom": jnp.ones((1, 2)), "shift": jnp.zeros((1, 2))}
    for name in names:
        (expected,) = case[name]
        size = (shape[0] * det.stride, shape[1] * det.stride)
        count = len(expected)
        run = jax.jit(lambda maps, n=count, s=size: det.decode(maps, Placed(s, **camera), n))
        found = jax.tree.map(lambda x: np.asarray(x)[0], run(maps))
        center = found.boxes[:, :2] / det.stride
        keys = [f"{x:.3f} {y:.3f} {label}" for (x, y), label in zip(center, found.labels, strict=True)]
        place = {key: i for i, key in enumerate(keys)}
        for row in expected:
            i = place[f"{row[0]:.3f} {row[1]:.3f} {int(row[-1])}"]
            np.testing.assert_allclose(found.scores[i], row[2], atol=1e-5)
            np.testing.assert_allclose(found.boxes3d[i, 2], row[11], rtol=1e-5)
            np.testing.assert_allclose(found.boxes3d[i, 3:6], row[12:15], atol=1e-5)


def assert_same_rows(
    found: Detections, expected: np.ndarray, tolerance: tuple[float, float, float, float, float], name: str
) -> None:
    """The expected rows, by class and box: columns class from 1, alpha, box, size, location, yaw, score.

    tolerance: of score, box in pixels, size, location relative to the depth, angles (of yaw around the circle).
    """
    assert len(found) == len(expected), f"{name}: {len(found)} rows, {len(expected)} expected"
    score, box, size, place, angle = tolerance
    free = set(range(len(found)))
    for row in expected:
        near = [i for i in free if found.labels[i] == row[0] - 1 and np.abs(found.boxes[i] - row[2:6]).max() <= box]
        fits = [
            i
            for i in near
            if abs(found.scores[i] - row[13]) <= score
            and np.abs(found.boxes3d[i, 3:6] - row[6:9]).max() <= size
            and np.abs(found.boxes3d[i, :3] - row[9:12]).max() <= place * abs(row[11])
            and abs(found.alpha[i] - row[1]) <= angle
            and abs(np.angle(np.exp(1j * (found.boxes3d[i, 6] - row[12])))) <= angle
        ]
        assert fits, f"{name}: no detection like {row}; those with its box: {[found.boxes3d[i] for i in near]}"
        free.remove(fits[0])


# From an image file to 3D boxes

KIND = "pipe_res18_ddd"
TOLERANCE = (5e-5, 5e-3, 1e-4, 2e-5, 1e-4)


def runs() -> Iterator[Any]:
    found = False
    for path in sorted(GOLDEN.glob(f"{KIND}*/case.json")):
        for run in json.loads(path.read_text())["details"]["runs"]:
            found = True
            yield pytest.param(path.parent.name, run, id=f"{path.parent.name}-{run.replace('/', '-')}")
    if not found:
        reason = f"no case of {KIND} in {GOLDEN.name}" if GOLDEN.is_dir() else "the golden folder is not there"
        yield pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="none")


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[Any, Any, Any]:
    case = load_case(name)
    depth = case.info["arch"].removeprefix("res_")
    det = kpjax.build(
        f"centernet_r{depth}_3d", num_classes=case.info["heads"]["hm"], head_channels=case.info["head_conv"]
    )
    return case, det, kpjax.import_torch(det, case.params)


def resized(info: dict[str, Any]) -> np.ndarray:
    """The image as the reference was given it: resized, checked to be the reference's."""
    import cv2

    source = picture(info)
    pixels = read_image(source, source)[0] if isinstance(source, str) else source
    if "resized" not in info:
        return pixels
    height, width = info["resized"]["shape"][:2]
    pixels = cv2.resize(pixels, (width, height))
    found = hashlib.sha256(np.ascontiguousarray(pixels[..., ::-1]).tobytes()).hexdigest()
    assert found == info["resized"]["bgr_sha256"], "other pixels than the reference resized to"
    return pixels


@pytest.mark.parametrize(("name", "run"), list(runs()))
def test_pipeline(name: str, run: str) -> None:
    case, det, variables = network(name)
    settings = case.info["details"]["runs"][run]
    camera = None if isinstance(settings["calib"], str) else settings["calib"]
    predictor = kpjax.Predictor(
        det,
        variables,
        resolution="keep" if settings["options"]["keep_res"] else "fixed",
        size=tuple(settings["input_shape"][2:]),
    )
    found: Any = predictor(resized(case.info["details"]["images"][run.split("/")[0]]), camera=camera)
    expected = case[f"{run}/post"]
    assert_same_rows(found, expected[expected[:, -1] > 0], TOLERANCE, run)
    kept = np.count_nonzero(found.scores > settings["options"]["peak_thresh"])
    assert kept == len(case[f"{run}/detections"])
