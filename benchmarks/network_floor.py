"""The least time in which a network's convolutions could run on a device, from two rates that are measured on it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from deform_conv import copy_rate, seconds
from jax.extend import core as jex

from kpjax.detectors.base import Detector


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a matrix product.  elements: of input, weights and output, each once."""

    multiply_adds: int
    elements: int


def products(jaxpr: Any) -> list[Product]:
    """The products on which a program's results depend, in its form for devices other than CPUs."""
    found = []
    needed = set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if needed.isdisjoint(map(id, equation.outvars)):
            continue
        needed |= set(map(id, equation.invars))
        found += _products_of(equation)
    return found


def _products_of(equation: Any) -> list[Product]:
    name, parameters = equation.primitive.name, equation.params
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    once = sum(math.prod(a.shape) for a in arrays)
    if name == "conv_general_dilated":
        features = arrays[1].shape[parameters["dimension_numbers"].rhs_spec[0]]
        taps = arrays[1].size // features  # with their channels; of a dilated input only one in so many falls on a cell
        return [Product(arrays[-1].size * taps // math.prod(parameters["lhs_dilation"]), once)]
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return [Product(arrays[-1].size * math.prod(arrays[0].shape[axis] for axis in contracted), once)]
    if name == "cond":
        branches = [products(branch.jaxpr) for branch in parameters["branches"]]
        platforms = parameters.get("branches_platforms")
        if platforms:
            return branches[platforms.index(None)]
        return max(branches, key=lambda branch: sum(p.multiply_adds for p in branch))
    inner = [p for called in jex.jaxprs_in_params(parameters) for p in products(called)]
    if name == "scan":
        inner *= parameters["length"]
    if inner and name == "custom_vjp_call":
        # One operation with a gradient of its own: its intermediate arrays, such as columns, do not count.
        constants = sum(math.prod(a.shape) for a in arrays[: parameters["num_consts"]])
        return [Product(sum(p.multiply_adds for p in inner), once - constants)]
    return inner


def network_products(detector: Detector, batch: int, size: tuple[int, int], training: bool) -> list[Product]:
    """`products` of the network's forward pass.  size: height and width of the images."""
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    one = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: detector.net.init(jax.random.key(0), x, train=False), one)

    def forward(variables: Any, images: Any) -> Any:
        outputs: Any = detector.net.apply(variables, images, train=False)
        return outputs if training else outputs[-1]

    return products(jax.make_jaxpr(forward)(variables, images).jaxpr)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the device reaches a second: a matrix product's FLOPs, and a copy's bytes, read and written."""

    flops: float
    bytes: float

    def floor(self, found: Sequence[Product], width: int) -> float:
        """Seconds of `found` at these rates.  width: bytes of an element."""
        return sum(max(2 * p.multiply_adds / self.flops, width * p.elements / self.bytes) for p in found)


def measure_rates(dtype: str, tiny: bool) -> Rates:
    """The best of some sizes, and the medians of nine rounds of ten runs."""
    best = 0.0
    for side in (256, 512) if tiny else (4096, 8192, 16384):
        a = jax.random.normal(jax.random.key(0), (side, side), dtype)
        multiply = jax.jit(jnp.matmul).lower(a, a).compile()
        once = statistics.median([seconds(lambda m=multiply, a=a: m(a, a), 10) for _ in range(10)][1:])
        best = max(best, 2 * side**3 / once)
    return Rates(best, copy_rate(1024 if tiny else 8192, 10))
