"""A detector that needs no training: it reads boxes that are written into single pixels.

A bright pixel at (x, y) is an object: red 255 for class 0, green 255 for class 1; its blue value b says that
the box is x - b, y - b, x + b, y + b (b < 128).  Every step of evaluation and prediction can be checked to
the pixel with it.  Images have to be lossless and must not be resized.

With points, an object also has those of POINTS: a top, two hands and a foot on the sides of its box.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kpjax.data.source import Annotations, Source, make_source
from kpjax.detectors.base import Detector
from kpjax.images.preprocess import Preprocess
from kpjax.objects import Detections, PointSet
from kpjax.ops.largest import largest

STRIDE = 4
PLAIN_RGB = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ("red", "green")
POINTS = PointSet(("top", "left_hand", "right_hand", "foot"), edges=((0, 3), (1, 2)))
PLACES = np.array([[0, -1], [-1, 0], [1, 0], [0, 1]])  # of the points, x y from the centre in halves of the box's side


class MarkerNet(nn.Module):
    """(B, H, W, 3) pixels / 255 -> logits of "heatmap" (2), "wh" in cells (2), "offset" in cells (2)."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        gain = self.param("gain", nn.initializers.ones, ())
        b, height, width, _ = images.shape
        h, w = height // STRIDE, width // STRIDE
        patches = images.reshape(b, h, STRIDE, w, STRIDE, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, STRIDE**2, 3)
        where = jnp.argmax(patches[..., :2].max(-1), axis=-1)
        blue = jnp.take_along_axis(patches[..., 2], where[..., None], axis=-1)
        half = jnp.round(blue * 255) / STRIDE
        offset = jnp.stack([where % STRIDE, where // STRIDE], axis=-1) / STRIDE
        heat = gain * (patches[..., :2].max(3) * 20 - 10)
        return [{"heatmap": heat, "wh": 2 * half * jnp.ones((1, 1, 1, 2)), "offset": offset}]


class MarkerPointNet(MarkerNet):
    """The same with a head "points" (2J): x y of each point from the object's centre, in cells."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        (maps,) = super().__call__(images, train)
        return [maps | {"points": (maps["wh"][..., None, :] / 2 * PLACES).reshape(*maps["wh"].shape[:3], -1)}]


def decode(heads: dict[str, jax.Array], placed: object = None, top_k: int = 100) -> Detections:
    heat = jax.nn.sigmoid(heads["heatmap"])
    b, h, w, k = heat.shape
    scores, flat = largest(heat.reshape(b, -1), min(top_k, h * w * k))
    cell = flat // k
    wh, offset = (
        jnp.take_along_axis(heads[name].reshape(b, h * w, 2), cell[..., None], axis=1) for name in ("wh", "offset")
    )
    center = jnp.stack([cell % w, cell // w], axis=-1) + offset
    boxes = jnp.concatenate([center - wh / 2, center + wh / 2], axis=-1) * STRIDE
    keypoints = None
    if "points" in heads:
        points = jnp.take_along_axis(heads["points"].reshape(b, h * w, -1), cell[..., None], axis=1)
        xy = (points.reshape(*points.shape[:2], -1, 2) + center[..., None, :]) * STRIDE
        keypoints = jnp.concatenate([xy, jnp.full((*xy.shape[:3], 1), 0.75)], axis=-1)
    scores = jnp.where(scores > 0.4, scores, 0.0)
    return Detections(boxes=boxes, scores=scores, labels=flat % k, keypoints=keypoints)


def merge_flip(heads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    n = heads["wh"].shape[0] // 2
    mean = {name: (heads[name][:n] + heads[name][n:, :, ::-1]) / 2 for name in ("heatmap", "wh")}
    merged = {**mean, "offset": heads["offset"][:n]}
    if "points" in heads:
        plain, other = (x.reshape(*x.shape[:3], -1, 2) for x in jnp.split(heads["points"], 2))
        other = other[:, :, ::-1, np.array(POINTS.mirror)] * jnp.array([-1, 1])
        merged["points"] = ((plain + other) / 2).reshape(heads["points"][:n].shape)
    return merged


def marker_detector(preprocess: Preprocess = PLAIN_RGB, *, points: bool = False) -> Detector:
    def never(*_: object) -> None:
        raise AssertionError("evaluation and prediction have no use for training functions")

    return Detector(
        name="marker_points" if points else "marker",
        net=MarkerPointNet() if points else MarkerNet(),
        num_classes=2,
        preprocess=preprocess,
        encode=never,  # type: ignore[arg-type]
        normaliser=never,  # type: ignore[arg-type]
        loss=never,  # type: ignore[arg-type]
        decode=decode,
        merge_flip=merge_flip,
        points=POINTS if points else None,
        metric="keypoints" if points else "boxes",
    )


def build_points(num_classes: int, options: dict[str, Any]) -> Detector:
    """An entry of `kpjax.detectors.MODELS`, under the name "marker_points"."""
    detector = marker_detector(points=True)
    points = options.get("points", POINTS)
    if isinstance(points, dict):  # of a checkpoint, read from JSON
        edges = tuple((a, b) for a, b in points["edges"])
        points = PointSet(tuple(points["names"]), tuple(points["mirror"]), edges, tuple(points["sigmas"]))
    options = options | {"points": dataclasses.asdict(points)}
    return dataclasses.replace(detector, num_classes=num_classes, points=points, options=options)


def variables() -> dict:
    return {"params": {"gain": np.ones((), np.float32)}}


Objects = list[tuple[int, int, int, int]]  # x, y, half side, class


def picture(height: int, width: int, objects: Objects) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, half, label in objects:
        image[y, x, label] = 255
        image[y, x, 2] = half
    return image


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def marker_source(
    items: list[tuple[int, int, Objects]], *, annotated: bool = True, points: PointSet | None = None
) -> Source:
    """A split held in memory: (height, width, objects) of each image; ids are 100, 110, ..., categories 3 and 8.

    points: POINTS, or the same four under other names; None: boxes alone.
    """
    files = [png(picture(*item)) for item in items]
    flat = [(i, *o) for i, (_, _, objects) in enumerate(items) for o in objects] if annotated else []
    columns = np.array(flat, np.int64).reshape(-1, 5)
    image, x, y, half, label = columns.T
    xy = columns[:, None, 1:3] + half[:, None, None] * PLACES
    keypoints = np.concatenate([xy, np.full((*xy.shape[:2], 1), 2)], axis=-1).astype(np.float64)
    return make_source(
        name="markers",
        classes=CLASSES,
        category_ids=(3, 8),
        image_ids=100 + 10 * np.arange(len(items)),
        heights=np.array([h for h, _, _ in items]),
        widths=np.array([w for _, w, _ in items]),
        files=[f"image{i}.png" for i in range(len(items))],
        annotations=Annotations(
            image=image,
            label=label.astype(np.int32),
            bbox=np.stack([x - half, y - half, 2 * half, 2 * half], axis=1).astype(np.float64),
            area=(4.0 * half * half),
            crowd=np.zeros(len(columns), bool),
            ids=np.arange(1, len(columns) + 1),
            keypoints=None if points is None else keypoints,
        ),
        read=lambda i: files[i],
        points=points,
    )
