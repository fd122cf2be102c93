"""A graph of ONNX operators while it is written, and what a value of the JAX program is in it.

The batch is open: a dimension is an int, or a multiple of the batch as `jax.export.symbolic_shape` writes it.
Two things keep the graph small and quick, and both are noted with a value instead of written as operators: in which
order its axes are stored (convolutions of ONNX want channels first), and along which axes it is the same everywhere
(ONNX repeats an axis of one element by itself).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

Dim = Any  # int, or a multiple of the batch
BATCH = "b"  # the batch's name in symbolic shapes
OPSET = 18


class UnsupportedError(Exception):
    """What ONNX has no operator for here: the name of a primitive, and in which use of it."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the JAX program.

    shape, dtype: as JAX has them.  stored: the name of a tensor of the graph, or the numbers themselves where they are
    known.  order: axis i of what is stored is axis order[i] of the value; of known numbers 0, 1, 2, ...
    spread: the axes that are stored with one element, which stands for all.
    """

    shape: tuple[Dim, ...]
    dtype: np.dtype
    stored: str | np.ndarray
    order: tuple[int, ...]
    spread: frozenset[int] = frozenset()

    @property
    def known(self) -> bool:
        """Whether the numbers are known when the graph is written."""
        return isinstance(self.stored, np.ndarray)

    @property
    def numbers(self) -> np.ndarray:
        """The numbers of a known value, one element along the axes of `spread`."""
        assert isinstance(self.stored, np.ndarray)
        return self.stored

    def everywhere(self) -> Any:
        """The one number that a known value consists of, or None."""
        if not self.known or self.numbers.size == 0 or (self.numbers != self.numbers.flat[0]).any():
            return None
        return self.numbers.flat[0]


def known(numbers: Any, shape: Sequence[Dim] | None = None) -> Value:
    """A value whose numbers are known.  shape: its full shape, of which `numbers` may have one element an axis."""
    array = np.asarray(numbers)
    full = tuple(array.shape if shape is None else shape)
    spread = frozenset(i for i, (a, b) in enumerate(zip(array.shape, full, strict=True)) if not same(a, b))
    return Value(full, array.dtype, array, tuple(range(array.ndim)), spread)


def tensor(
    name: str, shape: Sequence[Dim], dtype: Any, order: Sequence[int] = (), spread: Collection[int] = ()
) -> Value:
    """A value that the tensor `name` of the graph holds.  order: () for 0, 1, 2, ..."""
    ones = {i for i, dim in enumerate(shape) if same(dim, 1)}
    return Value(
        tuple(shape), np.dtype(dtype), name, tuple(order) or tuple(range(len(shape))), frozenset(spread) - ones
    )


def same(a: Dim, b: Dim) -> bool:
    """Whether two dimensions are equal for every batch."""
    return isinstance(a, int | np.integer) == isinstance(b, int | np.integer) and bool(a == b)


def batch_multiple(dim: Dim) -> int:
    """How many times the batch a dimension is.  Raises UnsupportedError for other sums of it."""
    found = re.fullmatch(rf"(?:(\d+)\*)?{BATCH}", str(dim))
    if found is None:
        raise UnsupportedError(f"a dimension of {dim}")
    return int(found.group(1) or 1)


def dim_text(dim: Dim) -> Any:
    """A dimension as ONNX declares it: the number, or "batch" and its multiples."""
    if isinstance(dim, int | np.integer):
        return int(dim)
    times = batch_multiple(dim)
    return "batch" if times == 1 else f"{times}*batch"


@dataclasses.dataclass
class Node:
    """One operator.  attributes: Python values, and for bodies of loops and branches a `Body`."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclasses.dataclass
class Body:
    """A graph inside an operator: its inputs and its outputs, (name, dtype, shape) each."""

    graph: Graph
    inputs: list[tuple[str, np.dtype, tuple[Dim, ...]]]
    outputs: list[tuple[str, np.dtype, tuple[Dim, ...]]]


@dataclasses.dataclass
class Shared:
    """What a graph and the graphs inside its operators have in common.

    convert: writes a jaxpr's equations into a graph: (graph, jaxpr, constants, inputs) -> outputs.
    batch: the tensor that holds the batch's size, (1,) int64.
    """

    convert: Callable[..., list[Value]]
    batch: str = ""
    count: int = 0
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    names: dict[tuple[Any, ...], str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Graph:
    """Operators in the order in which they run.  written: their outputs by what they compute."""

    shared: Shared
    nodes: list[Node] = dataclasses.field(default_factory=list)
    written: dict[Any, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def new_name(self, word: str) -> str:
        """A name that no tensor has yet."""
        self.shared.count += 1
        return f"{word.lower()}_{self.shared.count}"

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The tensor of these numbers; equal ones are stored once."""
        array = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared.names:
            name = self.new_name("constant")
            self.shared.names[key], self.shared.arrays[name] = name, array
        return self.shared.names[key]

    def node(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Write an operator of one output; the output's name.  The same one twice is written once."""
        return self.nodes_of(operator, 1, *inputs, **attributes)[0]

    def nodes_of(self, operator: str, outputs: int, *inputs: str | np.ndarray, **attributes: Any) -> tuple[str, ...]:
        """Write an operator; the names of its outputs."""
        names = tuple(x if isinstance(x, str) else self.constant(x) for x in inputs)
        bodies = any(isinstance(x, Body) for x in attributes.values())
        key = (operator, outputs, names, repr(sorted(attributes.items())))
        if not bodies and key in self.written:
            return self.written[key]
        made = tuple(self.new_name(operator) for _ in range(outputs))
        self.nodes.append(Node(operator, names, made, attributes))
        if not bodies:
            self.written[key] = made
        return made

    def copy(self, name: str) -> str:
        """Another tensor of the same numbers, for outputs: each is made by an operator of its own."""
        made = self.new_name("output")
        self.nodes.append(Node("Identity", (name,), (made,), {}))
        return made

    def inside(self) -> Graph:
        """An empty graph for the body of an operator of this one, whose tensors it can read."""
        return Graph(self.shared)

    def sizes(self, dims: Sequence[Dim]) -> str:
        """The tensor that holds these dimensions, (n,) int64."""
        if all(isinstance(d, int | np.integer) for d in dims):
            return self.constant(dims, np.int64)
        parts = [self.size(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def size(self, dim: Dim) -> str:
        """The tensor that holds a dimension, (1,) int64."""
        if isinstance(dim, int | np.integer):
            return self.constant([dim], np.int64)
        times = batch_multiple(dim)
        batch = self.shared.batch
        return batch if times == 1 else self.node("Mul", batch, self.constant([times], np.int64))

    def name(self, value: Value, order: Sequence[int] = (), expand: Collection[int] | None = None) -> str:
        """The tensor of a value, its axes in this order; () for 0, 1, 2, ...

        expand: the axes that have to be stored in full; None: all.
        """
        order = tuple(order) or tuple(range(len(value.shape)))
        if value.known:
            name = self.constant(value.numbers.transpose(order))
        else:
            name = str(value.stored)
            if value.order != order:
                name = self.node("Transpose", name, perm=[value.order.index(axis) for axis in order])
        full = value.spread if expand is None else value.spread & frozenset(expand)
        if full:
            name = self.node("Expand", name, self.sizes([value.shape[a] if a in full else 1 for a in order]))
        return name

    def numbers_or_name(self, value: Value, order: Sequence[int]) -> str:
        """A value as an operand that ONNX broadcasts: known numbers without leading axes of one element."""
        if len(value.shape) != len(order):  # a scalar
            order = ()
        if not value.known:
            return self.name(value, order, expand=())
        array = value.numbers.transpose(tuple(order))
        lead = next((i for i, side in enumerate(array.shape) if side != 1), array.ndim)
        return self.constant(array.reshape(array.shape[lead:]))

    def elementwise(self, operator: str, inputs: Sequence[Value], dtype: Any = None, **attributes: Any) -> Value:
        """An operator on equal places of values of one shape (or scalars).  dtype: of the result; None: the first's."""
        lead = max(inputs, key=lambda v: (len(v.shape), not v.known, -len(v.spread)))
        names = [self.numbers_or_name(v, lead.order) for v in inputs]
        spread = frozenset(range(len(lead.shape)))
        for value in inputs:
            if len(value.shape) == len(lead.shape):
                spread &= value.spread
        made = self.node(operator, *names, **attributes)
        if not lead.shape or math.prod(d for d in lead.shape if isinstance(d, int)) != 0:
            return tensor(made, lead.shape, dtype or inputs[0].dtype, lead.order, spread)
        raise UnsupportedError(f"{operator} of an empty array")

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value with another dtype."""
        dtype = np.dtype(dtype)
        if dtype == value.dtype:
            return value
        if value.known:
            return dataclasses.replace(value, stored=value.numbers.astype(dtype), dtype=dtype)
        return dataclasses.replace(value, stored=self.node("Cast", str(value.stored), to=onnx_type(dtype)), dtype=dtype)


# ONNX's numbers for the dtypes, as `onnx.TensorProto` has them.
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "uint32": 12}


def onnx_type(dtype: Any) -> int:
    """ONNX's number of a dtype.  Raises UnsupportedError for those that a graph cannot have here."""
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise UnsupportedError(f"dtype {name}")
    return _TYPES[name]


def needed(graph: Graph, outputs: Collection[str]) -> set[str]:
    """Leave out the operators that no output needs, in bodies too; the names that are read from outside."""
    wanted, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        kept.append(node)
        wanted.update(name for name in node.inputs if name)
        for body in node.attributes.values():
            if isinstance(body, Body):
                inner = needed(body.graph, {name for name, *_ in body.outputs})
                wanted |= inner - {name for name, *_ in body.inputs}
    graph.nodes = kept[::-1]
    return wanted - {name for node in kept for name in node.outputs}
