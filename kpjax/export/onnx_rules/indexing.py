"""Reading and writing at computed places: gather, scatter, dynamic slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode

from kpjax.export.onnx_graph import Graph, UnsupportedError, Value, known, same, tensor
from kpjax.export.onnx_rules.axes import cut, joined, padded, reshaped, transposed
from kpjax.export.onnx_rules.elementwise import Rule, where


def gather(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """gather: a slice at one place, or single elements of some axes with all of the others."""
    value, indices = inputs
    numbers, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    axes = tuple(map(int, numbers.start_index_map))
    batching = tuple(map(int, numbers.operand_batching_dims))
    sizes = eqn.params["slice_sizes"]
    mode = eqn.params["mode"]
    if len(indices.shape) == 1 and not batching:
        return [reshaped(graph, _one_slice(graph, value, indices, axes, sizes, mode), out.shape)]
    value, indices, axes = _without_ranges(graph, value, indices, axes, sizes)
    for i, (size, side) in enumerate(zip(sizes, value.shape, strict=True)):
        if not (same(size, 1) if i in axes or i in batching else same(size, side)):
            raise UnsupportedError("gather of slices that are neither single elements nor whole axes")
    # To the front with the axes that are indexed, behind those that the indices have too.
    rest = [i for i in range(len(value.shape)) if i not in axes and i not in batching]
    value_batch = [b for b, _ in _batch_pairs(numbers)]
    index_batch = [i for _, i in _batch_pairs(numbers)]
    others = [i for i in range(len(indices.shape) - 1) if i not in index_batch]
    places = transposed(indices, (*index_batch, *others, len(indices.shape) - 1))
    moved = transposed(value, (*value_batch, *axes, *rest))
    places, inside = _within(graph, places, [value.shape[a] for a in axes], mode)
    found = graph.node(
        "GatherND", graph.name(moved), graph.name(graph.cast(places, np.int64)), batch_dims=len(batching)
    )
    shape = [*places.shape[:-1], *(value.shape[i] for i in rest)]
    result = tensor(found, shape, value.dtype)
    if inside is not None:
        filler = known(np.full((1,) * len(shape), eqn.params["fill_value"], value.dtype), shape)
        result = where(graph, _lengthened(graph, inside, len(rest), shape), result, filler)
    # Axes of the result: those of the indices in their old order, among them those of the slices.
    of_index = [*index_batch, *others]
    kept = [i for i in range(len(value.shape)) if i not in numbers.collapsed_slice_dims and i not in batching]
    at_offset = dict(zip(map(int, numbers.offset_dims), kept, strict=True))
    remaining = iter(range(len(of_index)))
    order = []
    for axis in range(len(out.shape)):
        if axis not in at_offset:
            order.append(of_index.index(next(remaining)))
        elif at_offset[axis] in rest:
            order.append(len(of_index) + rest.index(at_offset[axis]))
    return [reshaped(graph, transposed(result, order), out.shape)]


def _without_ranges(
    graph: Graph, value: Value, indices: Value, axes: tuple[int, ...], sizes: Sequence[Any]
) -> tuple[Value, Value, tuple[int, ...]]:
    """Cut axes of which all indices read the same range first: what is left to be indexed."""
    kept = []
    for number, axis in enumerate(axes):
        one = cut(graph, indices, [0] * (len(indices.shape) - 1) + [number], [*indices.shape[:-1], number + 1])
        if same(sizes[axis], 1) or one.everywhere() is None:
            kept.append(number)
            continue
        starts, limits = [0] * len(value.shape), list(value.shape)
        starts[axis] = int(one.everywhere())
        limits[axis] = starts[axis] + sizes[axis]
        value = cut(graph, value, starts, limits)
    if len(kept) < len(axes):
        parts = [cut(graph, indices, [0] * (len(indices.shape) - 1) + [n], [*indices.shape[:-1], n + 1]) for n in kept]
        indices = joined(graph, parts, len(indices.shape) - 1, (*indices.shape[:-1], len(kept)))
    return value, indices, tuple(axes[n] for n in kept)


def _batch_pairs(numbers: Any) -> list[tuple[int, int]]:
    """The axes that the operand and the indices share, in the operand's order."""
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return [(int(a), int(b)) for a, b in pairs]


def _one_slice(
    graph: Graph, value: Value, indices: Value, axes: Sequence[int], sizes: Sequence[Any], mode: Any
) -> Value:
    """The slice of `sizes` whose start along `axes` the vector `indices` gives."""
    if not all(i in axes or same(size, side) for i, (size, side) in enumerate(zip(sizes, value.shape, strict=True))):
        raise UnsupportedError("gather of a part of an axis without an index")
    if not indices.known and mode == GatherScatterMode.FILL_OR_DROP:
        raise UnsupportedError("gather of one slice that may lie outside")
    starts = [known(np.zeros((), indices.dtype))] * len(value.shape)
    for number, axis in enumerate(axes):
        starts[axis] = reshaped(graph, cut(graph, indices, [number], [number + 1]), ())
    return sliced(graph, value, starts, sizes, fits=mode == GatherScatterMode.PROMISE_IN_BOUNDS)


def _within(graph: Graph, places: Value, sides: Sequence[int], mode: Any) -> tuple[Value, Value | None]:
    """Places (..., n) pulled inside, and which of them (...) were; None where that does not matter."""
    if not all(isinstance(side, int | np.integer) for side in sides):
        if mode != GatherScatterMode.PROMISE_IN_BOUNDS:
            raise UnsupportedError("gather along the batch that may lie outside")
        return places, None
    if mode == GatherScatterMode.PROMISE_IN_BOUNDS:
        return places, None
    last = known(np.asarray(sides, places.dtype).reshape((1,) * (len(places.shape) - 1) + (-1,)) - 1, places.shape)
    zero = known(np.zeros((), places.dtype))
    pulled = graph.elementwise("Min", [graph.elementwise("Max", [places, zero]), last])
    if mode == GatherScatterMode.CLIP:
        return pulled, None
    return pulled, _all_of_last(graph, graph.elementwise("Equal", [pulled, places], bool))


def _all_of_last(graph: Graph, flags: Value) -> Value:
    """Booleans (..., n) -> (...): whether all n are true."""
    shape = flags.shape[:-1]
    if same(flags.shape[-1], 1):
        return reshaped(graph, flags, shape)
    name = graph.name(graph.cast(flags, np.int32))
    least = graph.node("ReduceMin", name, np.asarray([-1], np.int64), keepdims=0)
    return graph.cast(tensor(least, shape, np.int32), bool)


def _lengthened(graph: Graph, flags: Value, count: int, shape: Sequence[Any]) -> Value:
    """The value with `count` more axes behind its own, which are spread."""
    longer = reshaped(graph, flags, (*flags.shape, *(1,) * count))
    spread = {i for i in range(len(flags.shape), len(shape))}
    return tensor(graph.name(longer), shape, flags.dtype, spread=spread)


def sliced(graph: Graph, value: Value, starts: Sequence[Value], sizes: Sequence[Any], fits: bool = False) -> Value:
    """The slice of `sizes` at computed scalar starts, which are pulled so far inside that it fits.

    fits: it does, whatever the starts are.
    """
    axes = [i for i in range(len(sizes)) if not same(sizes[i], value.shape[i])]
    if all(starts[i].known for i in axes):
        first = [0] * len(sizes)
        for i in axes:
            at, last = int(starts[i].numbers), value.shape[i] - sizes[i]
            first[i] = at if fits else min(max(at, 0), last)
        return cut(graph, value, first, [a + b for a, b in zip(first, sizes, strict=True)], shape=sizes)
    lines = []
    for i in axes:
        start = graph.cast(starts[i], np.int64)
        if not fits:
            latest = known(np.asarray(value.shape[i] - sizes[i], np.int64))
            start = graph.elementwise("Max", [start, known(np.asarray(0, np.int64))])
            start = graph.elementwise("Min", [start, latest])
        lines.append(graph.name(reshaped(graph, start, (1,))))
    first_of = lines[0] if len(lines) == 1 else graph.node("Concat", *lines, axis=0)
    end_of = graph.node("Add", first_of, graph.sizes([sizes[i] for i in axes]))
    name = graph.name(value, value.order, expand=axes)
    made = graph.node("Slice", name, first_of, end_of, np.asarray([value.order.index(i) for i in axes], np.int64))
    return tensor(made, sizes, value.dtype, value.order, value.spread - set(axes))


def dynamic_slice(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """dynamic_slice"""
    return [sliced(graph, inputs[0], inputs[1:], eqn.params["slice_sizes"])]


def dynamic_update_slice(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """dynamic_update_slice of a part of one axis, at a computed start, which is pulled so far inside that it fits."""
    value, update, *starts = inputs
    axes = [i for i in range(len(value.shape)) if not same(update.shape[i], value.shape[i])]
    if not axes:
        return [update]
    if len(axes) > 1 or not isinstance(value.shape[axes[0]], int | np.integer):
        raise UnsupportedError("dynamic_update_slice of a part of several axes, or of the batch")
    (axis,), count = axes, update.shape[axes[0]]
    start = graph.cast(starts[axis], np.int64)
    start = graph.elementwise("Max", [start, known(np.asarray(0, np.int64))])
    start = graph.elementwise("Min", [start, known(np.asarray(value.shape[axis] - count, np.int64))])
    places = graph.elementwise("Add", [reshaped(graph, start, (1, 1)), known(np.arange(count)[:, None])])
    front = (axis, *(i for i in range(len(value.shape)) if i != axis))
    every = set(range(len(front)))
    moved, new = (graph.name(transposed(x, front), expand=every) for x in (value, update))
    shape = [value.shape[i] for i in front]
    made = tensor(graph.node("ScatterND", moved, graph.name(places), new, reduction="none"), shape, value.dtype)
    return [transposed(made, [front.index(i) for i in range(len(front))])]


def scatter(kind: str) -> Rule:
    """The rule of scatter; kind: what is done with several values of one place, as ONNX names it."""

    def rule(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
        value, indices, updates = inputs
        numbers = eqn.params["dimension_numbers"]
        axes = tuple(map(int, numbers.scatter_dims_to_operand_dims))
        if tuple(numbers.inserted_window_dims) != tuple(sorted(axes)) or numbers.operand_batching_dims:
            raise UnsupportedError(f"{eqn.primitive.name} of slices that are neither single elements nor whole axes")
        rest = [i for i in range(len(value.shape)) if i not in axes]
        windows = list(map(int, numbers.update_window_dims))
        sides = [value.shape[a] for a in axes]
        if eqn.params["mode"] == GatherScatterMode.CLIP:
            raise UnsupportedError(f"{eqn.primitive.name} that pulls places inside")
        places, inside = _within(graph, indices, sides, eqn.params["mode"])
        moved = transposed(value, (*axes, *rest))
        if inside is not None:  # what lies outside is written to a line of its own behind the end, which is cut off
            moved = padded(graph, moved, known(np.zeros((), value.dtype)), [(0, 1)] * len(axes) + [(0, 0)] * len(rest))
            ends = known(np.asarray(sides, places.dtype).reshape((1,) * (len(places.shape) - 1) + (-1,)), places.shape)
            flags = _lengthened(graph, inside, 1, places.shape)
            places = where(graph, flags, places, ends)
        order = [*(i for i in range(len(updates.shape)) if i not in windows), *windows]
        names = graph.name(moved), graph.name(graph.cast(places, np.int64)), graph.name(transposed(updates, order))
        made = tensor(graph.node("ScatterND", *names, reduction=kind), moved.shape, value.dtype)
        if inside is not None:
            made = cut(graph, made, [0] * len(made.shape), [*sides, *(value.shape[i] for i in rest)])
        back = [(*axes, *rest).index(i) for i in range(len(value.shape))]
        return [transposed(made, back)]

    return rule


RULES: dict[str, Rule] = {
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "scatter": scatter("none"),
    "scatter-add": scatter("add"),
    "scatter-max": scatter("max"),
    "scatter-min": scatter("min"),
    "scatter-mul": scatter("mul"),
}
