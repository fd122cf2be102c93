"""Edge aggregation, grouping and ghosts against loops over all candidates."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest

from kpjax.ops import extremes
from kpjax.ops.extremes import aggregate_edges, suppress_ghosts


@pytest.mark.parametrize("axis", [0, 1])
def test_what_leads_up_to_a_cell_is_added(axis: int) -> None:
    scores = np.random.default_rng(axis).integers(0, 4, (9, 7, 3)).astype(np.float32) / 8  # with equal neighbours
    along = np.moveaxis(scores, axis, 0)
    expected = along.copy()
    for step in (1, -1):
        cells = range(len(along))[::step]
        total = along.copy()
        for i in cells[1:]:
            total[i] += total[i - step] * (along[i] >= along[i - step])
        expected += 0.1 * (total - along)
    found = jax.jit(aggregate_edges, static_argnums=(1, 2))(scores, axis, 0.1)
    np.testing.assert_allclose(found, np.moveaxis(expected, 0, axis), atol=1e-6)
    np.testing.assert_array_equal(aggregate_edges(scores, axis, 0.0), scores)


def all_groups(
    scores: np.ndarray, labels: np.ndarray, ys: np.ndarray, xs: np.ndarray, center: np.ndarray, least: float
) -> list[tuple[float, tuple[int, ...]]]:
    found = []
    for members in itertools.product(range(scores.shape[1]), repeat=4):
        s, label, y, x = ([values[kind, n] for kind, n in enumerate(members)] for values in (scores, labels, ys, xs))
        middle = center[int((y[0] + y[2] + 0.5) / 2), int((x[1] + x[3] + 0.5) / 2), label[0]]
        fits = len(set(label)) == 1 and min(s) >= least and middle >= least
        fits = fits and y[0] == min(y) and y[2] == max(y) and x[1] == min(x) and x[3] == max(x)
        if fits:
            found.append(((sum(s) + 2 * middle) / 6, members))
    return sorted(found, key=lambda row: (-row[0], row[1][0], row[1][2], row[1][1], row[1][3]))


@pytest.mark.parametrize(("seed", "count"), [(0, 5), (1, 40), (2, 3000)])
def test_groups_are_those_of_a_loop_over_all(seed: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    k, height, width, classes = 6, 9, 11, 2
    scores = rng.integers(1, 9, (4, k)).astype(np.float32) / 8  # with ties, and some below 0.2
    labels = (rng.random((4, k)) < 0.2).astype(np.int32)
    # Tops are mostly above the others, lefts mostly left of them.
    low = {"y": np.array([0, 2, 5, 2]), "x": np.array([2, 0, 2, 6])}
    high = {"y": np.array([4, 7, height, 7]), "x": np.array([9, 5, 9, width])}
    ys, xs = (rng.integers(low[axis][:, None], high[axis][:, None], (4, k)).astype(np.int32) for axis in "yx")
    center = rng.integers(0, 9, (height, width, classes)).astype(np.float32) / 8
    expected = all_groups(scores, labels, ys, xs, center, 0.2)
    assert len(expected) > 5
    monkeypatch.setattr(extremes, "BLOCK", 7)  # several blocks of pairs
    group = functools.partial(extremes.group_extremes, count=count, least_score=0.2, least_center=0.2)
    found, members = jax.jit(group)(scores, labels, ys, xs, center)
    assert found.shape == (min(count, k**4),)
    wanted = expected[:count]
    np.testing.assert_allclose(found[: len(wanted)], [score for score, _ in wanted], rtol=1e-6)
    assert not np.asarray(found[len(wanted) :]).any()
    # Sums in float32 can make a tie of what differs in the last digit: which groups they are, not their order.
    assert {tuple(row) for row in np.asarray(members[: len(expected)]).tolist()} <= {m for _, m in expected}
    if count >= len(expected):
        assert {tuple(row) for row in np.asarray(members[: len(expected)]).tolist()} == {m for _, m in expected}


def one_after_another(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    for k in range(len(scores)):
        if scores[k] > 0.2:
            inside = (boxes[:, :2] >= boxes[k, :2]).all(1) & (boxes[:, 2:] <= boxes[k, 2:]).all(1)
            if scores[inside & (labels == labels[k])].sum() > 3 * scores[k]:
                scores[k] /= 2
    return scores


@pytest.mark.parametrize("seed", range(8))
def test_ghosts_are_halved_one_after_another(seed: int) -> None:
    """Boxes within boxes, whose own halving decides whether the ones around them are halved."""
    rng = np.random.default_rng(seed)
    count = 40
    middle, half = rng.uniform(40, 60, (count, 2)), rng.uniform(1, 40, (count, 1)) * rng.uniform(0.9, 1.1, (count, 2))
    boxes = np.concatenate([middle - half, middle + half], 1).astype(np.float32)
    scores = rng.uniform(0, 0.7, count).astype(np.float32)
    scores[rng.random(count) < 0.3] = 0
    labels = rng.integers(0, 2, count).astype(np.int32)
    expected = one_after_another(boxes, scores, labels)
    assert (expected != scores).any()
    np.testing.assert_allclose(jax.jit(suppress_ghosts)(boxes, scores, labels), expected, rtol=1e-6)


def test_the_order_decides() -> None:
    """The inner box is a ghost itself.  Looked at first, its lowered score saves the outer one."""
    boxes = np.array([[10, 10, 20, 20], [11, 11, 12, 12], [0, 0, 30, 30], [13, 13, 14, 14]], np.float32)
    scores = np.array([0.4, 0.45, 0.5, 0.45], np.float32)  # 0.4 + 0.9 > 3 x 0.4; 0.5 + 0.9 + 0.4 > 1.5, less 0.2 too
    same = np.zeros(4, np.int32)
    np.testing.assert_allclose(suppress_ghosts(boxes, scores, same), [0.2, 0.45, 0.25, 0.45])
    scores[2] = 0.79  # 0.79 + 0.9 + 0.4 < 2.37
    np.testing.assert_allclose(suppress_ghosts(boxes, scores, same), [0.2, 0.45, 0.79, 0.45])
    scores[2] = 0.6  # 0.6 + 0.9 + 0.4 > 1.8 > 0.6 + 0.9 + 0.2
    np.testing.assert_allclose(suppress_ghosts(boxes, scores, same), [0.2, 0.45, 0.6, 0.45])
    turned = np.array([2, 1, 0, 3])
    np.testing.assert_allclose(suppress_ghosts(boxes[turned], scores[turned], same), [0.3, 0.45, 0.2, 0.45])
