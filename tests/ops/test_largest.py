"""`largest` by sorting is `lax.top_k`, ties and infinities included, and holds no composite operation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.ops.largest import by_sorting, largest, largest_of_many


@pytest.mark.parametrize("k", [1, 7, 40])
def test_both_forms_agree(k: int) -> None:
    rng = np.random.default_rng(k)
    x = rng.integers(-3, 4, (5, 2, 40)).astype(np.float32)  # many ties
    x[0, 0, ::3] = -np.inf
    x[1, 1, 5] = np.inf
    want = largest(jnp.asarray(x), k)
    with by_sorting():
        got = largest(jnp.asarray(x), k)
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    for values, places in (want, got):
        np.testing.assert_array_equal(places, order)
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


def test_the_block_ends() -> None:
    def text() -> str:
        return jax.jit(lambda x: largest(x, 3)).lower(jnp.zeros((2, 9))).as_text()

    assert "top_k" in text()
    with pytest.raises(KeyError), by_sorting():
        assert "top_k" not in text()
        raise KeyError
    assert "top_k" in text()


@pytest.mark.parametrize(("count", "k"), [(5, 9), (700, 3), (5000, 10), (70_001, 20)])
def test_of_many_the_same_in_the_same_order(count: int, k: int) -> None:
    """With ties, and with the block's maxima level too."""
    x = np.random.default_rng(count).integers(0, 40, count).astype(np.float32)
    values, places = jax.jit(largest_of_many, static_argnums=1)(x, k)
    order = np.argsort(-x, kind="stable")[:k]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, x[order])
