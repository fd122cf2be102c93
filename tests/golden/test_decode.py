"""From maps to boxes: xingyizhou's ctdet_decode and post-processing, mmdetection's predict_by_feat."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.images.views import View, affine

from .cases import each_case, fill, nhwc


def assert_same_rows(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Equal as sets: rows x1, y1, x2, y2, score, class; neighbours of nearly equal score may swap places."""
    assert found.shape == expected.shape, name
    np.testing.assert_allclose(np.sort(found[:, 4]), np.sort(expected[:, 4]), atol=1e-5, err_msg=name)
    free = list(range(len(found)))
    for row in expected:
        fits = [i for i in free if found[i, 5] == row[5] and np.abs(found[i, :5] - row[:5]).max() <= tolerance]
        assert fits, f"{name}: no detection like {row}"
        free.remove(fits[0])


def decode(det: Any, maps: dict[str, Any], count: int) -> Any:
    """Compiled, as it always is in use: a compiler may not turn a peak into none."""
    return jax.jit(functools.partial(det.decode, top_k=count))(maps)


def rows_of(detections: Any, scale: float = 1.0) -> np.ndarray:
    """(B, N, 6): x1, y1, x2, y2 times `scale`, score, class."""
    boxes, scores, labels = (np.asarray(a) for a in (detections.boxes, detections.scores, detections.labels))
    return np.concatenate([boxes * scale, scores[..., None], labels[..., None]], -1)


@each_case("fn_ctnet_decode")
def test_ctdet(case: Any) -> None:
    tags = {key: nhwc(fill(*spec)) for key, spec in case.info["details"]["tags"].items()}
    names = [n for n in case.arrays if re.fullmatch(r"ctdet_\w+_(reg|noreg|catspec)", n)]
    assert names
    for name in names:
        _, heat, form = name.split("_")
        scores = nhwc(case[f"in/heat_{heat}"])
        det = kpjax.build("centernet_r18", num_classes=scores.shape[-1], class_specific_wh=form == "catspec")
        maps = {"scores": jnp.asarray(scores), "wh": jnp.asarray(tags["cat_wh" if form == "catspec" else "wh"])}
        if form != "noreg":
            maps["offset"] = jnp.asarray(tags["reg"])
        found = rows_of(decode(det, maps, case[name].shape[1]), 1 / det.stride)
        for image, (ours, theirs) in enumerate(zip(found, case[name], strict=True)):
            assert_same_rows(ours, theirs, 1e-5, f"{name} image {image}")


@each_case("fn_ctnet_decode")
def test_ctdet_in_image_pixels(case: Any) -> None:
    """The reference's post-processing: rows image, 1-based class, x1, y1, x2, y2, score."""
    tags = {key: nhwc(fill(*spec)) for key, spec in case.info["details"]["tags"].items()}
    names = [n for n in case.arrays if n.startswith("ctdet_post_")]
    assert names
    for name in names:
        scores = nhwc(case[f"in/heat_{name.removeprefix('ctdet_post_')}"])
        images, height, width, classes = scores.shape
        det = kpjax.build("centernet_r18", num_classes=classes)
        maps = {"scores": jnp.asarray(scores), "wh": jnp.asarray(tags["wh"]), "offset": jnp.asarray(tags["reg"])}
        detections = decode(det, maps, len(case[name]) // images)
        canvas = (height * det.stride, width * det.stride)
        for image in range(images):
            center, scale = case["in/post_c"][image], case["in/post_s"][image]
            matrix = affine((float(center[0]), float(center[1])), float(scale[0]), canvas)
            shift = (float(matrix[0, 2]), float(matrix[1, 2]))
            view = View(canvas, canvas, canvas, float(matrix[0, 0]), shift, (1.0, 1.0), (0, 0, *canvas))
            found = rows_of(detections)[image]
            found[:, :4] = view.xy_to_image(found[:, :4])
            theirs = case[name][case[name][:, 0] == image]
            expected = np.concatenate([theirs[:, 2:7], theirs[:, 1:2] - 1], 1)
            assert_same_rows(found, expected, 1e-3, f"{name} image {image}")


@each_case("fn_ctnet_merge")
def test_ctdet_flip(case: Any) -> None:
    """Heatmap and wh are averaged with the mirrored image's, the offset is the plain one's."""
    tags = case.info["details"]["flip"]
    maps = {key: jnp.asarray(nhwc(fill(spec["tag"], spec["shape"], *spec["range"]))) for key, spec in tags.items()}
    det = kpjax.build("centernet_r18", num_classes=maps["hm"].shape[-1])
    merged = jax.jit(det.merge_flip)({"heatmap": maps["hm"], "wh": maps["wh"], "offset": maps["reg"]})
    found = rows_of(decode(det, merged, case["flip/ctdet"].shape[1]), 1 / det.stride)
    assert len(found) == len(case["flip/ctdet"])
    for ours, theirs in zip(found, case["flip/ctdet"], strict=True):
        assert_same_rows(ours, theirs, 1e-5, "flip/ctdet")


@each_case("fn_mmdet_predict")
def test_centernet_head(case: Any) -> None:
    """Rows image, x1, y1, x2, y2, score, label; the border is subtracted and, to rescale, the scale divided out."""
    details = case.info["details"]
    maps = {key: jnp.asarray(nhwc(fill(*details["tags"][key]))) for key in ("wh", "offset")}
    names = [n for n in case.arrays if re.fullmatch(r"centernet_\w+_rescale[01]", n)]
    assert names
    for name in names:
        heat = jnp.asarray(nhwc(case[f"in/cn_heat_{name.split('_')[1]}"]))
        det = kpjax.build("centernet_r18_mmdet", num_classes=heat.shape[-1])
        found = rows_of(decode(det, {"heatmap": heat, **maps}, len(case[name]) // len(heat)))
        for image, meta in enumerate(details["metas"]):
            top, _, left, _ = meta.get("border", (0.0, 0.0, 0.0, 0.0))
            factor = meta.get("scale_factor", (1.0, 1.0)) if name.endswith("1") else (1.0, 1.0)
            canvas = tuple(meta["batch_input_shape"])
            view = View(canvas, canvas, canvas, 1.0, (left, top), (factor[0], factor[1]), (0, 0, *canvas))
            ours = found[image]
            ours[:, :4] = view.xy_to_image(ours[:, :4])
            theirs = case[name][case[name][:, 0] == image][:, 1:]
            assert_same_rows(ours, theirs, 1e-4, f"{name} image {image}")


@each_case("fn_mmdet_predict")
def test_centernet_head_with_nms(case: Any) -> None:
    pytest.skip("no released CenterNet configuration filters boxes by NMS")
