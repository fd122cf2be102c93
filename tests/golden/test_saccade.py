"""CornerNet-Saccade: its network, losses, the places it looks at, and the whole of its test program."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.detectors import saccade_looks as looks
from kpjax.detectors.saccade_targets import ATTENTION, attention_targets, cut_to_window
from kpjax.images.views import keep_view, place
from kpjax.inference.inputs import read_image
from kpjax.ops.peaks import keep_peaks

from .cases import each_case, fill, load_case, nhwc
from .test_corner_decode import power
from .test_corner_pipelines import each
from .test_hourglass_forward import CORNER_HEADS, forward, original_names
from .test_pipelines import picture

MODEL, PIPELINE = "cornernet_saccade", "pipe_cornernet_saccade"
BOX, SCORE = 2e-2, 1e-4
PLACE, SCALE = 1e-2, 1e-5


@pytest.mark.golden_full
@each_case("cornernet_saccade")
def test_forward(case: Any) -> None:
    det, outputs, between = forward(case, MODEL)
    heads = CORNER_HEADS | {f"att_logit_{j}": name for j, name in enumerate(ATTENTION)}
    for name in (n for n in case.arrays if n.startswith("out/")):
        found = np.moveaxis(np.asarray(outputs[-1][heads[name.removeprefix("out/")]]), -1, 1)
        worst = np.abs(found - case[name]).max() / np.abs(case[name]).max()
        assert worst <= 2e-5, f"{name}: {worst:.1e}"
    named = original_names(det, between)
    for module, spec in case.info["intermediates"]["modules"].items():
        theirs = re.sub(r"^hg\.(hgs\.)?", lambda match: "kps." if match[1] else "", module)
        found = np.moveaxis(np.asarray(named[re.sub(r"^(tl|br)_modules", r"\1_cnvs", theirs)]), -1, 1)
        assert list(found.shape) == spec["shape"], module
        largest = case[f"stats/{module}"][2]
        worst = np.abs(found.reshape(-1)[:: spec["step"]][:256] - case[f"sub/{module}"]).max() / largest
        statistics = np.array([found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()])
        assert worst <= 2e-5, f"{module}: {worst:.1e}"
        np.testing.assert_allclose(statistics, case[f"stats/{module}"], atol=2e-5 * largest, err_msg=module)


RANGES = {"heat": (-11, 5), "att": (-11, 5), "tag": (-1.5, 1.5), "off": (-2, 2.5)}


def ours(key: str) -> tuple[int, str]:
    """The stack and the head of a prediction of the case's, "s0_heat_tl"."""
    stack, kind, which = key.split("_")
    return int(stack[1:]), f"attention{which}" if kind == "att" else f"{which}_{kind}"


@each_case("loss_cornernet_lite_saccade")
def test_losses(case: Any) -> None:
    """Values to 2e-5, gradients to 1e-5 of each one's largest value."""
    dims = case.info["dims"]
    det = kpjax.build(MODEL, num_classes=dims["C"])
    for example in case.info["examples"]:
        mask = jnp.asarray(case[f"{example}/target/mask"] > 0)
        targets: dict[str, Any] = {"mask": mask}
        for corner in case.info["corners"]:
            targets |= {
                f"{corner}_heat": jnp.asarray(nhwc(case[f"{example}/target/heat_{corner}"])),
                f"{corner}_valid": jnp.asarray(nhwc(case[f"{example}/target/valid_{corner}"])),
                f"{corner}_index": jnp.asarray(case[f"{example}/target/ind_{corner}"], jnp.int32),
                f"{corner}_mask": mask,
                f"{corner}_off": jnp.asarray(case[f"{example}/target/regr_{corner}"]),
            }
        for j, name in enumerate(ATTENTION):
            targets[name] = jnp.asarray(nhwc(case[f"{example}/target/att_{j}"]))
        counts = det.normaliser(targets)
        maps = {}
        for name in (n for n in case.arrays if n.startswith(f"{example}/grad/")):
            key = name.rsplit("/", 1)[1]
            maps[key] = fill(
                f"{case.info['case']}/{example}/{key.replace('_', '/', 1)}",
                case[name].shape,
                *RANGES[key.split("_")[1]],
            )

        def total(found: Any, targets: Any = targets, counts: Any = counts) -> Any:
            outputs: list[dict[str, Any]] = [{} for _ in range(dims["stacks"])]
            for key, value in found.items():
                stack, head = ours(key)
                outputs[stack][head] = jnp.moveaxis(value, 1, -1)
            return det.loss(outputs, targets, counts)

        (value, _), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(maps)
        np.testing.assert_allclose(value, case[f"{example}/value/loss"].item(), rtol=2e-5, err_msg=example)
        for key, slope in slopes.items():
            expected = case[f"{example}/grad/{key}"]
            limit = max(1e-5 * np.abs(expected).max(), 1e-8)
            np.testing.assert_allclose(slope, expected, atol=limit, err_msg=f"{example} {key}")


def assert_same_places(found: np.ndarray, expected: np.ndarray) -> None:
    """As sets of rows y, x, scale, score."""
    assert found.shape == expected.shape, f"{len(found)} places instead of {len(expected)}"
    near = np.abs(found[:, None, :2] - expected[None, :, :2]).max(-1) <= PLACE
    near &= np.abs(found[:, None, 2] / expected[None, :, 2] - 1) <= SCALE
    near &= np.abs(found[:, None, 3] - expected[None, :, 3]) <= SCORE
    assert near.any(0).all() and near.any(1).all(), expected[~near.any(0)]


def rows_of(places: looks.Places) -> np.ndarray:
    """The valid places, y, x, scale, score."""
    rows = np.stack([places.ys, places.xs, places.scales, places.scores], axis=-1)
    return rows[np.asarray(places.valid)]


def places_of(rows: np.ndarray) -> looks.Places:
    with jax.enable_x64(True):
        ys, xs, scales = (jnp.asarray(rows[:, i], jnp.float64) for i in range(3))
    scores = jnp.asarray(rows[:, 3], jnp.float32)
    return looks.Places(ys, xs, scales, scores, jnp.ones(len(rows), bool))


def seen_from(scales: np.ndarray, corners: np.ndarray) -> looks.Looks:
    """Looks of these scales whose windows begin at `corners`, y x."""
    count = len(scales)
    return looks.Looks(
        jnp.asarray(corners, jnp.int32), jnp.asarray(scales), jnp.zeros(count, jnp.int32), jnp.ones(count, bool)
    )


def attended(case: Any, maps: list[Any], least: float, first: int = 0) -> looks.Places:
    """first: the first map that counts."""
    settings = case.info["config"]
    return looks.attended_places(
        maps[first:],
        seen_from(case["decode_atts/scales"], case["decode_atts/offsets"]),
        jnp.asarray(case.info["image_size"]),
        least=least,
        ratios=settings["att_ratios"][first:],
        factors=settings["att_scales"][0][first:],
        largest_scale=4.0,
    )


@each_case("saccade_functions")
def test_where_it_looks(case: Any) -> None:
    settings, name = case.info["config"], case.info["case"]
    maps = []
    for j, side in enumerate(settings["att_sizes"]):
        logits = power(f"{name}/att_{j}", (len(case["decode_atts/scales"]), 1, *side), 4, -4, 6)
        peaks = keep_peaks(nhwc(np.asarray(jax.nn.sigmoid(logits))))[..., 0]
        np.testing.assert_allclose(peaks, case[f"att_nms/{j}"][:, 0], atol=1e-6)
        maps.append(peaks)
    least = settings["att_thresholds"][0]
    assert_same_places(rows_of(attended(case, maps, least)), case["decode_atts/locations__f64"])
    closer = rows_of(attended(case, maps, 0.5, first=1))  # ignore_same: those that come closer
    assert_same_places(closer, case["decode_atts/locations_ignore_same__f64"])

    found = case["get_ref_locs/detections"]
    sure = looks.places_of_boxes(found[:, :4], found[:, 4], least=0.5, sizes=(96.0, 32.0), close=(192.0, 64.0, 24.0))
    assert_same_places(rows_of(sure), case["get_ref_locs/locations__f64"])

    given = case["location_nms/input__f64"]
    chosen, valid = jax.jit(lambda p: looks.distant_places(p, len(given), 16.0))(places_of(given))
    kept = given[np.asarray(chosen)[np.asarray(valid)]]
    assert (np.diff(kept[:, 3]) <= 0).all()
    assert_same_places(kept, case["location_nms/output__f64"])


@each_case("saccade_functions")
def test_what_it_sees(case: Any) -> None:
    height, width = case.info["image_size"]
    image = nhwc(fill(f"{case.info['case']}/image", (1, 3, height, width), 0, 1))[0]
    view = case.info["config"]["input_size"][0]
    window = jnp.asarray([0, 0, height, width])
    see = jax.jit(lambda center, side: looks.see(image, window, center, side, view))
    for number, crop in enumerate(case.info["crops"]):
        center, side = jnp.asarray([crop["center_y"], crop["center_x"]]), jnp.asarray(crop["crop"])
        found = np.asarray(see(center, side)).transpose(2, 0, 1)
        np.testing.assert_allclose(found[:, ::6, ::7], case[f"crop/{number}/sub"], atol=1e-4, err_msg=str(number))
        statistics = [found.mean(dtype=np.float64), found.std(dtype=np.float64), np.abs(found).max()]
        np.testing.assert_allclose(statistics, case[f"crop/{number}/stats__f64"], atol=1e-4)
        look = looks.Looks(center, jnp.float32(crop["scale"]), side, jnp.bool_(True))
        assert look.corners.tolist() == crop["offset"]
    cells = case["remap/input"][..., :4] * (view / case.info["config"]["output_sizes"][0][0])
    boxes = seen_from(case["decode_atts/scales"], case["decode_atts/offsets"]).to_image(jnp.asarray(cells))
    np.testing.assert_allclose(boxes, case["remap/output"][..., :4], atol=1e-3)


@each_case("saccade_functions")
def test_attention_targets(case: Any) -> None:
    boxes = case["att_target/boxes__f64"][:, :4].astype(np.float32)
    size = tuple(case.info["config"]["input_size"])
    found = attention_targets(jnp.asarray(boxes), jnp.ones(len(boxes), bool), size, 1.0)
    for j, name in enumerate(ATTENTION):
        np.testing.assert_array_equal(found[name][..., 0], case[f"att_target/{j}"])
    y1, y2, x1, x2 = case["clip_detections/border"]
    cut, kept = cut_to_window(jnp.asarray(boxes), jnp.asarray([y1, x1, y2, x2]))
    np.testing.assert_array_equal(np.flatnonzero(kept), case["clip_detections/keep"])
    np.testing.assert_allclose(np.asarray(cut)[np.asarray(kept)], case["clip_detections/output__f64"][:, :4], atol=1e-4)


def options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The detector's options for a case's configuration; what it has no option for has to be as released."""
    assert (settings["att_ratios"], settings["att_scales"]) == ([16, 8, 4], [[1, 2, 4]])
    assert (settings["att_nms_ks"], settings["init_sizes"], settings["ref_dets"]) == ([3, 3, 3], [192, 255], True)
    methods = {"nms": "hard", "linear_soft_nms": "linear", "exp_soft_nms": "gaussian"}
    return {
        "corners": settings["top_k"],
        "pairs": settings["num_dets"],
        "distance": float(settings["ae_threshold"]),
        "kernel": settings["nms_kernel"],
        "attention": float(settings["att_thresholds"][0]),
        "crops": settings["att_max_crops"],
        "crops_at_once": 10 if settings["att_max_crops"] % 10 == 0 else 1,
        "view": settings["input_size"][0],
        "nms": methods[settings["nms_algorithm"]],
    }


@functools.lru_cache(maxsize=1)
def variables_of(name: str) -> Any:
    case = load_case(name)
    return kpjax.import_torch(kpjax.build(MODEL, case.info["config"]["categories"]), case.params)


@each(PIPELINE, full=False)
def test_pipeline_input(name: str, item: str) -> None:
    """What the network sees in the first look, and of the places that the case gives in the second."""
    case = load_case(name)
    det = kpjax.build(MODEL, case.info["config"]["categories"])
    image = np.ascontiguousarray(read_image(picture(case.info["images"][item]), item)[0])
    height, width = image.shape[:2]
    view = keep_view(det.preprocess, (height, width))
    canvas = jnp.asarray(place(image, view, det.preprocess))
    config, window = det.net.config, jnp.asarray(view.window)  # type: ignore[attr-defined]
    for run in (r for r in case.info["runs"] if r.startswith(f"{item}/")):
        first = looks.first_looks(jnp.asarray([height, width]), (192.0, 255.0), config.view)
        given = case[f"{run}/crop_locations"]
        number, all_valid = np.arange(len(given), dtype=np.int32), np.ones(len(given), bool)
        second = looks.looks_at(places_of(given), jnp.asarray(number), jnp.asarray(all_valid), config.view)
        assert second.sides.tolist() == case.info["runs"][run]["crop_sides"]
        assert first.sides.tolist() == case.info["runs"][run]["first_round_crop_sides"]
        for stage, seen in enumerate((first, second)):
            np.testing.assert_array_equal(seen.corners, case[f"{run}/round{stage}/offsets"])
            crops = jax.lax.map(lambda at: looks.see(canvas, window, *at, config.view), (seen.centers, seen.sides))
            crops = np.asarray(crops)[..., ::-1].transpose(0, 3, 1, 2) / 255
            sample = crops.reshape(-1)[:: max(1, crops.size // 256)][:256]
            np.testing.assert_allclose(sample, case[f"{run}/round{stage}/crops_sub"], atol=2e-5)
            statistics = [crops.mean(dtype=np.float64), crops.std(dtype=np.float64), np.abs(crops).max()]
            np.testing.assert_allclose(statistics, case[f"{run}/round{stage}/crops_stats"], atol=2e-5)


@each(PIPELINE, full=True)
def test_pipeline(name: str, item: str) -> None:
    """Every run of an image: the places, and all rows, as sets."""
    case = load_case(name)
    runs = [run for run in case.info["runs"] if run.startswith(f"{item}/")]
    assert runs
    for run in runs:
        settings = {**case.info["config"], **case.info["runs"][run]["options"]}
        det = kpjax.build(MODEL, settings["categories"], **options_of(settings))
        predictor = kpjax.Predictor(det, variables_of(name), top_k=settings["max_per_image"])
        found: Any = predictor(picture(case.info["images"][item]))
        rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None] + 1], axis=-1)
        expected, stable = case[f"{run}/detections"], case[f"{run}/stable"]
        more, missing = unmatched(rows, expected, BOX, SCORE)
        assert len(rows) == len(expected), f"{run}: {len(rows)} rows instead of {len(expected)}"
        assert len(missing) <= (~stable).sum(), f"{run}: {more} instead of {missing}"


def unmatched(found: np.ndarray, expected: np.ndarray, box: float, score: float) -> tuple[Any, Any]:
    """The rows x1, y1, x2, y2, score, class of each that have no partner of their class in the other, as sets."""
    free, missing = list(range(len(found))), []
    for row in expected:
        near = np.abs(found[free, :4] - row[:4]).max(1) if free else np.zeros(0)
        fits = (near <= box) & (np.abs(found[free, 4] - row[4]) <= score) & (found[free, 5] == row[5])
        if fits.any():
            del free[int(np.where(fits, near, np.inf).argmin())]
        else:
            missing.append(row)
    return found[free], missing
