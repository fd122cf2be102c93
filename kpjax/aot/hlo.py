"""Reading a compiled program (HLO text): its collectives, what each is for, and the memory named when it does not fit.

The text is that of the optimised program, so that collectives are counted as they run: merged, split and made
asynchronous as the compiler decided.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_OPS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OP = re.compile(rf" ({'|'.join(_OPS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:?\s*=?\s*\{"?n"?:\s*"?(\d+)')
_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5}

Array = tuple[str, tuple[int, ...]]  # type and shape, e.g. ("f32", (8, 3))


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation between devices.

    op: as HLO names it, without "-start".  arrays: (dtype, shape) of each array that it leaves on a device; of a
    reduce-scatter, each device's input.  group: how many devices take part in one exchange.  groups: the replica
    groups, as HLO writes them.  times: how often a step runs it (loops).  scope: the operation's name
    in JAX, e.g. "jit(step)/jvp(CenterNet)/backbone/trunk/bn1/reduce_sum".
    """

    op: str
    arrays: tuple[Array, ...]
    group: int
    groups: str = ""
    times: int = 1
    scope: str = ""

    @property
    def bytes(self) -> int:
        """The size of its arrays, each counted once."""
        return size_of(self.arrays)

    @property
    def sent(self) -> float:
        """Least number of bytes that a device sends each time; ring algorithms reach it."""
        share = (self.group - 1) / self.group
        rings = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
        return self.bytes * rings.get(self.op, share)


def read_collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of an optimised HLO module's text, in its order; those of one device alone are left out.

    devices: how many the program is for.  A collective that the compiler cut into the steps of an asynchronous
    fusion appears once (the steps share a channel).
    """
    computations, entry = read_computations(text)
    times = _times(computations, entry)
    found: dict[Any, Collective] = {}
    for name, lines in computations.items():
        for number, line in enumerate(lines):
            match = _OP.search(line)
            if not match or not times.get(name):
                continue
            op = match[1]
            arrays = read_arrays(line[: match.start()])
            if match[2] and op != "all-reduce":  # (what goes in, what comes out[, counters])
                arrays = arrays[1:2] if len(arrays) < 4 or op == "collective-permute" else arrays[len(arrays) // 2 :]
            groups = _groups_text(line)
            group = _ring_size(groups) if op == "collective-permute" else _group_size(groups, devices)
            if op == "reduce-scatter":
                arrays = [(d, (group, *s)) for d, s in arrays]
            elif op == "all-reduce" and "all-reduce-scatter" in name:  # a TPU's reduce-scatter: a fusion of both
                op = "reduce-scatter"
            if group == 1:
                continue
            scope = re.search(r'op_name="([^"]*)"', line)
            one = Collective(op, tuple(arrays), group, groups, times[name], scope[1] if scope else "")
            # The steps of an asynchronous fusion repeat one collective, with one channel.  Elsewhere different
            # collectives under shard_map may share a channel.
            channel = re.search(r"channel_id=(\d+)", line) if "fus" in name else None
            key = (channel[1], op, one.arrays, groups) if channel else (name, number)
            if key not in found or found[key].times < one.times:
                found[key] = one
    return list(found.values())


def counts_loops_once(text: str, loops: int) -> bool:
    """Whether more than `loops` computations of the program run several times a step.

    XLA's cost analysis counts the body of a loop once, so that its FLOPs and bytes are then too low.
    """
    computations, entry = read_computations(text)
    times = _times(computations, entry)
    lines = [line for of_one in computations.values() for line in of_one]
    bodies = {body for line in lines for body in re.findall(r"body=%?([\w.\-]+)", line)}
    return sum(times.get(body, 1) > 1 for body in bodies) > loops


def read_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the entry's name."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often a run of the entry runs each computation; a loop of unknown length counts once."""
    called: dict[str, list[tuple[str, int]]] = {}
    for name, lines in computations.items():
        called[name] = []
        for line in lines:
            calls = _CALLED.findall(line)
            for how, other in calls:
                count = loop_length(line, computations, dict(calls)["condition"]) or 1 if how == "body" else 1
                called[name].append((other, count))
            for branches in _BRANCHES.findall(line):
                called[name] += [(other.strip(" %"), 1) for other in branches.split(",")]
    times = {entry: 1}
    waiting = collections.deque([entry])
    while waiting:  # callers form no cycle
        name = waiting.popleft()
        for other, count in called.get(name, []):
            if times.get(other, 0) < times[name] * count:
                times[other] = times[name] * count
                waiting.append(other)
    return times


def loop_length(line: str, computations: dict[str, list[str]], condition: str) -> int:
    """How often a while loop runs: its stated trip count, or the only constant in its condition (counting from 0, as in
    `lax.scan`); 0: nothing says it."""
    if stated := _TRIPS.search(line):
        return int(stated[1])
    lines = computations.get(condition, [])
    inner = [x for line in lines for _, other in _CALLED.findall(line) for x in computations.get(other, [])]
    numbers = re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", "\n".join(lines + inner))
    return int(numbers[0]) if len(numbers) == 1 and "direction=LT" in "\n".join(lines + inner) else 0


def _groups_text(line: str) -> str:
    found = re.search(
        r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|mesh\[.*?\] \{.*?\}|\[[^\]]*\]<=\S+?)(?:, |$)", line
    )
    return found[1] if found else ""


def _group_size(groups: str, devices: int) -> int:
    """Devices of one group: {{0,1},{2,3}}, [groups,size]<=[devices], or a mesh's axes, mesh['a'=4,'b'=2] {'b'}."""
    if listed := re.match(r"\{\{([\d,]*)\}", groups):
        return len(listed[1].split(","))
    if iota := re.match(r"\[([\d,]+)\]<=", groups):
        return _dims(iota[1])[-1]
    if groups.startswith("mesh"):
        sizes: dict[str, str] = dict(re.findall(r"'([^']+)'=(\d+)", groups))
        axes = re.findall(r"'([^']+)'", groups[groups.index("]") :])
        # a part of an axis is written 'axis':(before)size
        parts: dict[str, str] = dict(re.findall(r"'([^']+)':\(\d+\)(\d+)", groups[groups.index("]") :]))
        return math.prod([int(parts[axis] if axis in parts else sizes[axis]) for axis in axes])
    return devices


def _ring_size(pairs: str) -> int:
    """Devices that a collective-permute's arrays pass through: {{0,1},{1,2},{2,0},{3,4},{4,5},{5,3}} -> 3."""
    to: dict[str, str] = dict(re.findall(r"\{(\d+),(\d+)\}", pairs))
    start = next(iter(set(to) - set(to.values())), min(to, default=""))  # a chain has a first device
    ring = {start}
    while (start := to.get(start, start)) not in ring:
        ring.add(start)
    return len(ring)


def read_arrays(text: str) -> list[Array]:
    """The arrays that a text of HLO names, e.g. "(f32[8,3]{1,0}, u8[0]{0})"."""
    return [(dtype, _dims(sides)) for dtype, sides in _ARRAY.findall(text)]


def size_of(arrays: Iterable[Array]) -> int:
    """Bytes of all of them."""
    return int(sum(_width(dtype) * math.prod(shape) for dtype, shape in arrays))


def _dims(text: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, text.split(","))))


def _width(dtype: str) -> float:
    """Bytes of one element."""
    return _WIDTHS[dtype] if dtype in _WIDTHS else int(re.findall(r"\d+", dtype)[0]) / 8


PURPOSES = (
    *("gradients", "parameters", "BatchNorm", "running statistics", "losses and counts", "detections"),
    *("images of mosaics", "other"),
)


def sort_by_purpose(
    collectives: Iterable[Collective],
    *,
    parameters: Sequence[tuple[int, ...]],
    norms: Sequence[str],
    fsdp: int = 1,
    evaluation: bool = False,
) -> dict[str, list[Collective]]:
    """Collectives by what they are for: the keys are PURPOSES.

    parameters: shapes of the network's parameters.  norms: names of its BatchNorm modules (the last part of their
    paths).  fsdp: devices that share one copy of the parameters.  "BatchNorm" are the sums of its statistics, forward
    and backward, which the next layer waits for.  Some are also the gradients of scale and bias.  "running statistics"
    are the averages over groups, which nothing waits for.  "images of mosaics" are sent before the forward pass.
    evaluation: a test-time program, whose gathers of at most three axes bring the detections together.  "other" are
    activations, which data parallelism never exchanges.
    """
    names = frozenset(norms)
    kernels = {shape[:2] for shape in parameters if len(shape) == 4}
    known = {_axes(shape) for shape in parameters}
    known |= {
        _axes((*shape[:i], shape[i] // fsdp, *shape[i + 1 :]))
        for shape in parameters
        for i in range(len(shape))
        if shape[i] % fsdp == 0
    }

    def of_norm(one: Collective) -> bool:
        inside = len(names & set(one.scope.split("/"))) > 0
        return one.op == "all-reduce" and inside and all(len(shape) <= 2 for _, shape in one.arrays)

    def backward(one: Collective) -> bool:
        return "transpose(" in one.scope

    def running(one: Collective) -> bool:
        return "running_statistics" in one.scope

    collectives = list(collectives)
    statistics = {one.groups for one in collectives if of_norm(one) and not backward(one) and not running(one)}
    sorted_: dict[str, list[Collective]] = {purpose: [] for purpose in PURPOSES}
    for one in collectives:
        large = [shape for _, shape in one.arrays if math.prod(shape) > 1]
        # most of them: convolutions of one input are merged, and the merged gradient has no parameter's shape
        ours = 2 * sum(_axes(shape) in known for shape in large) >= len(large)
        if not large:
            purpose = "losses and counts"
        elif of_norm(one) and running(one):
            purpose = "running statistics"
        elif of_norm(one) and one.groups in statistics:
            purpose = "BatchNorm"
        elif evaluation and one.op == "all-gather" and all(len(shape) <= 3 for _, shape in one.arrays):
            purpose = "detections"
        elif one.op == "all-gather":
            purpose = "parameters" if "params" in one.scope or ours else "other"
        elif one.op in ("all-reduce", "reduce-scatter"):
            purpose = "gradients" if ours else "other"
        elif one.op == "collective-permute" and "augment" in one.scope.split("/"):
            purpose = "images of mosaics"
        elif one.op == "collective-permute" and all(shape[:2] in kernels for _, shape in one.arrays):
            # an all-reduce or all-gather in steps around a ring, overlapped with the computation
            purpose = "gradients" if backward(one) else "parameters"
        else:
            purpose = "other"
        sorted_[purpose].append(one)
    return sorted_


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sorted sides above 1: the compiler may transpose an array and drop axes of length 1."""
    return tuple(sorted(side for side in shape if side > 1))


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_refused(message: str) -> int:
    """The bytes that a program would have needed, from the compiler's refusal; 0: the message is another one."""
    for pattern in (r"total memory required for [^(]*\(([\d.]+)([KMGT]?)\)", r"Used ([\d.]+)([KMGT]?) of"):
        if found := re.search(pattern, message):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0
