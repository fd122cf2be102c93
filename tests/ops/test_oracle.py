"""Maps of the ground truth against a search in plain Python."""

from __future__ import annotations

import jax
import numpy as np

from kpjax.ops.oracle import logits, nearest_values


def test_every_cell_has_the_values_of_the_nearest_object() -> None:
    rng = np.random.default_rng(0)
    height, width, slots = 7, 9, 5
    index = rng.integers(0, height * width, (3, slots)).astype(np.int32)
    mask = np.array([[True] * 5, [True, False, True, False, False], [False] * 5])
    values = rng.normal(size=(3, slots, 2)).astype(np.float32)
    found = np.asarray(nearest_values(index, mask, values, (height, width)))
    assert found.shape == (3, height, width, 2)
    for b in range(3):
        for y in range(height):
            for x in range(width):
                squares = [(y - i // width) ** 2 + (x - i % width) ** 2 for i in index[b]]
                known = [(d, m) for m, d in enumerate(squares) if mask[b, m]]
                wanted = values[b, min(known)[1]] if known else np.zeros(2)
                np.testing.assert_array_equal(found[b, y, x], wanted)


def test_logits_are_undone_by_the_sigmoid() -> None:
    scores = np.array([0.0, 1e-6, 0.3, 0.999, 1.0], np.float32)
    np.testing.assert_allclose(jax.nn.sigmoid(logits(scores)), scores, rtol=1e-4, atol=1e-9)
