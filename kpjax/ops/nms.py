"""Soft-NMS on the device, all classes in one loop of fixed shapes (Bodla et al., arXiv 1704.04503).

The loop takes the best row that is left, of any class, and lowers the scores of the rows of its class
that it overlaps; it ends when no row is above the threshold, or sooner where only the best are wanted.  Rows are
kept by class, in the order in which the originals keep them, since two of their quirks depend on a row's
position: what is left behind a class's kept rows (`stale_rows`), and the weights of `soft_nms_merge`, which do not
move with their rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kpjax.errors import ConfigError
from kpjax.ops.largest import largest

Array = jax.Array
METHODS = ("hard", "linear", "gaussian")
_SCORE, _INDEX, _PARTNER = 4, 5, 6  # rows of the loop's (7, N) table; 0..3 are x1 y1 x2 y2


@dataclasses.dataclass(frozen=True)
class SoftNms:
    """How scores are lowered, and where the released implementations differ, as values.

    method: what an overlap o does to a score: "hard" 0 above `overlap`, "linear" x (1 - o) above
        `overlap`, "gaussian" x exp(-o^2 / sigma).
    threshold: a row whose lowered score is below it is dropped.
    pixel: added to widths and heights: 1 where corners are the centres of pixels (golden: soft_nms,
        fn_ctnet_merge), 0 where they are their edges (golden: fn_mmcv_soft_nms).
    inclusive: an overlap equal to `overlap` counts as above it (mmcv, and the originals' hard `nms`).
    drop_isolated: rows that overlap nothing are tested against the threshold too (mmcv); otherwise they stay.
    """

    method: str = "gaussian"
    overlap: float = 0.5
    sigma: float = 0.5
    threshold: float = 0.001
    pixel: float = 1.0
    inclusive: bool = False
    drop_isolated: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"soft-NMS method is {self.method!r}; choose one of {', '.join(map(repr, METHODS))}")


ORIGINAL = SoftNms()  # CornerNet, the triplets and xingyizhou's CenterNet: copies of one Cython file
MMCV = SoftNms(pixel=0.0, inclusive=True, drop_isolated=True)
# mmcv's plain NMS of each class: strictly above the overlap, and no least score.
HARD_MMCV = dataclasses.replace(MMCV, method="hard", inclusive=False, threshold=1e-37)


@flax.struct.dataclass
class NmsResult:
    """The result of soft-NMS, class after class, N rows as there were before.

    boxes: (N, 4) float32.  scores: (N,) float32, lowered.  labels: (N,) int32.
    index: (N,) int32, which input row this was.  partner: (N,) int32, the input row whose points the originals keep
    here: `index` itself, but for stale rows (golden: fn_ctnet_merge `merge/multi_pose`).
    kept: (N,) bool; the other rows are to be ignored.
    stale: (N,) bool, what the originals leave behind the kept rows; kept too with `stale_rows` alone.
    """

    boxes: Array
    scores: Array
    labels: Array
    index: Array
    partner: Array
    kept: Array
    stale: Array


def soft_nms(
    boxes: Array,
    scores: Array,
    labels: Array,
    valid: Array | None = None,
    *,
    rules: SoftNms = ORIGINAL,
    stale_rows: bool = False,
    most: int = 0,
) -> NmsResult:
    """Soft-NMS of one image's rows; pure, for jit and vmap.

    boxes: (N, 4) float32 x1 y1 x2 y2.  scores: (N,) float32.  labels: (N,) int32; rows of different
    labels do not touch each other.  valid: (N,) bool, None: all.
    stale_rows: keep what the originals leave in their array: the last row takes the place of a dropped
        one, and its old copy, with the score it had then, stays behind the kept rows.  Their test code
        ignores how many were kept, so these copies are in the published detections (golden: fn_ctnet_merge
        `merge/*`, postprocess_cornernet); CornerNet-Saccade and mmcv cut them off.
    most: the loop ends once the `most` best rows that it keeps, and all tied with the last of them, are certain
        (`keep_best` gives the same rows then); what is left has scores below theirs, not all of them lowered
        yet.  0: it goes on to the threshold.
    """
    return _run(boxes, scores, labels, valid, None, rules, 0.0, stale_rows, most)


def soft_nms_merge(
    boxes: Array,
    scores: Array,
    labels: Array,
    weights: Array,
    valid: Array | None = None,
    *,
    rules: SoftNms = ORIGINAL,
    exponent: float = 10.0,
    stale_rows: bool = False,
    most: int = 0,
) -> NmsResult:
    """`soft_nms` whose selected boxes become averages of the boxes that they overlap (CornerNet's multi-scale test).

    weights: (N, 2) float32, the scores of the top left corner (for x1, y1) and the bottom right one (x2, y2).
    With w_j the factor that row j's score got, m_j = (1 - w_j)^exponent and c the weight, x1 of the selected row i
    becomes (x1_i c_i + sum_j x1_j c_j m_j) / (c_i + sum_j c_j m_j).

    The originals move rows without their weights (golden: soft_nms `soft_nms_merge/*`): c is that of the
    place where a row is tested, here too.
    """
    return _run(boxes, scores, labels, valid, weights, rules, exponent, stale_rows, most)


def keep_best(scores: Array, kept: Array, k: int) -> Array:
    """Which kept rows are among the k best, (N,) bool: all whose score is at least the k-th's, so ties can exceed k."""
    if k >= scores.shape[-1]:
        return kept
    ranked = jnp.where(kept, scores, -jnp.inf)
    return kept & (ranked >= largest(ranked, k)[0][..., -1:])


def _run(
    boxes: Array,
    scores: Array,
    labels: Array,
    valid: Array | None,
    weights: Array | None,
    rules: SoftNms,
    exponent: float,
    stale_rows: bool,
    most: int,
) -> NmsResult:
    count = scores.shape[0]
    valid = ~jnp.isnan(scores) & (True if valid is None else valid)  # a NaN would stay the maximum for ever
    # Classes become runs of neighbours, in the order given; what is not valid goes to the end.
    far = jnp.iinfo(jnp.int32).max
    order = jnp.argsort(jnp.where(valid, labels.astype(jnp.int32), far), stable=True)
    labels, valid = labels.astype(jnp.int32)[order], valid[order]
    place = jnp.arange(count, dtype=jnp.int32)
    begins = (place == 0) | (labels != jnp.roll(labels, 1)) | (valid != jnp.roll(valid, 1))
    # Scans here and below, not `lax.cummax` and `jnp.cumsum`: JAX 0.11 lowers those to operations that TensorFlow's
    # versions of StableHLO lack (kpjax.export).
    first = jax.lax.associative_scan(jnp.maximum, jnp.where(begins, place, 0))  # where the class of this place begins
    ends = jnp.where(jnp.roll(begins, -1).at[-1].set(True), place + 1, count)
    ends = jax.lax.associative_scan(jnp.minimum, ends, reverse=True)
    numbers = jnp.arange(count, dtype=jnp.float32)[None]
    table = jnp.concatenate([boxes.astype(jnp.float32).T, scores.astype(jnp.float32)[None], numbers, numbers])[:, order]
    corner_scores = jnp.zeros((0, count)) if weights is None else weights.astype(jnp.float32).T[:, order]

    def best_open(table: Array, is_open: Array) -> tuple[Array, Array]:
        ranked = jnp.where(is_open, table[_SCORE], -jnp.inf)
        top = ranked.max()
        return jnp.min(jnp.where(ranked == top, place, count - 1)), top

    def goes_on(state: Any) -> Array:
        *_, taken, last, _, top = state
        # Scores never rise, so that those taken are the best of all; a later one can at most tie with the last.
        wanted = (taken < most) | (top >= last) if most else True
        return (top >= rules.threshold) & wanted

    def step(state: Any) -> Any:
        table, is_open, cursor, stop, taken, _, best, top = state
        group = first[best]
        here, end = cursor[group], stop[group]
        selected, other = table[:, best], table[:, here]
        table = _put(table, best, other, here, selected)
        later = (place > here) & (place < end)
        factor, touched = _factors(table, selected, rules)
        tested = later if rules.drop_isolated else later & touched
        lowered = jnp.where(later, table[_SCORE] * factor, table[_SCORE])
        dropped = tested & (lowered < rules.threshold)
        old = table

        def fill(_: None) -> tuple[Array, Array, Array]:
            table, new_end, seen_at = _fill_gaps(old, lowered, dropped, later, end)
            return table, new_end, corner_scores[:, seen_at]

        def leave(_: None) -> tuple[Array, Array, Array]:
            return old.at[_SCORE].set(lowered), end, corner_scores

        table, new_end, weights_seen = jax.lax.cond(dropped.any(), fill, leave, None)
        if weights is not None:
            share = jnp.where(later & touched, _power(1.0 - factor, exponent), 0.0)
            table = table.at[:4, here].set(_merge(old, selected, corner_scores[:, here], weights_seen * share))
        is_open = is_open & (place != here) & ~((place >= new_end) & (place < end))
        cursor, stop = cursor.at[group].set(here + 1), stop.at[group].set(new_end)
        return table, is_open, cursor, stop, taken + 1, top, *best_open(table, is_open)

    start = (table, valid, place, ends, jnp.int32(0), jnp.float32(0), *best_open(table, valid))
    table, _, _, stop, *_ = jax.lax.while_loop(goes_on, step, start)
    stale = place >= stop[first]
    if rules.drop_isolated:
        stale |= table[_SCORE] < rules.threshold
    kept = valid if stale_rows else valid & ~stale
    index, partner = table[_INDEX].astype(jnp.int32), table[_PARTNER].astype(jnp.int32)
    return NmsResult(table[:4].T, table[_SCORE], labels, index, partner, kept, valid & stale)


def _factors(table: Array, selected: Array, rules: SoftNms) -> tuple[Array, Array]:
    """The factor of each row's score by its overlap with the selected row, (N,), and which rows that touches, (N,)."""
    x1, y1, x2, y2 = table[0], table[1], table[2], table[3]
    width = jnp.minimum(x2, selected[2]) - jnp.maximum(x1, selected[0]) + rules.pixel
    height = jnp.minimum(y2, selected[3]) - jnp.maximum(y1, selected[1]) + rules.pixel
    touched = (width > 0) & (height > 0)
    inter = jnp.where(touched, width * height, 0.0)
    area = (x2 - x1 + rules.pixel) * (y2 - y1 + rules.pixel)
    own = (selected[2] - selected[0] + rules.pixel) * (selected[3] - selected[1] + rules.pixel)
    # Touching rows have a union above 0, unless a box has x2 < x1 or y2 < y1; the others must not divide by 0.
    overlap = inter / jnp.where(touched, area + own - inter, 1.0)
    if rules.method == "gaussian":
        return jnp.where(touched, jnp.exp(-(overlap * overlap) / rules.sigma), 1.0), touched
    above = overlap >= rules.overlap if rules.inclusive else overlap > rules.overlap
    return jnp.where(touched & above, 0.0 if rules.method == "hard" else 1.0 - overlap, 1.0), touched


def _fill_gaps(table: Array, lowered: Array, dropped: Array, later: Array, end: Array) -> tuple[Array, Array, Array]:
    """Drop rows as the originals do, in one go: (the new table, the new end, the place where each row was tested).

    They go from left to right; the last row moves into the place of a dropped one and is tested there, and
    again as long as the row that moved in is dropped too.  So gaps below the new end are filled, from the left, by the
    rows that survive behind it, from the right; those behind it stay as they were before this step.
    """
    count = dropped.shape[0]
    place = jnp.arange(count, dtype=jnp.int32)
    new_end = end - dropped.sum(dtype=jnp.int32)
    gap = dropped & (place < new_end)
    mover = later & ~dropped & (place >= new_end)
    behind = later & (place >= new_end)
    # A row behind the new end is tested in the gap open when its turn comes, after the last gap at `new_end`.
    turn = _sum_before(mover.astype(jnp.int32), reverse=True)
    number = _sum_before(gap.astype(jnp.int32))  # of each gap, from the left
    gaps = jnp.full(count + 1, new_end).at[jnp.where(gap, number, count + 1)].set(place, mode="drop")
    seen_at = jnp.where(behind, gaps[turn], place)
    source = place.at[jnp.where(mover, seen_at, count)].set(place, mode="drop")
    # A row that is tested on `new_end` itself is dropped there, with its lowered score; the last such row stays.
    lowest = jnp.min(jnp.where(mover, place, end))
    source = jnp.where((place == new_end) & (lowest > new_end + 1), place + 1, source)
    changed = (place < new_end) | ((place == new_end) & (lowest > new_end))
    moved = table[:, source]
    moved = moved.at[_SCORE].set(jnp.where(changed, lowered[source], table[_SCORE]))
    # The points of a dropped row change places with the last row's, so that they stay behind the kept rows.
    left_at = jnp.where(dropped, end - 1 - _turn_of_drop(dropped, gap, behind, seen_at, new_end), count)
    return moved.at[_PARTNER, left_at].set(table[_PARTNER], mode="drop"), new_end, seen_at


def _turn_of_drop(dropped: Array, gap: Array, behind: Array, seen_at: Array, new_end: Array) -> Array:
    """How many rows were dropped before each dropped row, (N,) int32, in the order of `_fill_gaps`."""

    place = jnp.arange(dropped.shape[0], dtype=jnp.int32)
    gaps, gone = gap.astype(jnp.int32), (dropped & behind).astype(jnp.int32)
    gaps_before = _sum_before(gaps)
    tested_before = _sum_before(
        jnp.zeros_like(gone).at[seen_at].add(gone)
    )  # rows from behind, tested at an earlier place
    # On a place its own row is tested first, then rows from behind, the last one first.
    from_behind = gaps_before[seen_at] + gaps[seen_at] + _sum_before(gone, reverse=True)
    from_behind += (seen_at == new_end) & (place > new_end)
    in_place = gap | (place == new_end) & (seen_at == new_end)
    return jnp.where(in_place, gaps_before + tested_before, from_behind)


# A GPU takes some microseconds to start an operation, however small: there one that does more work replaces several.


def _sum_before(x: Array, reverse: bool = False) -> Array:
    """The sum of the places before each one, (N,) int32; reverse: behind each one."""

    def scan(x: Array) -> Array:
        return jax.lax.associative_scan(jnp.add, x, reverse=reverse) - x

    def compare(x: Array) -> Array:
        place = jnp.arange(x.shape[0], dtype=jnp.int32)
        before = (place[:, None] < place) if reverse else (place[:, None] > place)
        return jnp.where(before, x, 0).sum(1)

    return jax.lax.platform_dependent(x, cuda=compare, default=scan)


def _put(table: Array, first: Array, value: Array, second: Array, other: Array) -> Array:
    """The table (R, N) with `value` (R,) in the column `first` and then `other` in the column `second`."""

    def update(table: Array) -> Array:
        return table.at[:, first].set(value).at[:, second].set(other)

    def select(table: Array) -> Array:
        place = jnp.arange(table.shape[1], dtype=jnp.int32)
        return jnp.where(place == second, other[:, None], jnp.where(place == first, value[:, None], table))

    return jax.lax.platform_dependent(table, cuda=select, default=update)


def _merge(table: Array, selected: Array, own: Array, each: Array) -> Array:
    """The selected row's averaged box, (4,).  own: its two weights, (2,); each: those of the rows it merges, (2, N)."""
    merged = [
        (selected[i] * own[i // 2] + (table[i] * each[i // 2]).sum()) / (own[i // 2] + each[i // 2].sum())
        for i in range(4)
    ]
    return jnp.stack(merged)


def _power(x: Array, exponent: float) -> Array:
    # Whole exponents as products: pow takes most of a merge's time otherwise.
    return jax.lax.integer_pow(x, int(exponent)) if float(exponent).is_integer() else x**exponent
