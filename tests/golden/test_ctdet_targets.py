"""Targets of Objects as Points, in every setting of the reference's data set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.images.geometry import square_crop
from kpjax.images.preprocess import COCO_BGR
from kpjax.images.resample import resample
from kpjax.images.views import View, fixed_view, keep_view, place
from kpjax.objects import Objects, Placed
from kpjax.ops.heatmap import gaussian_radius, radius_in_cells
from tests.records import objects_of

from .cases import each_case, fill
from .dense import draw_dense

# COCO's 80 ids leave these out of 1..90.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = [number for number in range(1, 91) if number not in _UNUSED_IDS]
SLOTS = 128  # max_objs of the reference
ALWAYS = 1.0  # opt.flip is a probability: 0 never, 1 and above always


def sub_cases(case: Any) -> list[str]:
    return [name.removesuffix("/ind") for name in case.arrays if name.endswith("/ind")]


def settings(case: Any, name: str) -> dict[str, Any]:
    """A sub-case's options and geometry; `cap128` states none and is a fix_res one."""
    details = case.info["details"]
    source = name if "opt" in details[name] else "fix_res"
    _, height, width = details[f"{source}/input_shape"]
    scale = float(np.ravel(case[f"{source}/meta_s"])[0])
    opt = details[source]["opt"]
    image_size = jnp.asarray(details["image"]["shape_hwc"][:2], jnp.int32)
    center, flip = jnp.asarray(case[f"{source}/meta_c"]), jnp.asarray(opt["flip"] >= ALWAYS)
    crop = square_crop(center, jnp.float32(scale), flip, image_size, (height, width))
    return {**opt, "split": details[source]["split"], "size": (height, width), "crop": crop}


def annotations(case: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """COCO boxes as (N, 4) xyxy in image pixels, and 0-based labels."""
    details = case.info["details"]
    if "boxes" in details[name]:
        boxes = np.array(details[name]["boxes"], np.float64).reshape(-1, 4)
        labels = np.arange(len(boxes)) % len(COCO_IDS)
    else:
        boxes = np.array([a["bbox"] for a in details["annotations"]], np.float64).reshape(-1, 4)
        labels = np.array([COCO_IDS.index(a["category_id"]) for a in details["annotations"]], int)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), labels


def encoded(case: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Our targets of a sub-case, by the way that a training example takes, and its settings."""
    opt = settings(case, name)
    boxes, labels = annotations(case, name)
    count = min(len(boxes), SLOTS)
    slots, classes = np.zeros((SLOTS, 4), np.float32), np.zeros(SLOTS, np.int32)
    slots[:count], classes[:count] = boxes[:count], labels[:count]
    det = kpjax.build("centernet_r18", num_classes=len(COCO_IDS), class_specific_wh=bool(opt["cat_spec_wh"]))

    @jax.jit
    def targets_of(objects: Objects) -> Any:
        return det.encode(opt["crop"].geometry.move(objects), Placed(opt["size"]))

    targets = targets_of(objects_of(slots, classes, np.arange(SLOTS) < count))
    return {key: np.asarray(value) for key, value in targets.items()}, opt


@each_case("fn_ctdet_targets")
def test_objects(case: Any) -> None:
    """Cells, masks (with their holes), sizes and offsets, slot by slot."""
    names = sub_cases(case)
    assert names
    for name in names:
        targets, opt = encoded(case, name)
        mask = case[f"{name}/reg_mask"] > 0
        np.testing.assert_array_equal(targets["mask"], mask, err_msg=name)
        np.testing.assert_array_equal(targets["index"], case[f"{name}/ind"], err_msg=name)
        np.testing.assert_allclose(targets["offset"], case[f"{name}/reg"], atol=1e-5, err_msg=name)
        if f"{name}/wh" in case.arrays:
            np.testing.assert_allclose(targets["wh"], case[f"{name}/wh"], atol=1e-5, err_msg=name)
        if f"{name}/meta_gt_det" in case.arrays:
            np.testing.assert_allclose(boxes_of(targets, opt), case[f"{name}/meta_gt_det"], atol=1e-4, err_msg=name)


def boxes_of(targets: dict[str, np.ndarray], opt: dict[str, Any]) -> np.ndarray:
    """Rows x1, y1, x2, y2 in output cells, 1, class: what the reference keeps for its own evaluation."""
    width = opt["size"][1] // opt["down_ratio"]
    mask = targets["mask"]
    index, wh, label = targets["index"][mask], targets["wh"][mask], targets["label"][mask]
    center = np.stack([index % width, index // width], 1) + targets["offset"][mask]
    ones = np.ones((len(index), 1))
    return np.concatenate([center - wh / 2, center + wh / 2, ones, label[:, None]], 1)


@each_case("fn_ctdet_targets")
def test_heatmaps(case: Any) -> None:
    for name in sub_cases(case):
        targets, _ = encoded(case, name)
        heat = np.moveaxis(targets["heatmap"], -1, 0)
        if f"{name}/hm" in case.arrays:
            np.testing.assert_allclose(heat, case[f"{name}/hm"], atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(heat == 1, case[f"{name}/hm"] == 1, err_msg=name)
        else:
            expected = case[f"{name}/hm_sum_per_class"]
            np.testing.assert_allclose(heat.sum((1, 2)), expected, rtol=1e-5, atol=1e-5, err_msg=name)


@each_case("fn_ctdet_targets")
def test_class_specific_sizes(case: Any) -> None:
    """The reference's dense rows of 2 K columns hold our pair at the object's own class."""
    for name in [n for n in sub_cases(case) if f"{n}/cat_spec_wh" in case.arrays]:
        targets, _ = encoded(case, name)
        expected, used = case[f"{name}/cat_spec_wh"], case[f"{name}/cat_spec_mask"] > 0
        ours, ours_used = np.zeros_like(expected), np.zeros_like(used)
        for slot in np.flatnonzero(targets["mask"]):
            pair = slice(2 * targets["label"][slot], 2 * targets["label"][slot] + 2)
            ours[slot, pair], ours_used[slot, pair] = targets["wh"][slot], True
        np.testing.assert_array_equal(ours_used, used, err_msg=name)
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=name)


@each_case("fn_ctdet_targets")
def test_dense_sizes(case: Any) -> None:
    for name in [n for n in sub_cases(case) if f"{n}/dense_wh" in case.arrays]:
        targets, opt = encoded(case, name)
        height, width = (side // opt["down_ratio"] for side in opt["size"])
        sides = jnp.ceil(jnp.where(targets["mask"][:, None], targets["wh"], 1.0))
        radii = radius_in_cells(gaussian_radius(sides[:, 1], sides[:, 0], 0.7, "legacy"))
        centers = jnp.stack([targets["index"] % width, targets["index"] // width], 1)
        dense, running = draw_dense(
            jnp.zeros((height, width)), centers, radii, targets["wh"], targets["mask"], (height, width)
        )
        np.testing.assert_allclose(np.moveaxis(np.asarray(dense), -1, 0), case[f"{name}/dense_wh"], atol=1e-5)
        for weight in case[f"{name}/dense_wh_mask"]:
            np.testing.assert_allclose(running, weight, atol=1e-5)
        np.testing.assert_allclose(running, targets["heatmap"].max(-1), atol=1e-6)


@each_case("fn_ctdet_targets")
def test_inputs(case: Any) -> None:
    """The network's input: test images through OpenCV on the host, training crops resampled on the device."""
    spec = case.info["details"]["image"]
    bgr = fill(spec["tag"], spec["shape_hwc"], 0, 256).astype(np.uint8)
    image = np.ascontiguousarray(bgr[..., ::-1])
    names = [n.removesuffix("/input_sub") for n in case.arrays if n.endswith("/input_sub")]
    assert names
    for name in names:
        opt = settings(case, name)
        pixels = training_crop(image, opt) if opt["split"] == "train" else placed(image, opt)
        found = np.moveaxis(np.asarray(COCO_BGR.normalise(pixels)), -1, 0)
        assert list(found.shape) == case.info["details"].get(f"{name}/input_shape", list(found.shape)), name
        exact = opt["split"] != "train" and opt["keep_res"]
        # OpenCV rounds to whole grey levels, and its versions differ by one where a warp shrinks.
        levels = 0.0 if exact else 1.0
        tolerance = 1e-5 + levels / 255 / min(COCO_BGR.std)
        np.testing.assert_allclose(found[:, ::4, ::4], case[f"{name}/input_sub"], rtol=0, atol=tolerance, err_msg=name)
        statistics = [found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()]
        mean_tolerance = 1e-5 if exact else 2e-3
        np.testing.assert_allclose(statistics[:2], case[f"{name}/input_stats"][:2], atol=mean_tolerance, err_msg=name)
        np.testing.assert_allclose(statistics[2], case[f"{name}/input_stats"][2], atol=tolerance, err_msg=name)


def training_crop(image: np.ndarray, opt: dict[str, Any]) -> Any:
    side = max(image.shape)
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image

    @jax.jit
    def crop(canvas: Any) -> Any:
        crop = opt["crop"]
        return resample(canvas, crop.extent, crop.ys, crop.xs, jnp.zeros(3))

    return crop(canvas)


def placed(image: np.ndarray, opt: dict[str, Any]) -> np.ndarray:
    size = (image.shape[0], image.shape[1])
    view = fixed_view(size, opt["size"])
    if opt["keep_res"]:
        # The data set's own, which is not the detector's: the image's centre w / 2 comes to the canvas's, so that an
        # image of odd sides is read at half pixels (the detector takes w // 2).
        canvas = keep_view(COCO_BGR, size).canvas
        shift = ((canvas[1] - size[1]) / 2, (canvas[0] - size[0]) / 2)
        view = View(size, size, canvas, 1.0, shift, (1.0, 1.0), (0, 0, *canvas))
    return place(image, view, COCO_BGR)


@each_case("fn_ctdet_targets")
def test_image_without_objects(case: Any) -> None:
    if "empty/hm_sum" not in case.arrays:
        pytest.skip("the case has no image without objects")
    det = kpjax.build("centernet_r18", num_classes=len(COCO_IDS))
    size = settings(case, sub_cases(case)[0])["size"]
    objects = objects_of(jnp.zeros((SLOTS, 4)), jnp.zeros(SLOTS, jnp.int32), jnp.zeros(SLOTS, bool))
    empty = jax.jit(det.encode)(objects, Placed(size))
    assert float(empty["heatmap"].sum()) == case["empty/hm_sum"].item()
    assert not empty["mask"].any()
    assert not case["empty/gt_det"].any()
