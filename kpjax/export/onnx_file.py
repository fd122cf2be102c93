"""Exporting a detector as one ONNX file: from images to detections, for onnxruntime and whatever else reads ONNX."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kpjax.detectors import build
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.export.onnx_graph import BATCH, OPSET, Body, Graph, Node, dim_text, needed, onnx_type
from kpjax.export.stablehlo import check_preset, inputs_of, one_program, outputs_of

IR_VERSION = 8  # of the file's format: what onnxruntime has read since 1.14, as OPSET


def require_onnx() -> None:
    """Raise ConfigError, one line, unless the packages that write and run ONNX files are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs onnx to write the file and onnxruntime to check it ({error}); pip install 'kpjax[onnx]'"
        ) from None


def save_onnx(
    detector: Detector,
    tree: Any,
    leaves: list[Any],
    size: tuple[int, int],
    preset: str,
    top_k: int,
    names: Sequence[str],
    path: str,
) -> float:
    """Write the program of `kpjax.export.stablehlo.export` as ONNX, the weights in it, and run it in onnxruntime.

    names: of the classes.  The batch is open.  The inputs are those of `inputs_of`, the outputs those of `outputs_of`.
    The model's metadata say how an image has to be prepared, see `metadata`.  It computes in float32, whatever the
    detector does.  Returns the largest difference of a box from that of JAX, in pixels, see `check_onnx`.
    Raises ConfigError, one line, and leaves no file: for a preset that is not one program, one that looks by itself (it
    computes in float64 what it looks at, which the graphs here have not), a primitive that has no
    form in ONNX, a missing package, and where onnxruntime does not find what JAX finds.
    """
    require_onnx()
    from kpjax.export.onnx_check import check_onnx

    check_preset(detector, preset)
    if detector.protocols[preset].look:
        raise ConfigError(
            f"ONNX: {detector.name} looks by itself, which kpjax writes as StableHLO alone; leave --onnx out"
        )
    detector = in_float32(detector)
    try:
        write_onnx(detector, tree, leaves, size, preset, top_k, names, path)
        return check_onnx(detector, tree, leaves, size, preset, top_k, path)
    except BaseException:
        if os.path.exists(path):
            os.remove(path)
        raise


def write_onnx(
    detector: Detector,
    tree: Any,
    leaves: list[Any],
    size: tuple[int, int],
    preset: str,
    top_k: int,
    names: Sequence[str],
    path: str,
) -> None:
    """`save_onnx` without a check of what was written, of a detector that computes in float32."""
    import jax
    import onnx

    (batch,) = jax.export.symbolic_shape(BATCH)
    given = inputs_of(detector, size)
    inputs = [(name, jax.ShapeDtypeStruct((batch, *shape), dtype)) for name, shape, dtype in given]
    model = model_of(one_program(detector, tree, size, preset, top_k), [leaves], inputs, outputs_of(detector))
    onnx.helper.set_model_props(model, metadata(detector, size, preset, top_k, names))
    onnx.save(model, path)


def model_of(
    function: Callable[..., Any],
    known_arguments: Sequence[Any],
    inputs: Sequence[tuple[str, Any]],
    names: Sequence[str],
) -> Any:
    """function(*known_arguments, *inputs) as `onnx.ModelProto`; see `kpjax.export.onnx_program.graph_of`.

    names: of the results, one for each array that the function returns.
    """
    from onnx import helper

    from kpjax.export.onnx_program import graph_of

    graph, results = graph_of(function, known_arguments, inputs)
    for value, name in zip(results, names, strict=True):
        graph.nodes.append(Node("Identity", (graph.name(value),), (name,), {}))
    needed(graph, names)
    outputs = [(name, x.dtype, x.shape) for name, x in zip(names, results, strict=True)]
    body = Body(graph, [(name, np.dtype(x.dtype), x.shape) for name, x in inputs], outputs)
    versions = [helper.make_opsetid("", OPSET)]
    whole = onnx_graph(body, "kpjax", arrays_of(graph))
    return helper.make_model(whole, opset_imports=versions, ir_version=IR_VERSION, producer_name="kpjax")


def in_float32(detector: Detector) -> Detector:
    """The detector with a network that computes in float32: runtimes lack much of bfloat16."""
    if detector.options.get("dtype", "float32") == "float32":
        return detector
    other = build(detector.name, detector.num_classes, **{**detector.options, "dtype": "float32"})
    return dataclasses.replace(detector, net=other.net)


def metadata(
    detector: Detector, size: tuple[int, int], preset: str, top_k: int, names: Sequence[str]
) -> dict[str, str]:
    """What a user of the file has to know, as strings; lists are JSON.

    model, preset, top_k.  classes: names by label.  size: [height, width] of the canvas.  border: its colour beside
    the image, [R, G, B].  input, outputs: in words.  keypoint_names: of detectors that find points.
    """
    words = {
        "boxes": "boxes (batch, N, 4) float32: x1 y1 x2 y2 in the canvas's pixels, best first",
        "scores": "scores (batch, N) float32: 0 for an empty slot",
        "labels": "labels (batch, N) int32: places in classes",
        "keypoints": "keypoints (batch, N, J, 3) float32: x, y in the canvas's pixels and score",
        "boxes3d": "boxes3d (batch, N, 7) float32: x y z of the bottom's middle, height width length in metres, yaw",
        "alpha": "alpha (batch, N) float32: the angle at which the object is seen, radians",
    }
    image = "canvases (batch, height, width, 3) uint8 RGB: the image, scaled to fit, on a border of the border's colour"
    camera = "; cameras (batch, 3, 4) float32: from metres to the canvas's pixels"
    texts = {
        "model": detector.name,
        "preset": preset,
        "top_k": str(top_k),
        "classes": json.dumps(list(names)),
        "size": json.dumps(list(size)),
        "border": json.dumps([round(x) for x in detector.preprocess.border_rgb()]),
        "input": image + (camera if detector.solid else ""),
        "outputs": "; ".join(words[name] for name in outputs_of(detector)),
    }
    if detector.points is not None:
        texts["keypoint_names"] = json.dumps(list(detector.points.names))
    return texts


def arrays_of(graph: Graph) -> dict[str, np.ndarray]:
    """The constants that the graph's operators read, in bodies too."""
    used: set[str] = set()

    def visit(graph: Graph) -> None:
        for node in graph.nodes:
            used.update(node.inputs)
            for body in node.attributes.values():
                if isinstance(body, Body):
                    visit(body.graph)

    visit(graph)
    return {name: array for name, array in graph.shared.arrays.items() if name in used}


def onnx_graph(body: Body, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The graph as `onnx.GraphProto`."""
    from onnx import helper, numpy_helper

    def typed(entries: Sequence[tuple[str, np.dtype, tuple[Any, ...]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, onnx_type(dtype), list(map(dim_text, shape)))
            for name, dtype, shape in entries
        ]

    nodes = []
    for node in body.graph.nodes:
        attributes = {
            key: onnx_graph(value, key, {}) if isinstance(value, Body) else value
            for key, value in node.attributes.items()
        }
        nodes.append(helper.make_node(node.operator, node.inputs, node.outputs, node.outputs[0], **attributes))
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_graph(nodes, name, typed(body.inputs), typed(body.outputs), constants)
