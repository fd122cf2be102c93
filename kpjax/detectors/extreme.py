"""ExtremeNet (arXiv 1901.08043).

An object is five keypoints: the topmost, leftmost, bottommost and rightmost point of its outline, each with a heatmap a
class and an offset within its cell, and its centre, which has a heatmap alone.  Any four extreme points whose
geometric centre is a centre become a box, without embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kpjax.backbones.hourglass import StackedHourglass
from kpjax.detectors.base import PLAIN_AND_FLIP, Array, Detector, Outputs, Protocol, replace_options
from kpjax.detectors.corner_config import PAD_BGR, STRIDE
from kpjax.detectors.corner_decode import in_input, merge_flip, merge_views, views_of
from kpjax.detectors.extreme_targets import CENTER, KEYPOINTS, Gaussians, encode, loss, normaliser, oracle
from kpjax.errors import ConfigError
from kpjax.extreme_points import BOTTOM, EXTREME_POINTS, LEFT, RIGHT, TOP
from kpjax.images.preprocess import Preprocess
from kpjax.nn.convolution import PRECISIONS
from kpjax.nn.heads import Head, Heads, heatmap_head
from kpjax.objects import Detections, Placed
from kpjax.ops import nms, peaks
from kpjax.ops.extremes import aggregate_edges, group_extremes, suppress_ghosts
from kpjax.ops.frames import frame_of


@dataclasses.dataclass(frozen=True)
class ExtremeNetConfig:
    """The released model, or a variation of it.

    features, blocks, stem, stacks: of the hourglass.  head_channels: of each head's 3x3 convolution.
    radius, overlap: of the keypoints' Gaussians, see `heatmap.gaussian_radius`.  offset_weight: of the offsets' loss.
    peaks: best cells of each extreme point's heatmap that are grouped, all with all.  groups: how many are kept.
    kernel: neighbourhood of the peak test, 3 or 1 (none).  aggregation: weight of the edges' scores, see
    `extremes.aggregate_edges` (0: none).  least_score: of an extreme point.  least_center: of a centre.
    nms: method of the soft-NMS, or "none".  ghosts: whether the scores of ghost boxes are halved, see
    `extremes.suppress_ghosts`; where several scales are merged they never are, as published.
    dtype, precision, bn_groups, remat: see kpjax.config.
    """

    features: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    head_channels: int = 256
    preprocess: Preprocess = PAD_BGR
    import_rules: str = "extremenet"
    radius: str = "legacy"
    overlap: float = 0.7
    offset_weight: float = 1.0
    peaks: int = 40
    groups: int = 1000
    kernel: int = 3
    aggregation: float = 0.1
    least_score: float = 0.1
    least_center: float = 0.1
    nms: str = "gaussian"
    ghosts: bool = True
    dtype: str = "float32"
    precision: str = "default"
    bn_groups: int = 1
    remat: bool = False


HG104 = ExtremeNetConfig()


class ExtremeNet(nn.Module):
    """Images (B, H, W, 3), normalised -> of each stack {"top_heat", "top_off", ..., "center_heat"}, (B, h, w, .).

    Maps are float32.  heat: K logits.  off: x and y within the cell; the centre has none.
    """

    config: ExtremeNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        dtype, precision = jnp.dtype(c.dtype), PRECISIONS[c.precision]
        settings = (c.bn_groups, c.remat, dtype, precision)
        backbone = StackedHourglass(c.features, c.blocks, c.stem, c.stacks, *settings, name="backbone")
        heads = {f"{name}_heat": heatmap_head(self.num_classes) for name in KEYPOINTS}
        heads |= {f"{name}_off": Head(2) for name in EXTREME_POINTS.names}
        return [
            Heads(heads, c.head_channels, dtype, precision, name=f"heads{i}")(x)
            for i, x in enumerate(backbone(images, train))
        ]


def groups_of(maps: dict[str, Array], config: ExtremeNetConfig) -> Detections:
    """The best groups of extreme points of N views, (N, G, ...), in cells; boxes are those of their points.

    maps: heads (N, h, w, .), logits.  A slot without a group has the score 0.  Keypoints are x, y and the score that
    the point was found with.  Offsets are added after all tests (ExtremeNet's `_exct_decode`; golden:
    decode_extremenet).
    """

    def one(maps: dict[str, Array]) -> Detections:
        heat = {name: jax.nn.sigmoid(maps[f"{name}_heat"]) for name in KEYPOINTS}
        names = EXTREME_POINTS.names
        edges: dict[int, Array] = {}
        for pair, axis in (((TOP, BOTTOM), 2), ((LEFT, RIGHT), 1)):
            both = aggregate_edges(jnp.stack([heat[names[kind]] for kind in pair]), axis, config.aggregation)
            # Sums are compared before they are cut to 1, lest all of a flat edge be level.
            both = jnp.minimum(peaks.keep_peaks(both) if config.kernel == 3 else both, 1.0)
            edges |= dict(zip(pair, both, strict=True))
        scores, labels, ys, xs = peaks.top_k(jnp.stack([edges[kind] for kind in range(4)]), config.peaks)
        total, members = group_extremes(
            scores,
            labels,
            ys,
            xs,
            heat[CENTER],
            count=config.groups,
            least_score=config.least_score,
            least_center=config.least_center,
        )
        offsets = jnp.stack([maps[f"{name}_off"] for name in names])
        moved = peaks.gather_cells(offsets, ys * offsets.shape[2] + xs)
        points = jnp.stack([xs + moved[..., 0], ys + moved[..., 1], scores], axis=-1)  # (4, K, 3)
        of_groups = points[jnp.arange(4), members]  # (G, 4, 3)
        return Detections(box_of(of_groups), total, labels[TOP][members[:, TOP]], keypoints=of_groups)

    maps = {name: x.astype(jnp.float32) for name, x in maps.items()}
    # One view after another, whose maps stay in a CPU's caches; a GPU would start each small operation for each.
    return jax.lax.platform_dependent(maps, cuda=jax.vmap(one), default=lambda maps: jax.lax.map(one, maps))


def box_of(points: Array) -> Array:
    """The boxes (..., 4) that extreme points (..., 4, 2 or more) span."""
    edges = (points[..., LEFT, 0], points[..., TOP, 1], points[..., RIGHT, 0], points[..., BOTTOM, 1])
    return jnp.stack(edges, axis=-1)


def candidates(maps: dict[str, Array], placed: Placed | None, config: ExtremeNetConfig) -> Detections:
    """All views' groups, (B, V * G, ...), cut to their image, in its pixels; a mirrored view's turned back."""
    views = views_of(maps)
    frame = frame_of(views[f"{CENTER}_heat"].shape, placed)
    found = groups_of({name: x.reshape(-1, *x.shape[2:]) for name, x in views.items()}, config)
    assert found.keypoints is not None
    xy, scores = found.keypoints[..., :2], found.keypoints[..., 2:]
    points = jnp.concatenate([frame.xy_to_image(xy.reshape(xy.shape[0], -1, 2)).reshape(xy.shape), scores], axis=-1)
    points = jnp.where(frame.mirrored[..., None, None], points[:, :, np.array(EXTREME_POINTS.mirror)], points)
    limit = jnp.stack([frame.width, frame.height], axis=-1)
    boxes = jnp.clip(box_of(points), 0.0, jnp.tile(limit, 2))
    points = jnp.concatenate([jnp.clip(points[..., :2], 0.0, limit[:, None]), points[..., 2:]], axis=-1)
    found = dataclasses.replace(found, boxes=boxes, keypoints=points)
    return merge_views(found, maps[f"{CENTER}_heat"].shape[0])


def select(found: Detections, top_k: int, config: ExtremeNetConfig, ghosts: bool) -> Detections:
    """The best `top_k` of one image's groups (N, ...) after soft-NMS, best first, in 2 top_k slots.

    ghosts: whether ghost boxes are looked for among them.  The original keeps every row whose score ties with the last
    one's, and the stale copies that its soft-NMS leaves (golden: FACTS_hourglass, Test time): there is room for as many
    again.
    """
    kept = found.scores > 0
    if config.nms != "none":
        rules = nms.SoftNms(config.nms)
        rows = nms.soft_nms(found.boxes, found.scores, found.labels, kept, rules=rules, stale_rows=True, most=top_k)
        # Points move with their rows here, and a dropped row becomes a copy of the last one, its points too.
        assert found.keypoints is not None
        found = Detections(rows.boxes, rows.scores, rows.labels, keypoints=found.keypoints[rows.index])
        kept = rows.kept
    kept = nms.keep_best(found.scores, kept, top_k)
    slots, count = 2 * top_k, kept.shape[0]
    found = dataclasses.replace(found, scores=jnp.where(kept, found.scores, 0.0))
    found = jax.tree.map(lambda x: jnp.pad(x, [(0, max(slots - count, 0)), *[(0, 0)] * (x.ndim - 1)]), found)
    order = jnp.argsort(found.scores <= 0, stable=True)[:slots]
    found = jax.tree.map(lambda x: x[order], found)
    scores = suppress_ghosts(found.boxes, found.scores, found.labels) if ghosts else found.scores
    order = jnp.argsort(-scores, stable=True)
    return jax.tree.map(lambda x: x[order], dataclasses.replace(found, scores=scores))


def decode(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: ExtremeNetConfig
) -> Detections:
    """Boxes and extreme points of the best groups after soft-NMS, (B, 2 top_k, ...), best first, in input pixels.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them.  placed: None: inputs of 4 h - 1 and
    4 w - 1 pixels that the image fills.
    """
    found = candidates(maps, placed, config)
    one = functools.partial(select, top_k=top_k, config=config, ghosts=config.ghosts)
    # As `corner_decode.suppress`: the loop of the soft-NMS ends with the image that it runs for.
    selected = jax.lax.platform_dependent(found, cuda=jax.vmap(one), default=lambda found: jax.lax.map(one, found))
    return in_input(selected, placed)


def rows(
    maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, config: ExtremeNetConfig
) -> Detections:
    """`decode` without soft-NMS, for `merge_scales`: all groups, (B, V * G, ...), in input pixels; top_k is unused."""
    return in_input(candidates(maps, placed, config), placed)


def merge_scales(views: tuple[Detections, ...], top_k: int, *, config: ExtremeNetConfig) -> Detections:
    """Merge the groups of an image's scales by one soft-NMS (golden: pipe_extremenet, run `multi`).

    views: for each scale, ascending, what `rows` found in one image, (N, ...), in its pixels.  Returns 2 top_k rows,
    best first, the score 0 for an empty slot.
    """
    return select(jax.tree.map(lambda *parts: jnp.concatenate(parts), *views), top_k, config, ghosts=False)


# The published single-scale AP is that of "flip".
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def protocols(config: ExtremeNetConfig) -> dict[str, Protocol]:
    """The test protocols by preset."""
    several = Protocol(
        mirror="maps",
        scales=SCALES,
        rows=functools.partial(rows, config=config),
        merge=functools.partial(merge_scales, config=config),
    )
    return {**PLAIN_AND_FLIP, "ms": several}


def with_options(name: str, released: ExtremeNetConfig, options: dict[str, Any]) -> ExtremeNetConfig:
    """`released` with the options put in and checked."""
    config: ExtremeNetConfig = replace_options(
        name,
        released,
        options,
        dtype=("float32", "bfloat16"),
        precision=tuple(PRECISIONS),
        radius=("legacy", "fixed"),
        kernel=(1, 3),
        nms=("none", *nms.METHODS),
    )
    if len(config.features) != len(config.blocks) or len(config.features) < 2:
        raise ConfigError(
            f"model {name}: features is {config.features} and blocks is {config.blocks}; give both the same number "
            "of levels, two at least"
        )
    if min(config.features + config.blocks) < 1:
        raise ConfigError(f"model {name}: features and blocks must be at least 1 at every level")
    for key in ("stem", "stacks", "head_channels", "peaks", "groups", "bn_groups"):
        if getattr(config, key) < 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be at least 1")
    for key in ("aggregation", "least_score", "least_center"):
        if not 0 <= getattr(config, key) <= 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must lie between 0 and 1")
    if not 0 < config.overlap < 1:
        raise ConfigError(f"model {name}: overlap is {config.overlap}; it must lie between 0 and 1")
    return config


def build(name: str, released: ExtremeNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options)
    gaussians = Gaussians(config.radius, config.overlap)
    return Detector(
        name=name,
        net=ExtremeNet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, gaussians=gaussians, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, offset_weight=config.offset_weight),
        decode=functools.partial(decode, config=config),
        merge_flip=merge_flip,
        protocols=protocols(config),
        oracle=oracle,
        points=EXTREME_POINTS,
        outlines=True,
        heatmaps=tuple(f"{name}_heat" for name in KEYPOINTS),
        stride=STRIDE,
        multiple=STRIDE * 2 ** (len(config.features) - 1),
        less=1,
        import_rules=config.import_rules,
        options=options,
    )
