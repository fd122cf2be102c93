"""A checksum of a training state, independent of how it lies on the devices."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from kpjax.training.step import TrainState


def digest(state: TrainState) -> int:
    """32 bits that depend on every bit of a state and not on how it lies on the devices.

    A change of any single number changes it: bits are summed with odd weights, modulo 2^32.
    """
    sums = [np.asarray(x) for x in _bit_sums(jax.tree.leaves(state))]
    return zlib.crc32(np.array(sums, np.uint32).tobytes())


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_bit_sum(x) for x in leaves]


@jax.jit  # traced once for arrays of one shape
def _bit_sum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_ or x.dtype.itemsize > 4:
        bits = x.astype(jnp.uint32) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, jnp.uint32)
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # Not a reshape: that would gather a sharded array.
    weight, stride = jnp.ones((), jnp.uint32), 2
    for axis in reversed(range(bits.ndim)):
        weight = weight + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * weight, dtype=jnp.uint32)
