"""xingyizhou's dense regression targets (`dense_wh`), which no released recipe uses: what golden cases compare with."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def draw_dense(
    heatmap: Array, centers: Array, radii: Array, values: Array, valid: Array, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Dense regression targets: each object's values wherever its Gaussian tops the map drawn so far.

    xingyizhou's `dense_wh`: objects are written one after another; object m takes the cells
    of its window where its Gaussian is >= the running maximum over classes, which already
    holds m itself, so later objects win ties.  The original compares a float64 Gaussian with
    the float32 map, so that an object also loses those of its own cells where float32 rounded
    up: a quirk that is kept (golden: fn_ctnet_gaussian and
    fn_ctdet_targets, dense_*).

    heatmap: (h, w) float32, what was drawn before the first object (usually zeros).
    centers (M, 2) int32, radii (M,) int32, values (M, D) float32, valid (M,) bool.
    Returns (h, w, D) float32 and the final running maximum (h, w).
    """
    height, width = shape
    not_above = jnp.asarray(_float32_not_above(sum(shape) // 4 + 1))
    largest = not_above.shape[0] - 1
    ys, xs = jnp.arange(height), jnp.arange(width)

    def write(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        running, dense = carry
        value, center, radius, real = row
        dy, dx = jnp.abs(ys - center[1]), jnp.abs(xs - center[0])
        inside = (dy <= radius)[:, None] & (dx <= radius)[None, :] & real
        # Of the squared distance, not a product of profiles: equal distances have to give equal values.
        squared = (dy**2)[:, None] + (dx**2)[None, :]
        sigma = (2 * radius + 1).astype(jnp.float32) / 6
        drawn = jnp.where(inside, jnp.exp(-squared.astype(jnp.float32) / (2 * sigma**2)), 0.0)
        running = jnp.maximum(running, drawn)
        table = not_above[jnp.minimum(radius, largest)]
        own = table[jnp.minimum(dy, largest)[:, None], jnp.minimum(dx, largest)[None, :]]
        taken = inside & (drawn >= running) & own
        return (running, jnp.where(taken[..., None], value, dense)), None

    start = (jnp.asarray(heatmap, jnp.float32), jnp.zeros((height, width, values.shape[-1]), jnp.float32))
    (running, dense), _ = jax.lax.scan(write, start, (values, centers, radii, valid))
    return dense, running


@functools.lru_cache(maxsize=8)
def _float32_not_above(largest: int) -> np.ndarray:
    """Where rounding a Gaussian to float32 does not raise it: (r, |dy|, |dx|) bool, each 0..largest.

    No radius of a box inside a map of h x w cells exceeds (h + w) / 4 at an overlap of 0.5 or more.
    """
    distance = np.arange(largest + 1, dtype=np.float64)
    squared = distance[:, None] ** 2 + distance[None, :] ** 2
    table = np.empty((largest + 1, largest + 1, largest + 1), bool)
    for radius in range(largest + 1):
        sigma = (2 * radius + 1) / 6
        gaussian = np.exp(-squared / (2 * sigma * sigma))
        table[radius] = gaussian.astype(np.float32) <= gaussian
    return table
