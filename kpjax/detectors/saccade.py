"""CornerNet-Saccade (CornerNet-Lite, arXiv 1904.08900): corners, found in two looks at an image.

The first look sees two small copies of the whole image.  It finds boxes, and in three attention maps, one for each
size of objects, the places that are worth a closer look.  The second look sees windows of the image around
them, up to its own resolution and beyond.  The boxes of both are merged by soft-NMS.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.detectors import saccade_config as settings
from kpjax.detectors.base import Array, Detector, Outputs, Protocol
from kpjax.detectors.corner_config import PRECISIONS, SIDES, STRIDE, backbone, corner_heads, layer_options
from kpjax.detectors.corner_decode import candidates, merge_flip, pairs_of, select, suppress
from kpjax.detectors.saccade_config import SaccadeConfig, saccade_options
from kpjax.detectors.saccade_looks import (
    Looks,
    attended_places,
    distant_places,
    first_looks,
    join_places,
    looks_at,
    places_of_boxes,
    see,
)
from kpjax.detectors.saccade_targets import ATTENTION, encode, loss, normaliser
from kpjax.nn.heads import Heads, heatmap_head
from kpjax.nn.pooling import CornerPool
from kpjax.objects import Detections, Placed
from kpjax.ops.corners import Candidates
from kpjax.ops.peaks import keep_peaks

Network = Callable[[Array], dict[str, Array]]


class CornerNetSaccade(nn.Module):
    """Images (B, H, W, 3), normalised -> of each stack CornerNet's heads and "attention0" to "attention2".

    heat: (B, h, w, K) logits.  tag: 1 embedding.  off: x and y within the cell.  attention: logits, of which the
    coarsest map is (B, h / 4, w / 4, 1) and the last as large as the others.  All are float32.
    """

    config: SaccadeConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        dtype, precision = jnp.dtype(c.dtype), PRECISIONS[c.precision]
        outputs = []
        for i, (x, levels) in enumerate(backbone(c).with_levels(images, train)):
            maps: dict[str, Array] = {}
            for side, directions in SIDES.items():
                pooled = CornerPool(directions, c.branch, name=f"{side}_pool{i}", **layer_options(c))(x, train)
                maps |= corner_heads(c, self.num_classes, side, i)(pooled)
            for name, level in zip(ATTENTION, levels, strict=True):
                head = {name: heatmap_head(1)}
                maps |= Heads(head, c.head_channels, dtype, precision, name=f"{name}_head{i}")(level)
            outputs.append(maps)
        return outputs


def shown(canvases: Array, windows: Array, looks: Looks, config: SaccadeConfig) -> Array:
    """What the network sees of N looks, (N, S, S, 3) float32, normalised; S is `config.view`.

    canvases: (N, H, W, 3) uint8 RGB.  windows: (N, 4) int32 of the images on them.  looks: (N,).  What lies outside of
    an image is black before it is normalised.
    """
    images = jax.vmap(functools.partial(see, view=config.view))(canvases, windows, looks.centers, looks.sides)
    return config.preprocess.normalise(images)


def boxes_of(maps: dict[str, Array], config: SaccadeConfig) -> Candidates:
    """The best pairs of corners of N looks, (N, pairs, ...), in pixels of the network's input, not cut to it."""
    return candidates(maps, None, config=config)[0]


def second_looks(maps: dict[str, Array], found: Candidates, looks: Looks, sizes: Array, config: SaccadeConfig) -> Looks:
    """The places that the first look of B images points to, (B, crops), the best first.

    maps: of B * V looks, of which the attention maps are read.  found: (B, V * N, ...) in image pixels.  looks:
    (B, V).  sizes: (B, 2) int32 h w of the images.
    """
    peaks = tuple(keep_peaks(jax.nn.sigmoid(maps[name].astype(jnp.float32)))[..., 0] for name in ATTENTION)
    peaks = tuple(x.reshape(*looks.valid.shape, *x.shape[1:]) for x in peaks)
    large, small = (config.pixels(side) for side in settings.SIZES)
    close = tuple(config.pixels(side) for side in settings.CLOSE)

    def one(peaks: tuple[Array, ...], boxes: Array, scores: Array, looks: Looks, size: Array) -> Looks:
        attended = attended_places(
            peaks,
            looks,
            size,
            least=config.attention,
            ratios=tuple(ATTENTION.values()),
            factors=settings.FACTORS,
            largest_scale=settings.LARGEST_SCALE,
        )
        sure = places_of_boxes(boxes, scores, least=settings.SURE_SCORE, sizes=(large, small), close=close)
        places = join_places(attended, sure)
        chosen = distant_places(places, config.crops, config.pixels(settings.NEAR))
        return looks_at(places, *chosen, config.view)

    return jax.vmap(one)(peaks, found.boxes, found.scores, looks, sizes)


def look_closer(apply: Network, canvases: Array, windows: Array, looks: Looks, config: SaccadeConfig) -> Candidates:
    """What the network finds in the looks of B images, (B, crops * N, ...), in image pixels; -1 in those not valid.

    The valid looks of all images are seen one after another, `crops_at_once` of them a pass, so that as many passes
    are made as there are looks for; their results do not depend on the company they are in.
    """
    batch, count = looks.valid.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), looks)
    at_once, rows = config.crops_at_once, (batch * count, config.pairs)
    # The valid ones get numbers in a row.  All is by comparing, as ONNX sorts and scatters nothing of open length.
    place = jnp.arange(batch * count, dtype=jnp.int32)
    number = jnp.where(flat.valid, (flat.valid & (place < place[:, None])).sum(1, dtype=jnp.int32), -1)

    def take(tree: Any, which: Array) -> Any:
        return jax.tree.map(lambda x: x.at[which].get(mode="promise_in_bounds"), tree)

    def see_some(turn: Array, found: Candidates) -> Candidates:
        slot = number - turn * at_once  # in this pass; a slot that nothing is left for sees the first look of all
        of_slot = slot == jnp.arange(at_once, dtype=jnp.int32)[:, None]
        which = jnp.where(of_slot, place, 0).sum(1, dtype=jnp.int32)
        some, (canvas, window) = take(flat, which), take((canvases, windows), which // count)
        new = boxes_of(apply(shown(canvas, window, some, config)), config)
        new = take(
            dataclasses.replace(new, boxes=some.to_image(new.boxes), corner_scores=None), jnp.clip(slot, 0, at_once - 1)
        )
        seen = of_slot.any(0)[:, None]
        return Candidates(
            boxes=jnp.where(seen[..., None], new.boxes, found.boxes),
            scores=jnp.where(seen, new.scores, found.scores),
            labels=jnp.where(seen, new.labels, found.labels),
        )

    nothing = Candidates(jnp.zeros((*rows, 4)), jnp.full(rows, -1.0), jnp.zeros(rows, jnp.int32))
    passes = (flat.valid.sum(dtype=jnp.int32) + at_once - 1) // at_once
    found = jax.lax.fori_loop(0, passes, see_some, nothing)
    return jax.tree.map(lambda x: x.reshape(batch, count * config.pairs, *x.shape[2:]), found)


def look(
    apply: Network, canvases: Array, windows: Array, *, config: SaccadeConfig, twice: bool = True
) -> dict[str, Array]:
    """The boxes of one look at each image or of two: "boxes" (B, N, 4) float32, "scores" and "labels" (B, N).

    apply: normalised images (N, S, S, 3) -> head maps of the last stack.  canvases: (B, H, W, 3) uint8 RGB.  windows:
    (B, 4) int32.  Boxes are in pixels of the image; a score of -1 marks an empty slot.  Where there is a second look,
    the first one's boxes need a score above 0.3; alone it keeps them all.
    """
    sizes = windows[:, 2:] - windows[:, :2]
    longest = tuple(config.pixels(side) for side in settings.FIRST)
    looks = jax.vmap(functools.partial(first_looks, longest=longest, view=config.view))(sizes)
    batch, views = looks.valid.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), looks)
    maps = apply(shown(jnp.repeat(canvases, views, 0), jnp.repeat(windows, views, 0), flat, config))
    first = boxes_of(maps, config)
    first = dataclasses.replace(first, boxes=flat.to_image(first.boxes), corner_scores=None)
    first = jax.tree.map(lambda x: x.reshape(batch, -1, *x.shape[2:]), first)
    parts = [first]
    if twice:
        kept = first.scores > settings.FIRST_SCORE
        first = dataclasses.replace(first, scores=jnp.where(kept, first.scores, -1.0))
        looks = second_looks(maps, first, looks, sizes, config)
        parts = [first, look_closer(apply, canvases, windows, looks, config)]
    found = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}


def merge_looks(
    found: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: SaccadeConfig
) -> Detections:
    """The best boxes after soft-NMS, (B, top_k), in pixels of the canvas.  found: what `look` returned."""
    return select(suppress(Candidates(**found), config, top_k), placed, top_k, config.rules)


def decode(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: SaccadeConfig
) -> Detections:
    """Boxes of one input's maps, as CornerNet's `decode`; the test protocols look at images instead."""
    return select(suppress(pairs_of(maps, placed, config), config, top_k), placed, top_k, config.rules)


def protocols(config: SaccadeConfig) -> dict[str, Protocol]:
    """The published test protocol, and its first look alone."""
    rows = functools.partial(merge_looks, config=config)
    return {
        "na": Protocol(look=functools.partial(look, config=config), rows=rows),
        "first": Protocol(look=functools.partial(look, config=config, twice=False), rows=rows),
    }


def build(name: str, released: SaccadeConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = saccade_options(name, released, options)
    return Detector(
        name=name,
        net=CornerNetSaccade(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, config=config, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=merge_flip,
        protocols=protocols(config),
        heatmaps=("tl_heat", "br_heat"),
        stride=STRIDE,
        multiple=STRIDE * 2 ** (len(config.features) - 1),
        less=1,
        view=config.view,
        import_rules=config.import_rules,
        options=options,
    )
