"""Merging one image's detections from several views of it: soft-NMS, and the best rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kpjax.objects import Detections
from kpjax.ops import nms

Array = jax.Array


def merge_scales(
    views: tuple[Detections, ...],
    top_k: int,
    rules: nms.SoftNms | None = nms.ORIGINAL,
    stale_rows: bool = True,
    capped: bool = True,
) -> Detections:
    """Merge the detections of an image's scales as xingyizhou's multi-scale test does: Gaussian soft-NMS and the cap.

    views: for each scale, ascending, one image's Detections in image pixels, (N, ...).  rules: which soft-NMS; None:
    none.  stale_rows: whether what it drops leaves its stale copies (golden: fn_ctnet_merge, `merge/multi_scale`).
    capped: whether top_k cuts the result; xingyizhou's pose test returns all rows (golden: pipe_res18_multi_pose).
    Returns the rows of all scales, best first, the score 0 where a row is not among the top_k.
    """
    found: Detections = jax.tree.map(lambda *parts: jnp.concatenate(parts), *views)
    top_k = top_k if capped else len(found)
    if rules is None:
        return best_rows(found, found.scores > 0, top_k)
    rows = nms.soft_nms(
        found.boxes,
        found.scores,
        found.labels,
        found.scores > 0,
        rules=rules,
        stale_rows=stale_rows,
        most=top_k if capped else 0,
    )
    merged = Detections(rows.boxes, rows.scores, rows.labels)
    if found.keypoints is not None:
        merged = dataclasses.replace(merged, keypoints=found.keypoints[rows.partner])
    return best_rows(merged, rows.kept, top_k)


def merge_mirrored(views: tuple[Detections, ...], top_k: int, rules: nms.SoftNms | None = nms.HARD_MMCV) -> Detections:
    """Merge an image's detections with its mirror image's by NMS, as mmdetection's DetTTAModel does.

    views: for each scale Detections of both, (2 N, ...), in image pixels (golden: pipe_mmdet_centernet_r18_dcnv2,
    runs `*/flip`).  rules: which NMS; CenterNet's configuration has a hard one at 0.5.  Returns the best top_k.
    """
    return jax.tree.map(lambda x: x[:top_k], merge_scales(views, top_k, rules, stale_rows=False))


def best_rows(rows: Any, kept: Array, top_k: int) -> Detections:
    """The top_k rows (with ties) of those kept, best first; the other slots have the score 0.

    rows: one image's `Detections` (N, ...), or any record of boxes, scores and labels.  kept: (N,) bool.
    """
    kept = nms.keep_best(rows.scores, kept, top_k)
    scores = jnp.where(kept, rows.scores, 0.0)
    order = jnp.argsort(-scores, stable=True)
    keypoints = getattr(rows, "keypoints", None)
    return Detections(
        boxes=rows.boxes[order],
        scores=scores[order],
        labels=rows.labels[order],
        keypoints=None if keypoints is None else keypoints[order],
    )
