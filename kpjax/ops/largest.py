"""The k largest values of each row (top-k), by `lax.top_k` or, for programs that TensorFlow reads, by sorting."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

Array = jax.Array

_SORTED = contextvars.ContextVar("sorted", default=False)


def largest(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of the last axis, largest first, and their places; of equal ones the first comes first.

    x: (..., n) float32, none of it NaN; k <= n.  Returns (..., k) float32 and (..., k) int32: `lax.top_k`, or what
    gives the same by sorting, within `by_sorting`.
    """
    if not _SORTED.get():
        return jax.lax.top_k(x, k)
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    negative, places = jax.lax.sort((-x, places), num_keys=1, is_stable=True)
    return -negative[..., :k], places[..., :k]


def largest_of_many(x: Array, k: int, block: int = 256) -> tuple[Array, Array]:
    """As `largest` of one row of many more than k numbers: (n,) -> (min(k, n),) twice.

    The k largest lie in the k blocks of `block` numbers with the largest maxima, and among these in smaller blocks:
    what is sorted are some n / block + 32 k numbers (2.6 million and 1,000: 42,000).
    """
    if block < 2:
        return largest(x, min(k, x.shape[0]))
    if x.shape[0] <= 2 * k * block:
        return largest_of_many(x, k, block // 16)
    rows = jnp.pad(x, (0, -x.shape[0] % block), constant_values=-jnp.inf).reshape(-1, block)
    _, best = largest(rows.max(1), k)
    best = jnp.sort(best)  # so that of equal numbers the first still comes first
    values, places = largest_of_many(rows[best].reshape(-1), k, block // 16)
    return values, best[places // block] * block + places % block


@contextlib.contextmanager
def by_sorting() -> Iterator[None]:
    """Programs traced in the block sort instead: JAX writes `lax.top_k` in a form newer than TensorFlow 2.21 can read.

    Functions that were jitted and traced before the block keep their form.
    """
    token = _SORTED.set(True)
    try:
        yield
    finally:
        _SORTED.reset(token)
