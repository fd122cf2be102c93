"""Targets and inputs of CornerNet's and the triplets' samplers, and mmdetection's CornerHead targets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.images.geometry import Crop, window_crop
from kpjax.images.resample import resample
from kpjax.objects import Placed
from tests.records import objects_of

from .cases import each_case, fill, kind_of
from .test_mmdet_targets import image_boxes, mmdet_targets

KEYPOINTS = {"tl": "tl", "br": "br", "ct": "center"}  # the originals' names -> ours


MODELS = {
    "targets_cornernet": "cornernet_hg104",
    "targets_cornernet_squeeze": "cornernet_squeeze",
    "targets_centernet_triplet": "triplet_hg52",
}


def windows(case: Any) -> list[tuple[list[int], list[int]]]:
    """Centre and sides, x y, of each image's crop, without scaling and mirror: the window of the case's draws [low,
    high, value] of x and y, or, where nothing was drawn, the square around the image's middle.
    """
    draws: list[list[int]] = case.info.get("draws") or []
    drawn, found = iter(draws), []
    for image in case.info["images"]:
        height, width = image["shape"][:2]
        if draws:
            found.append(([next(drawn)[2], next(drawn)[2]], case.info["config"]["input_size"][::-1]))
        else:
            found.append(([width // 2, height // 2], [max(height, width)] * 2))
    return found


def crops(case: Any) -> list[Crop]:
    """The crop of each image; see `windows`."""
    size, found = tuple(case.info["config"]["input_size"]), []
    for image, (center, sides) in zip(case.info["images"], windows(case), strict=True):
        extent = jnp.asarray(image["shape"][:2], jnp.int32)
        window = jnp.asarray(center, jnp.float32), jnp.asarray(sides, jnp.float32)
        found.append(window_crop(*window, jnp.asarray(False), extent, size))
    return found


def detector_of(case: Any) -> Any:
    config = case.info["config"]
    model = MODELS[kind_of(case.path.name) or ""]
    return kpjax.build(model, num_classes=config["categories"], overlap=float(config["gaussian_iou"]))


@each_case(*MODELS)
def test_targets(case: Any) -> None:
    """Cells, masks and the heatmaps' support exactly, heatmaps to 1e-6, offsets to 1e-5."""
    det = detector_of(case)
    size = tuple(case.info["config"]["input_size"])
    slots = case["mask"].shape[1]
    encode = jax.jit(lambda objects: det.encode(objects, Placed(size)))
    seen = 0
    for i, (crop, (_, sides)) in enumerate(zip(crops(case), windows(case), strict=True)):
        rows = case[f"input/boxes_{i}__f64"][:slots]
        boxes, labels = np.zeros((slots, 4), np.float32), np.zeros(slots, np.int32)
        geometry = crop.geometry
        # In float64, as the sampler's own: this test is of `encode`, not of what float32 loses before it.
        start, ratio = np.asarray(geometry.source, np.float64), np.array(size[::-1]) / np.array(sides)
        boxes[: len(rows)] = (rows[:, :4] - np.tile(start, 2)) * np.tile(ratio, 2)
        labels[: len(rows)] = rows[:, 4] - 1
        if len(rows):
            on_device = geometry.move(objects_of(jnp.asarray(rows[:, :4], jnp.float32), rows[:, 4].astype(np.int32)))
            np.testing.assert_allclose(on_device.boxes, boxes[: len(rows)], atol=1e-4)
        targets = encode(objects_of(boxes, labels, np.arange(slots) < len(rows)))
        np.testing.assert_array_equal(targets["mask"], case["mask"][i] > 0)
        for theirs, ours in KEYPOINTS.items():
            if f"{theirs}_tags" not in case.arrays:
                continue
            seen += 1
            np.testing.assert_array_equal(targets[f"{ours}_mask"], targets["mask"])
            np.testing.assert_array_equal(targets[f"{ours}_index"], case[f"{theirs}_tags"][i])
            np.testing.assert_allclose(targets[f"{ours}_off"], case[f"{theirs}_regr"][i], atol=1e-5)
            index = case[f"{theirs}_heat/index"]
            own = index[:, 0] == i
            heat = np.zeros(targets[f"{ours}_heat"].shape, np.float32)
            heat[tuple(index[own][:, [2, 3, 1]].T)] = case[f"{theirs}_heat/value"][own]
            np.testing.assert_allclose(targets[f"{ours}_heat"], heat, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(targets[f"{ours}_heat"]) > 0, heat > 0)
            np.testing.assert_array_equal(np.asarray(targets[f"{ours}_heat"]) == 1, heat == 1)
    assert seen


@each_case(*MODELS)
def test_inputs(case: Any) -> None:
    """The sampler's crop and resize on the device: within OpenCV's rounding to whole grey levels."""
    det = detector_of(case)

    @jax.jit
    def sample(image: Any, crop: Crop) -> Any:
        border = jnp.asarray(det.preprocess.border_rgb(), jnp.float32)
        return det.preprocess.normalise(resample(image, crop.extent, crop.ys, crop.xs, border))

    found = []
    for spec, crop in zip(case.info["images"], crops(case), strict=True):
        bgr = fill(spec["tag"], spec["shape"], 0, 256).astype(np.uint8)
        found.append(np.moveaxis(np.asarray(sample(bgr[..., ::-1].copy(), crop)), -1, 0))
    images = np.stack(found)
    np.testing.assert_allclose(images[:, :, ::37, ::41], case["image_sub"], atol=2e-2)
    statistics = np.array([images.mean(dtype=np.float64), images.std(dtype=np.float64), np.abs(images).max()])
    np.testing.assert_allclose(statistics, case["image_stats"], atol=2e-2)


@each_case("fn_mmdet_targets")
def test_corner_head(case: Any) -> None:
    """Heatmaps, offsets where a corner is, and the rows of the embeddings: image, tl y, tl x, br y, br x."""
    details = case.info["details"]
    det = kpjax.build("cornernet_hg104_mmdet", num_classes=details["classes"])
    names = [n.split("/")[0] for n in case.arrays if n.endswith("/topleft_heatmap")]
    assert names
    for name in names:
        expected = case[f"{name}/topleft_heatmap"]
        width = expected.shape[3]
        targets = {
            k: np.asarray(v)
            for k, v in mmdet_targets(det, image_boxes(case, name, len(expected)), tuple(details["image"])).items()
        }
        for ours, theirs in (("tl", "topleft"), ("br", "bottomright")):
            heat = np.moveaxis(targets[f"{ours}_heat"], -1, 1)
            np.testing.assert_allclose(heat, case[f"{name}/{theirs}_heatmap"], atol=1e-5, err_msg=name)
            np.testing.assert_array_equal(heat == 1, case[f"{name}/{theirs}_heatmap"] == 1, err_msg=name)
            dense = np.zeros((len(expected), 2, *expected.shape[2:]), np.float32)
            cells = set()
            for image, slot in np.argwhere(targets[f"{ours}_mask"]):
                y, x = divmod(int(targets[f"{ours}_index"][image, slot]), width)
                dense[image, :, y, x] = targets[f"{ours}_off"][image, slot]
                cells.add((image, y, x))
            assert len(cells) == targets[f"{ours}_mask"].sum()  # one corner a cell: none is counted twice
            np.testing.assert_allclose(dense, case[f"{name}/{theirs}_offset"], atol=1e-5, err_msg=name)
        rows = [
            (image, *divmod(int(targets["tl_index"][image, slot]), width))
            + divmod(int(targets["br_index"][image, slot]), width)
            for image, slot in np.argwhere(targets["mask"])
        ]
        np.testing.assert_array_equal(np.array(rows).reshape(-1, 5), case[f"{name}/corner_embedding"], err_msg=name)
