"""CornerNet-Saccade's crop against its sequence of operations in NumPy and OpenCV: resize, cut out, mirror."""

from __future__ import annotations

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from kpjax.images.geometry import draw_object_window
from kpjax.images.resample import resample
from kpjax.objects import Objects
from tests.records import objects_of

OUTPUT = (63, 63)
UNIT = 63 / 255
CANVAS = 160


@jax.jit
def drawn(keys: Any, canvas: Any, size: Any, objects: Objects, flips: Any) -> Any:
    """Of many keys: the crop, what it shows, and the objects moved."""

    def one(key: Any, flip: Any) -> Any:
        crop = draw_object_window(key, size[::-1].astype(jnp.float32), objects, (0.5, 1.1), flip, OUTPUT)
        image = resample(canvas, crop.extent, crop.ys, crop.xs, jnp.zeros(3))
        return crop, image, crop.geometry.move(objects).boxes

    return jax.vmap(one)(keys, flips)


def cut_out(image: np.ndarray, scale: float, start: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The original's `crop_image` of the resized image, and the border of what it fills: y0, y1, x0, x1."""
    height, width = (int(side * scale + 1e-3) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    half = OUTPUT[0] // 2
    cx, cy = (int(v) + half for v in start)
    x0, x1 = max(0, cx - half), min(cx + half, width)
    y0, y1 = max(0, cy - half), min(cy + half, height)
    border = [half - (cy - y0), half + (y1 - cy), half - (cx - x0), half + (x1 - cx)]
    found = np.zeros((*OUTPUT, 3), np.uint8)
    found[border[0] : border[1], border[2] : border[3]] = resized[y0:y1, x0:x1]
    return found, border


def test_crops_are_the_originals() -> None:
    """For objects large, medium and small; windows inside, across and around the image, mirrored or not."""
    rng = np.random.default_rng(0)
    kinds = {"large": (28.0, 60.0), "medium": (10.0, 20.0), "small": (4.0, 7.0), "none": (0.0, 0.0)}
    ranges = {"large": (24, 62), "medium": (8, 23), "small": (4, 7)}
    nearer = []
    for kind, (least, most) in kinds.items():
        height, width = (97, 141) if kind != "medium" else (41, 53)
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (5, 5), 0)
        canvas = np.full((CANVAS, CANVAS, 3), 255, np.uint8)  # what lies outside the image must not be seen
        canvas[:height, :width] = image
        sides = rng.uniform(least, most, (3, 2))
        corner = rng.uniform(0, 1, (3, 2)) * np.maximum([width - 1, height - 1] - sides, 0)
        boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
        objects = objects_of(boxes, np.zeros(3, np.int32), np.full(3, kind != "none"))
        flips = np.arange(12) % 2 == 1
        crops, images, moved = jax.device_get(
            drawn(jax.random.split(jax.random.key(1), 12), canvas, jnp.asarray([height, width]), objects, flips)
        )
        for n, flip in enumerate(flips):
            scale = float(crops.geometry.scale[n][1])
            start = -crops.geometry.target[n]
            if flip:
                start = np.array([crops.geometry.target[n][0] - (OUTPUT[1] - 1), start[1]])
            np.testing.assert_array_equal(start, np.round(start))
            expected, (y0, y1, x0, x1) = cut_out(image, scale, start)
            end = [
                min(last, (side - 1) * scale - at + 1)
                for last, side, at in ((y1, height, start[1]), (x1, width, start[0]))
            ]
            window = [y0, x0, *end] if not flip else [y0, OUTPUT[1] - end[1], end[0], OUTPUT[1] - x0]
            np.testing.assert_allclose(crops.window[n], window, atol=1e-3)
            expected = expected[:, ::-1] if flip else expected
            assert np.abs(images[n] - expected).max() <= 1.01, (kind, n)
            ours = boxes * scale - np.tile(start, 2)
            if flip:
                ours[:, [0, 2]] = OUTPUT[1] - ours[:, [2, 0]] - 1
            np.testing.assert_allclose(moved[n], ours, atol=1e-3)
            if kind == "none":
                assert min(abs(scale - 0.5), abs(scale - 1.1)) < 1e-6
                continue
            longer = sides.max(1) * scale
            of_kind = (np.abs(longer - np.round(longer)) < 1e-3) & (longer > ranges[kind][0] - 0.1)
            of_kind &= longer < ranges[kind][1] + 0.1
            inside = (ours[:, :2] >= -1).all(1) & (ours[:, 2:] <= OUTPUT[0] + 1).all(1)
            middle = np.abs((ours[:, :2] + ours[:, 2:]) / 2 - OUTPUT[0] // 2).max(1) <= 15 * UNIT + 2
            assert (of_kind & (inside | middle)).any(), (kind, n)
            nearer.append(bool((of_kind & middle).any()))
    assert 0.3 < np.mean(nearer) < 0.95
