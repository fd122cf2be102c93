"""Primitives that move, cut, join or repeat elements without a look at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.export.onnx_graph import Dim, Graph, UnsupportedError, Value, known, same, tensor
from kpjax.export.onnx_rules.elementwise import Rule

_FAR = np.iinfo(np.int64).max


def broadcast(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """broadcast_in_dim: axes of one element are made, and said to be spread."""
    value, shape = inputs[0], tuple(eqn.params["shape"])
    place = {new: old for old, new in enumerate(eqn.params["broadcast_dimensions"])}
    return [spread_to(graph, value, shape, place)]


def spread_to(graph: Graph, value: Value, shape: tuple[Dim, ...], place: dict[int, int]) -> Value:
    """The value in a larger shape.  place: which axis of the value an axis of the shape is; the others are new."""
    if value.known:
        sides = [value.numbers.shape[place[i]] if i in place else 1 for i in range(len(shape))]
        return known(value.numbers.reshape(sides), shape)
    spread = {i for i in range(len(shape)) if i not in place or place[i] in value.spread}
    spread |= {new for new, old in place.items() if same(value.shape[old], 1)}
    if len(place) == len(shape):
        return dataclasses.replace(value, shape=shape, spread=frozenset(i for i in spread if not same(shape[i], 1)))
    name = graph.name(value, expand=())
    name = graph.node("Unsqueeze", name, graph.constant([i for i in range(len(shape)) if i not in place], np.int64))
    return tensor(name, shape, value.dtype, spread=spread)


def transpose(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """transpose: nothing is moved, the axes get other numbers."""
    return [transposed(inputs[0], eqn.params["permutation"])]


def transposed(value: Value, axes: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    shape = [value.shape[a] for a in axes]
    if value.known:
        return known(value.numbers.transpose(axes), shape)
    order = [list(axes).index(a) for a in value.order]
    return tensor(str(value.stored), shape, value.dtype, order, {i for i, a in enumerate(axes) if a in value.spread})


def reshape(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """reshape, squeeze and expand_dims: to the shape of the output."""
    if eqn.params.get("dimensions") and eqn.primitive.name == "reshape":
        raise UnsupportedError("reshape with another order of axes")
    return [reshaped(graph, inputs[0], eqn.outvars[0].aval.shape)]


def reshaped(graph: Graph, value: Value, shape: Sequence[Dim]) -> Value:
    """The value in another shape of as many elements."""
    if len(shape) == len(value.shape) and all(same(a, b) for a, b in zip(shape, value.shape, strict=True)):
        return value
    old = [i for i, d in enumerate(value.shape) if not same(d, 1)]
    new = [i for i, d in enumerate(shape) if not same(d, 1)]
    if len(old) == len(new) and all(same(value.shape[a], shape[b]) for a, b in zip(old, new, strict=True)):
        # Only axes of one element come and go: what is spread stays spread.
        place = dict(zip(new, old, strict=True))
        spread = {b for b, a in place.items() if a in value.spread}
        if value.known:
            return known(
                value.numbers.reshape([value.numbers.shape[place[i]] if i in place else 1 for i in range(len(shape))]),
                shape,
            )
        sizes = [1 if i in spread else d for i, d in enumerate(shape)]
        return tensor(_to_sizes(graph, graph.name(value, expand=()), sizes), shape, value.dtype, spread=spread)
    if value.known and not value.spread:
        return known(value.numbers.reshape([int(d) for d in shape]))
    return tensor(_to_sizes(graph, graph.name(value), shape), shape, value.dtype)


def _to_sizes(graph: Graph, name: str, sizes: Sequence[Dim]) -> str:
    """Reshape; one dimension that depends on the batch is left to ONNX."""
    open_ones = sum(not isinstance(d, int | np.integer) for d in sizes)
    if open_ones == 1:
        return graph.node(
            "Reshape", name, np.asarray([d if isinstance(d, int | np.integer) else -1 for d in sizes], np.int64)
        )
    return graph.node("Reshape", name, graph.sizes(sizes))


def slice_(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """slice"""
    p = eqn.params
    strides = p["strides"] or (1,) * len(p["start_indices"])
    return [cut(graph, inputs[0], p["start_indices"], p["limit_indices"], strides, eqn.outvars[0].aval.shape)]


def cut(
    graph: Graph,
    value: Value,
    starts: Sequence[Dim],
    limits: Sequence[Dim],
    strides: Sequence[int] | None = None,
    shape: Sequence[Dim] | None = None,
) -> Value:
    """value[starts:limits:strides].  shape: of the result, where strides or the batch make it less than clear."""
    strides = strides or (1,) * len(value.shape)
    full = [
        same(a, 0) and same(b, d) and s == 1 for a, b, d, s in zip(starts, limits, value.shape, strides, strict=True)
    ]
    if shape is None:
        shape = [(b - a + s - 1) // s if s > 1 else b - a for a, b, s in zip(starts, limits, strides, strict=True)]
    axes = [i for i in range(len(full)) if not full[i] and i not in value.spread]
    if value.known and all(isinstance(x, int | np.integer) for i in axes for x in (starts[i], limits[i])):
        index = [slice(None)] * len(full)
        for i in axes:
            index[i] = slice(int(starts[i]), int(limits[i]), strides[i])
        return known(value.numbers[tuple(index)], shape)
    if not axes:
        return dataclasses.replace(
            value, shape=tuple(shape), spread=frozenset(i for i in value.spread if not same(shape[i], 1))
        )
    name = value.stored if not value.known else graph.constant(value.numbers)
    stored_axes = np.asarray([value.order.index(i) for i in axes], np.int64)
    steps = np.asarray([strides[i] for i in axes], np.int64)
    sizes = graph.sizes([starts[i] for i in axes]), graph.sizes([limits[i] for i in axes])
    return tensor(
        graph.node("Slice", str(name), *sizes, stored_axes, steps), shape, value.dtype, value.order, value.spread
    )


def split(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """split: a slice for each part."""
    value, axis = inputs[0], eqn.params["axis"]
    parts, start = [], 0
    for size in map(int, eqn.params["sizes"]):
        starts, limits = [0] * len(value.shape), list(value.shape)
        starts[axis], limits[axis] = start, start + size
        parts.append(cut(graph, value, starts, limits))
        start += size
    return parts


def reverse(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """rev"""
    value = inputs[0]
    axes = [i for i in eqn.params["dimensions"] if i not in value.spread]
    if value.known:
        return [known(np.flip(value.numbers, tuple(axes)), value.shape)]
    if not axes:
        return [value]
    stored, ones = np.asarray([value.order.index(i) for i in axes], np.int64), np.ones(len(axes), np.int64)
    name = graph.node("Slice", str(value.stored), -ones, -ones * _FAR, stored, -ones)
    return [dataclasses.replace(value, stored=name)]


def concatenate(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """concatenate"""
    return [joined(graph, inputs, eqn.params["dimension"], eqn.outvars[0].aval.shape)]


def joined(graph: Graph, values: Sequence[Value], axis: int, shape: Sequence[Dim]) -> Value:
    """The values one after another along an axis."""
    order = next((v.order for v in values if not v.known), tuple(range(len(shape))))
    spread = frozenset.intersection(*(v.spread for v in values)) - {axis}
    names = [graph.name(v, order, expand=set(range(len(shape))) - spread) for v in values]
    return tensor(graph.node("Concat", *names, axis=order.index(axis)), shape, values[0].dtype, order, spread)


def stack(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """stack: along a new axis."""
    axis, shape = eqn.params["axis"], eqn.outvars[0].aval.shape
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    return [joined(graph, [reshaped(graph, x, one) for x in inputs], axis, shape)]


def tile(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """tile: the whole array again and again along its axes."""
    out, times = eqn.outvars[0].aval, np.asarray(eqn.params["reps"], np.int64)
    return [tensor(graph.node("Tile", graph.name(inputs[0]), times), out.shape, out.dtype)]


def pad(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """pad: between elements, outside, or where it is negative a cut."""
    value, filler = inputs
    config, shape = eqn.params["padding_config"], eqn.outvars[0].aval.shape
    for axis, (_, _, between) in enumerate(config):
        if between:
            value = _spaced(graph, value, filler, axis, between)
    outside = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    value = padded(graph, value, filler, outside)
    if any(low < 0 or high < 0 for low, high, _ in config):
        starts = [max(-low, 0) for low, *_ in config]
        limits = [d - max(-high, 0) for d, (_, high, _) in zip(value.shape, config, strict=True)]
        value = cut(graph, value, starts, limits, shape=shape)
    return [value]


def padded(graph: Graph, value: Value, filler: Value, widths: Sequence[tuple[int, int]]) -> Value:
    """The value with `widths` (before, after) elements of the scalar `filler` around it."""
    axes = [i for i, width in enumerate(widths) if width != (0, 0)]
    if not axes:
        return value
    # Elements outside are others, unless they are the same.
    name = graph.name(value, value.order, expand=axes)
    by_stored = [widths[a] for a in value.order]
    pads = np.asarray([w[0] for w in by_stored] + [w[1] for w in by_stored], np.int64)
    shape = [d + sum(w) if sum(w) else d for d, w in zip(value.shape, widths, strict=True)]
    return tensor(
        graph.node("Pad", name, pads, graph.name(filler)), shape, value.dtype, value.order, value.spread - set(axes)
    )


def _spaced(graph: Graph, value: Value, filler: Value, axis: int, between: int) -> Value:
    """`between` elements of the filler between any two along an axis: behind each, less the last ones."""
    shape, length = list(value.shape), value.shape[axis]
    wide = reshaped(graph, value, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    widths = [(0, 0)] * len(wide.shape)
    widths[axis + 1] = (0, between)
    wide = padded(graph, wide, filler, widths)
    flat = reshaped(graph, wide, (*shape[:axis], length * (between + 1), *shape[axis + 1 :]))
    limits = list(flat.shape)
    limits[axis] -= between
    return cut(graph, flat, [0] * len(limits), limits)


def iota(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """iota: the numbers 0, 1, 2, ... along one axis."""
    shape, axis, dtype = eqn.params["shape"], eqn.params["dimension"], eqn.params["dtype"]
    line = [1] * len(shape)
    if isinstance(shape[axis], int | np.integer):
        line[axis] = int(shape[axis])
        return [known(np.arange(shape[axis], dtype=dtype).reshape(line), shape)]
    length = graph.node("Squeeze", graph.size(shape[axis]))
    numbers = graph.node("Range", np.asarray(0, np.int64), length, np.asarray(1, np.int64))
    value = graph.cast(tensor(numbers, (shape[axis],), np.int64), dtype)
    return [spread_to(graph, value, tuple(shape), {axis: 0})]


def dim_as_value(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """dim_as_value: a multiple of the batch as a number."""
    size = graph.node("Squeeze", graph.size(eqn.params["dim"]))
    return [graph.cast(tensor(size, (), np.int64), eqn.outvars[0].aval.dtype)]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": broadcast,
    "transpose": transpose,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "slice": slice_,
    "split": split,
    "rev": reverse,
    "concatenate": concatenate,
    "stack": stack,
    "tile": tile,
    "pad": pad,
    "iota": iota,
    "dim_as_value": dim_as_value,
}
