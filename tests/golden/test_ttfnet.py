"""TTFNet: networks, targets, losses with gradients, decoding and whole pipelines of the authors' own program."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.backbones.darknet import leaky
from kpjax.convert.rules import destination, flatten, leaf_shapes, unflatten
from kpjax.convert.tables import RULES
from kpjax.images.views import View, make_view, place
from kpjax.inference.inputs import read_image
from kpjax.nn.upsample import upsample_corners
from kpjax.objects import Placed
from kpjax.ops import losses, peaks
from kpjax.ops.heatmap import draw_profiles, gaussian_profile
from kpjax.training.optimizer import is_bias
from tests.records import objects_of

from .cases import GOLDEN, KINDS, TESTED, case_names, each_case, fill, kind_of, load_case, nhwc
from .test_forward import TOLERANCE, check_between, check_heads, forward, trunk
from .test_pipelines import picture

AREAS = {"log": "log", "sqrt": "sqrt", "norm": "none", None: "plain"}


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The reference's arguments of TTFHead as options of `kpjax.build`."""
    ours = {
        "alpha": ("alpha", float),
        "beta": ("beta", float),
        "hm_weight": ("heatmap_weight", float),
        "wh_weight": ("sides_weight", float),
        "planes": ("neck", tuple),
        "shortcut_cfg": ("shortcuts", tuple),
        "wh_agnostic": ("class_specific_sides", lambda agnostic: not agnostic),
        "wh_gaussian": ("region", lambda gaussian: "gaussian" if gaussian else "box"),
        "wh_area_process": ("area", AREAS.__getitem__),
    }
    return {ours[key][0]: ours[key][1](value) for key, value in settings.items()}


# The networks


@each_case("fwd_ttfnet_r18", "fwd_ttfnet_r34", "fwd_ttfnet_d53")
def test_network(case: Any) -> None:
    kind = kind_of(case.path.name)
    assert kind is not None
    outputs, between = forward(case, kind.removeprefix("fwd_"))
    check_heads(case, outputs, {"hm": "heatmap", "wh": "sides"}, TOLERANCE)
    backbone, head = case.info["config_model"]["backbone"], case.info["config_model"]["bbox_head"]
    if backbone["type"] == "DarknetV3":
        ours = {"backbone.stem": leaky(between["backbone/trunk/stem"])}
        for stage, blocks in enumerate(backbone["layers"], start=1):
            ours[f"backbone.layer{stage}"] = between[f"backbone/trunk/layer{stage}_{blocks}"]
    else:
        ours = trunk(between, backbone["depth"], "backbone.")
    check_between(case, ours | neck_and_heads(between, head["shortcut_cfg"], head["wh_head_conv_num"]))


def neck_and_heads(between: dict[str, Any], shortcuts: list[int], sides_convs: int) -> dict[str, Any]:
    """The reference's names -> our outputs."""
    ours: dict[str, Any] = {}
    for step, convs in enumerate(shortcuts, start=1):
        source, target = f"bbox_head.deconv_layers.{step - 1}", f"backbone/neck/conv{step}"
        ours[f"{source}.0.conv_offset_mask"] = between[f"{target}/offset"]
        ours[f"{source}.0"] = between[target]
        ours[source] = upsample_corners(jax.nn.relu(between[f"{target}_bn"]))
        side = between[f"backbone/neck/shortcut{step}_{convs - 1}"]
        ours[f"bbox_head.shortcut_layers.{step - 1}"] = side
        ours[f"stage.{step - 1}"] = ours[source] + side
    for i in range(2):
        ours[f"bbox_head.hm.{i}"] = jax.nn.relu(between[f"heads/heatmap/conv{i}"])
    for i in range(sides_convs):
        ours[f"bbox_head.wh.{i}"] = jax.nn.relu(between[f"heads/sides/conv{i}"])
    return ours | {"wh_raw": between["heads/sides"]}


@each_case("fwd_ttfnet_r18", "fwd_ttfnet_r34", "fwd_ttfnet_d53")
def test_which_biases_learn_faster(case: Any) -> None:
    """By the reference's own groups: twice the rate without decay for those that `optim.bias_lr` is about."""
    det = kpjax.build(str(kind_of(case.path.name)).removeprefix("fwd_"), num_classes=80)
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in leaf_shapes(det).items()}
    marked = flatten({"params": is_bias(unflatten(shapes)["params"])})
    learning = {k: v for k, v in case.info["optimizer_multipliers"].items() if v != "frozen"}
    assert learning
    for key, multipliers in learning.items():
        path = destination(RULES[det.import_rules], key)
        assert multipliers == ([2.0, 0.0] if marked[path] else [1.0, 1.0]), key


# Targets


def targets_of(case: Any, variant: dict[str, Any], classes: int) -> tuple[Any, dict[str, Any]]:
    """The detector of a variant, and its batched targets of the variant's images."""
    det = kpjax.build("ttfnet_r18", num_classes=classes, **options_of(variant["settings"]))
    images = [(case[f"in/{name}/boxes"], case[f"in/{name}/labels"] - 1) for name in variant["images"]]
    slots = max(len(boxes) for boxes, _ in images) + 2  # two empty slots at least
    boxes, labels = np.zeros((len(images), slots, 4), np.float32), np.zeros((len(images), slots), np.int32)
    for i, (of_image, numbers) in enumerate(images):
        boxes[i, : len(of_image)], labels[i, : len(of_image)] = of_image, numbers
    valid = np.arange(slots) < np.array([[len(of_image)] for of_image, _ in images])
    encode = jax.jit(jax.vmap(lambda objects: det.encode(objects, Placed(tuple(variant["pad_shape"][:2])))))
    return det, encode(objects_of(boxes, labels, valid))


@each_case("fn_ttfnet_targets")
def test_targets(case: Any) -> None:
    assert case.info["variants"]
    for variant in case.info["variants"]:
        name = variant["name"]
        heat, box, weight = (nhwc(case[f"{name}/{key}"]) for key in ("heatmap", "box_target", "reg_weight"))
        _, found = targets_of(case, variant, heat.shape[-1])
        np.testing.assert_allclose(found["heatmap"], heat, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found["heatmap"] == 1, heat == 1, err_msg=name)
        np.testing.assert_allclose(found["box"], box, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found["weight"] > 0, weight > 0, err_msg=name)
        np.testing.assert_allclose(found["weight"], weight, rtol=1e-5, err_msg=name)


@each_case("fn_ttfnet_targets")
def test_drawn_gaussians(case: Any) -> None:
    assert case.info["drawn"]
    for item in case.info["drawn"]:
        height, width = item["map"]
        center, radii = np.array([item["center"]]), np.array([[item["w_radius"], item["h_radius"]]])
        columns, rows = (gaussian_profile(center[:, i], radii[:, i], n) for i, n in ((0, width), (1, height)))
        drawn = item["k"] * draw_profiles(columns, rows, jnp.zeros(1, jnp.int32), 1)[..., 0]
        np.testing.assert_allclose(drawn, case[f"drawn/{item['name']}"], atol=1e-6, err_msg=item["name"])


# Losses


def array_of(case: Any, spec: Any) -> np.ndarray:
    """An array that the case holds under a name, or gives a tag for."""
    return case[spec] if isinstance(spec, str) else fill(spec["tag"], spec["shape"], *spec["range"])


@each_case("fn_ttfnet_losses")
def test_losses(case: Any) -> None:
    assert case.info["variants"]
    for variant in case.info["variants"]:
        name = variant["name"]
        maps = {
            "heatmap": jnp.asarray(nhwc(array_of(case, variant["logits"]))),
            "sides": jnp.asarray(nhwc(array_of(case, variant["wh"]))),
        }
        det, targets = targets_of(case, variant, maps["heatmap"].shape[-1])
        counts = det.normaliser(targets)
        assert float(counts["peaks"]) == case[f"{name}/num_pos"].item(), name
        np.testing.assert_allclose(counts["weight"] + 1e-4, case[f"{name}/avg_factor"].item(), rtol=1e-5, err_msg=name)

        def total(maps: dict[str, Any], det: Any = det, targets: Any = targets, counts: Any = counts) -> Any:
            return det.loss([maps], targets, counts)

        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(maps)
        weights = {"heatmap": "heatmap_weight", "sides": "sides_weight"}
        for key, theirs in (("heatmap", "hm"), ("sides", "wh")):
            expected = case[f"{name}/{theirs}_loss"].item()
            weighted = getattr(det.net.config, weights[key]) * parts[key]
            saturated = name.startswith("saturated") and key == "heatmap"
            np.testing.assert_allclose(weighted, expected, rtol=5e-5 if saturated else 1e-5, err_msg=f"{name} {key}")
            gradient = nhwc(case[f"{name}/grad_{'logits' if key == 'heatmap' else 'wh'}"])
            largest = np.abs(gradient).max()
            assert np.abs(slopes[key] - gradient).max() <= 1e-5 * largest, f"{name} {key}"
        np.testing.assert_allclose(
            value, case[f"{name}/hm_loss"].item() + case[f"{name}/wh_loss"].item(), rtol=5e-5, err_msg=name
        )


@each_case("fn_ttfnet_losses")
def test_giou_loss(case: Any) -> None:
    assert case.info["giou"]
    for item in case.info["giou"]:
        corner, size, target_corner, target_size, weight = (
            array_of(case, item[key]) for key in ("corner", "size", "target_corner", "target_size", "weight")
        )
        found = np.concatenate([corner, corner + size], -1)
        target = np.concatenate([target_corner, target_corner + target_size], -1)
        factor = item["avg_factor"]
        divisor = (weight > 0).sum() + 1e-6 if factor is None else factor
        value, slope = jax.jit(jax.value_and_grad(losses.giou_loss))(found, target, weight, divisor)
        name = f"giou_{item['name']}"
        np.testing.assert_allclose(value, case[f"{name}/loss"].item(), rtol=1e-5, err_msg=name)
        expected = case[f"{name}/grad_pred"]
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@each_case("fn_ttfnet_losses")
def test_focal_loss(case: Any) -> None:
    """Given as probabilities, which our loss takes as logits."""
    assert case.info["focal"]
    for item in case.info["focal"]:
        score, target = nhwc(array_of(case, item["pred"])), array_of(case, item["target"])
        if item["ones_every"]:
            target.reshape(-1)[:: item["ones_every"]] = 1
        target = nhwc(target)

        def loss(score: Any, target: Any = target) -> Any:
            return losses.focal_loss(jnp.log(score) - jnp.log1p(-score), target, jnp.float32((target == 1).sum()))

        value, slope = jax.jit(jax.value_and_grad(loss))(score)
        name = f"focal_{item['name']}"
        np.testing.assert_allclose(value, case[f"{name}/loss"].item(), rtol=1e-5, err_msg=name)
        expected = nhwc(case[f"{name}/grad_pred"])
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


# Decoding


@each_case("fn_ttfnet_decode")
def test_decode(case: Any) -> None:
    assert case.info["variants"]
    for variant in case.info["variants"]:
        name, cfg = variant["name"], variant["cfg"]
        heat, sides = case[f"in/{variant['logits']}"], array_of(case, variant["wh"])
        options = options_of(variant["settings"]) | {"score_threshold": float(cfg.get("score_thr", 0.01))}
        det = kpjax.build("ttfnet_r18", num_classes=heat.shape[1], **options)
        windows = np.array([[0, 0, *meta["pad_shape"][:2]] for meta in variant["metas"]], np.int32)
        size = (det.stride * heat.shape[2], det.stride * heat.shape[3])
        maps = {"heatmap": jnp.asarray(nhwc(heat)), "sides": jnp.asarray(nhwc(sides))}
        decode = functools.partial(det.decode, top_k=cfg.get("max_per_img", 100))
        found = jax.device_get(jax.jit(decode)(maps, Placed(size, windows)))
        for rescale in (0, 1):
            expected = case[f"{name}/rows_rescale{rescale}"]
            for image, meta in enumerate(variant["metas"]):
                shrink = tuple(meta["scale_factor"][:2]) if rescale else (1.0, 1.0)
                view = View(size, size, size, 1.0, (0.0, 0.0), shrink, (0, 0, *size))
                rows = jax.tree.map(lambda x, image=image: x[image], found)
                kept = rows.scores > 0
                boxes = view.xy_to_image(rows.boxes[kept])
                ours = np.column_stack([boxes, rows.scores[kept], rows.labels[kept]])
                theirs = expected[expected[:, 0] == image][:, 1:]
                assert len(ours) == case[f"{name}/count_rescale{rescale}"][image] == len(theirs)
                assert_same(ours, theirs, (1e-6, 1e-4), f"{name} image {image} rescale {rescale}")


@each_case("fn_ttfnet_decode")
def test_peaks(case: Any) -> None:
    """Cells and classes of the best peaks; `plateau` has ties, and is compared as a set."""
    for variant in case.info["variants"]:
        name, heat = variant["name"], nhwc(case[f"in/{variant['logits']}"])
        expected = case[f"{name}/topk_scores"]
        best = functools.partial(peaks.best_peaks, k=expected.shape[1], logits=True)
        scores, labels, ys, xs = (np.asarray(x) for x in jax.jit(best)(heat))
        for image, count in enumerate(case[f"{name}/topk_n_nonzero"]):
            np.testing.assert_allclose(scores[image, :count], expected[image, :count], atol=1e-6, err_msg=name)
            assert not scores[image, count:].any()
            ours = np.stack([labels, ys, xs], -1)[image, :count]
            theirs = np.stack([case[f"{name}/topk_{key}"][image] for key in ("classes", "ys", "xs")], -1)[:count]
            if name.startswith("plateau"):
                ours, theirs = (np.array(sorted(map(tuple, rows))) for rows in (ours, theirs))
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def assert_same(ours: np.ndarray, theirs: np.ndarray, tolerance: tuple[float, float], name: str) -> None:
    """Rows x1 y1 x2 y2 score class, equal as sets.  tolerance: of scores, and of boxes in pixels."""
    assert ours.shape == theirs.shape, name
    free = list(range(len(ours)))
    for row in theirs:
        difference = np.abs(ours[free] - row)
        fits = (difference[:, :4].max(-1) <= tolerance[1]) & (difference[:, 4] <= tolerance[0])
        fits &= difference[:, 5] == 0
        assert fits.any(), f"{name}: no detection like {row}"
        free.pop(int(np.argmax(fits)))


# From an image file to boxes

PIPELINES = ("pipe_ttfnet_r18", "pipe_synth_ttfnet_r18")


def runs() -> Iterator[Any]:
    """(case, run) for every run of every case; those that need an image file are marked golden_full."""
    found = False
    for name in case_names():
        if kind_of(name) not in PIPELINES or KINDS[str(kind_of(name))] != TESTED:
            continue
        details = json.loads((GOLDEN / name / "case.json").read_text())["details"]
        for run in details["runs"]:
            found = True
            marks = [] if "synthetic" in details["images"][run.split("/")[0]] else [pytest.mark.golden_full]
            yield pytest.param(name, run, marks=marks, id=f"{name}-{run.replace('/', '-')}")
    if not found:
        reason = f"no case of {PIPELINES[0]} in {GOLDEN.name}" if GOLDEN.is_dir() else "the golden folder is not there"
        yield pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="none")


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[Any, Any, Any]:
    case = load_case(name)
    det = kpjax.build("ttfnet_r18", num_classes=case.params["bbox_head.hm.2.bias"].shape[0])
    return case, det, kpjax.import_torch(det, case.params)


@pytest.mark.parametrize(("name", "run"), list(runs()))
def test_pipeline(name: str, run: str) -> None:
    case, det, variables = network(name)
    image = picture(case.info["details"]["images"][run.split("/")[0]])
    pixels, _ = read_image(image, run)
    view = make_view(det.preprocess, pixels.shape[:2], resolution="fixed")
    seen = np.asarray(det.preprocess.normalise(place(pixels, view, det.preprocess)))[None]
    assert list(np.moveaxis(seen, -1, 1).shape) == case.info["details"]["runs"][run]["input_shape"]
    np.testing.assert_allclose(np.moveaxis(seen, -1, 1)[:, :, ::37, ::41], case[f"{run}/input_sub"], atol=1e-5)
    found = kpjax.Predictor(det, variables)(image)
    expected = case[f"{run}/detections"].copy()
    expected[:, 2:4] += 1  # the reference's boxes end on their last pixel, and get it back when they are written
    ours = np.column_stack([found.boxes, found.scores, found.labels])
    assert_same(ours, expected, (2e-5, 2e-3), f"{name} {run}")
