"""Functions that stay separate in a program compiled for a CPU, which makes a large program faster to load there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def as_separate_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays or trees of them, called by the program rather than made part of its caller.

    As it loads a program, XLA's CPU runtime compares each operation of a function with all others of that function,
    which for an hourglass's training step in one piece takes as long as compiling it.  For a CPU alone: as the `cpu`
    of a `lax.platform_dependent`.  Not for convolutions, which are many times slower where they are called so.
    """

    def called(*trees: Any) -> Any:
        leaves, structure = jax.tree.flatten(jax.jit(function)(*trees))
        try:
            from jax.experimental.xla_metadata import set_xla_metadata
        except ImportError:  # not part of JAX's promises; the results are the same
            return jax.tree.unflatten(structure, leaves)
        # A mark on one result is a mark on the call; a context manager would mark all operations within it too.
        return jax.tree.unflatten(structure, [set_xla_metadata(leaves[0], inlineable="false"), *leaves[1:]])

    return called


@functools.cache
def cached_partial(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`function` with settings: one object for the same ones, so that JAX traces it once for layers of one shape."""
    return functools.partial(function, **settings)


def separate_function_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays or trees of them: called in a program for a CPU, part of its caller elsewhere."""

    def either(*trees: Any) -> Any:
        # No `jax.jit` elsewhere: XLA for TPUs leaves sums and products of separate functions in another order, which
        # costs cornernet_hg104 a fifth more memory at 3 images a chip.
        return lax.platform_dependent(*trees, cpu=as_separate_function(function), default=function)

    return either
