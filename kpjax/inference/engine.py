"""From the views of an image to its detections."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from kpjax.images.views import View
from kpjax.inference.program import Merge
from kpjax.objects import Detections


def rows_in_image(batch: Any, slot: int, view: View) -> Any:
    """Row `slot` of what the program returned, NumPy arrays, with boxes (and points) in the image's own pixels.

    Boxes that are not finite (of a network that diverged) get the score 0: JSON has no form for them.
    """
    rows = jax.tree.map(lambda x: x[slot], batch)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = view.to_image(rows)
    finite = np.isfinite(rows.boxes).all(-1)
    boxes, scores = np.where(finite[:, None], rows.boxes, np.float32(0)), np.where(finite, rows.scores, np.float32(0))
    return dataclasses.replace(rows, boxes=boxes, scores=scores.astype(np.float32))


def finished(views: tuple[Any, ...], merge: Merge | None, names: tuple[str, ...] = ()) -> Detections:
    """An image's rows of each scale, in its pixels -> its Detections, empty slots left out."""
    found = views[0] if merge is None else jax.device_get(merge(views))
    real = found.scores > 0
    return Detections(
        boxes=np.asarray(found.boxes[real], np.float32),
        scores=np.asarray(found.scores[real], np.float32),
        labels=np.asarray(found.labels[real], np.int32),
        names=names,
    )
