"""From extreme points to boxes (ExtremeNet, arXiv 1901.08043): edge aggregation, grouping, ghost boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.ops.largest import largest_of_many

Array = jax.Array

GHOST_SCORE = 0.2  # only boxes that score more can be ghosts
GHOST_SHARE = 3.0  # a ghost's score is exceeded this many times by the sum of the scores within it


def aggregate_edges(scores: Array, axis: int, weight: float) -> Array:
    """Score maps in which a cell also has `weight` times what leads up to it along an axis (ExtremeNet, section 4.3).

    An object with a flat edge has no single extreme point: its scores are spread along the edge.  To a cell are added,
    from either side, the scores of the cells before it as long as they do not fall towards it.

    scores: float32 in [0, 1], any shape.  axis: along which the edges lie: that of x for the top and the bottom, of y
    for the left and the right.  Returns the same shape; a sum can exceed 1.
    """
    if not weight:
        return scores
    along = jnp.moveaxis(scores, axis, 0)

    def step(before: tuple[Array, Array], here: Array) -> tuple[tuple[Array, Array], Array]:
        value, total = before
        total = jnp.where(here >= value, total, 0.0) + here
        return (here, total), total - here

    def lead_up(cells: Array, reverse: bool = False) -> Array:
        start = (jnp.full_like(cells[0], jnp.inf), jnp.zeros_like(cells[0]))
        return jax.lax.scan(step, start, cells, reverse=reverse)[1]

    def apart(along: Array) -> tuple[Array, Array]:
        return lead_up(along), lead_up(along, reverse=True)

    def together(along: Array) -> tuple[Array, Array]:
        added = lead_up(jnp.stack([along, along[::-1]], axis=1))
        return added[:, 0], added[::-1, 1]

    # Both ways in one loop are half as many operations to start, which a GPU needs, and copies, which a CPU does not.
    one, other = jax.lax.platform_dependent(along, cuda=together, default=apart)
    return jnp.moveaxis(weight * one + weight * other + along, 0, axis)


def group_extremes(
    scores: Array,
    labels: Array,
    ys: Array,
    xs: Array,
    center: Array,
    *,
    count: int,
    least_score: float,
    least_center: float,
) -> tuple[Array, Array]:
    """The best groups of four extreme points that can be one object of an image (ExtremeNet, algorithm 1).

    scores, labels, ys, xs: (4, K), the best cells of the top, left, bottom and right map, whole numbers but for the
    scores.  center: (h, w, C) float32 scores of centres.  count: how many groups are kept.

    A group is of one class, its top is not below any other of its points (and so on), no point scores less than
    `least_score`, and at its geometric centre, the cell of the middle of left and right and of top and bottom, a
    centre of the class scores at least `least_center`.  Its score is (t + l + b + r + 2 c) / 6.

    Returns scores (N,) float32, N = min(count, K^4), best first, 0 where there is no group; and (N, 4) int32, which of
    the K cells of each map it consists of.  Of equal scores the first in the order of (top, left, bottom, right)
    comes first.
    """
    k, (_, width, classes) = scores.shape[1], center.shape

    def place(values: Array, kind: int) -> Array:
        return values[kind].reshape([k if axis == kind else 1 for axis in range(4)])

    t, left, b, r = range(4)
    y, x = [place(ys, kind) for kind in range(4)], [place(xs, kind) for kind in range(4)]
    label, score = [place(labels, kind) for kind in range(4)], [place(scores, kind) for kind in range(4)]
    # The original takes int((l + r + 0.5) / 2), of whole numbers: their middle rounded down.
    cell = (y[t] + y[b]) // 2 * width + (x[left] + x[r]) // 2
    middle = center.reshape(-1)[cell * classes + label[t]]
    fits = middle >= least_center
    for one in range(4):
        fits &= (label[one] == label[t]) & (score[one] >= least_score)
        fits &= (y[t] <= y[one]) & (x[left] <= x[one]) & (y[b] >= y[one]) & (x[r] >= x[one])
    total = jnp.where(fits, (score[t] + score[left] + score[b] + score[r] + 2 * middle) / 6, 0.0)
    found, best = largest_of_many(total.reshape(-1), count)
    return found, jnp.stack([best // k**3, best // k**2 % k, best // k % k, best % k], axis=-1)


def suppress_ghosts(boxes: Array, scores: Array, labels: Array) -> Array:
    """The scores (N,) with those of ghosts halved: of boxes that were put together from the points of several objects.

    boxes: (N, 4) float32.  scores: (N,) float32, 0 for an empty slot.  labels: (N,) int32.
    A box is a ghost where it scores more than `GHOST_SCORE` and the boxes of its class that lie within it, itself
    among them, more than `GHOST_SHARE` times as much together (ExtremeNet, section 4.2).  Boxes are looked at in the
    given order, and later ones see the scores that earlier ones then have, as in the original.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = (low[None] >= low[:, None]).all(-1) & (high[None] <= high[:, None]).all(-1)  # [k, t]: t lies in k
    inside &= labels[None] == labels[:, None]
    place = jnp.arange(scores.shape[0])
    earlier = place[None] < place[:, None]

    def decide(ghost: Array) -> Array:
        seen = jnp.where(earlier & ghost[None], scores[None] / 2, scores[None])
        within = jnp.where(inside, seen, 0.0).sum(1)
        return (scores > GHOST_SCORE) & (within > scores * GHOST_SHARE)

    # A box depends on earlier ones alone.  So deciding all at once, again and again until nothing changes, ends with
    # what one after another gives: after as many rounds as the longest chain of ghosts within ghosts.
    def goes_on(state: tuple[Array, Array]) -> Array:
        return (state[0] != state[1]).any()

    start = jnp.zeros(scores.shape, bool)
    _, ghost = jax.lax.while_loop(goes_on, lambda state: (state[1], decide(state[1])), (start, decide(start)))
    return jnp.where(ghost, scores / 2, scores)
