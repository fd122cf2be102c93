"""From corners to boxes: pairing (CornerNet, section 3.1), and the triplets' test of the box's middle."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.objects import BOX
from kpjax.ops import peaks
from kpjax.ops.largest import largest

Array = jax.Array


@flax.struct.dataclass
class Points:
    """The best keypoints of a batch: scores, xs, ys (B, N) float32, in cells, offsets added; labels (B, N) int32.

    A score of -1: no keypoint.
    tags: (B, N) embeddings; None where the keypoint has none.
    """

    scores: Array
    xs: Array
    ys: Array
    labels: Array
    tags: Array | None = None


@flax.struct.dataclass
class Candidates:
    """Boxes before the final selection: boxes (B, N, 4) float32; scores (B, N), -1 where there is none; labels (B, N).

    corner_scores: (B, N, 2) float32, of the top-left and the bottom-right corner, by which boxes are averaged where
    those of several scales are merged; None once that is done.
    """

    boxes: Array = flax.struct.field(metadata=BOX)
    scores: Array = flax.struct.field()
    labels: Array = flax.struct.field()
    corner_scores: Array | None = None


def best_points(
    heat: Array,
    offset: Array,
    tag: Array | None,
    k: int,
    kernel: int = 3,
    *,
    logits: bool = False,
    without: tuple[int, int] | None = None,
) -> Points:
    """The k best cells of a score map, with the other heads' values there.

    heat, kernel, logits: see `peaks.best_peaks`.  offset: (B, h, w, 2).  tag: (B, h, w, 1) or None.  without: a row
    and a column (y, x) whose cells are none once the k best are found: their score becomes -1 (golden:
    decode_cornernet_lite, `no_border`).
    """
    if kernel not in (1, 3):
        raise ValueError(f"kernel is {kernel}; choose 1 or 3")
    best, labels, ys, xs = peaks.best_peaks(heat, k, kernel=kernel, logits=logits)
    index = ys * heat.shape[2] + xs
    if without is not None:
        best = jnp.where((ys == without[0]) | (xs == without[1]), -1.0, best)
    moved = peaks.gather_cells(offset.astype(jnp.float32), index)
    tags = None if tag is None else peaks.gather_cells(tag.astype(jnp.float32), index)[..., 0]
    return Points(best, xs + moved[..., 0], ys + moved[..., 1], labels, tags)


def pair_corners(
    top_left: Points, bottom_right: Points, distance: float, count: int, strict: bool = False
) -> Candidates:
    """All pairs of a top-left and a bottom-right corner that can be one object, the best `count` of them.

    A pair is rejected where the classes differ, where the embeddings differ by more than `distance`, where the second
    corner is left of or above the first (`strict`: or level with it), or where one of them is none.  Its score is the
    mean of the two.
    Returns (B, min(count, K * K), ...), best first, boxes in the points' own unit.
    """

    def grid(one: Array, other: Array) -> tuple[Array, Array]:
        shape = (*one.shape, other.shape[1])
        return jnp.broadcast_to(one[:, :, None], shape), jnp.broadcast_to(other[:, None, :], shape)

    assert top_left.tags is not None and bottom_right.tags is not None
    label, other_label = grid(top_left.labels, bottom_right.labels)
    tag, other_tag = grid(top_left.tags, bottom_right.tags)
    x1, x2 = grid(top_left.xs, bottom_right.xs)
    y1, y2 = grid(top_left.ys, bottom_right.ys)
    score, other_score = grid(top_left.scores, bottom_right.scores)
    turned = (x2 <= x1) | (y2 <= y1) if strict else (x2 < x1) | (y2 < y1)
    rejected = (label != other_label) | (jnp.abs(tag - other_tag) > distance) | turned
    rejected |= jnp.minimum(score, other_score) < 0
    scores = jnp.where(rejected, -1.0, (score + other_score) / 2).reshape(score.shape[0], -1)
    scores, indices = largest(scores, min(count, scores.shape[1]))
    row, column = indices // score.shape[2], indices % score.shape[2]

    def take(values: Array, index: Array) -> Array:
        return jnp.take_along_axis(values, index, axis=1)

    boxes = jnp.stack(
        [
            take(top_left.xs, row),
            take(top_left.ys, row),
            take(bottom_right.xs, column),
            take(bottom_right.ys, column),
        ],
        -1,
    )
    corner_scores = jnp.stack([take(top_left.scores, row), take(bottom_right.scores, column)], -1)
    return Candidates(boxes, scores, take(top_left.labels, row), corner_scores)


def require_centers(found: Candidates, centers: Points, small_area: float = 22500.0) -> Candidates:
    """The triplets' rule: a box stays only where a centre of its class lies in its middle part.

    The middle part is the middle third of the width and the height of boxes of at most `small_area` (square
    pixels), the middle fifth of larger ones (Keypoint Triplets, eq. 1; the paper divides by scale at 150).  The first
    centre that fits counts: the new score is (2 score + centre's) / 3.  Boxes and centres are in image pixels.
    """
    x1, y1, x2, y2 = (found.boxes[..., i] for i in range(4))
    small = (x2 - x1) * (y2 - y1) <= small_area

    def middle(low: Array, high: Array) -> tuple[Array, Array]:
        third = (2 * low + high) / 3, (low + 2 * high) / 3
        fifth = (3 * low + 2 * high) / 5, (2 * low + 3 * high) / 5
        return jnp.where(small, third[0], fifth[0]), jnp.where(small, third[1], fifth[1])

    (left, right), (top, bottom) = middle(x1, x2), middle(y1, y2)
    xs, ys = centers.xs[:, None, :], centers.ys[:, None, :]
    fits = (xs > left[..., None]) & (xs < right[..., None]) & (ys > top[..., None]) & (ys < bottom[..., None])
    fits &= centers.labels[:, None, :] == found.labels[..., None]
    first = jnp.argmax(fits, -1)
    center = jnp.take_along_axis(centers.scores, first, axis=1)
    kept = fits.any(-1) & (found.scores > -1)
    return dataclasses.replace(found, scores=jnp.where(kept, (2 * found.scores + center) / 3, -1.0))
