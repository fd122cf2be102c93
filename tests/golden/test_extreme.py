"""ExtremeNet: network, targets, losses, decoding, ghosts and whole pipelines, as its authors' programs compute them.

The network is full size, so `make test` leaves it and the pipelines' detections to `make golden-full`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.detectors import extreme
from kpjax.detectors.extreme_targets import KEYPOINTS, Gaussians, targets_at
from kpjax.extreme_points import EXTREME_POINTS
from kpjax.images.geometry import shrink_border, square_crop
from kpjax.images.resample import resample
from kpjax.images.views import keep_view, place
from kpjax.inference.engine import rows_in_image
from kpjax.inference.inputs import read_image
from kpjax.inference.program import normalise
from kpjax.objects import VISIBLE, Detections, Placed
from kpjax.ops.extremes import aggregate_edges
from tests.records import objects_of

from .cases import each_case, fill, load_case, nhwc
from .test_corner_decode import METHODS, power
from .test_corner_pipelines import check_inputs, each
from .test_corner_targets import crops
from .test_hourglass_forward import forward, original_names
from .test_pipelines import picture

NAMES = dict(zip(("t", "l", "b", "r", "ct"), KEYPOINTS, strict=True))  # the originals' -> ours
PIPELINE = "pipe_extremenet"
COORDINATES, SCORE = 1e-2, 1e-4  # pixels, of rows matched within their class


def head(theirs: str) -> str:
    """`t_regr` -> `top_off`."""
    point, kind = theirs.split("_")
    return f"{NAMES[point]}_{'off' if kind == 'regr' else kind}"


@each_case("extremenet_hourglass104")
@pytest.mark.golden_full
def test_network(case: Any) -> None:
    det, outputs, between = forward(case, "extremenet_hg104")
    named = original_names(det, between)
    for name in (n for n in case.arrays if n.startswith("out/")):
        found = np.moveaxis(np.asarray(outputs[-1][head(name.removeprefix("out/"))]), -1, 1)
        assert np.abs(found - case[name]).max() <= 2e-5 * np.abs(case[name]).max(), name
    for module, spec in case.info["intermediates"]["modules"].items():
        found = np.moveaxis(np.asarray(named[module]), -1, 1)
        assert list(found.shape) == spec["shape"], module
        largest = case[f"stats/{module}"][2]
        np.testing.assert_allclose(
            found.reshape(-1)[:: spec["step"]][:256], case[f"sub/{module}"], atol=2e-5 * largest, err_msg=module
        )
        statistics = np.array([found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()])
        np.testing.assert_allclose(statistics, case[f"stats/{module}"], atol=2e-5 * largest, err_msg=module)


# --- targets and losses -------------------------------------------------------------------------------------


def detector_of(case: Any) -> Any:
    config = case.info["config"]
    return kpjax.build("extremenet_hg104", config["categories"], overlap=float(config["gaussian_iou"]))


@each_case("targets_extremenet")
def test_targets(case: Any) -> None:
    """Cells, masks and the heatmaps' support exactly, heatmaps to 1e-6, offsets to 1e-5."""
    det = detector_of(case)
    size, slots = tuple(case.info["config"]["input_size"]), case["mask"].shape[1]
    encode = jax.jit(lambda objects: det.encode(objects, Placed(size)))
    for i, crop in enumerate(crops(case)):
        rows, points = case[f"input/boxes_{i}__f64"], case[f"input/extreme_{i}__f64"]
        boxes, labels = np.zeros((slots, 4), np.float32), np.zeros(slots, np.int32)
        labels[: len(rows)] = rows[:, 4] - 1
        boxes[: len(rows)] = rows[:, :4]
        xy = np.zeros((slots, 4, 2), np.float32)
        xy[: len(rows)] = points
        objects = dataclasses.replace(
            objects_of(boxes, labels, np.arange(slots) < len(rows)),
            points=xy,
            seen=np.full((slots, 4), VISIBLE, np.int32),
        )
        targets = encode(crop.geometry.move(objects, EXTREME_POINTS))
        np.testing.assert_array_equal(targets["mask"], case["mask"][i] > 0)
        for theirs, ours in NAMES.items():
            index = case[f"{theirs}_heat/index"]
            own = index[:, 0] == i
            heat = np.zeros(targets[f"{ours}_heat"].shape, np.float32)
            heat[tuple(index[own][:, [2, 3, 1]].T)] = case[f"{theirs}_heat/value"][own]
            np.testing.assert_allclose(targets[f"{ours}_heat"], heat, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(targets[f"{ours}_heat"]) > 0, heat > 0)
            if f"{theirs}_regr" in case.arrays:
                np.testing.assert_array_equal(targets[f"{ours}_index"], case[f"{theirs}_tags"][i])
                np.testing.assert_allclose(targets[f"{ours}_off"], case[f"{theirs}_regr"][i], atol=1e-5)


@each_case("targets_extremenet")
def test_inputs(case: Any) -> None:
    det, found = detector_of(case), []
    for spec, crop in zip(case.info["images"], crops(case), strict=True):
        bgr = fill(spec["tag"], spec["shape"], 0, 256).astype(np.uint8)
        border = jnp.asarray(det.preprocess.border_rgb(), jnp.float32)
        image = resample(jnp.asarray(bgr[..., ::-1].copy()), crop.extent, crop.ys, crop.xs, border)
        found.append(np.moveaxis(np.asarray(det.preprocess.normalise(image)), -1, 0))
    images = np.stack(found)
    np.testing.assert_allclose(images[:, :, ::37, ::41], case["image_sub"], atol=2e-2)
    statistics = np.array([images.mean(dtype=np.float64), images.std(dtype=np.float64), np.abs(images).max()])
    np.testing.assert_allclose(statistics, case["image_stats"], atol=2e-2)


@each_case("fn_exdet_targets")
def test_targets_of_exdet(case: Any) -> None:
    """xingyizhou's later sampler: boxes are those of the points, all cut to the map's cells, and slots keep holes.

    No model of kpjax learns by it: what both share is `targets_at`, which gets its cells and sides from here.
    """
    details = case.info["details"]
    height, width = details["image"]["shape_hwc"][:2]
    given = np.array([a["extreme_points"] for a in details["annotations"]], np.float32)
    classes = coco_labels([a["category_id"] for a in details["annotations"]])
    names = sorted({n.split("/")[0] for n in case.arrays if n.endswith("/hm_t")})
    assert names
    for name in names:
        side = case[f"{name}/hm_t"].shape[-1]
        crop = exdet_crop(details, name, height, width, side)
        points = np.asarray(crop.move_points(jnp.asarray(given)))
        if crop.mirrored:
            points = points[:, np.array(EXTREME_POINTS.mirror)]
        points = np.clip(points, 0, side - 1).astype(np.float32)
        sides = np.ceil(np.stack([points[:, 3, 0] - points[:, 1, 0], points[:, 2, 1] - points[:, 0, 1]], -1))
        middle = np.stack([points[:, 1, 0] + points[:, 3, 0], points[:, 0, 1] + points[:, 2, 1]], -1) / 2
        cells = jnp.asarray(np.concatenate([points, middle[:, None]], 1))
        valid = jnp.asarray((sides > 0).all(-1))

        def encode(labels: Any, count: int, cells: Any = cells, sides: Any = sides, valid: Any = valid) -> Any:
            size = (cells.shape[0], valid, (side, side), count)  # noqa: B023
            return targets_at(cells, jnp.asarray(sides), jnp.asarray(labels), *size[1:], Gaussians())

        own, of_points = case[f"{name}/hm_c"].shape[0], case[f"{name}/hm_t"].shape[0]
        targets = encode(classes, own)
        extremes = targets if of_points == own else encode(np.zeros_like(classes), of_points)
        np.testing.assert_array_equal(targets["mask"], case[f"{name}/reg_mask"][: len(given)] > 0)
        np.testing.assert_allclose(np.moveaxis(targets["center_heat"], -1, 0), case[f"{name}/hm_c"], atol=1e-5)
        mask = np.asarray(targets["mask"])
        for theirs, ours in zip("tlbr", EXTREME_POINTS.names, strict=True):
            np.testing.assert_allclose(
                np.moveaxis(extremes[f"{ours}_heat"], -1, 0), case[f"{name}/hm_{theirs}"], atol=1e-5
            )
            np.testing.assert_array_equal(
                np.asarray(targets[f"{ours}_index"])[mask], case[f"{name}/ind_{theirs}"][: len(given)][mask]
            )
            np.testing.assert_allclose(
                np.asarray(targets[f"{ours}_off"])[mask], case[f"{name}/reg_{theirs}"][: len(given)][mask], atol=1e-4
            )


def coco_labels(ids: list[int]) -> np.ndarray:
    """COCO's category ids, which leave out eleven numbers, as classes from 0."""
    unused = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    return np.array([i - 1 - sum(u < i for u in unused) for i in ids], np.int32)


def exdet_crop(details: dict[str, Any], name: str, height: int, width: int, side: int) -> Any:
    """The sampler's geometry from image pixels to cells; that of training from its random numbers, in their order.

    The last one decides on the mirror by a probability that the case does not state; its name says what came of it.
    """
    center, square, flip = np.array([width / 2, height / 2]), float(max(height, width)), False
    if name.startswith("train"):
        rng = np.random.RandomState(int(re.search(r"seed (\d+)", details["note"]).group(1)))  # type: ignore[union-attr]
        square *= rng.choice(np.arange(0.6, 1.4, 0.1))
        border = [int(shrink_border(128, jnp.float32(n))) for n in (width, height)]
        center = np.array([rng.randint(low=b, high=n - b) for b, n in zip(border, (width, height), strict=True)], float)
        flip = "flip" in name
    extent = jnp.asarray([height, width], jnp.int32)
    crop = square_crop(
        jnp.asarray(center, jnp.float32), jnp.float32(square), jnp.asarray(flip), extent, (side, side), "longer"
    )
    return crop.geometry


def predictions(case: Any, example: str) -> dict[str, np.ndarray]:
    """The reference's inputs by name ("s0_heat_t"); offsets come one row an object."""
    shape = [case.info["dims"][key] for key in ("B", "C", "H", "W")]
    rows = [shape[0], case.info["dims"]["max_objects"], 2]
    found = {}
    for name in (n for n in case.arrays if n.startswith(f"{example}/grad/")):
        key = name.rsplit("/", 1)[1]
        stack, kind, point = key.split("_")
        size, low, high = (shape, -11, 5) if kind == "heat" else (rows, -2, 2.5)
        found[key] = fill(f"{case.info['case']}/{example}/{stack}/{kind}_{point}", size, low, high)
    return found


@each_case("loss_extremenet")
def test_losses(case: Any) -> None:
    """Values to 2e-5, gradients to 1e-5 of each one's largest value."""
    dims = case.info["dims"]
    det = kpjax.build("extremenet_hg104", num_classes=dims["C"])
    for example in case.info["examples"]:
        mask = jnp.asarray(case[f"{example}/target/mask"] > 0)
        targets: dict[str, Any] = {"mask": mask}
        for theirs, ours in NAMES.items():
            targets[f"{ours}_heat"] = jnp.asarray(nhwc(case[f"{example}/target/heat_{theirs}"]))
            targets[f"{ours}_index"] = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32), mask.shape)
            targets[f"{ours}_off"] = jnp.asarray(case[f"{example}/target/regr_{theirs}"])
        counts = det.normaliser(targets)

        def total(found: Any, targets: Any = targets, counts: Any = counts) -> Any:
            outputs: list[dict[str, Any]] = [{} for _ in range(dims["stacks"])]
            for key, value in found.items():
                stack, kind, point = key.split("_")
                maps = jnp.moveaxis(value, 1, -1) if kind == "heat" else value[:, None]  # object m in the cell m
                outputs[int(stack[1:])][head(f"{point}_{kind}")] = maps
            return det.loss(outputs, targets, counts)

        (value, parts), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(predictions(case, example))
        np.testing.assert_allclose(value, case[f"{example}/value/loss"].item(), rtol=2e-5, err_msg=example)
        if dims["stacks"] == 1:
            for part, begin in (("heatmap", "focal_"), ("offset", "regr_")):
                stored = [case[n].item() for n in case.arrays if n.startswith(f"{example}/value/{begin}")]
                np.testing.assert_allclose(parts[part], sum(stored), rtol=2e-5, err_msg=f"{example} {part}")
        for key, slope in slopes.items():
            expected = case[f"{example}/grad/{key}"]
            limit = max(1e-5 * np.abs(expected).max(), 1e-8)
            np.testing.assert_allclose(slope, expected, atol=limit, err_msg=f"{example} {key}")


# --- decoding and test time ---------------------------------------------------------------------------------


def heads_of(case: Any, variant: dict[str, Any], tag: str, stored: str, shape: list[int]) -> dict[str, np.ndarray]:
    """Head maps (NHWC) by our names, from the case's rule.  shape: B, C, H, W."""
    batch, classes, height, width = shape
    maps = {}
    for name in case.info["heads"]:
        if name.endswith("regr"):
            value = fill(f"{tag}/{name}", (batch, 2, height, width), 0, 1)
        else:
            rule = (variant["squarings"], -4, 6) if variant["kind"] == "dense" else (9, -7, 3)
            value = power(f"{tag}/{name}", (batch, classes, height, width), *rule)
            if variant["kind"] == "dense" and variant["active"] is not None:
                value[:, [c for c in range(classes) if c not in variant["active"]]] -= np.float32(5)
        if f"{stored}/sparse_{name}/index" in case.arrays:
            value[tuple(case[f"{stored}/sparse_{name}/index"].T)] = case[f"{stored}/sparse_{name}/value"]
        maps[head(name)] = nhwc(value)
    return maps


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The case's settings as options of the model; those of `_exct_decode`, or of a configuration of the original.

    A configuration's top_k is not passed on by the original, whose decoding always takes 40.
    """
    options = {
        "peaks": settings.get("K", 40),
        "groups": settings.get("num_dets", 1000),
        "kernel": settings.get("kernel", settings.get("nms_kernel")),
        "aggregation": float(settings["aggr_weight"]),
        "least_score": float(settings["scores_thresh"]),
        "least_center": float(settings["center_thresh"]),
    }
    if "nms_algorithm" in settings:
        options |= {"nms": METHODS[settings["nms_algorithm"]], "ghosts": settings["suppres_ghost"]}
    return options


def flat(found: Detections, image: int | None = None) -> np.ndarray:
    """Rows x1, y1, x2, y2, score, the four points, class, of those that score more than 0."""
    found = found if image is None else jax.tree.map(lambda x: np.asarray(x)[image], found)
    assert found.keypoints is not None
    points = np.asarray(found.keypoints)[..., :2].reshape(-1, 8)
    parts = (found.boxes, np.asarray(found.scores)[:, None], points, np.asarray(found.labels)[:, None])
    rows = np.concatenate(parts, axis=1)
    return rows[rows[:, 4] > 0]


def unmatched(found: np.ndarray, expected: np.ndarray, coordinates: float, score: float) -> tuple[Any, Any]:
    """What is left of both sets of rows once each row has its partner of the same class."""
    free, missing = list(range(len(found))), []
    for row in expected:
        away = np.abs(found[free] - row) if free else np.zeros((0, 14))
        fits = (
            (away[:, 13] == 0) & (away[:, 4] <= score) & (np.delete(away, [4, 13], 1).max(1, initial=0) <= coordinates)
        )
        if fits.any():
            free.pop(int(np.flatnonzero(fits)[away[fits, 4].argmin()]))
        else:
            missing.append(row)
    return found[free], np.array(missing)


def assert_same(found: np.ndarray, expected: np.ndarray, coordinates: float, score: float, what: str) -> None:
    assert len(found) == len(expected), f"{what}: {len(found)} rows instead of {len(expected)}"
    more, missing = unmatched(found, expected, coordinates, score)
    assert not len(missing), f"{what}: {more} instead of {missing}"


@each_case("decode_extremenet")
def test_groups(case: Any) -> None:
    for name, variant in case.info["variants"].items():
        shape = variant["shape"]
        config = kpjax.build("extremenet_hg104", shape[1], **options_of(variant["arguments"])).net.config
        maps = heads_of(case, variant, variant["tag"], name, shape)
        found = jax.jit(lambda m, c=config: extreme.groups_of(m, c))(maps)
        expected = case[f"{name}/detections"]
        for image in range(shape[0]):
            rows = flat(found, image)
            assert (np.diff(rows[:, 4]) <= 0).all()
            assert_same(rows, expected[expected[:, 14] == image][:, :14], 1e-4, 1e-5, f"{name} {image}")
        for stored in (n for n in case.arrays if n.startswith(f"{name}/aggregated_")):
            point, label = re.fullmatch(r".*/aggregated_(\w)_heat_class(\d+)", stored).groups()  # type: ignore[union-attr]
            scores = jax.nn.sigmoid(maps[f"{NAMES[point]}_heat"][..., int(label)])
            # Those of a variant without aggregation were recorded with the function's own default.
            sums = aggregate_edges(scores, 2 if point in "tb" else 1, config.aggregation or 0.1)
            np.testing.assert_allclose(sums, case[stored], atol=1e-5, err_msg=stored)


def detections(det: Any, maps: list[Any], views: list[Any], count: int) -> np.ndarray:
    """Rows of one image in its pixels, from the maps of it and its mirror image at each scale."""
    if len(views) == 1:
        decode = jax.jit(lambda m, w: det.decode(det.merge_flip(m), Placed(views[0].canvas, w), count))
        return flat(rows_in_image(jax.device_get(decode(maps[0], jnp.asarray([views[0].window]))), 0, views[0]))
    protocol, rows = det.protocols["ms"], []
    for of_scale, view in zip(maps, views, strict=True):
        decode = jax.jit(lambda m, w, v=view: protocol.rows(det.merge_flip(m), Placed(v.canvas, w), count))
        rows.append(rows_in_image(jax.device_get(decode(of_scale, jnp.asarray([view.window]))), 0, view))
    # The original's own program could look for ghosts among several scales; its multi-scale configuration does not.
    merge = functools.partial(extreme.select, top_k=count, config=det.net.config, ghosts=det.net.config.ghosts)
    return flat(jax.jit(lambda views: merge(jax.tree.map(lambda *x: jnp.concatenate(x), *views)))(tuple(rows)))


@each_case("postprocess_extremenet")
def test_flip_soft_nms_and_ghosts(case: Any) -> None:
    for name, variant in case.info["variants"].items():
        settings = variant["config"]
        det = kpjax.build("extremenet_hg104", variant["classes"], **options_of(settings))
        height, width = variant["image_shape"][:2]
        views = [keep_view(det.preprocess, (height, width), scale) for scale in variant["scales"]]
        maps = [
            heads_of(case, variant, spec["tag"], f"{name}/scale{i}", [2, variant["classes"], spec["H"], spec["W"]])
            for i, spec in enumerate(variant["heads"])
        ]
        found = detections(det, maps, views, settings["max_per_image"])
        assert_same(found, case[f"{name}/detections"][:, :14], COORDINATES, SCORE, name)


@each(PIPELINE, full=False)
def test_pipeline_input(name: str, item: str) -> None:
    check_inputs(load_case(name), item, kpjax.build("extremenet_hg104").preprocess)


@functools.lru_cache(maxsize=1)
def variables_of(name: str) -> Any:
    case = load_case(name)
    return kpjax.import_torch(kpjax.build("extremenet_hg104", case.info["config"]["categories"]), case.params)


@functools.lru_cache(maxsize=4)
def maps_of(name: str, item: str, scale: float) -> tuple[Any, Any]:
    """The heads of an image and its mirror image at a scale, and the view, for all runs that see them.

    Operation by operation: to compile the network for each canvas would take longer.
    """
    case = load_case(name)
    det = kpjax.build("extremenet_hg104", case.info["config"]["categories"])
    image = read_image(picture(case.info["images"][item]), item)[0]
    view = keep_view(det.preprocess, (image.shape[0], image.shape[1]), scale)
    canvas = place(np.ascontiguousarray(image), view, det.preprocess)[None]
    plain = normalise(det.preprocess, canvas, np.array([view.window], np.int32))
    images = jnp.concatenate([plain, plain[:, :, ::-1]])
    return jax.device_get(det.net.apply(variables_of(name), images, train=False)[-1]), view


@each(PIPELINE, full=True)
def test_pipeline(name: str, item: str) -> None:
    """Every run of an image, with ghosts and, where they were recorded, without."""
    case = load_case(name)
    runs = [run for run in case.info["runs"] if run.startswith(f"{item}/")]
    assert runs
    for run in runs:
        settings = {**case.info["config"], **case.info["runs"][run]["options"]}
        maps, views = zip(*(maps_of(name, item, float(s)) for s in settings["test_scales"]), strict=True)
        expected = {settings["suppres_ghost"]: case[f"{run}/detections"]}
        if f"{run}/detections_before_ghost_suppression" in case.arrays:
            expected[False] = case[f"{run}/detections_before_ghost_suppression"]
        for ghosts, rows in expected.items():
            options = options_of(settings) | {"ghosts": ghosts}
            det = kpjax.build("extremenet_hg104", settings["categories"], **options)
            found = detections(det, list(maps), list(views), settings["max_per_image"])
            found[:, 13] += 1
            assert len(found) == len(rows), f"{run}: {len(found)} rows instead of {len(rows)}"
            more, missing = unmatched(found, rows, COORDINATES, SCORE)
            assert len(missing) <= (~case[f"{run}/stable"]).sum(), f"{run}: {more} instead of {missing}"
