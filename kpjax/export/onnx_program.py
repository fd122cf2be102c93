"""From a JAX program to a graph of ONNX operators: the walk through its equations, and the table of their rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kpjax.errors import ConfigError
from kpjax.export.onnx_graph import Graph, Shared, UnsupportedError, Value, known, tensor
from kpjax.export.onnx_rules import axes, elementwise, indexing, loops, products, reductions

RULES: dict[str, elementwise.Rule] = {
    **elementwise.RULES,
    **axes.RULES,
    **products.RULES,
    **reductions.RULES,
    **indexing.RULES,
    **loops.RULES,
}

# Calls of another jaxpr, and the parameter that holds it: their equations are written in their place.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}

# Rules that take numbers that are known as they are, and spread.
_OF_KNOWN = {"broadcast_in_dim", "transpose", "reshape", "squeeze", "expand_dims", "slice", "split", "rev"}
# What most known numbers go through; the others are computed by JAX, which compiles each for each shape.
_BY_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
}
_LARGE = 2**25  # elements; as many as the largest kernels have


def graph_of(
    function: Callable[..., Any], known_arguments: Sequence[Any], inputs: Sequence[tuple[str, Any]]
) -> tuple[Graph, list[Value]]:
    """The graph of function(*known_arguments, *inputs) and its results, flattened.

    inputs: the name and `jax.ShapeDtypeStruct` of each; the first axis of the first one is the batch, `BATCH`.
    Raises ConfigError, one line, for a primitive without a rule.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), list(known_arguments))
    traced = jax.make_jaxpr(function)(*shapes, *(shape for _, shape in inputs))
    shared = Shared(write)
    graph = Graph(shared)
    shared.batch = graph.node("Shape", inputs[0][0], start=0, end=1)
    values = [known(np.asarray(x)) for x in jax.tree.leaves(list(known_arguments))]
    values += [tensor(name, shape.shape, shape.dtype) for name, shape in inputs]
    # The numbers that are known are computed on the host, whatever accelerator there is.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return graph, write(graph, traced.jaxpr, traced.consts, values)


def write(graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Write a jaxpr's equations into the graph; the values of its results."""
    values: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {variable: known(np.asarray(x)) for variable, x in zip(jaxpr.constvars, constants, strict=True)}

    def read(variable: Any) -> Value:
        literal = isinstance(variable, core.Literal)
        return known(np.asarray(variable.val, variable.aval.dtype)) if literal else values[variable]

    for eqn in jaxpr.eqns:
        outputs = _equation(graph, eqn, [read(v) for v in eqn.invars])
        for variable, value in zip(eqn.outvars, outputs, strict=True):
            values[variable] = value
    return [read(v) for v in jaxpr.outvars]


def _equation(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name == "platform_index":
        # What suits any device; the forms for a CPU are for XLA's.
        platforms = eqn.params["platforms"]
        return [known(np.asarray(platforms.index(None) if None in platforms else 0, np.int32))]
    if name in CALLS:
        called = eqn.params[CALLS[name]]
        constants = getattr(called, "consts", ())
        return write(graph, getattr(called, "jaxpr", called), constants, inputs)
    empty = [v.aval for v in eqn.outvars if any(isinstance(d, int) and d == 0 for d in v.aval.shape)]
    if len(empty) == len(eqn.outvars):
        return [known(np.zeros([1 if not isinstance(d, int) else d for d in a.shape], a.dtype), a.shape) for a in empty]
    if inputs and all(x.known for x in inputs):
        computed = _computed(eqn, inputs)
        if computed is not None:
            return computed
    if name not in RULES:
        raise ConfigError(f"ONNX: the program has the primitive {name!r}, for which kpjax has no rule")
    try:
        return RULES[name](graph, eqn, inputs)
    except UnsupportedError as error:
        raise ConfigError(f"ONNX: the program has {error} (in {name}), for which kpjax has no rule") from None


def _computed(eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The results of an equation whose inputs are known; None where they are better made by its rule."""
    name = eqn.primitive.name
    if name in elementwise.RULES and not eqn.primitive.multiple_results:
        # One element along axes that are the same everywhere is enough.
        arrays = np.broadcast_arrays(*(x.numbers for x in inputs))
        quick = _BY_NUMPY.get(name)
        numbers = quick(*arrays) if quick else np.asarray(eqn.primitive.bind(*arrays, **eqn.params))
        return [known(numbers, eqn.outvars[0].aval.shape)]
    if name in _OF_KNOWN or name in loops.RULES:
        return None
    sizes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    if not all(isinstance(d, int) for shape in sizes for d in shape) or max(map(math.prod, sizes)) > _LARGE:
        return None
    whole = [np.broadcast_to(x.numbers, x.shape) for x in inputs]
    results = eqn.primitive.bind(*whole, **eqn.params)
    return [known(np.asarray(x)) for x in (results if eqn.primitive.multiple_results else [results])]
