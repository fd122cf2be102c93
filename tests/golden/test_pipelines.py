"""From an image file to boxes, through `Predictor`: whole pipelines of xingyizhou's and mmdetection's programs.

Rows are matched by class; scores and boxes have the tolerances of CASES_centernet.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kpjax
from kpjax.inference.inputs import read_image

from .cases import DATA, GOLDEN, KINDS, TESTED, case_names, fill, kind_of, load_case

# kind, without its `pipe_` or `pipe_synth_` -> (model, name of the head whose size is the number of classes)
MODELS = {
    "resdcn18_ctdet": ("centernet_r18_dcn", "hm.2.bias"),
    "dla34_ctdet": ("centernet_dla34", "hm.2.bias"),
    "mmdet_centernet_r18_dcnv2": ("centernet_r18_dcn_mmdet", "bbox_head.heatmap_head.2.bias"),
}
# score, box in pixels
TOLERANCES = {
    "resdcn18_ctdet": (5e-5, 2e-3),
    "dla34_ctdet": (2e-4, 0.02),
    "mmdet_centernet_r18_dcnv2": (5e-5, 2e-3),
}


def short_kind(name: str) -> str:
    return (kind_of(name) or "").removeprefix("pipe_").removeprefix("synth_")


def runs() -> Iterator[Any]:
    """(case, run) for every run of every case of these kinds; the long ones are marked golden_full."""
    found = False
    for name in case_names():
        if short_kind(name) not in MODELS or KINDS.get(kind_of(name) or "") != TESTED:
            continue
        details = json.loads((GOLDEN / name / "case.json").read_text())["details"]
        for run in details["runs"]:
            found = True
            image = details["images"][run.split("/")[0]]
            quick = "synthetic" in image and run.endswith("/plain")
            marks = [] if quick else [pytest.mark.golden_full]
            yield pytest.param(name, run, marks=marks, id=f"{name}-{run.replace('/', '-')}")
    if not found:
        reason = f"no pipe_ case in {GOLDEN.name}" if GOLDEN.is_dir() else "the golden folder is not there"
        yield pytest.param("", "", marks=pytest.mark.skip(reason=reason), id="none")


@functools.lru_cache(maxsize=1)
def network(name: str) -> tuple[Any, Any]:
    case = load_case(name)
    model, head = MODELS[short_kind(name)]
    options = {"head_channels": case.info["head_conv"]} if "head_conv" in case.info else {}
    det = kpjax.build(model, num_classes=case.params[head].shape[0], **options)
    return det, kpjax.import_torch(det, case.params)


def picture(info: dict[str, Any]) -> str | np.ndarray:
    """The image's path, or a synthetic one's pixels; checked to be the reference's."""
    if "synthetic" in info:
        tag, (height, width, _) = info["synthetic"]["tag"], info["decoded_bgr_shape"]
        coarse = fill(tag, (math.ceil(height / 16), math.ceil(width / 16), 3), 0, 230)
        image = coarse.repeat(16, 0).repeat(16, 1)[:height, :width] + fill(f"{tag}/noise", (height, width, 3), -20, 20)
        source: str | np.ndarray = np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]
        pixels = np.asarray(source)
    else:
        path = pathlib.Path(DATA) / info["file"]
        if not path.is_file():
            pytest.skip(f"{info['file']} is not there")
        source = str(path)
        pixels = read_image(source, source)[0]
    found = hashlib.sha256(np.ascontiguousarray(pixels[..., ::-1]).tobytes()).hexdigest()
    assert found == info["decoded_bgr_sha256"], "other pixels than the reference decoded"
    return source


def assert_matched(found: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]) -> None:
    """As sets: each row (x1, y1, x2, y2, score, class) has one of its class within the tolerances of its own."""
    assert found.shape == expected.shape
    free = list(range(len(found)))
    for row in expected:
        fits = [
            i
            for i in free
            if found[i, 5] == row[5]
            and abs(found[i, 4] - row[4]) <= tolerance[0]
            and np.abs(found[i, :4] - row[:4]).max() <= tolerance[1]
        ]
        assert fits, f"no detection like {row}"
        free.remove(min(fits, key=lambda i: np.abs(found[i, :4] - row[:4]).max()))


@pytest.mark.parametrize(("name", "run"), list(runs()))
def test_pipeline(name: str, run: str) -> None:
    case = load_case(name)
    settings = case.info["details"]["runs"][run]
    options = settings.get("options", {})
    view: dict[str, Any] = {}
    if options.get("fix_res"):
        view = {"resolution": "fixed", "size": tuple(settings["scales"][0]["input_shape"][2:])}
    expected = case[f"{run}/detections"]
    det, variables = network(name)
    flip = options.get("flip_test") or run.endswith("/flip")
    preset = "ms" if "test_scales" in options else "flip" if flip else "na"
    # mmdetection keeps 100 a view, and what NMS leaves of both views is less than that.
    top_k = 100 if "mmdet" in name else len(expected)
    predictor = kpjax.Predictor(det, variables, preset, top_k=top_k, **view)
    found: Any = predictor(picture(case.info["details"]["images"][run.split("/")[0]]))
    rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=-1)
    assert_matched(rows, expected, TOLERANCES[short_kind(name)])
