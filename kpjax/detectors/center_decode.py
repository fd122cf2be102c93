"""Centres and boxes of Objects as Points out of head maps, and the merging of views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.detectors.base import Array, Protocol
from kpjax.detectors.center_config import SCALES, STRIDE, CenterNetConfig, Rules
from kpjax.objects import Detections
from kpjax.ops import nms, peaks
from kpjax.ops.merge import merge_mirrored, merge_scales


def score_map(maps: dict[str, Array], rules: Rules) -> Array:
    """The heatmap head as scores, (B, h, w, K) float32."""
    heat = maps["heatmap"].astype(jnp.float32)
    return heat if rules.probabilities else jax.nn.sigmoid(heat)


@flax.struct.dataclass
class CenterPeaks:
    """The best centres of a batch, (B, N, ...), best first, in cells of the map.

    scores (B, N) float32, labels (B, N) int32.  cell: (B, N, 2) int32 x y.  index: (B, N) int32, y * w + x.
    center: (B, N, 2) float32 x y, the cell and the offset in it.  wh: (B, N, 2) float32.
    """

    scores: Array
    labels: Array
    cell: Array
    index: Array
    center: Array
    wh: Array

    @property
    def boxes(self) -> Array:
        """(B, N, 4) float32 x1 y1 x2 y2."""
        return jnp.concatenate([self.center - self.wh / 2, self.center + self.wh / 2], -1)

    def detections(self) -> Detections:
        """Boxes in pixels of the input."""
        return Detections(boxes=self.boxes * STRIDE, scores=self.scores, labels=self.labels)


def best_centers(maps: dict[str, Array], top_k: int, rules: Rules) -> CenterPeaks:
    """The best peaks of the heatmap (Objects as Points, section 4) with their boxes.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them; without an
    "offset" a centre lies in the middle of its cell.
    """
    merged = "scores" in maps
    heat = maps["scores" if merged else "heatmap"].astype(jnp.float32)
    scores, labels, ys, xs = peaks.best_peaks(heat, top_k, logits=not (merged or rules.probabilities))
    index = ys * heat.shape[2] + xs
    wh = peaks.gather_cells(maps["wh"].astype(jnp.float32), index)
    if wh.shape[-1] > 2:  # one pair a class
        pairs = wh.reshape(*wh.shape[:2], -1, 2)
        wh = jnp.take_along_axis(pairs, labels[..., None, None], axis=2)[:, :, 0]
    offset: Array = jnp.full(wh.shape, 0.5)
    if "offset" in maps:
        offset = peaks.gather_cells(maps["offset"].astype(jnp.float32), index)
    cell = jnp.stack([xs, ys], -1)
    center = cell.astype(jnp.float32) + offset
    return CenterPeaks(scores=scores, labels=labels, cell=cell, index=index, center=center, wh=wh)


def average_with_mirror(maps: Array) -> Array:
    """Maps of [images; mirrored images], (2B, h, w, .) -> their average in the plain images, (B, h, w, .)."""
    half = maps.shape[0] // 2
    return (maps[:half] + maps[half:][:, :, ::-1]) / 2


def merge_flip(maps: dict[str, Array], *, rules: Rules) -> dict[str, Array]:
    """Merge the maps of [images; mirrored images], (2B, h, w, .), as xingyizhou's `flip_test` does.

    Scores and wh are averaged, the offset is the plain image's.
    Returns {"scores", "wh", "offset"}, (B, h, w, .), for `best_centers`.
    """
    return {
        "scores": average_with_mirror(score_map(maps, rules)),
        "wh": average_with_mirror(maps["wh"]),
        "offset": maps["offset"][: maps["offset"].shape[0] // 2],
    }


def protocols(config: CenterNetConfig, capped: bool = True) -> dict[str, Protocol]:
    """The test protocols by preset; the method of `config.nms` is applied to one view's detections too.

    mmdetection's configuration tests one scale; its DetTTAModel merges any number of them alike.
    capped: whether merged detections are cut to the best top_k.
    """
    mirror, always = config.rules.flip, config.nms in nms.METHODS
    own = nms.ORIGINAL if mirror == "maps" else nms.MMCV if config.nms in ("linear", "gaussian") else nms.HARD_MMCV
    rules = dataclasses.replace(own, method=config.nms) if always else None if config.nms == "none" else own
    merge: Callable[..., Detections] = functools.partial(merge_mirrored, rules=rules)
    if mirror == "maps":
        merge = functools.partial(merge_scales, rules=rules, capped=capped)
    return {
        "na": Protocol(merge=merge if always else None),
        "flip": Protocol(mirror=mirror, merge=merge if always or mirror == "boxes" else None),
        "ms": Protocol(mirror=mirror, scales=SCALES, merge=merge),
    }
