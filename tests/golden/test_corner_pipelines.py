"""From an image file to boxes, through `Predictor`: whole pipelines of CornerNet, the triplets and mmdetection.

The networks are full size, so `make test` compares their inputs alone and `make golden-full` runs them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
from kpjax.images.preprocess import Preprocess
from kpjax.images.views import keep_view, place
from kpjax.inference.inputs import read_image
from kpjax.inference.program import normalise

from .cases import GOLDEN, KINDS, TESTED, case_names, kind_of, load_case
from .test_corner_decode import options_of
from .test_pipelines import assert_matched, picture

ORIGINALS = {"pipeline_cornernet": "cornernet_hg104", "pipeline_centernet_triplet52": "triplet_hg52"}
MMDET = ("pipe_mmdet_cornernet_hg104", "pipe_synth_mmdet_cornernet_hg104")
STABLE = (1e-3, 0.1)  # score, box in pixels: of rows that the case calls stable
BEFORE_NMS, AFTER_NMS = (5e-5, 2e-3), (1e-3, 2e-3)
MMDET_SCORE = 0.05  # test_cfg.score_thr
NEIGHBOURS = 1e-5  # two rows whose scores differ by less "may swap places" (CASES_centernet.md, pipeline conditioning)


def inputs_of(name: str) -> dict[str, Any]:
    info = json.loads((GOLDEN / name / "case.json").read_text())
    return info["images"] if "images" in info else info["details"]["images"]


def each(*kinds: str, full: bool, runs: bool = False) -> Any:
    """Parametrise over (case, image), or (case, run), of every case of these kinds."""

    def found() -> Iterator[Any]:
        for name in case_names():
            if kind_of(name) in kinds and KINDS.get(kind_of(name) or "") == TESTED:
                details = json.loads((GOLDEN / name / "case.json").read_text()).get("details", {})
                for item in details["runs"] if runs else inputs_of(name):
                    yield pytest.param(name, item, id=f"{name}-{item.replace('/', '-')}")

    marks = [pytest.mark.golden_full] if full else []
    reason = f"no case of {' or '.join(kinds)} in {GOLDEN.name}"
    none = [pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="none")]
    mark = pytest.mark.parametrize(("name", "item"), list(found()) or none)
    return lambda test: functools.reduce(lambda t, m: m(t), [mark, *marks], test)


def check_inputs(case: Any, item: str, preprocess: Preprocess) -> None:
    """The network's input in every run of an image, at every scale, mirrored where the run's settings say so."""
    image = read_image(picture(case.info["images"][item]), item)[0]
    compared = 0
    for run in (r for r in case.info["runs"] if r.startswith(f"{item}/")):
        settings = {**case.info["config"], **case.info["runs"][run]["options"]}
        scales = settings["test_scales"]
        for i, scale in enumerate(scales):
            prefix = run if len(scales) == 1 else f"{run}/scale{i}"
            if f"{prefix}/input_sub" not in case.arrays:
                continue
            view = keep_view(preprocess, (image.shape[0], image.shape[1]), scale)
            canvas = place(np.ascontiguousarray(image), view, preprocess)[None]
            images = np.asarray(normalise(preprocess, canvas, np.array([view.window], np.int32)))
            if settings.get("test_flipped", True):
                images = np.concatenate([images, images[:, :, ::-1]])
            images = images.transpose(0, 3, 1, 2)
            sample = images.reshape(-1)[:: max(1, images.size // 256)][:256]
            statistics = [images.mean(dtype=np.float64), images.std(dtype=np.float64), np.abs(images).max()]
            rounding = 2e-6 if scale == 1 else 2e-2  # OpenCV's resize to whole grey levels
            np.testing.assert_allclose(sample, case[f"{prefix}/input_sub"], atol=rounding)
            np.testing.assert_allclose(statistics, case[f"{prefix}/input_stats"], atol=rounding)
            compared += 1
    assert compared


def model_of(name: str) -> str:
    return ORIGINALS.get(kind_of(name) or "", "cornernet_hg104_mmdet")


@each(*ORIGINALS, *MMDET, full=False)
def test_input(name: str, item: str) -> None:
    """The network's input, the lost last row of a canvas of odd sides and all."""
    case = load_case(name)
    source = picture(inputs_of(name)[item])
    image = source if isinstance(source, np.ndarray) else read_image(source, source)[0]
    preprocess = kpjax.build(model_of(name)).preprocess
    view = keep_view(preprocess, (image.shape[0], image.shape[1]))
    canvas = place(np.ascontiguousarray(image), view, preprocess)[None]
    images = np.asarray(normalise(preprocess, canvas, np.array([view.window], np.int32)))
    if kind_of(name) in ORIGINALS:
        images = np.concatenate([images, images[:, :, ::-1]]).transpose(0, 3, 1, 2)
        assert list(images.shape) == inputs_of(name)[item]["input_shape"]
        sample, prefix = images.reshape(-1)[:: max(1, images.size // 256)][:256], item
    else:
        images = images.transpose(0, 3, 1, 2)
        sample, prefix = images[:, :, ::37, ::41], f"{item}/plain"
    statistics = [images.mean(dtype=np.float64), images.std(dtype=np.float64), np.abs(images).max()]
    np.testing.assert_allclose(sample, case[f"{prefix}/input_sub"], atol=2e-6)
    np.testing.assert_allclose(statistics, case[f"{prefix}/input_stats"], atol=2e-6)


def classes_of(params: dict[str, np.ndarray]) -> int:
    return next(v.shape[0] for k, v in params.items() if re.search(r"tl_heats?\.\d+\.1(\.conv)?\.bias$", k))


@functools.lru_cache(maxsize=1)
def original(name: str) -> tuple[Any, Any, str]:
    """The detector, its variables and the preset of a case of the originals."""
    case = load_case(name)
    settings = case.info["config"]
    det = kpjax.build(
        model_of(name),
        num_classes=classes_of(case.params),
        **options_of(settings, model_of(name)),
    )
    scales = tuple(map(float, settings["test_scales"]))
    preset = "flip" if scales == (1.0,) else "ms"
    assert det.protocols[preset].scales == scales, "another protocol than the published ones"
    return det, kpjax.import_torch(det, case.params), preset


@each(*ORIGINALS, full=True)
def test_original(name: str, item: str) -> None:
    """Every stable row has a partner of its class; the others may be exchanged."""
    case = load_case(name)
    det, variables, preset = original(name)
    predictor = kpjax.Predictor(det, variables, preset, top_k=case.info["config"]["max_per_image"])
    found: Any = predictor(picture(inputs_of(name)[item]))
    rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None] + 1], axis=-1)
    expected, stable = case[f"{item}/detections"], case[f"{item}/stable"]
    assert abs(len(rows) - len(expected)) <= (~stable).sum()
    free = list(range(len(rows)))
    for row in expected[stable]:
        fits = [
            i
            for i in free
            if rows[i, 5] == row[5]
            and abs(rows[i, 4] - row[4]) <= STABLE[0]
            and np.abs(rows[i, :4] - row[:4]).max() <= STABLE[1]
        ]
        assert fits, f"no detection like {row}"
        # Stale copies share their box to the last digit: the nearest score is the partner, lest another's is taken.
        free.remove(min(fits, key=lambda i: abs(rows[i, 4] - row[4])))


@functools.lru_cache(maxsize=1)
def mmdetection(name: str, bias: float, nms: str) -> tuple[Any, Any]:
    case = load_case(name)
    params = dict(case.params)
    for side in ("tl", "br"):  # the case moves the last level's scores into the middle of the sigmoid, image by image
        key = f"bbox_head.{side}_heat.1.1.conv.bias"
        params[key] = params[key] + np.float32(bias)
    test = case.info["test_cfg"]
    det = kpjax.build(
        model_of(name),
        num_classes=classes_of(params),
        corners=test["corner_topk"],
        distance=float(test["distance_threshold"]),
        kernel=test["local_maximum_kernel"],
        nms=nms or test["nms"]["method"],
    )
    return det, kpjax.import_torch(det, params)


def swapped_back(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """`found` with the scores of two rows exchanged where soft-NMS took two neighbours in the other order.

    The first of them keeps its score and lowers the other's, so that each then has the other's.  One such pair at
    most, of one class, whose better score agrees to NEIGHBOURS; boxes and all else are left to the comparison.
    """
    distance = np.abs(found[None, :, :4] - expected[:, None, :4]).max(-1) + (found[None, :, 5] != expected[:, None, 5])
    partner = distance.argmin(1)
    off = np.flatnonzero(np.abs(found[partner, 4] - expected[:, 4]) > AFTER_NMS[0])
    pair = partner[off]
    if len(off) != 2 or abs(found[pair, 4].max() - expected[off, 4].max()) > NEIGHBOURS:
        return found
    found = found.copy()
    found[pair, 4] = found[pair[::-1], 4]
    return found


def one_of_level_peaks(det: Any, *, first: bool) -> Any:
    """The detector, with one alone of two neighbouring cells of a heatmap that are level, the first or the second.

    Seen: two diagonal neighbours 3e-6 apart in the reference and on one device, equal to the last bit on eight (the
    case adds -40 or so to its heatmaps, whose values then are multiples of 4e-6).  Both are peaks there, and the corner
    of rank 100 goes, with all its partners.
    """

    def single(heat: jax.Array) -> jax.Array:
        scores = jax.nn.sigmoid(heat)
        around = jnp.pad(scores, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h, w = heat.shape[1:3]
        views = [around[:, y : y + h, x : x + w] for y in range(3) for x in range(3)]
        best = jnp.stack(views[:4] if first else views[5:]).max(0)  # of the cells before this one, or after it
        level = (scores > MMDET_SCORE) & (jnp.abs(scores - best) < NEIGHBOURS)
        lower = jax.scipy.special.logit(jnp.minimum(scores, best) - NEIGHBOURS)
        return jnp.where(level, lower, heat)

    def decode(maps: dict[str, jax.Array], *args: Any, **options: Any) -> Any:
        return det.decode({k: single(x) if k.endswith("heat") else x for k, x in maps.items()}, *args, **options)

    return dataclasses.replace(det, decode=decode)


@each(*MMDET, full=True, runs=True)
def test_mmdetection(name: str, item: str) -> None:
    """Plain, before and after soft-NMS, and with the mirror image through the configuration's tta_pipeline."""
    case = load_case(name)
    image, preset, *before = item.split("/")
    info = inputs_of(name)[image]
    det, variables = mmdetection(name, info["heat_bias_add"], "none" if before else "")
    expected = case[item if before else f"{item}/detections"]
    top_k = len(expected) if before else case.info["test_cfg"]["max_per_img"]

    def compare(det: Any) -> None:
        predictor = kpjax.Predictor(det, variables, "flip" if preset == "flip" else "na", top_k=top_k)
        found: Any = predictor(picture(info))
        rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=-1)
        if before:
            assert_matched(rows, expected, BEFORE_NMS)
        else:
            assert_matched(swapped_back(rows, expected), expected, AFTER_NMS)

    failed = []
    for variant in (det, one_of_level_peaks(det, first=True), one_of_level_peaks(det, first=False)):
        try:
            return compare(variant)
        except AssertionError as error:
            failed.append(error)
    raise failed[0]
