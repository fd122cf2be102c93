"""Batch normalisation of the training batch, with its gradients: Ioffe and Szegedy 2015, algorithm 1.

Gradients are written out so that all that is done for a channel rather than for a cell is one function forward and one
backward.  On a CPU these stay functions of their own (see `kpjax.nn.cpu`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kpjax.nn.cpu import cached_partial, separate_function_on_cpu

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalised(x: Array, scale: Array, bias: Array, shift: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Each group's images with its channels' mean and variance taken out, then scaled and shifted.

    x: (G, N, H, W, C) float32, G groups of N images.  scale, bias: (C,) float32.
    shift: (C,) float32, any number for each channel.  The variance is E[(x - shift)^2] - E[x - shift]^2, in one pass
        over x and exact for every shift; in float32 it loses about ((mean - shift) / std)^2 units in the last place, so
        the shift should be near the mean.  The results, and so the gradients, do not depend on it otherwise.
    Returns what x becomes, and the means and (biased) variances, (G, C) each.
    """
    return _forward(x, scale, bias, shift, epsilon)[0]


def _forward(
    x: Array, scale: Array, bias: Array, shift: Array, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    centre, mean, var, factor, offset = separate_function_on_cpu(cached_partial(_of_channels, epsilon=epsilon))(
        x, scale, bias, shift
    )
    return (x * _spread(factor, x) + _spread(offset, x), mean, var), (x, scale, shift, centre, var)


def _of_channels(x: Array, scale: Array, bias: Array, shift: Array, epsilon: float) -> tuple[Array, ...]:
    sums, squares = separate_function_on_cpu(_shifted_sums)(x, shift)
    centre = sums / _count(x)
    mean = shift + centre
    var = jnp.maximum(squares / _count(x) - centre**2, 0.0)
    factor = scale * lax.rsqrt(var + epsilon)
    return centre, mean, var, factor, bias - mean * factor


def _backward(
    epsilon: float, saved: tuple[Array, ...], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array, None]:
    g, g_mean, g_var = gradients
    x, scale, shift, centre, var = saved
    of_channels = separate_function_on_cpu(cached_partial(_backward_of_channels, epsilon=epsilon))
    for_g, for_x, rest, g_scale, g_bias = of_channels(g, g_mean, g_var, x, scale, shift, centre, var)
    return g * _spread(for_g, x) + x * _spread(for_x, x) + _spread(rest, x), g_scale, g_bias, None


def _backward_of_channels(
    g: Array,
    g_mean: Array,
    g_var: Array,
    x: Array,
    scale: Array,
    shift: Array,
    centre: Array,
    var: Array,
    epsilon: float,
) -> tuple[Array, ...]:
    """What x's gradient is made of, g * (G, C) + x * (G, C) + (G, C), and those of scale and bias, (C,) each."""
    inverse = lax.rsqrt(var + epsilon)
    g_offset, products = separate_function_on_cpu(_sums_with)(g, x, shift)
    g_factor = products - centre * g_offset
    # The variance is cut off at 0: there it does not follow x.
    g_squares = jnp.where(var > 0, g_var - g_factor * scale * inverse**3 / 2, 0.0)
    g_mean = g_mean - scale * inverse * g_offset - 2 * (shift + centre) * g_squares
    for_x, rest = 2 * g_squares / _count(x), g_mean / _count(x)
    return scale * inverse, for_x, rest, (g_factor * inverse).sum(0), g_offset.sum(0)


def _shifted_sums(x: Array, shift: Array) -> tuple[Array, Array]:
    """Over all but the first and last axes, of x - shift and of its squares."""
    return _sums_with(x - shift, x, shift)


def _sums_with(g: Array, x: Array, shift: Array) -> tuple[Array, Array]:
    """Over all but the first and last axes, of g and of g * (x - shift).

    With nothing beside them in their function: XLA then puts these sums first in a program for a CPU, and as it loads
    the program, it looks for each of them from the first operation on.
    """
    axes = tuple(range(1, x.ndim - 1))
    return g.sum(axes), (g * (x - shift)).sum(axes)


def _count(x: Array) -> int:
    return x.size // (x.shape[0] * x.shape[-1])


def _spread(values: Array, x: Array) -> Array:
    """(G, C) -> (G, 1, ..., C), as many axes as x has."""
    return values.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


normalised.defvjp(_forward, _backward)
