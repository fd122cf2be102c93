"""CornerNet-Squeeze from an image file to boxes, in every run that was recorded of its authors' program.

The network is full size, so `make test` compares its inputs alone and `make golden-full` runs it.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.images.views import keep_view, place
from kpjax.inference.inputs import read_image
from kpjax.inference.program import normalise

from .cases import load_case
from .test_corner_decode import one_scale, options_of, several_scales, unmatched
from .test_corner_pipelines import check_inputs, each
from .test_pipelines import picture

PIPELINE, MODEL = "pipe_cornernet_squeeze", "cornernet_squeeze"


@each(PIPELINE, full=False)
def test_input(name: str, item: str) -> None:
    check_inputs(load_case(name), item, kpjax.build(MODEL).preprocess)


@functools.lru_cache(maxsize=1)
def variables_of(name: str) -> Any:
    case = load_case(name)
    return kpjax.import_torch(kpjax.build(MODEL, case.info["config"]["categories"]), case.params)


@functools.lru_cache(maxsize=4)
def maps_of(name: str, item: str, scale: float) -> tuple[Any, Any]:
    """The heads of an image and its mirror image at a scale, and the view, for all runs that see them.

    Operation by operation: to compile the network for each canvas would take longer.
    """
    case = load_case(name)
    det = kpjax.build(MODEL, case.info["config"]["categories"])
    image = read_image(picture(case.info["images"][item]), item)[0]
    view = keep_view(det.preprocess, (image.shape[0], image.shape[1]), scale)
    canvas = place(np.ascontiguousarray(image), view, det.preprocess)[None]
    plain = normalise(det.preprocess, canvas, np.array([view.window], np.int32))
    images = jnp.concatenate([plain, plain[:, :, ::-1]])
    return jax.device_get(det.net.apply(variables_of(name), images, train=False)[-1]), view


@each(PIPELINE, full=True)
def test_pipeline(name: str, item: str) -> None:
    """Every run of an image: alone, with its mirror image, at several scales, with boxes averaged."""
    case = load_case(name)
    runs = [run for run in case.info["runs"] if run.startswith(f"{item}/")]
    assert runs
    for run in runs:
        settings = {**case.info["config"], **case.info["runs"][run]["options"]}
        det = kpjax.build(MODEL, settings["categories"], **options_of(settings, MODEL))
        scales = [float(scale) for scale in settings["test_scales"]]
        maps, views = zip(*(maps_of(name, item, scale) for scale in scales), strict=True)
        if not settings["test_flipped"]:
            maps = tuple({head: x[:1] for head, x in of_scale.items()} for of_scale in maps)
        if scales == [1] and not settings["merge_bbox"]:
            found = one_scale(det, maps[0], views[0], settings["max_per_image"])
        else:
            found = several_scales(det, list(maps), list(views), scales, settings["max_per_image"])
        found = found[found[:, 4] > 0]
        found[:, 5] += 1
        expected, stable = case[f"{run}/detections"], case[f"{run}/stable"]
        assert len(found) == len(expected), run
        more, missing = unmatched(found, expected)
        assert len(missing) <= (~stable).sum(), f"{run}: {more} instead of {missing}"
