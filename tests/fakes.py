"""A detector that needs no training: it reads boxes that are written into single pixels.

A bright pixel at (x, y) is an object: red 255 for class 0, green 255 for class 1; its blue value b says that
the box is x - b, y - b, x + b, y + b (b < 128).  Every step of evaluation and prediction can be checked to
the pixel with it.  Images have to be lossless and must not be resized.
"""

from __future__ import annotations

import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kpjax.data.source import Annotations, Source, make_source
from kpjax.detectors.base import Detector
from kpjax.images.preprocess import Preprocess
from kpjax.objects import Detections

STRIDE = 4
PLAIN_RGB = Preprocess(order="RGB", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ("red", "green")


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


def decode(heads: dict[str, jax.Array], placed: object = None, top_k: int = 100) -> Detections:
    heat = jax.nn.sigmoid(heads["heatmap"])
    b, h, w, k = heat.shape
    scores, flat = jax.lax.top_k(heat.reshape(b, -1), min(top_k, h * w * k))
    cell = flat // k
    wh, offset = (
        jnp.take_along_axis(heads[name].reshape(b, h * w, 2), cell[..., None], axis=1) for name in ("wh", "offset")
    )
    center = jnp.stack([cell % w, cell // w], axis=-1) + offset
    boxes = jnp.concatenate([center - wh / 2, center + wh / 2], axis=-1) * STRIDE
    return Detections(boxes=boxes, scores=jnp.where(scores > 0.4, scores, 0.0), labels=flat % k)


def merge_flip(heads: dict[str, jax.Array]) -> dict[str, jax.Array]:
    n = heads["wh"].shape[0] // 2
    mean = {name: (heads[name][:n] + heads[name][n:, :, ::-1]) / 2 for name in ("heatmap", "wh")}
    return {**mean, "offset": heads["offset"][:n]}


def marker_detector(preprocess: Preprocess = PLAIN_RGB) -> Detector:
    def never(*_: object) -> None:
        raise AssertionError("evaluation and prediction have no use for training functions")

    return Detector(
        name="marker",
        net=MarkerNet(),
        num_classes=2,
        preprocess=preprocess,
        encode=never,  # type: ignore[arg-type]
        normaliser=never,  # type: ignore[arg-type]
        loss=never,  # type: ignore[arg-type]
        decode=decode,
        merge_flip=merge_flip,
    )


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


def marker_source(items: list[tuple[int, int, Objects]], *, annotated: bool = True) -> Source:
    """A split held in memory: (height, width, objects) of each image; ids are 100, 110, ..., categories 3 and 8."""
    files = [png(picture(*item)) for item in items]
    flat = [(i, *o) for i, (_, _, objects) in enumerate(items) for o in objects] if annotated else []
    columns = np.array(flat, np.int64).reshape(-1, 5)
    image, x, y, half, label = columns.T
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
        ),
        read=lambda i: files[i],
    )
