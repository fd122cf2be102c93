"""Primitives that find something along an axis or in a window: sums, maxima, the largest, an order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from kpjax.export.onnx_graph import Graph, UnsupportedError, Value, known, tensor
from kpjax.export.onnx_rules.axes import cut, padded
from kpjax.export.onnx_rules.elementwise import Rule


def reduction(operator: str) -> Rule:
    """The rule of a reduction over `axes`; booleans are reduced as integers."""

    def rule(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
        value, axes = inputs[0], [int(a) for a in eqn.params["axes"]]
        out = eqn.outvars[0].aval
        reduced = graph.cast(value, np.int32) if value.dtype == bool else value
        name = graph.name(reduced, value.order, expand=axes)
        where = np.asarray([value.order.index(a) for a in axes], np.int64)
        left = [a for a in range(len(value.shape)) if a not in axes]
        order = [left.index(a) for a in value.order if a in left]
        spread = [left.index(a) for a in value.spread if a in left]
        made = tensor(graph.node(operator, name, where, keepdims=0), out.shape, reduced.dtype, order, spread)
        return [graph.cast(made, value.dtype)]

    return rule


def extreme_place(operator: str) -> Rule:
    """The rule of argmax or argmin: of equal elements the first."""

    def rule(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
        value, (axis,) = inputs[0], eqn.params["axes"]
        if value.dtype == bool:
            value = graph.cast(value, np.int32)
        made = graph.node(operator, graph.name(value), axis=int(axis), keepdims=0)
        return [graph.cast(tensor(made, eqn.outvars[0].aval.shape, np.int64), eqn.params["index_dtype"])]

    return rule


def top_k(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """top_k: of equal elements the first comes first, in ONNX as in JAX."""
    axis = int(eqn.params.get("axis", -1))
    return list(_ordered(graph, inputs[0], axis, eqn.params["k"], True, [v.aval for v in eqn.outvars]))


def sort(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """sort by one key, stable; what goes along with the key is gathered."""
    axis = int(eqn.params["dimension"])
    if eqn.params["num_keys"] != 1:
        raise UnsupportedError("sort by several keys")
    length = inputs[0].shape[axis]
    key, places = _ordered(graph, inputs[0], axis, length, False, [eqn.outvars[0].aval] * 2)
    outputs = [key]
    for value, variable in zip(inputs[1:], eqn.outvars[1:], strict=True):
        made = graph.node("GatherElements", graph.name(value), graph.name(places), axis=axis)
        outputs.append(tensor(made, variable.aval.shape, value.dtype))
    return outputs


def _ordered(graph: Graph, value: Value, axis: int, k: Any, largest: bool, avals: list[Any]) -> tuple[Value, Value]:
    """The first k of a sorted axis and their places."""
    count, numbers = np.asarray([k], np.int64), value
    if value.dtype == np.bool_:  # TopK takes numbers
        numbers = graph.cast(value, np.int32)
    names = graph.nodes_of("TopK", 2, graph.name(numbers), count, axis=axis, largest=int(largest), sorted=1)
    first = graph.cast(tensor(names[0], avals[0].shape, numbers.dtype), value.dtype)
    return first, graph.cast(tensor(names[1], avals[1].shape, np.int64), np.int32)


def window_max(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """reduce_window_max: MaxPool over two axes of four, or else the maximum of slices."""
    p, value, out = eqn.params, inputs[0], eqn.outvars[0].aval
    window, strides, dilation = p["window_dimensions"], p["window_strides"], p["window_dilation"]
    padding = [(int(low), int(high)) for low, high in p["padding"]]
    if any(d != 1 for d in p["base_dilation"]) or min(min(pair) for pair in padding) < 0:
        raise UnsupportedError("reduce_window_max of a dilated input, or with a negative padding")
    alone = [i for i in range(len(window)) if window[i] == strides[i] == 1 and padding[i] == (0, 0)]
    if len(window) == 4 and len(alone) >= 2 and value.dtype == np.float32:
        outer = [alone[0], alone[-1]]
        inner = [i for i in range(4) if i not in outer]
        if all(max(padding[i]) < window[i] for i in inner):
            order = (*outer, *inner)
            made = graph.node(
                "MaxPool",
                graph.name(value, order),
                kernel_shape=[int(window[i]) for i in inner],
                strides=[int(strides[i]) for i in inner],
                dilations=[int(dilation[i]) for i in inner],
                pads=[padding[i][0] for i in inner] + [padding[i][1] for i in inner],
            )
            return [tensor(made, out.shape, out.dtype, order)]
    floating = np.issubdtype(value.dtype, np.floating)
    lowest = -np.inf if floating else np.iinfo(value.dtype).min
    value = padded(graph, value, known(np.asarray(lowest, value.dtype)), padding)
    result = None
    for place in itertools.product(*map(range, window)):
        starts = [at * d for at, d in zip(place, dilation, strict=True)]
        # Axes of the batch have windows and strides of 1, and are left whole.
        limits = [
            d if w == s == 1 else a + (n - 1) * s + 1
            for d, w, s, a, n in zip(value.shape, window, strides, starts, out.shape, strict=True)
        ]
        part = cut(graph, value, starts, limits, strides, out.shape)
        result = part if result is None else graph.elementwise("Max", [result, part])
    assert result is not None
    return [result]


RULES: dict[str, Rule] = {
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_sum": reduction("ReduceSum"),
    "reduce_or": reduction("ReduceMax"),
    "reduce_and": reduction("ReduceMin"),
    "argmax": extreme_place("ArgMax"),
    "argmin": extreme_place("ArgMin"),
    "top_k": top_k,
    "sort": sort,
    "reduce_window_max": window_max,
}
