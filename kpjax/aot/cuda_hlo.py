"""What a program compiled for a GPU asks of it (HLO text): kernel launches, bytes, products, and forms that run badly.

XLA's cost analysis says nothing there.  The text is that of the optimised program, in which a fusion or a call of a
library is one operation.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from kpjax.aot.hlo import Array, loop_length, read_arrays, read_computations, size_of

_OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("domain", "partition-id", "replica-id", "while", "conditional", "call"),
)
_SLICES = ("dynamic-slice", "slice", "gather")

# Above these an operation is named among what looks wrong.
_WINDOW = 11  # pixels; cuDNN has no fast kernel for larger ones (ResNets begin with 7, AlexNet with 11)
_ROWS = 10**6  # of a sort or scatter
_LAUNCHES = 200  # of one loop in a step: a millisecond at 5 us each
_TRANSPOSED = 32 * 2**20  # bytes: some 20 us on an H100


@dataclasses.dataclass(frozen=True)
class Oddity:
    """An operation that is likely to run badly.

    kind: e.g. "large transpose".  what: the operation in words.  size: rows, bytes, launches, or elements written.
    times: how often a step runs it.  scope: its name in JAX.
    """

    kind: str
    what: str
    size: int
    times: int = 1
    scope: str = ""


@dataclasses.dataclass(frozen=True)
class GpuWork:
    """What one GPU does in a step.

    launches: kernels, copies and calls of libraries, each counted once (a library may launch several); in_loops: those
    in bodies of loops, as often as these run.  All branches of a condition are counted.  moved: bytes, the inputs and
    outputs of each.  flops: of convolutions and matrix products, padding included; float32: the part of it whose
    inputs are wider than 16 bits.  at_least: a loop whose length nothing states is counted as one round.
    """

    launches: int
    in_loops: int
    moved: int
    flops: float
    float32: float
    at_least: bool
    odd: tuple[Oddity, ...]


@dataclasses.dataclass(frozen=True)
class _Operation:
    """A line of HLO.  arrays: what it results in.  operands: names."""

    name: str
    op: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str

    def field(self, pattern: str) -> str:
        """What the pattern's group matches in the line; empty: nothing."""
        found = re.search(pattern, self.line)
        return found[1] if found else ""

    @property
    def scope(self) -> str:
        return self.field(r'op_name="([^"]*)"')

    @property
    def target(self) -> str:
        return self.field(r'custom_call_target="([^"]*)"')

    @property
    def launches(self) -> bool:
        return self.op not in _FREE and not self.op.endswith(("-done", "-update"))


_Computation = dict[str, _Operation]  # by name, in the program's order


@dataclasses.dataclass(frozen=True)
class _Run:
    """An operation of `where` that runs `times` a step."""

    operation: _Operation
    where: _Computation
    times: int
    in_loop: bool


class _Program:
    """Its computations, and the operations that run one after another: those of the entry, loops, branches, calls."""

    def __init__(self, text: str) -> None:
        self.lines, entry = read_computations(text)
        self.computations = {name: _read_operations(lines) for name, lines in self.lines.items()}
        self.runs: list[_Run] = []
        self.loops: list[tuple[_Operation, int, int]] = []  # the outermost ones, their rounds and launches
        self.unknown_length = False
        self._visit(entry, 1, False)

    def _visit(self, name: str, times: int, in_loop: bool) -> int:
        """Note the operations of a computation that runs `times` a step; how many launches they are."""
        launches = 0
        for operation in self.computations.get(name, {}).values():
            if operation.op == "while":
                body, condition = operation.field(r"body=%?([\w.\-]+)"), operation.field(r"condition=%?([\w.\-]+)")
                length = loop_length(operation.line, self.lines, condition)
                self.unknown_length |= not length
                rounds = times * (length or 1)
                inside = self._visit(body, rounds, True)
                if "known_trip_count" not in operation.line:  # else the host counts
                    inside += self._visit(condition, rounds, True)
                if not in_loop:
                    self.loops.append((operation, rounds, inside))
                launches += inside
            elif operation.op == "conditional":
                branches = operation.field(r"branch_computations=\{([^}]*)\}").split(",")
                branches += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", operation.line)
                launches += sum(self._visit(branch.strip(" %"), times, in_loop) for branch in branches)
            elif operation.op == "call":
                launches += self._visit(operation.field(r"to_apply=%?([\w.\-]+)"), times, in_loop)
            else:
                self.runs.append(_Run(operation, self.computations[name], times, in_loop))
                launches += times * operation.launches
        return launches

    def called(self, operation: _Operation) -> _Computation:
        """What a fusion computes."""
        return self.computations.get(operation.field(r"\bcalls=%?([\w.\-]+)"), {})

    def parts(self, operation: _Operation, where: _Computation) -> Iterator[tuple[_Operation, _Computation]]:
        """The operation and, of a fusion, those in it, each with its computation."""
        yield operation, where
        inside = self.called(operation)
        for part in inside.values():
            yield from self.parts(part, inside)


def read_gpu_work(text: str) -> GpuWork:
    """The work of an optimised HLO module's text that was compiled for CUDA."""
    program = _Program(text)
    flops = float32 = 0.0
    for run in program.runs:
        for part, where in program.parts(run.operation, run.where):
            count, wide = _products(part, where)
            flops += run.times * count
            float32 += run.times * count * wide
    return GpuWork(
        launches=sum(run.times for run in program.runs if run.operation.launches),
        in_loops=sum(run.times for run in program.runs if run.operation.launches and run.in_loop),
        moved=sum(run.times * _moved(run, program) for run in program.runs if run.operation.launches),
        flops=flops,
        float32=float32,
        at_least=program.unknown_length,
        odd=tuple(_oddities(program)),
    )


def _read_operations(lines: list[str]) -> _Computation:
    operations: _Computation = {}
    for line in lines:
        if match := _OPERATION.match(line):
            name, result, op, rest = match.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
            operations[name] = _Operation(name, op, tuple(read_arrays(result)), tuple(operands), line)
    return operations


def _arrays(names: tuple[str, ...], where: _Computation) -> list[Array]:
    """The arrays that operands are."""
    return [array for name in names if name in where for array in where[name].arrays]


def _products(operation: _Operation, where: _Computation) -> tuple[float, bool]:
    """FLOPs of a convolution or matrix product, and whether its inputs are wider than 16 bits; (0, False) of others."""
    target = operation.target
    if operation.op == "convolution" or target.startswith("__cudnn$conv"):
        inputs = _arrays(operation.operands, where)
        output, kernel = operation.arrays[0][1], inputs[1][1]
        if target == "__cudnn$convBackwardInput":  # labels and window are those of the forward convolution
            output = inputs[0][1]
        elif target == "__cudnn$convBackwardFilter":
            output, kernel = inputs[1][1], output
        features = kernel[operation.field(r"dim_labels=\w+?_(\w+)->").index("o")]
        flops = 2.0 * math.prod(output) * math.prod(kernel) / features
    elif operation.op == "dot" or target.startswith("__cublas$"):
        inputs = _arrays(operation.operands, where)
        axes = operation.field(r"lhs_contracting_dim(?:ension)?s\"?[=:]([{\[][^}\]]*[}\]])")
        contracted = [inputs[0][1][int(axis)] for axis in re.findall(r"\d+", axes)]
        flops = 2.0 * math.prod(operation.arrays[0][1]) * math.prod(contracted)
    else:
        return 0.0, False
    return flops, inputs[0][0] in ("f32", "f64")


def _moved(run: _Run, program: _Program) -> int:
    """Bytes that an operation reads and writes; of an array that a fusion only takes slices of, the slices."""
    operation, where = run.operation, run.where
    if operation.op.endswith("-start") and operation.op != "all-reduce-start":
        return size_of(operation.arrays)  # what goes in and what comes out
    inside = program.called(operation) if operation.op == "fusion" else {}
    if not inside:
        return size_of(_arrays(operation.operands, where)) + size_of(operation.arrays)
    parameters = {part.field(r" parameter\((\d+)\)"): name for name, part in inside.items() if part.op == "parameter"}
    read = 0
    for number, name in enumerate(operation.operands):
        whole = size_of(_arrays((name,), where))
        uses = list(_uses(parameters.get(str(number), ""), inside))
        if uses and all(use.op in (*_SLICES, "dynamic-update-slice") and first for use, first in uses):
            whole = min(whole, sum(size_of(use.arrays) for use, _ in uses if use.op in _SLICES))
        read += whole
    written = size_of(operation.arrays)
    for part in inside.values():
        if part.op == "dynamic-update-slice":  # in place
            written += size_of(_arrays(part.operands[1:2], inside)) - size_of(part.arrays)
    return read + max(written, 0)


def _uses(name: str, inside: _Computation) -> Iterator[tuple[_Operation, bool]]:
    """The operations of a fusion that take `name`, also through a bitcast, and whether as their first operand alone."""
    for part in inside.values():
        if name in part.operands:
            if part.op == "bitcast":
                yield from _uses(part.name, inside)
            else:
                yield part, part.operands[0] == name and part.operands.count(name) == 1


def _oddities(program: _Program) -> Iterator[Oddity]:
    """What looks wrong, each kind's in the program's order."""
    found: dict[str, list[Oddity]] = collections.defaultdict(list)
    for run in program.runs:
        for part, where in program.parts(run.operation, run.where):
            for kind, what, size in _faults(part, where):
                found[kind].append(Oddity(kind, what, size, run.times, part.scope or run.operation.scope))
    for operation, rounds, launches in program.loops:
        if launches > _LAUNCHES:
            kind = "loop of many launches"
            found[kind].append(Oddity(kind, f"{launches:,} in {rounds:,} rounds", launches, scope=operation.scope))
    for kind in sorted(found):
        yield from found[kind]


def _faults(operation: _Operation, where: _Computation) -> Iterator[tuple[str, str, int]]:
    """(kind, in words, size) of each thing that looks wrong with one operation."""
    op, target = operation.op, operation.target
    shape, elements = _text(operation.arrays[:1]), sum(math.prod(sides) for _, sides in operation.arrays[:1])
    if op == "convolution" or target.startswith("__cudnn$conv"):
        window = operation.field(r"window=\{([^}]*)\}")
        sides = [int(side) for side in re.findall(r"\d+", operation.field(r"size=([\dx]+)"))]
        kind = "convolution in a form that cuDNN does not serve well"
        if op == "convolution":
            yield kind, f"{shape}, no call of cuDNN, window {window}", elements
        elif max(sides, default=0) > _WINDOW or re.search(r"dilate|reversal", window):
            yield kind, f"{target.removeprefix('__cudnn$')} {shape}, window {window}", elements
    rows = 0
    if op == "sort" or target.startswith("__cub$DeviceRadixSort"):
        rows = math.prod(_arrays(operation.operands[:1], where)[0][1])
    elif op == "scatter":
        indices = list(_arrays(operation.operands, where)[len(operation.operands) // 2][1])
        depth = operation.field(r"index_vector_dim=(\d+)")
        rows = math.prod(side for axis, side in enumerate(indices) if str(axis) != depth)
    elif op == "select-and-scatter":
        rows = math.prod(_arrays(operation.operands[1:2], where)[0][1])
    if rows > _ROWS:
        kind = "sort" if op in ("sort", "custom-call") else "scatter"
        yield f"{kind} of more than a million rows", f"{rows:,} rows, {shape}", rows
    if op == "transpose" and (size := size_of(operation.arrays)) >= _TRANSPOSED:
        order = operation.field(r"dimensions=\{([\d,]*)\}").split(",")
        if order[-1] != str(len(order) - 1):  # else whole rows move
            yield "large transpose", f"{shape}, {size / 2**20:,.0f} MiB", size
    if op != "parameter" and any(dtype in ("f64", "c128") for dtype, _ in operation.arrays):
        yield "float64", f"{op} {shape}", elements
    if "callback" in target or op in ("infeed", "outfeed", "send", "recv"):
        yield "host callback", target or op, elements


def _text(arrays: tuple[Array, ...]) -> str:
    """As HLO writes it, e.g. "f32[8,3]"."""
    return ", ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in arrays)
