"""From extreme points to boxes (ExtremeNet, arXiv 1901.08043): edge aggregation, grouping, ghost boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kpjax.extreme_points import BOTTOM, LEFT, RIGHT, TOP
from kpjax.ops.largest import largest, largest_of_many

Array = jax.Array

BLOCK = 64  # pairs of a top and a bottom that are grouped at a time
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
    length = scores.shape[axis]
    edge = jax.lax.slice_in_dim(scores, 0, 1, axis=axis)
    before = (jnp.full_like(edge, jnp.inf), jnp.zeros_like(edge))

    def add(here: Array, value: Array, total: Array) -> tuple[Array, Array, Array]:
        """What leads up to the cells `here`; and they and their sums, for the next ones."""
        total = jnp.where(here >= value, total, 0.0) + here
        return total - here, here, total

    def apart(scores: Array) -> Array:
        """One way after the other, a slice at a time in place."""

        def forth(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            added, value, total = state
            more, value, total = add(jax.lax.dynamic_slice_in_dim(scores, i, 1, axis), value, total)
            return jax.lax.dynamic_update_slice_in_dim(added, weight * more, i, axis), value, total

        def back(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            added, value, total = state
            i = length - 1 - i
            here = jax.lax.dynamic_slice_in_dim(scores, i, 1, axis)
            more, value, total = add(here, value, total)
            more = jax.lax.dynamic_slice_in_dim(added, i, 1, axis) + weight * more + here
            return jax.lax.dynamic_update_slice_in_dim(added, more, i, axis), value, total

        added, *_ = jax.lax.fori_loop(0, length, forth, (jnp.zeros_like(scores), *before))
        return jax.lax.fori_loop(0, length, back, (added, *before))[0]

    def together(scores: Array) -> Array:
        """Both ways in one loop, eight cells a round: fewer operations to start, which on a GPU count, more to copy."""

        def step(state: tuple[Array, Array], here: Array) -> tuple[tuple[Array, Array], Array]:
            more, value, total = add(here, *state)
            return (value, total), more

        along = jnp.moveaxis(scores, axis, 0)
        both = jnp.stack([along, along[::-1]], axis=1)
        _, added = jax.lax.scan(step, (jnp.full_like(both[0], jnp.inf), jnp.zeros_like(both[0])), both, unroll=8)
        return jnp.moveaxis(weight * added[:, 0] + weight * added[::-1, 1] + along, 0, axis)

    return jax.lax.platform_dependent(scores, cuda=together, default=apart)


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
    the K cells of each map it consists of.  Of equal scores the first in the order of (top, bottom, left, right)
    comes first.

    The pairs of a top and a bottom that can be one object's are taken `BLOCK` at a time, each with all pairs of a left
    and a right, and the best of them kept: a block is 100,000 candidates of the 2.6 million of K = 40, and a trained
    network's maps seldom have a second one.
    """
    k, (_, width, classes) = scores.shape[1], center.shape
    pairs, block, count = k * k, min(BLOCK, k * k), min(count, k**4)
    one, other = jnp.divmod(jnp.arange(pairs), k)

    def fitting(low: int, high: int, place: Array) -> Array:
        """Which pairs of two kinds of points can be one object's, (K^2,) bool: those whose places ascend."""
        fits = (labels[low][one] == labels[high][other]) & (place[low][one] <= place[high][other])
        return fits & (scores[low][one] >= least_score) & (scores[high][other] >= least_score)

    upright, across = fitting(TOP, BOTTOM, ys), fitting(LEFT, RIGHT, xs)
    order = jnp.pad(jnp.argsort(~upright, stable=True), (0, -pairs % block))
    number = upright.sum()
    label, (left, right) = labels[LEFT][one], (xs[LEFT][one], xs[RIGHT][other])
    highest = jnp.minimum(ys[LEFT][one], ys[RIGHT][other])
    lowest = jnp.maximum(ys[LEFT][one], ys[RIGHT][other])

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        done, best, members = state
        pair = jax.lax.dynamic_slice_in_dim(order, done, block)
        t, b = one[pair][:, None], other[pair][:, None]
        # The original takes int((l + r + 0.5) / 2), of whole numbers: their middle rounded down.
        cell = (ys[TOP][t] + ys[BOTTOM][b]) // 2 * width + (left + right) // 2
        middle = center.reshape(-1)[cell * classes + labels[TOP][t]]
        fits = (done + jnp.arange(block) < number)[:, None] & across & (labels[TOP][t] == label)
        fits &= (ys[TOP][t] <= highest) & (ys[BOTTOM][b] >= lowest) & (middle >= least_center)
        fits &= (left <= jnp.minimum(xs[TOP][t], xs[BOTTOM][b])) & (right >= jnp.maximum(xs[TOP][t], xs[BOTTOM][b]))
        total = scores[TOP][t] + scores[LEFT][one] + scores[BOTTOM][b] + scores[RIGHT][other] + 2 * middle
        found, place = largest_of_many(jnp.where(fits, total / 6, 0.0).reshape(-1), count)
        place = pair[place // pairs] * pairs + place % pairs
        # Earlier blocks stand first, so that of equal scores the first still comes first.
        best, index = largest(jnp.concatenate([best, found]), count)
        return done + block, best, jnp.concatenate([members, place])[index]

    start = (jnp.int32(0), jnp.zeros(count, jnp.float32), jnp.zeros(count, jnp.int32))
    _, best, members = jax.lax.while_loop(lambda state: state[0] < number, step, start)
    upright_pair, across_pair = members // pairs, members % pairs
    kinds = (upright_pair // k, across_pair // k, upright_pair % k, across_pair % k)  # top, left, bottom, right
    return best, jnp.stack(kinds, axis=-1).astype(jnp.int32)


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
