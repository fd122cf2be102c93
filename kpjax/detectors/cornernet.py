"""CornerNet (arXiv 1808.01244), and mmdetection's version of it.

An object is the pair of its top-left and bottom-right corners.  Each kind of corner has three heads, read from a
map of its own that corner pooling made: a heatmap for each class, an embedding that is near that of the same
object's other corner and far from those of others, and the corner's offset within its cell.

The functions here serve the keypoint triplets too (`triplet.py`), which add a centre.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpjax.backbones.hourglass import StackedHourglass
from kpjax.detectors.base import (
    COCO_BGR,
    IMAGENET_RGB,
    PLAIN_AND_FLIP,
    Array,
    Detections,
    Detector,
    Outputs,
    Preprocess,
    Protocol,
    Targets,
    replace_options,
)
from kpjax.detectors.centernet import Heads, best_rows, merge_mirrored
from kpjax.errors import ConfigError
from kpjax.nn.pooling import CornerPool
from kpjax.ops import corners, losses, nms
from kpjax.ops.corners import Candidates, Points
from kpjax.ops.heatmap import draw_gaussians, gaussian_radius
from kpjax.ops.largest import largest
from kpjax.ops.nms import SoftNms, soft_nms, soft_nms_merge
from kpjax.ops.oracle import logits, nearest_values
from kpjax.ops.peaks import gather_cells

STRIDE = 4
SIDES = {"tl": ("top", "left"), "br": ("bottom", "right")}  # the directions of each corner's pooling
KEYPOINTS = ("tl", "br", "center")  # those of a detector are the ones that its targets and maps name


@dataclasses.dataclass(frozen=True)
class Rules:
    """Where the released implementations differ, as values.  The defaults are CornerNet's.

    radius, overlap: the Gaussian's radius (golden: gaussian_fixed, gaussian_original).
    clip: boxes are cut to the input's pixels, those without area then are dropped and later ones move up
        (golden: targets_cornernet); otherwise they are used as they come, cells beyond the map pulled back onto it.
    one_per_cell: of several corners in one cell the last alone trains the offset (golden: fn_mmdet_targets).
    clamp: scores in the focal loss are cut to [1e-4, 1 - 1e-4], and a loss without corners is not divided;
        otherwise its logarithms have 1e-12 added (golden: loss_cornernet, fn_mmdet_losses).
    embedding_eps: see `losses.associative_embedding`.
    offset_eps: added to the corners that divide the offset's loss; 0: at least one is counted.
    average: what the loss's sums are divided by: "stacks", or "corners" (the two corners' heatmaps and offsets
        are averaged, and stacks are added up, so that pull and push weigh twice as much with two stacks).
    inside: a pair is tested after its corners were pulled to the right of and below the image's corner, and
        has to have an area; boxes are not cut otherwise (golden: fn_mmdet_predict).  If false, boxes are cut to
        the image afterwards.
    nms, stale_rows: soft-NMS of the paired boxes, and whether what the originals' leaves behind stays.
    flip: what the flip test merges with the mirror image's: "pairs", before soft-NMS, or "boxes", after it, by
        another soft-NMS (mmdetection; golden: pipe_mmdet_cornernet_hg104, runs `*/flip`).
    """

    radius: str = "fixed"
    overlap: float = 0.3
    clip: bool = True
    one_per_cell: bool = False
    clamp: bool = True
    embedding_eps: float = 1e-4
    offset_eps: float = 1e-4
    average: str = "stacks"
    inside: bool = False
    nms: SoftNms = nms.ORIGINAL
    stale_rows: bool = True
    flip: str = "pairs"


ORIGINAL = Rules()
MMDET = Rules(
    clip=False,
    one_per_cell=True,
    clamp=False,
    embedding_eps=0.0,
    offset_eps=0.0,
    average="corners",
    inside=True,
    nms=nms.MMCV,
    stale_rows=False,
    flip="boxes",
)

# The originals pad to a side of 128 k - 1; mmdetection fills the border with the mean.
PAD_BGR = dataclasses.replace(COCO_BGR, pad=127, pad_plus_one=False)
PAD_RGB = dataclasses.replace(IMAGENET_RGB, pad=127, pad_plus_one=False, border="mean")


@dataclasses.dataclass(frozen=True)
class CornerNetConfig:
    """One released model, or a variation of it.

    features, blocks, stem, stacks: of the hourglass.  branch: channels of a pooled map.  head_channels: of each
    head's 3x3 convolution.  radius, overlap: override the rules' ("": keep).
    corners: best corners of a side that are paired.  pairs: candidates kept of them.  distance: largest difference
    of a pair's embeddings.  kernel: neighbourhood of the peak test, 3 or 1 (none).  nms: method of the soft-NMS
    ("": the rules' own, Gaussian), or "none".  merge_exponent: of the averaging of boxes where several scales are
    merged (0: soft-NMS without averaging).
    embedding_images: pull and push are sums over a batch's images; they are scaled to this many, those a GPU
        had in the original's training (0: the plain sum).
    dtype, bn_groups, remat: see kpjax.config.
    """

    features: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 4)
    stem: int = 128
    stacks: int = 2
    branch: int = 128
    head_channels: int = 256
    rules: Rules = ORIGINAL
    preprocess: Preprocess = PAD_BGR
    import_rules: str = "cornernet"
    radius: str = ""
    overlap: float = 0.0
    corners: int = 100
    pairs: int = 1000
    distance: float = 0.5
    kernel: int = 3
    nms: str = ""
    merge_exponent: float = 10.0
    pull_weight: float = 0.1
    push_weight: float = 0.1
    offset_weight: float = 1.0
    embedding_images: int = 0
    dtype: str = "float32"
    bn_groups: int = 1
    remat: bool = False


HG104 = CornerNetConfig()
HG104_MMDET = CornerNetConfig(rules=MMDET, preprocess=PAD_RGB, import_rules="cornernet_mmdet")


class CornerNet(nn.Module):
    """Normalised images (B, H, W, 3) -> of each stack {"tl_heat", "tl_tag", "tl_off", "br_..."}, float32 (B, h, w, .).

    heat: K logits.  tag: 1 embedding.  off: x and y within the cell.
    """

    config: CornerNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Outputs:
        c = self.config
        options: dict[str, Any] = {"bn_groups": c.bn_groups, "dtype": jnp.dtype(c.dtype)}
        outputs = []
        for i, x in enumerate(backbone(c)(images, train)):
            maps: dict[str, Array] = {}
            for side, directions in SIDES.items():
                pooled = CornerPool(directions, c.branch, name=f"{side}_pool{i}", **options)(x, train)
                maps |= corner_heads(c, self.num_classes, side, i)(pooled)
            outputs.append(maps)
        return outputs


def backbone(config: CornerNetConfig) -> StackedHourglass:
    """The configuration's hourglass, as the submodule "backbone"."""
    c = config
    dtype = jnp.dtype(c.dtype)
    return StackedHourglass(c.features, c.blocks, c.stem, c.stacks, c.bn_groups, c.remat, dtype, name="backbone")


def corner_heads(config: CornerNetConfig, num_classes: int, side: str, stack: int) -> Heads:
    """The heads of one corner in one stack."""
    channels = {f"{side}_heat": num_classes, f"{side}_tag": 1, f"{side}_off": 2}
    return Heads(channels, config.head_channels, jnp.dtype(config.dtype), name=f"{side}_heads{stack}")


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """The output map's (h, w) for an input of (H, W): a quarter, rounded up."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def boxes_on_map(
    boxes: Array, labels: Array, valid: Array, size: tuple[int, int], rules: Rules
) -> tuple[Array, Array, Array, Array]:
    """Boxes in input pixels and in cells, labels, and which are objects, by the rules; see `encode`.

    Cells are pixels times w / W, which is 128 / 511 and not a quarter in the recipes.
    """
    boxes = boxes.astype(jnp.float32)
    if rules.clip:
        limit = jnp.asarray([size[1], size[0], size[1], size[0]], jnp.float32) - 1
        boxes = jnp.clip(boxes, 0.0, limit)
    sides = boxes[:, 2:] - boxes[:, :2]
    meets = (boxes[:, 2:] > 0) & (boxes[:, :2] < jnp.asarray([size[1], size[0]], jnp.float32))
    valid = valid & ((sides > 0) & meets).all(-1)
    if rules.clip:
        order = jnp.argsort(~valid, stable=True)
        boxes, labels, valid = boxes[order], labels[order], valid[order]
    return boxes, to_cells(boxes, size), labels, valid


def to_cells(pixels: Array, size: tuple[int, int]) -> Array:
    """Input pixels (..., x y pairs) float32 as cells of the map."""
    height, width = map_size(size)
    rest = [width / size[1] - 1 / STRIDE, height / size[0] - 1 / STRIDE] * (pixels.shape[-1] // 2)
    # A quarter is exact and the rest small: one rounding, where a product with w / W would have two, and the cell of
    # a point on a border between two is the one that the originals get in float64.
    return pixels / STRIDE + pixels * jnp.asarray(rest, jnp.float32)


def gaussian_sizes(cells: Array, valid: Array, rules: Rules) -> Array:
    """The radius (M,) int32 of each box's Gaussians, from its sides in cells, rounded up."""
    sides = jnp.where(valid[:, None], jnp.ceil(cells[:, 2:] - cells[:, :2]), 1.0)
    radius = gaussian_radius(sides[:, 1], sides[:, 0], rules.overlap, rules.radius)
    return jnp.maximum(radius.astype(jnp.int32), 0)


def keypoint_targets(
    name: str,
    points: Array,
    radius: Array,
    labels: Array,
    valid: Array,
    shape: tuple[int, int],
    rules: Rules,
    num_classes: int,
    sigma_divisor: float = 6.0,
) -> Targets:
    """Heatmap, cells and offsets of one kind of keypoint.  points: (M, 2) x y in cells; the rest as `encode` has it."""
    height, width = shape
    cell = jnp.clip(points.astype(jnp.int32), 0, jnp.asarray([width - 1, height - 1]))
    # Scatters of the empty slots fall off the end.
    classes = jnp.where(valid, labels, num_classes)
    index = jnp.where(valid, cell[:, 1] * width + cell[:, 0], 0)
    mask = valid
    if rules.one_per_cell:
        same = (index[:, None] == index[None, :]) & valid[None, :]
        mask = valid & ~jnp.triu(same, 1).any(-1)
    return {
        f"{name}_heat": draw_gaussians(cell, radius, classes, valid, shape, num_classes, sigma_divisor),
        f"{name}_index": index,
        f"{name}_mask": mask,
        f"{name}_off": jnp.where(mask[:, None], points - cell, 0.0),
    }


def encode(
    boxes: Array, labels: Array, valid: Array, size: tuple[int, int], *, rules: Rules, num_classes: int
) -> Targets:
    """Targets of one image.

    boxes: (M, 4) float32 x1 y1 x2 y2 in input pixels.  labels: (M,) int32.  valid: (M,) bool.
    size: (H, W) of the input, static.  Returns "mask" (M,) bool, the objects whose embeddings are trained; and for
    each corner, "tl" and "br": "_heat" (h, w, K) float32, "_index" (M,) int32 cell y * w + x, "_mask" (M,) bool
    and "_off" (M, 2) float32, the offset within the cell where "_mask" is set.
    """
    _, cells, labels, valid = boxes_on_map(boxes, labels, valid, size, rules)
    radius = gaussian_sizes(cells, valid, rules)
    shape = map_size(size)
    targets: Targets = {"mask": valid}
    for name, points in (("tl", cells[:, :2]), ("br", cells[:, 2:])):
        targets |= keypoint_targets(name, points, radius, labels, valid, shape, rules, num_classes)
    return targets


def oracle(targets: Targets, size: tuple[int, int]) -> dict[str, Array]:
    """Head maps (B, h, w, .) that hold batched targets: heatmaps, and in each cell what the nearest keypoint has.

    size: (H, W) of the input.  An object's embedding is its number, so that those of two are 1 apart at least.
    """
    shape = map_size(size)
    maps = {}
    for name in (n for n in KEYPOINTS if f"{n}_heat" in targets):
        index, mask = targets[f"{name}_index"], targets[f"{name}_mask"]
        maps[f"{name}_heat"] = logits(targets[f"{name}_heat"])
        maps[f"{name}_off"] = nearest_values(index, mask, targets[f"{name}_off"], shape)
        if name in SIDES:
            number = jnp.broadcast_to(jnp.arange(index.shape[1])[:, None], (*index.shape, 1))
            maps[f"{name}_tag"] = nearest_values(index, targets["mask"], number, shape)
    return maps


def normaliser(targets: Targets) -> dict[str, Array]:
    """Counts over a batch: images, and of each keypoint the heatmap's cells of 1 and the offsets trained."""
    counts = {"images": jnp.float32(targets["mask"].shape[0])}
    for name in (n for n in KEYPOINTS if f"{n}_heat" in targets):
        counts[f"{name}_peaks"] = (targets[f"{name}_heat"] == 1).sum(dtype=jnp.float32)
        counts[f"{name}_offsets"] = targets[f"{name}_mask"].sum(dtype=jnp.float32)
    return counts


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: CornerNetConfig
) -> tuple[Array, dict[str, Array]]:
    """CornerNet eq. 6: heatmaps + 0.1 pull + 0.1 push + offsets, over keypoints and stacks as the rules say.

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted
    parts ("heatmap", "pull", "push", "offset"), float32 scalars.
    """
    rules = config.rules
    parts = {name: jnp.float32(0) for name in ("heatmap", "pull", "push", "offset")}
    names = [name for name in KEYPOINTS if f"{name}_heat" in targets]
    for maps in outputs:
        for name in names:
            heat, wanted, peaks = maps[f"{name}_heat"], targets[f"{name}_heat"], counts[f"{name}_peaks"]
            if rules.clamp:
                parts["heatmap"] += losses.focal_loss(heat, wanted, peaks)
            else:
                parts["heatmap"] += losses.gaussian_focal_loss(jax.nn.sigmoid(heat), wanted, jnp.maximum(peaks, 1))
            offsets = counts[f"{name}_offsets"]
            offsets = offsets + rules.offset_eps if rules.offset_eps else jnp.maximum(offsets, 1)
            index, mask = targets[f"{name}_index"], targets[f"{name}_mask"]
            parts["offset"] += losses.smooth_l1_at(maps[f"{name}_off"], index, mask, targets[f"{name}_off"], offsets)
        tags = [gather_cells(maps[f"{side}_tag"], targets[f"{side}_index"])[..., 0] for side in SIDES]
        pull, push = losses.associative_embedding(tags[0], tags[1], targets["mask"], rules.embedding_eps)
        parts["pull"] += pull
        parts["push"] += push
    if rules.average == "stacks":
        parts = {name: value / len(outputs) for name, value in parts.items()}
    else:
        parts = {name: value / (2 if name in ("heatmap", "offset") else 1) for name, value in parts.items()}
    if config.embedding_images:
        share = config.embedding_images / counts["images"]
        parts |= {name: parts[name] * share for name in ("pull", "push")}
    total = (
        parts["heatmap"]
        + config.pull_weight * parts["pull"]
        + config.push_weight * parts["push"]
        + config.offset_weight * parts["offset"]
    )
    return total, parts


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the image lies in the input, for each of N maps.

    ratio: (x, y) input pixels a cell.  left, top: (N, 1) of the image in the map's own, perhaps mirrored, input.
    width, height: (N, 1) of the image.  mirrored: (N, 1) bool.
    """

    ratio: tuple[float, float]
    left: Array
    top: Array
    width: Array
    height: Array
    mirrored: Array

    def to_image(self, points: Points) -> Points:
        """From cells to pixels of the image, still mirrored where the map is."""
        return dataclasses.replace(
            points,
            xs=points.xs * self.ratio[0] - self.left,
            ys=points.ys * self.ratio[1] - self.top,
        )

    def unmirror(self, xs: Array) -> Array:
        """The x of a point in the plain image."""
        return jnp.where(self.mirrored, self.width - xs, xs)


def frame_of(shape: tuple[int, ...], size: tuple[int, int] | None, windows: Array | None) -> Frame:
    """The frame of score maps of `shape` (B, V, h, w, K), V views of an image, the second one mirrored.

    size: (H, W) of the input; None: 4 h - 1 and 4 w - 1, as the originals' inputs are.
    windows: (B, 4) top, left, bottom, right of the image in the input; None: all of it.
    """
    batch, views, height, width = shape[:4]
    full = size or (STRIDE * height - 1, STRIDE * width - 1)
    if windows is None:
        windows = jnp.broadcast_to(jnp.asarray([0, 0, *full], jnp.float32), (batch, 4))
    top, left, bottom, right = (
        jnp.broadcast_to(windows[:, None, i, None], (batch, views, 1)).astype(jnp.float32) for i in range(4)
    )
    mirrored = jnp.broadcast_to((jnp.arange(views) == 1)[None, :, None], (batch, views, 1))
    return Frame(
        ratio=(full[1] / width, full[0] / height),
        left=jnp.where(mirrored, full[1] - right, left).reshape(-1, 1),
        top=top.reshape(-1, 1),
        width=(right - left).reshape(-1, 1),
        height=(bottom - top).reshape(-1, 1),
        mirrored=mirrored.reshape(-1, 1),
    )


def views_of(maps: dict[str, Array]) -> dict[str, Array]:
    """Head maps with an axis of views, (B, V, h, w, .): what `merge_flip` left, or one view."""
    return {name: x if x.ndim == 5 else x[:, None] for name, x in maps.items()}


def points_of(views: dict[str, Array], name: str, count: int, kernel: int) -> Points:
    """The best keypoints of a kind in each of the B * V views, in cells.  views: see `views_of`."""
    flat = {head: x.reshape(-1, *x.shape[2:]).astype(jnp.float32) for head, x in views.items()}
    heads = (flat[f"{name}_heat"], flat[f"{name}_off"], flat.get(f"{name}_tag"))
    return corners.best_points(*heads, count, kernel, logits=True)


def candidates(
    maps: dict[str, Array], size: tuple[int, int] | None, windows: Array | None, *, config: CornerNetConfig
) -> tuple[Candidates, Frame]:
    """Paired corners in pixels of the plain image, (B * V, N, ...), best first, and the views' frame.

    Boxes may reach beyond the image, unless the rules pull them inside; see `inside_image`.
    """
    views = views_of(maps)
    frame = frame_of(views["tl_heat"].shape, size, windows)
    points = [frame.to_image(points_of(views, side, config.corners, config.kernel)) for side in SIDES]
    inside = config.rules.inside
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

    # Image after image, each for as long as it has rows: under vmap the loop would run on for the fullest image, and
    # both sides of its branch would be computed.
    return jax.lax.map(one, found)


def select(found: Candidates, windows: Array | None, top_k: int, rules: Rules) -> Detections:
    """The best `top_k` candidates of each image in pixels of the input, (B, top_k); (B, 2 top_k) with stale rows.

    found: (B, N, ...) in pixels of the image.  windows: as `decode` has it.
    The originals keep every row level with the last one, and the stale copies of soft-NMS often are
    (golden: FACTS_hourglass, Test time), so that as many again have a place.
    """
    slots = 2 * top_k if rules.stale_rows else top_k
    scores, chosen = largest(found.scores, min(slots, found.scores.shape[1]))
    if scores.shape[1] > top_k:
        scores = jnp.where(scores >= scores[:, top_k - 1 : top_k], scores, 0.0)
    boxes = in_input(jnp.take_along_axis(found.boxes, chosen[..., None], axis=1), windows)
    labels = jnp.take_along_axis(found.labels, chosen, axis=1)
    empty = [(0, 0), (0, slots - scores.shape[1])]
    return Detections(
        boxes=jnp.pad(boxes, [*empty, (0, 0)]),
        scores=jnp.pad(jnp.maximum(scores, 0.0), empty),
        labels=jnp.pad(labels, empty),
    )


def decode(
    maps: dict[str, Array],
    top_k: int = 100,
    size: tuple[int, int] | None = None,
    windows: Array | None = None,
    *,
    config: CornerNetConfig,
) -> Detections:
    """Boxes of the best pairs of corners after soft-NMS (CornerNet, section 3.1 and 4.2), in input pixels.

    maps: the last stack's heads, (B, h, w, .), or what `merge_flip` made of them.  size: (H, W) of the input;
    None: 4 h - 1 and 4 w - 1.  windows: (B, 4) top, left, bottom, right of the image in the input; None: all of it.
    Returns what `select` does, best first.
    """
    return select(suppress(pairs_of(maps, size, windows, config), config, top_k), windows, top_k, config.rules)


def pairs_of(
    maps: dict[str, Array], size: tuple[int, int] | None, windows: Array | None, config: CornerNetConfig
) -> Candidates:
    """All views' pairs, (B, V * N, ...), cut to their image, in its pixels."""
    found, frame = candidates(maps, size, windows, config=config)
    if not config.rules.inside:
        found = inside_image(found, frame)
    return merge_views(found, maps["tl_heat"].shape[0])


def rows(
    maps: dict[str, Array],
    top_k: int = 100,
    size: tuple[int, int] | None = None,
    windows: Array | None = None,
    *,
    config: CornerNetConfig,
) -> Candidates:
    """`decode` without soft-NMS, for `merge_scales`: all pairs, (B, V * N, ...), in input pixels, whatever top_k is."""
    found = pairs_of(maps, size, windows, config)
    return dataclasses.replace(found, boxes=in_input(found.boxes, windows))


def merge_scales(views: tuple[Candidates, ...], top_k: int, *, config: CornerNetConfig) -> Detections:
    """Merge the pairs of an image's scales by one soft-NMS that averages boxes, as CornerNet's multi-scale test does.

    views: for each scale, ascending, what `rows` found in one image, (N, ...), in its pixels (golden:
    postprocess_cornernet `multi_merge`).  Returns the rows of all scales, best first, the score 0 where a row is
    not among the top_k.
    """
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts)[None], *views)
    found = jax.tree.map(lambda x: x[0], suppress(found, config, top_k, config.merge_exponent))
    return best_rows(found, found.scores > -1, top_k)


def in_input(boxes: Array, windows: Array | None) -> Array:
    """Boxes (B, N, 4) in pixels of the image in those of the input.  windows: as `decode` has it."""
    if windows is None:
        return boxes
    return boxes + windows[:, None, jnp.asarray([1, 0, 1, 0])].astype(jnp.float32)


def merge_flip(maps: dict[str, Array]) -> dict[str, Array]:
    """Put the maps of [images; mirrored images], (2B, h, w, .), side by side as two views: (B, 2, h, w, .).

    The corner methods merge detections, not maps: `decode` pairs corners in each view by itself.
    """
    half = maps["tl_heat"].shape[0] // 2
    return {name: jnp.stack([x[:half], x[half:]], axis=1) for name, x in maps.items()}


# CornerNet's published single-scale AP is that of "flip".
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def protocols(config: CornerNetConfig) -> dict[str, Protocol]:
    """The test protocols by preset.  mmdetection's configuration tests one scale; its merge takes any number."""
    if config.rules.flip == "boxes":
        rules = None if config.nms == "none" else config.rules.nms
        merged = Protocol(mirror="boxes", merge=functools.partial(merge_mirrored, rules=rules))
        return {"na": Protocol(), "flip": merged, "ms": dataclasses.replace(merged, scales=SCALES)}
    several = Protocol(
        mirror="maps",
        scales=SCALES,
        rows=functools.partial(rows, config=config),
        merge=functools.partial(merge_scales, config=config),
    )
    return {**PLAIN_AND_FLIP, "ms": several}


def build(name: str, released: CornerNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Put the record together.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options)
    return Detector(
        name=name,
        net=CornerNet(config, num_classes),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=config.rules, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, config=config),
        merge_flip=merge_flip,
        protocols=protocols(config),
        oracle=oracle,
        stride=STRIDE,
        multiple=STRIDE * 2 ** (len(config.features) - 1),
        less=1,
        import_rules=config.import_rules,
        options=options,
    )


def with_options(name: str, released: CornerNetConfig, options: dict[str, Any]) -> CornerNetConfig:
    """`released` with the options put in, checked, and its rules completed."""
    config = replace_options(
        name,
        released,
        options,
        dtype=("float32", "bfloat16"),
        radius=("", "legacy", "fixed"),
        kernel=(1, 3),
        nms=("", "none", *nms.METHODS),
    )
    if len(config.features) != len(config.blocks) or len(config.features) < 2:
        raise ConfigError(
            f"model {name}: features is {config.features} and blocks is {config.blocks}; give both the same number "
            "of levels, two at least"
        )
    for key in ("stem", "stacks", "branch", "head_channels", "corners", "pairs", "bn_groups"):
        if getattr(config, key) < 1:
            raise ConfigError(f"model {name}: {key} is {getattr(config, key)}; it must be at least 1")
    if min(config.features + config.blocks) < 1:
        raise ConfigError(f"model {name}: features and blocks must be at least 1 at every level")
    if config.embedding_images < 0:
        raise ConfigError(f"model {name}: embedding_images is {config.embedding_images}; it must be at least 0")
    if config.merge_exponent < 0:
        raise ConfigError(f"model {name}: merge_exponent is {config.merge_exponent}; it must be at least 0")
    if not 0 <= config.overlap < 1:
        raise ConfigError(
            f"model {name}: overlap is {config.overlap}; it must be at least 0 (the rules' own) and below 1"
        )
    rules = dataclasses.replace(
        config.rules, radius=config.radius or config.rules.radius, overlap=config.overlap or config.rules.overlap
    )
    if config.nms not in ("", "none"):
        rules = dataclasses.replace(rules, nms=dataclasses.replace(rules.nms, method=config.nms))
    return dataclasses.replace(config, rules=rules)
