"""What the device does with a canvas before the network sees it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kpjax.detectors.corner_config import PAD_BGR, PAD_RGB
from kpjax.images.preprocess import COCO_BGR, Preprocess
from kpjax.images.views import keep_view, place
from kpjax.inference.program import mirror_within, normalise


@pytest.mark.parametrize("preprocess", [PAD_BGR, PAD_RGB], ids=["black", "mean"])
@pytest.mark.parametrize(("size", "lost"), [((127, 60), True), ((126, 60), False), ((90, 127), True), ((9, 8), False)])
def test_an_odd_canvas_loses_its_last_row_and_column(preprocess: Preprocess, size: tuple[int, int], lost: bool) -> None:
    """Only an image that fills an odd side of its canvas reaches them."""
    image = np.random.default_rng(0).integers(1, 256, (*size, 3), dtype=np.uint8)
    view = keep_view(preprocess, size)
    canvas, windows = place(image, view, preprocess)[None], np.array([view.window], np.int32)
    found = np.asarray(normalise(preprocess, canvas, windows))[0]
    wanted = np.asarray(preprocess.normalise(canvas))[0].copy()
    border = np.zeros(3) if preprocess.border == "mean" else np.asarray(preprocess.normalise(np.zeros(3, np.uint8)))
    top, left, bottom, right = view.window
    outside = np.ones(view.canvas, bool)
    outside[top:bottom, left:right] = False
    outside[126:], outside[:, 126:] = True, True
    wanted[outside] = border
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    reached = np.asarray(preprocess.normalise(image))
    assert lost == (not np.allclose(found[top:bottom, left:right], reached, atol=1e-6))


def test_the_mirror_image_loses_another_column() -> None:
    """mmdetection mirrors before it pads: what is lost is the mirrored image's last column, the image's first."""
    image = np.random.default_rng(0).integers(1, 256, (40, 127, 3), dtype=np.uint8)
    view = keep_view(PAD_RGB, (40, 127))
    windows = np.array([view.window], np.int32)
    turned = place(np.ascontiguousarray(image[:, ::-1]), view, PAD_RGB)[None]
    ours = mirror_within(place(image, view, PAD_RGB)[None], windows)
    np.testing.assert_array_equal(np.asarray(ours), turned)
    found = np.asarray(normalise(PAD_RGB, ours, windows))[0]
    assert not found[:, -1].any() and found[view.window[0] : view.window[2], 0].all()


def test_even_canvases_and_corner_placement_lose_nothing() -> None:
    image = np.random.default_rng(0).integers(1, 256, (31, 32, 3), dtype=np.uint8)
    for preprocess in (COCO_BGR, dataclasses.replace(PAD_BGR, centred=False, pad=31)):
        view = keep_view(preprocess, (31, 32))
        canvas = place(image, view, preprocess)[None]
        found = normalise(preprocess, canvas, np.array([view.window], np.int32))
        np.testing.assert_array_equal(np.asarray(found), np.asarray(preprocess.normalise(canvas)))
