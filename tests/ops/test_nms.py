"""Soft-NMS against a loop over rows that moves them about as the originals' does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpjax.errors import ConfigError
from kpjax.ops.nms import MMCV, ORIGINAL, NmsResult, SoftNms, keep_best, soft_nms, soft_nms_merge

COUNT = 40  # rows of most tests, so that they share what is compiled

# rules, stale_rows, exponent of merging: each a compilation
CASES = [
    (ORIGINAL, True, None),
    (ORIGINAL, True, 8.0),
    (MMCV, False, None),
    (SoftNms("linear", overlap=0.3, threshold=0.05), False, 2.5),
    (SoftNms("hard", pixel=0.0, inclusive=True, drop_isolated=True), False, None),
    (SoftNms("gaussian", sigma=0.1, threshold=0.3), True, None),
]
_plain = jax.jit(soft_nms, static_argnames=("rules", "stale_rows", "most"))
_merging = jax.jit(soft_nms_merge, static_argnames=("rules", "exponent", "stale_rows", "most"))


def plain(boxes, scores, labels, valid=None, *, rules=ORIGINAL, stale_rows=False, most=0) -> NmsResult:
    valid = np.ones(len(scores), bool) if valid is None else valid
    return _plain(boxes, scores, labels, valid, rules=rules, stale_rows=stale_rows, most=most)


def merging(boxes, scores, labels, weights, valid=None, *, rules, exponent, stale_rows, most=0) -> NmsResult:
    valid = np.ones(len(scores), bool) if valid is None else valid
    options = {"rules": rules, "exponent": exponent, "stale_rows": stale_rows, "most": most}
    return _merging(boxes, scores, labels, weights, valid, **options)


def factor(a: np.ndarray, b: np.ndarray, rules: SoftNms) -> tuple[float, bool]:
    width = min(a[2], b[2]) - max(a[0], b[0]) + rules.pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + rules.pixel
    if width <= 0 or height <= 0:
        return 1.0, False
    areas = [(r[2] - r[0] + rules.pixel) * (r[3] - r[1] + rules.pixel) for r in (a, b)]
    overlap = width * height / (sum(areas) - width * height)
    if rules.method == "gaussian":
        return float(np.exp(-(overlap**2) / rules.sigma)), True
    above = overlap >= rules.overlap if rules.inclusive else overlap > rules.overlap
    return ((0.0 if rules.method == "hard" else 1.0 - overlap) if above else 1.0), True


def one_class(rows: np.ndarray, rules: SoftNms, weights: np.ndarray | None, exponent: float) -> int:
    """In place on rows x1, y1, x2, y2, score, index, partner (float64); returns how many are kept.

    The last column stands for an object's points: where a row is copied, these are exchanged.
    """
    end, i = len(rows), 0
    while i < end:
        best = i + int(np.argmax(rows[i:end, 4]))
        if rows[best, 4] < rules.threshold:
            break
        rows[[i, best]] = rows[[best, i]]
        own = np.ones(4) if weights is None else weights[i, [0, 0, 1, 1]]
        top, bottom = rows[i, :4] * own, own.copy()
        j = i + 1
        while j < end:
            by, touched = factor(rows[i], rows[j], rules)
            if touched and weights is not None:
                share = weights[j, [0, 0, 1, 1]] * (1 - by) ** exponent
                top, bottom = top + rows[j, :4] * share, bottom + share
            rows[j, 4] *= by
            if (touched or rules.drop_isolated) and rows[j, 4] < rules.threshold:
                rows[j, :6] = rows[end - 1, :6]
                rows[[j, end - 1], 6] = rows[[end - 1, j], 6]
                end -= 1
                continue
            j += 1
        if weights is not None:
            rows[i, :4] = top / bottom
        i += 1
    if rules.drop_isolated:
        while end and rows[end - 1, 4] < rules.threshold:
            end -= 1
    return end


def random_rows(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 50, (count, 2))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.002, 0.9, count)).astype(np.float32)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32), rng.random((count, 2)).astype(np.float32)


def check(seed: int, count: int, classes: int, rules: SoftNms, stale: bool, exponent: float | None) -> None:
    boxes, scores, labels, weights = random_rows(seed, count, classes)
    valid = np.random.default_rng(seed).random(count) < 0.8
    if exponent is None:
        found = plain(boxes, scores, labels, valid, rules=rules, stale_rows=stale)
    else:
        found = merging(boxes, scores, labels, weights, valid, rules=rules, exponent=exponent, stale_rows=stale)
    got = [np.asarray(a) for a in (found.boxes, found.scores, found.labels, found.index, found.kept)]
    start = 0
    for k in range(classes):
        mine = np.flatnonzero(valid & (labels == k))
        rows = np.concatenate([boxes[mine], scores[mine, None], mine[:, None], mine[:, None]], 1).astype(np.float64)
        end = one_class(rows, rules, None if exponent is None else weights[mine].astype(np.float64), exponent or 0.0)
        part = slice(start, start + len(mine))
        wanted = len(mine) if stale else end
        np.testing.assert_array_equal(np.asarray(found.stale)[part], np.arange(len(mine)) >= end)
        shown = got[4][part]
        np.testing.assert_array_equal(shown, np.arange(len(mine)) < wanted)
        np.testing.assert_allclose(got[0][part][shown], rows[:wanted, :4], atol=1e-3)
        np.testing.assert_allclose(got[1][part][shown], rows[:wanted, 4], atol=1e-5)
        np.testing.assert_array_equal(got[3][part][shown], rows[:wanted, 5])
        np.testing.assert_array_equal(np.asarray(found.partner)[part], rows[:, 6])
        assert (got[2][part] == k).all()
        start += len(mine)
    assert not got[4][start:].any(), "a row that is not valid is never kept"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(CASES))
def test_against_the_loop(seed: int, case: tuple[SoftNms, bool, float | None]) -> None:
    check(seed, COUNT, 3, *case)


def test_most_of_a_crowd_dropped_at_once() -> None:
    """Every way in which holes and movers can lie, the new end itself among the holes."""
    for seed in range(40):
        check(seed, 12, 1, SoftNms("hard", overlap=0.05), True, 3.0)


def test_images_of_a_batch_do_not_touch() -> None:
    batch = [random_rows(seed, COUNT, 4)[:3] for seed in range(3)]
    together = jax.jit(jax.vmap(functools.partial(soft_nms, stale_rows=True)))(*map(np.stack, zip(*batch, strict=True)))
    for i, rows in enumerate(batch):
        alone = plain(*rows, stale_rows=True)
        np.testing.assert_array_equal(together.index[i], alone.index)
        np.testing.assert_allclose(together.scores[i], alone.scores, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_rows_far_apart_keep_their_scores(seed: int) -> None:
    _, scores, labels, _ = random_rows(seed, COUNT, 2)
    left = np.arange(COUNT, dtype=np.float32) * 100
    boxes = np.stack([left, left, left + 50, left + 50], 1)
    found = plain(boxes, scores, labels)
    assert found.kept.all()
    np.testing.assert_array_equal(scores[found.index], found.scores)
    np.testing.assert_array_equal(boxes[found.index], found.boxes)


def test_no_rows_that_count() -> None:
    boxes, _, labels, _ = random_rows(0, COUNT, 2)
    weak, each_its_own = np.full(COUNT, 1e-4, np.float32), np.arange(COUNT, dtype=np.int32)
    assert not plain(boxes, np.full(COUNT, 0.5, np.float32), labels, np.zeros(COUNT, bool)).kept.any()
    kept = plain(boxes, weak, each_its_own).kept
    assert kept.all(), "the originals drop a weak row only where another one lowers it"
    assert not plain(boxes, weak, labels, rules=MMCV).kept.any()


def test_the_cap_keeps_ties() -> None:
    scores = jnp.array([0.5, 0.9, 0.5, 0.1, 0.8, 0.5])
    kept = jnp.array([True, True, True, True, False, True])
    np.testing.assert_array_equal(keep_best(scores, kept, 2), [True, True, True, False, False, True])
    np.testing.assert_array_equal(keep_best(scores, kept, 1), [False, True, False, False, False, False])
    np.testing.assert_array_equal(keep_best(scores, kept, 6), kept)
    np.testing.assert_array_equal(keep_best(scores, kept, 5), kept)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(CASES), st.booleans())
def test_an_early_end_changes_none_of_the_best(seed: int, case: tuple[SoftNms, bool, float | None], ties: bool) -> None:
    """The rows that the cap keeps, their places and their order are those of the loop that goes on to the threshold."""
    most, (rules, stale, exponent) = 9, case
    boxes, scores, labels, weights = random_rows(seed, COUNT, 3)
    scores = np.round(scores, 1) if ties else scores
    options = {"rules": rules, "stale_rows": stale}
    if exponent is None:
        whole, early = (plain(boxes, scores, labels, most=m, **options) for m in (0, most))
    else:
        options["exponent"] = exponent
        whole, early = (merging(boxes, scores, labels, weights, most=m, **options) for m in (0, most))
    best = np.asarray(keep_best(whole.scores, whole.kept, most))
    np.testing.assert_array_equal(keep_best(early.scores, early.kept, most), best)
    for name in ("boxes", "scores", "labels", "index"):
        np.testing.assert_array_equal(np.asarray(getattr(early, name))[best], np.asarray(getattr(whole, name))[best])


def test_an_early_end_is_early() -> None:
    """Of two clusters the weaker one is never looked at once the stronger one's best row is certain."""
    boxes = np.array([[0, 0, 9, 9], [1, 0, 9, 9], [50, 0, 59, 9], [51, 0, 59, 9]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.zeros(4, np.int32)
    early, whole = (plain(boxes, scores, labels, most=m) for m in (1, 0))
    assert early.scores[3] == scores[3] and whole.scores[3] < scores[3]


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'cubic'.*'gaussian'"):
        SoftNms("cubic")


@pytest.mark.parametrize("case", CASES[:2], ids=["plain", "merging"])
def test_images_together_are_images_one_by_one(
    case: tuple[SoftNms, bool, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form for GPUs against that for others: 1,000 sets, with ties, some of them empty."""
    rules, stale_rows, exponent = case
    rng = np.random.default_rng(0)
    shape = (1000, COUNT)
    corner = rng.integers(0, 40, (*shape, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (*shape, 2))], -1).astype(np.float32)
    scores = (rng.integers(1, 12, shape) / 12).astype(np.float32)
    labels = rng.integers(0, 3, shape).astype(np.int32)
    valid = np.arange(COUNT) < rng.integers(0, COUNT + 1, (1000, 1))
    weights = rng.uniform(0.1, 1, (*shape, 2)).astype(np.float32)

    def one(rows: tuple[jax.Array, ...]) -> NmsResult:
        boxes, scores, labels, valid, weights = rows
        options = {"rules": rules, "stale_rows": stale_rows, "most": 10}
        if exponent is None:
            return soft_nms(boxes, scores, labels, valid, **options)
        return soft_nms_merge(boxes, scores, labels, weights, valid, exponent=exponent, **options)

    rows = (boxes, scores, labels, valid, weights)
    alone = jax.jit(lambda rows: jax.lax.map(one, rows))(rows)
    asked = []

    def on_cuda(*arrays: jax.Array, cuda: Callable[..., jax.Array], default: object) -> jax.Array:
        asked.append(cuda)
        return cuda(*arrays)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_cuda)
    together = jax.jit(jax.vmap(one))(rows)
    assert len(asked) == 6  # five sums and an update of the table
    for field in dataclasses.fields(NmsResult):
        a, b = getattr(together, field.name), getattr(alone, field.name)
        if field.name == "boxes" and exponent is not None:  # averages, whose sums may go in another order
            np.testing.assert_allclose(a, b, atol=1e-4)
        else:
            np.testing.assert_array_equal(a, b, err_msg=field.name)
    assert np.asarray(together.kept).any() and not np.asarray(together.kept)[:, :COUNT].all()
