"""Convolutions and products of matrices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from kpjax.export.onnx_graph import Graph, UnsupportedError, Value, tensor
from kpjax.export.onnx_rules.axes import transposed
from kpjax.export.onnx_rules.elementwise import Rule

CHANNELS_FIRST = (0, 3, 1, 2)


def convolution(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """conv_general_dilated: Conv, or with a dilated input (a transposed convolution) ConvTranspose."""
    p = eqn.params
    if p["batch_group_count"] != 1:
        raise UnsupportedError("conv_general_dilated with groups of the batch")
    x, kernel = inputs
    layout = p["dimension_numbers"]
    name, weights = graph.name(x, layout.lhs_spec), transposed(kernel, layout.rhs_spec)  # (O, C / groups, ...)
    out = eqn.outvars[0].aval
    spatial = [weights.shape[2 + i] for i in range(len(layout.lhs_spec) - 2)]
    padding, dilated = list(map(tuple, p["padding"])), any(d != 1 for d in p["lhs_dilation"])
    common = {"dilations": list(p["rhs_dilation"]), "group": int(p["feature_group_count"]), "kernel_shape": spatial}
    if not dilated:
        if min(side for pair in padding for side in pair) < 0:
            raise UnsupportedError("conv_general_dilated with a negative padding")
        pads = [int(low) for low, _ in padding] + [int(high) for _, high in padding]
        made = graph.node(
            "Conv", name, graph.name(weights), strides=list(map(int, p["window_strides"])), pads=pads, **common
        )
        return [tensor(made, out.shape, out.dtype, layout.out_spec)]
    if any(s != 1 for s in p["window_strides"]) or common["group"] != 1 or not weights.known:
        raise UnsupportedError("conv_general_dilated of a dilated input with strides, groups or a computed kernel")
    steps, reach = (
        list(map(int, p["lhs_dilation"])),
        [d * (k - 1) for d, k in zip(p["rhs_dilation"], spatial, strict=True)],
    )
    if set(steps) == {2} and set(p["rhs_dilation"]) == {1} and len(steps) == 2:
        phases = _phases(graph, name, weights.numbers, padding, [out.shape[i] for i in layout.out_spec[2:]])
        if phases:
            return [tensor(phases, out.shape, out.dtype, layout.out_spec)]
    # x's elements lie `lhs_dilation` apart: the transposed convolution of that stride, of the mirrored kernel with
    # inputs and outputs exchanged.  Its padding is what a whole kernel reaches beyond the input, less that of this one.
    pads = [r - low for r, (low, _) in zip(reach, padding, strict=True)]
    pads += [r - high for r, (_, high) in zip(reach, padding, strict=True)]
    if min(pads) < 0:
        raise UnsupportedError("conv_general_dilated of a dilated input with a wide padding")
    mirrored = np.flip(weights.numbers.swapaxes(0, 1), tuple(range(2, weights.numbers.ndim)))
    made = graph.node("ConvTranspose", name, mirrored, strides=steps, pads=list(map(int, pads)), **common)
    return [tensor(made, out.shape, out.dtype, layout.out_spec)]


def _phases(graph: Graph, name: str, kernel: np.ndarray, padding: list[Any], sides: list[int]) -> str:
    """A convolution of an input whose cells lie 2 apart as four of it as it is, which onnxruntime computes faster.

    kernel: (O, C, kh, kw).  sides: of the result.  Its even and odd rows and columns see every second tap: four
    results, which DepthToSpace interleaves.  Returns "" where they are not of one size, or reach too far.
    """
    if any(side % 2 for side in sides) or min(kernel.shape[2:]) < 2:
        return ""
    along = []  # of each axis and phase: the first tap, and the padding before and behind
    for axis, side in enumerate(sides):
        low = int(padding[axis][0])
        taps = [(low - phase) % 2 for phase in (0, 1)]
        counts = [(kernel.shape[2 + axis] - tap + 1) // 2 for tap in taps]
        before = [(low - phase - tap) // 2 for phase, tap in enumerate(taps)]
        length = (side - 1 - low - int(padding[axis][1]) + kernel.shape[2 + axis] - 1) // 2 + 1  # of the input
        behind = [side // 2 + count - 1 - length - b for count, b in zip(counts, before, strict=True)]
        if min(before + behind) < 0:
            return ""
        along.append(list(zip(taps, before, behind, strict=True)))
    parts = []
    for (row, top, bottom), (column, left, right) in itertools.product(*along):
        part = kernel[:, :, row::2, column::2]
        options = {"kernel_shape": list(part.shape[2:]), "pads": [top, left, bottom, right]}
        parts.append(graph.node("Conv", name, part, **options))
    return graph.node("DepthToSpace", graph.node("Concat", *parts, axis=1), blocksize=2, mode="DCR")


def dot_general(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """dot_general: a 1x1 convolution, a product of matrices, or Einsum."""
    (contract, batch), out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    left, right = inputs
    simple = not batch[0] and tuple(contract[0]) == (len(left.shape) - 1,) and tuple(contract[1]) == (0,)
    if simple and left.order == CHANNELS_FIRST and right.known and len(right.shape) == 2 and not right.spread:
        kernel = right.numbers.T[:, :, None, None]
        made = graph.node("Conv", graph.name(left, CHANNELS_FIRST), kernel, kernel_shape=[1, 1])
        return [tensor(made, out.shape, out.dtype, CHANNELS_FIRST)]
    if simple and len(right.shape) == 2:
        return [tensor(graph.node("MatMul", graph.name(left), graph.name(right)), out.shape, out.dtype)]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    one = [next(letters) for _ in left.shape]
    other = [next(letters) for _ in right.shape]
    for pairs in (contract, batch):
        for a, b in zip(*pairs, strict=True):
            other[b] = one[a]
    result = [one[a] for a in batch[0]]
    result += [x for i, x in enumerate(one) if i not in (*contract[0], *batch[0])]
    result += [x for i, x in enumerate(other) if i not in (*contract[1], *batch[1])]
    equation = f"{''.join(one)},{''.join(other)}->{''.join(result)}"
    made = graph.node("Einsum", graph.name(left), graph.name(right), equation=equation)
    return [tensor(made, out.shape, out.dtype)]


RULES: dict[str, Rule] = {"conv_general_dilated": convolution, "dot_general": dot_general}
