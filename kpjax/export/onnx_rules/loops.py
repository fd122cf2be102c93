"""Loops and branches: scan, while, cond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kpjax.export.onnx_graph import Body, Graph, Value, known, tensor
from kpjax.export.onnx_rules.elementwise import Rule

Typed = tuple[str, np.dtype, tuple[Any, ...]]


def cond(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """cond: If, one in the other for more than two branches; a branch alone where the index is known."""
    index, *operands = inputs
    branches = list(eqn.params["branches"])
    if index.known:
        branch = branches[int(np.clip(int(index.numbers), 0, len(branches) - 1))]
        return graph.shared.convert(graph, branch.jaxpr, branch.consts, operands)
    return _choice(graph, index, branches, operands)


def _choice(graph: Graph, index: Value, branches: list[Any], operands: list[Value]) -> list[Value]:
    first, others = branches[0], branches[1:]
    avals = [v.aval for v in first.jaxpr.outvars]
    bodies = []
    for number in (0, 1):
        inside = graph.inside()
        if number == 0 or len(others) == 1:
            branch = (first, others[0])[number]
            results = graph.shared.convert(inside, branch.jaxpr, branch.consts, operands)
        else:
            less = inside.elementwise("Sub", [index, known(np.ones((), index.dtype))])
            results = _choice(inside, less, others, operands)
        bodies.append(Body(inside, [], _outputs(inside, results)))
    later = graph.elementwise("Greater", [index, known(np.zeros((), index.dtype))], bool)
    names = graph.nodes_of("If", len(avals), graph.name(later), then_branch=bodies[1], else_branch=bodies[0])
    return [tensor(name, a.shape, a.dtype) for name, a in zip(names, avals, strict=True)]


def while_(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """while: Loop, whose condition is computed before the first round and at the end of each."""
    p = eqn.params
    of_condition, of_body = p["cond_nconsts"], p["body_nconsts"]
    condition_constants, inputs = inputs[:of_condition], inputs[of_condition:]
    body_constants, state = inputs[:of_body], inputs[of_body:]
    condition, body, convert = p["cond_jaxpr"], p["body_jaxpr"], graph.shared.convert
    (begin,) = convert(graph, condition.jaxpr, condition.consts, condition_constants + state)
    inside = graph.inside()
    states = _inputs(inside, [v.aval for v in body.jaxpr.outvars])
    results = convert(inside, body.jaxpr, body.consts, body_constants + [_value(x) for x in states])
    (go_on,) = convert(inside, condition.jaxpr, condition.consts, condition_constants + results)
    own: list[Typed] = [
        (inside.new_name("round"), np.dtype(np.int64), ()),
        (inside.new_name("open"), np.dtype(bool), ()),
    ]
    made = Body(inside, own + states, _outputs(inside, [go_on, *results]))
    names = graph.nodes_of("Loop", len(state), "", graph.name(begin), *map(graph.name, state), body=made)
    return [_value((name, dtype, shape)) for name, (_, dtype, shape) in zip(names, states, strict=True)]


def scan(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """scan: Scan, which is the same."""
    p = eqn.params
    body, carried = p["jaxpr"], p["num_carry"]
    constants, inputs = inputs[: p["num_consts"]], inputs[p["num_consts"] :]
    inside = graph.inside()
    own = _inputs(inside, [v.aval for v in body.jaxpr.invars[len(constants) :]])
    results = graph.shared.convert(inside, body.jaxpr, body.consts, constants + [_value(x) for x in own])
    if len(inputs) == carried:  # Scan has to go over something, which tells it how often
        rounds = graph.node("Expand", np.zeros(1, np.float32), graph.size(p["length"]))
        inputs = [*inputs, tensor(rounds, (p["length"],), np.float32)]
        own = [*own, (inside.new_name("round"), np.dtype(np.float32), ())]
    sequences, stacked = len(inputs) - carried, len(results) - carried
    backward = int(p["reverse"])
    directions = {"scan_input_directions": [backward] * sequences}
    if stacked:
        directions["scan_output_directions"] = [backward] * stacked
    names = graph.nodes_of(
        "Scan",
        len(results),
        *map(graph.name, inputs),
        body=Body(inside, own, _outputs(inside, results)),
        num_scan_inputs=sequences,
        **directions,
    )
    avals = [v.aval for v in eqn.outvars]
    return [tensor(name, a.shape, a.dtype) for name, a in zip(names, avals, strict=True)]


def _inputs(graph: Graph, avals: Sequence[Any]) -> list[Typed]:
    return [(graph.new_name("input"), np.dtype(a.dtype), tuple(a.shape)) for a in avals]


def _value(typed: Typed) -> Value:
    name, dtype, shape = typed
    return tensor(name, shape, dtype)


def _outputs(graph: Graph, values: Sequence[Value]) -> list[Typed]:
    """Outputs of a body: each of an operator in the body itself, and none twice."""
    return [(graph.copy(graph.name(v)), v.dtype, v.shape) for v in values]


RULES: dict[str, Rule] = {"cond": cond, "while": while_, "scan": scan}
