"""From the corner detectors' head maps to boxes: pairs, soft-NMS, the best of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kpjax.detectors.base import Array
from kpjax.detectors.corner_config import SIDES, CornerNetConfig, Rules
from kpjax.objects import Detections, Placed, Record, map_coordinates
from kpjax.ops import corners
from kpjax.ops.corners import Candidates, Points
from kpjax.ops.frames import Frame, frame_of
from kpjax.ops.largest import largest
from kpjax.ops.nms import soft_nms, soft_nms_merge


def views_of(maps: dict[str, Array]) -> dict[str, Array]:
    """Head maps with an axis of views, (B, V, h, w, .): what `merge_flip` left, or one view."""
    return {name: x if x.ndim == 5 else x[:, None] for name, x in maps.items()}


def points_of(views: dict[str, Array], name: str, count: int, kernel: int, no_border: bool = False) -> Points:
    """The best keypoints of a kind in each of the B * V views, in cells.

    views: see `views_of`.  no_border: see `Rules`; for "tl" and "br".
    """
    flat = {head: x.reshape(-1, *x.shape[2:]).astype(jnp.float32) for head, x in views.items()}
    heads = (flat[f"{name}_heat"], flat[f"{name}_off"], flat.get(f"{name}_tag"))
    height, width = heads[0].shape[1:3]
    border = {"tl": (0, 0), "br": (height - 1, width - 1)}[name] if no_border else None
    return corners.best_points(*heads, count, kernel, logits=True, without=border)


def candidates(maps: dict[str, Array], placed: Placed | None, *, config: CornerNetConfig) -> tuple[Candidates, Frame]:
    """Paired corners in pixels of the plain image, (B * V, N, ...), best first, and the views' frame.

    Boxes may reach beyond the image, unless the rules pull them inside; see `inside_image`.
    """
    views = views_of(maps)
    frame = frame_of(views["tl_heat"].shape, placed, config.rules.stride)
    inside, no_border = config.rules.inside, config.rules.no_border
    points = [frame.to_image(points_of(views, side, config.corners, config.kernel, no_border)) for side in SIDES]
    if inside:
        points = [dataclasses.replace(p, xs=jnp.maximum(p.xs, 0.0), ys=jnp.maximum(p.ys, 0.0)) for p in points]
    found = corners.pair_corners(points[0], points[1], config.distance, config.pairs, strict=inside)
    x1, y1, x2, y2 = (found.boxes[..., i] for i in range(4))
    mirrored = frame.mirrored
    x1, x2 = jnp.where(mirrored, frame.unmirror(x2), x1), jnp.where(mirrored, frame.unmirror(x1), x2)
    return dataclasses.replace(found, boxes=jnp.stack([x1, y1, x2, y2], -1)), frame


def inside_image(found: Candidates, frame: Frame) -> Candidates:
    """Boxes cut to their image, as the originals do before they suppress any."""
    limit = jnp.stack([frame.width, frame.height, frame.width, frame.height], -1)
    return dataclasses.replace(found, boxes=jnp.clip(found.boxes, 0.0, limit))


def merge_views(found: Any, batch: int) -> Any:
    """The candidates or points of an image's views one after another: (B * V, N, ...) -> (B, V * N, ...)."""
    return jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), found)


def suppress(found: Candidates, config: CornerNetConfig, top_k: int, exponent: float = 0.0) -> Candidates:
    """Soft-NMS of each image's candidates, (B, N, ...); what it drops gets the score -1.

    top_k: how many are wanted; see `most` of `nms.soft_nms`.
    exponent: above 0, boxes become averages by their corners' scores, see `nms.soft_nms_merge`.
    """
    if config.nms == "none":
        return found
    rules = config.rules

    def one(found: Candidates) -> Candidates:
        rows_of_image = (found.boxes, found.scores, found.labels)
        options: dict[str, Any] = {"rules": rules.nms, "stale_rows": rules.stale_rows, "most": top_k}
        if exponent:
            assert found.corner_scores is not None
            rows = soft_nms_merge(*rows_of_image, found.corner_scores, found.scores > -1, exponent=exponent, **options)
        else:
            rows = soft_nms(*rows_of_image, found.scores > -1, **options)
        return Candidates(rows.boxes, jnp.where(rows.kept, rows.scores, -1.0), rows.labels)

    # One image after another: under vmap the loop runs for all as long as for the image with most rows, and both sides
    # of its branch are computed.  On a GPU that costs less than to start each small operation for each image.
    return jax.lax.platform_dependent(found, cuda=jax.vmap(one), default=lambda found: jax.lax.map(one, found))


def select(found: Candidates, placed: Placed | None, top_k: int, rules: Rules) -> Detections:
    """The best `top_k` candidates of each image in pixels of the input, (B, top_k); (B, 2 top_k) with stale rows.

    found: (B, N, ...) in pixels of the image.  placed: as `decode` has it.
    The originals keep every row whose score ties with the last one's, as those of stale copies often do (golden:
    FACTS_hourglass, Test time): there is room for as many again.
    """
    slots = 2 * top_k if rules.stale_rows else top_k
    scores, indices = largest(found.scores, min(slots, found.scores.shape[1]))
    if scores.shape[1] > top_k:
        scores = jnp.where(scores >= scores[:, top_k - 1 : top_k], scores, 0.0)
    boxes = jnp.take_along_axis(found.boxes, indices[..., None], axis=1)
    labels = jnp.take_along_axis(found.labels, indices, axis=1)
    empty = [(0, 0), (0, slots - scores.shape[1])]
    rows = in_input(Detections(boxes=boxes, scores=jnp.maximum(scores, 0.0), labels=labels), placed)
    return jax.tree.map(lambda x: jnp.pad(x, [*empty, (0, 0)][: x.ndim]), rows)


def pairs_of(maps: dict[str, Array], placed: Placed | None, config: CornerNetConfig) -> Candidates:
    """All views' pairs, (B, V * N, ...), cut to their image, in its pixels."""
    found, frame = candidates(maps, placed, config=config)
    if not config.rules.inside:
        found = inside_image(found, frame)
    return merge_views(found, maps["tl_heat"].shape[0])


def in_input(record: Record, placed: Placed | None) -> Record:
    """Move what was found, (B, N, ...), from pixels of the image to those of the input.  placed: as `decode` has it."""
    if placed is None or placed.window is None:
        return record
    corner = placed.window[:, jnp.asarray([1, 0])].astype(jnp.float32)  # x y
    return map_coordinates(record, lambda xy: xy + corner.reshape(-1, *(1,) * (xy.ndim - 2), 2))


def merge_flip(maps: dict[str, Array]) -> dict[str, Array]:
    """Put the maps of [images; mirrored images], (2B, h, w, .), side by side as two views: (B, 2, h, w, .).

    The corner methods merge detections, not maps: `decode` pairs corners in each view by itself.
    """
    half = next(iter(maps.values())).shape[0] // 2
    return {name: jnp.stack([x[:half], x[half:]], axis=1) for name, x in maps.items()}
