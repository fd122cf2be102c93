"""Primitives that work on each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.lax import RoundingMethod

from kpjax.export.onnx_graph import Graph, UnsupportedError, Value, known, onnx_type

Rule = Callable[[Graph, Any, list[Value]], list[Value]]

# Primitives that one operator of ONNX computes on numbers of any kind: the inputs' dtype stays.
SAME = {
    "abs": "Abs",
    "add": "Add",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",  # of integers, both cut towards 0
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "mul": "Mul",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
COMPARISONS = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
LOGIC = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}


def same(operator: str) -> Rule:
    """The rule of a primitive that is one operator."""
    return lambda graph, eqn, inputs: [graph.elementwise(operator, inputs)]


def comparison(operator: str) -> Rule:
    """The rule of a comparison; booleans are compared as integers."""

    def rule(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
        if inputs[0].dtype == bool and operator != "Equal":
            inputs = [graph.cast(x, np.int32) for x in inputs]
        return [graph.elementwise(operator, inputs, bool)]

    return rule


def logic(operator: str) -> Rule:
    """The rule of a logical operation, of booleans only."""

    def rule(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
        if inputs[0].dtype != bool:
            raise UnsupportedError(f"{eqn.primitive.name} of {inputs[0].dtype}")
        return [graph.elementwise(operator, inputs)]

    return rule


def not_equal(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """ne"""
    return [graph.elementwise("Not", [graph.elementwise("Equal", inputs, bool)])]


def maximum(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """max; of booleans, or.  A maximum with 0 is written as the ReLU that it is."""
    if inputs[0].dtype == bool:
        return [graph.elementwise("Or", inputs)]
    for value, other in (inputs, inputs[::-1]):
        if other.everywhere() == 0 and other.dtype == np.float32:
            return [graph.elementwise("Relu", [value])]
    return [graph.elementwise("Max", inputs)]


def minimum(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """min; of booleans, and."""
    return [graph.elementwise("And" if inputs[0].dtype == bool else "Min", inputs)]


def logistic(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """logistic, as XLA writes it: onnxruntime's Sigmoid has few correct digits of small results."""
    power = graph.elementwise("Exp", [graph.elementwise("Neg", inputs)])
    one = known(np.ones((), power.dtype))
    return [graph.elementwise("Div", [one, graph.elementwise("Add", [power, one])])]


def rsqrt(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """rsqrt"""
    return [graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", inputs)])]


def square(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """square"""
    return [graph.elementwise("Mul", [inputs[0], inputs[0]])]


def power(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """pow, and integer_pow with its exponent as a parameter."""
    if "y" in eqn.params:
        inputs = [inputs[0], known(np.asarray(eqn.params["y"], inputs[0].dtype))]
    return [graph.elementwise("Pow", inputs)]


def rounded(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """round: halves to the even number, or away from 0."""
    if eqn.params["rounding_method"] == RoundingMethod.TO_NEAREST_EVEN:
        return [graph.elementwise("Round", inputs)]
    size = graph.elementwise("Add", [graph.elementwise("Abs", inputs), known(np.asarray(0.5, inputs[0].dtype))])
    return [graph.elementwise("Mul", [graph.elementwise("Sign", inputs), graph.elementwise("Floor", [size])])]


def remainder(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """rem: the sign is that of the dividend, as in C."""
    return [graph.elementwise("Mod", inputs, fmod=1)]


def clamp(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """clamp: (least, x, greatest)."""
    least, x, greatest = inputs
    return [graph.elementwise("Min", [graph.elementwise("Max", [x, least]), greatest])]


def is_finite(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """is_finite: x - x is 0 for finite numbers alone."""
    x = inputs[0]
    return [graph.elementwise("Equal", [graph.elementwise("Sub", [x, x]), known(np.zeros((), x.dtype))], bool)]


def arctan2(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """atan2, which ONNX lacks: the arcus tangent of the quotient, turned by half a circle left of the y axis."""
    y, x = inputs
    zero, half = known(np.float32(0)), known(np.float32(math.pi / 2))
    angle = graph.elementwise("Atan", [graph.elementwise("Div", [y, x])])
    over = graph.elementwise("Div", [known(np.float32(1)), y])  # the sign of -0 counts
    below = graph.elementwise("Less", [over, zero], bool)
    turn = where(graph, below, known(np.float32(-math.pi)), known(np.float32(math.pi)))
    left = graph.elementwise("Less", [x, zero], bool)
    angle = where(graph, left, graph.elementwise("Add", [angle, turn]), angle)
    # On the y axis the quotient is infinite, or no number at 0, where the angle counts as 0.
    sign = graph.elementwise("Sign", [y])
    on_axis = graph.elementwise("Equal", [x, zero], bool)
    return [where(graph, on_axis, graph.elementwise("Mul", [sign, half]), angle)]


def where(graph: Graph, condition: Value, yes: Value, no: Value) -> Value:
    """`yes` where the condition holds, `no` elsewhere; one of the two alone where the condition is known."""
    decided = condition.everywhere()
    if decided is not None and len(yes.shape) == len(no.shape) == len(condition.shape):
        return yes if decided else no
    if yes.dtype == bool:  # onnxruntime's Where has none of booleans
        chosen = graph.elementwise("And", [condition, yes])
        other = graph.elementwise("And", [graph.elementwise("Not", [condition]), no])
        return graph.elementwise("Or", [chosen, other])
    return graph.elementwise("Where", [condition, yes, no], yes.dtype)


def select(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """select_n: (which, case 0, case 1, ...)."""
    which, *cases = inputs
    if which.dtype == bool:
        return [where(graph, which, cases[1], cases[0])]
    chosen = cases[-1]
    for number in reversed(range(len(cases) - 1)):
        below = graph.elementwise("LessOrEqual", [which, known(np.asarray(number, which.dtype))], bool)
        chosen = where(graph, below, cases[number], chosen)
    return [chosen]


def convert(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """convert_element_type"""
    onnx_type(eqn.params["new_dtype"])
    return [graph.cast(inputs[0], eqn.params["new_dtype"])]


def unchanged(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """copy, stop_gradient, optimization_barrier and others that leave their inputs as they are."""
    return inputs


RULES: dict[str, Rule] = {
    **{name: same(operator) for name, operator in SAME.items()},
    **{name: comparison(operator) for name, operator in COMPARISONS.items()},
    **{name: logic(operator) for name, operator in LOGIC.items()},
    "ne": not_equal,
    "max": maximum,
    "min": minimum,
    "logistic": logistic,
    "rsqrt": rsqrt,
    "square": square,
    "pow": power,
    "integer_pow": power,
    "rem": remainder,
    "round": rounded,
    "clamp": clamp,
    "is_finite": is_finite,
    "atan2": arctan2,
    "select_n": select,
    "convert_element_type": convert,
    "copy": unchanged,
    "copy_p": unchanged,
    "stop_gradient": unchanged,
    "optimization_barrier": unchanged,
}
