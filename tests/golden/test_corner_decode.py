"""Pairing of corners and the triplets' centres: the originals' decoding, and mmdetection's predict_by_feat."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.detectors import corner_decode
from kpjax.images.views import View, keep_view
from kpjax.inference.engine import rows_in_image
from kpjax.objects import Placed
from kpjax.ops import peaks

from .cases import each_case, fill, kind_of, nhwc
from .test_decode import assert_same_rows, rows_of

HEADS = {"tl": "tl", "br": "br", "ct": "center"}
CORNER_HEADS = ("tl_heat", "br_heat", "tl_tag", "br_tag", "tl_off", "br_off")
METHODS = {"nms": "hard", "linear_soft_nms": "linear", "exp_soft_nms": "gaussian"}


def power(tag: str, shape: Any, squarings: int, low: float, span: float) -> np.ndarray:
    """The cases' rule P: a uniform array, squared so many times, then moved and stretched."""
    u = fill(tag, shape, 0, 1)
    for _ in range(squarings):
        u = u * u
    return np.float32(low) + np.float32(span) * u


def heads_of(case: Any, variant: dict[str, Any], tag: str, stored: str, shape: list[int]) -> dict[str, np.ndarray]:
    """Head maps (NHWC) by our names, from the case's rule, the dense one where it names none.  shape: B, C, H, W."""
    batch, classes, height, width = shape
    dense = variant.get("kind", "dense") == "dense"
    maps = {}
    for name in case.info.get("heads", CORNER_HEADS):
        corner, kind = name.split("_")
        if kind == "heat":
            rule = (variant.get("squarings", 4), -4, 6) if dense else (9, -7, 3)
            value = power(f"{tag}/{name}", (batch, classes, height, width), *rule)
            if dense and variant["active"] is not None:
                value[:, [c for c in range(classes) if c not in variant["active"]]] -= np.float32(5)
        elif kind == "tag":
            reach = 0.6 if dense else 0.1
            value = fill(f"{tag}/{name}", (batch, 1, height, width), -reach, reach)
        else:
            value = fill(f"{tag}/{name}", (batch, 2, height, width), 0, 1)
        if f"{stored}/sparse_{name}/index" in case.arrays:
            value[tuple(case[f"{stored}/sparse_{name}/index"].T)] = case[f"{stored}/sparse_{name}/value"]
        maps[f"{HEADS[corner]}_{'off' if kind == 'regr' else kind}"] = nhwc(value)
    return maps


@each_case("decode_cornernet", "decode_cornernet_lite", "decode_centernet_triplet")
def test_pairs(case: Any) -> None:
    """Rows x1, y1, x2, y2 in cells, score, class, and the triplets' centres x, y, class, score."""
    model = "triplet_hg52" if "triplet" in case.path.name else "cornernet_hg104"
    for name, variant in case.info["variants"].items():
        arguments = variant["arguments"]
        _, classes, height, width = variant["shape"]
        det = kpjax.build(
            model,
            num_classes=classes,
            corners=arguments["K"],
            pairs=arguments["num_dets"],
            distance=float(arguments["ae_threshold"]),
            kernel=arguments["kernel"],
        )
        maps = heads_of(case, variant, variant["tag"], name, variant["shape"])
        rules = dataclasses.replace(det.net.config.rules, no_border=arguments.get("no_border", False))
        config = dataclasses.replace(det.net.config, rules=rules)
        size = (height, width)  # so that a pixel is a cell
        found = jax.jit(lambda m, c=config, s=size: corner_decode.candidates(m, Placed(s), config=c)[0])(maps)
        expected = case[f"{name}/detections"]
        for image in range(len(found.scores)):
            kept = np.asarray(found.scores[image]) > -1
            rows = np.concatenate(
                [found.boxes[image], found.scores[image][:, None], found.labels[image][:, None]], axis=1
            )[kept]
            assert (np.diff(rows[:, 4]) <= 0).all()
            corner = np.sort(np.asarray(found.corner_scores[image])[kept], axis=0)  # top-left's, bottom-right's
            theirs = np.sort(expected[expected[:, 8] == image][:, 5:7], axis=0)
            np.testing.assert_allclose(corner, theirs, atol=1e-5, err_msg=name)
            assert_same_rows(rows, expected[expected[:, 8] == image][:, [0, 1, 2, 3, 4, 7]], 1e-4, f"{name} {image}")
        if f"{name}/center" in case.arrays:
            points = jax.jit(
                lambda m, c=config: corner_decode.points_of(corner_decode.views_of(m), "center", c.corners, c.kernel)
            )(maps)
            rows = np.stack([points.xs, points.ys, points.scores, points.labels], -1)
            for ours, theirs in zip(rows, case[f"{name}/center"], strict=True):
                twice = [np.concatenate([r[:, :2], r[:, :2], r[:, 2:]], 1) for r in (ours, theirs[:, [0, 1, 3, 2]])]
                assert_same_rows(*twice, 1e-4, f"{name}/center")


def ties_at_the_boundary(maps: dict[str, np.ndarray], k: int) -> int:
    """How many of the maps (each kind and image) have a k-th peak that is exactly level with the next."""
    ties = 0
    for name in (n for n in maps if n.endswith("_heat")):
        scores = peaks.top_k(peaks.keep_peaks(jax.nn.sigmoid(maps[name])), k + 1)[0]
        ties += int((scores[:, k] == scores[:, k - 1]).sum())
    return ties


def merged(det: Any, maps: dict[str, Any]) -> dict[str, Any]:
    """The maps of an image and its mirror image as `decode` takes them; those of an image alone as they are."""
    return det.merge_flip(maps) if len(maps["tl_heat"]) == 2 else maps


def one_scale(det: Any, maps: dict[str, np.ndarray], view: View, count: int) -> np.ndarray:
    """Rows of one image from the maps of it and perhaps its mirror image, in its pixels."""
    decode = jax.jit(lambda m, w: det.decode(merged(det, m), Placed(view.canvas, w), count))
    found = rows_of(decode(maps, jnp.asarray([view.window])))[0]
    found[:, :4] = view.xy_to_image(found[:, :4])
    return found


def several_scales(det: Any, maps: list[Any], views: list[View], scales: list[float], count: int) -> np.ndarray:
    """The same through the protocol of the preset "ms", at the case's own scales."""
    protocol = det.protocols["ms"]
    assert protocol.mirror == "maps"
    rows = []
    for of_scale, view in zip(maps, views, strict=True):
        decode = jax.jit(lambda m, w, v=view: protocol.rows(merged(det, m), Placed(v.canvas, w), count))
        rows.append(rows_in_image(jax.device_get(decode(of_scale, jnp.asarray([view.window]))), 0, view))
    centers_of = {"plain": scales.index(1)} if "triplet" in det.name else {}
    merge = jax.jit(functools.partial(protocol.merge, top_k=count, **centers_of))
    return rows_of(jax.tree.map(lambda x: x[None], merge(tuple(rows))))[0]


def unmatched(found: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left of both sets of rows x1, y1, x2, y2, score, class once each has its partner within 0.01 pixel."""
    free, missing = list(range(len(found))), []
    for row in expected:
        fits = [
            i
            for i in free
            if found[i, 5] == row[5]
            and np.abs(found[i, :4] - row[:4]).max() <= 1e-2
            and abs(found[i, 4] - row[4]) <= 1e-4
        ]
        if fits:
            free.remove(fits[0])
        else:
            missing.append(row)
    return found[free], np.array(missing)


POSTPROCESS = {
    "postprocess_cornernet": "cornernet_hg104",
    "postprocess_cornernet_squeeze": "cornernet_squeeze",
    "postprocess_centernet_triplet": "triplet_hg52",
}


def options_of(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """A configuration of the originals as options of the model.  CornerNet-Lite alone passes num_dets on."""
    return {
        "corners": settings["top_k"],
        "distance": float(settings["ae_threshold"]),
        "kernel": settings["nms_kernel"],
        "nms": METHODS[settings["nms_algorithm"]],
        "merge_exponent": float(settings["weight_exp"]) if settings["merge_bbox"] else 0.0,
        **({"pairs": settings["num_dets"]} if model == "cornernet_squeeze" else {}),
    }


@each_case(*POSTPROCESS)
def test_flip_and_soft_nms(case: Any) -> None:
    """An image and its mirror image at one or more scales: rows x1, y1, x2, y2, score, class (from 1), as sets."""
    model = POSTPROCESS[kind_of(case.path.name) or ""]
    seen = 0
    for name, variant in case.info["variants"].items():
        settings = variant["config"]
        det = kpjax.build(model, num_classes=variant["classes"], **options_of(settings, model))
        height, width = variant["image_shape"][:2]
        views = [keep_view(det.preprocess, (height, width), scale) for scale in variant["scales"]]
        maps = [
            heads_of(
                case,
                variant,
                spec["tag"],
                f"{name}/scale{i}",
                [spec.get("B", 2), variant["classes"], spec["H"], spec["W"]],
            )
            for i, spec in enumerate(variant["heads"])
        ]
        if variant["scales"] == [1] and not settings["merge_bbox"]:
            found = one_scale(det, maps[0], views[0], settings["max_per_image"])
        else:
            found = several_scales(det, maps, views, variant["scales"], settings["max_per_image"])
        found = found[found[:, 4] > 0]
        found[:, 5] += 1
        more, missing = unmatched(found, case[f"{name}/detections"])
        # Of corners that are level at the top-K boundary PyTorch takes any: each such tie may exchange a pair.
        ties = sum(ties_at_the_boundary(of_scale, settings["top_k"]) for of_scale in maps)
        assert max(len(more), len(missing)) <= ties, f"{name}: {more} instead of {missing}, {ties} ties"
        seen += 1
    assert seen


@each_case("fn_mmdet_predict")
def test_corner_head(case: Any) -> None:
    """Rows image, x1, y1, x2, y2, score, label of the CornerHead before and after soft-NMS, without rescaling."""
    details = case.info["details"]
    tags = details["corner_tags"]
    names = [n for n in case.arrays if re.fullmatch(r"corner_[a-z]+_(raw|nms)", n)]
    assert names
    for name in names:
        maps = {}
        for i, side in enumerate(("tl", "br")):
            maps[f"{side}_heat"] = jnp.asarray(nhwc(case[f"in/co_{side}_{name.split('_')[1]}"]))
            for kind, ours in (("emb", "tag"), ("off", "off")):
                shape, low, high = tags[kind][2:]
                maps[f"{side}_{ours}"] = jnp.asarray(nhwc(fill(tags[kind][i], shape, low, high)))
        classes = maps["tl_heat"].shape[-1]
        det = kpjax.build("cornernet_hg104_mmdet", num_classes=classes, nms="none" if name.endswith("raw") else "")
        for image, meta in enumerate(details["corner_metas"]):
            size = tuple(meta["batch_input_shape"])
            top, bottom, left, right = meta.get("border", (0.0, size[0], 0.0, size[1]))
            windows = jnp.asarray([[top, left, bottom, right]])
            one = {key: value[image : image + 1] for key, value in maps.items()}
            count = 1000 if name.endswith("raw") else 100
            decode = jax.jit(lambda m, w, s=size, d=det, n=count: d.decode(m, Placed(s, w), n))
            found = decode(one, windows)
            view = View(size, size, size, 1.0, (left, top), (1.0, 1.0), (0, 0, *size))
            rows = rows_of(dataclasses.replace(found, boxes=view.xy_to_image(np.asarray(found.boxes))))[0]
            theirs = case[name][case[name][:, 0] == image][:, 1:]
            assert_same_rows(rows[rows[:, 4] > 0], theirs, 1e-4, f"{name} image {image}")
