"""Targets of mmdetection's CenterNetHead."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import kpjax
from kpjax.objects import Placed
from tests.records import objects_of

from .cases import each_case


def image_boxes(case: Any, name: str, images: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and labels of each image of a sub-case: `one_empty` has none in its last, `all_empty` none at all."""
    full = 0 if name.endswith("all_empty") else images - name.endswith("one_empty")
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return [(case[f"in/bboxes{i}"], case[f"in/labels{i}"]) if i < full else nothing for i in range(images)]


def mmdet_targets(det: Any, images: list[tuple[np.ndarray, np.ndarray]], size: tuple[int, int]) -> dict[str, Any]:
    """Our batched targets."""
    slots = max([len(boxes) for boxes, _ in images] + [1]) + 2  # two empty slots at least
    padded, classes = np.zeros((len(images), slots, 4), np.float32), np.zeros((len(images), slots), np.int32)
    for i, (boxes, labels) in enumerate(images):
        padded[i, : len(boxes)], classes[i, : len(boxes)] = boxes, labels
    valid = np.arange(slots) < np.array([[len(boxes)] for boxes, _ in images])
    encode = jax.jit(jax.vmap(lambda objects: det.encode(objects, Placed(size))))
    return encode(objects_of(padded, classes, valid))


@each_case("fn_mmdet_targets")
def test_centernet_head(case: Any) -> None:
    details = case.info["details"]
    det = kpjax.build("centernet_r18_mmdet", num_classes=details["classes"])
    names = [n.split("/")[0] for n in case.arrays if n.endswith("/center_heatmap_target")]
    assert names
    for name in names:
        expected = case[f"{name}/center_heatmap_target"]
        targets = mmdet_targets(det, image_boxes(case, name, len(expected)), tuple(details["image"]))
        heat = np.moveaxis(np.asarray(targets["heatmap"]), -1, 1)
        np.testing.assert_allclose(heat, expected, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(heat == 1, expected == 1, err_msg=name)
        peaks = max(float(det.normaliser(targets)["peaks"]), 1)
        assert peaks == case[f"{name}/avg_factor"].item(), name
        for ours, theirs in (("wh", "wh_target"), ("offset", "offset_target"), (None, "wh_offset_target_weight")):
            dense = dense_map(targets, ours, expected.shape[2:])
            np.testing.assert_allclose(dense, case[f"{name}/{theirs}"], atol=1e-5, err_msg=f"{name} {theirs}")


def dense_map(targets: dict[str, Any], key: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """Our slots written into the reference's (B, 2, h, w) map; key None: its weight, 1 at an object."""
    index, mask = np.asarray(targets["index"]), np.asarray(targets["mask"])
    dense = np.zeros((len(index), 2, *shape), np.float32)
    for image, slot in np.argwhere(mask):
        y, x = divmod(int(index[image, slot]), shape[1])
        assert not dense[image, :, y, x].any()  # one object a cell: none is counted twice
        dense[image, :, y, x] = 1 if key is None else np.asarray(targets[key])[image, slot]
    return dense
