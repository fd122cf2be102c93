"""Exporting a detector as StableHLO: the function from canvases to detections, for CPU, CUDA and TPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.objects import Placed, move_ends

PLATFORMS = ("cpu", "cuda", "tpu")


def export(detector: Detector, tree: Any, leaves: list[Any], size: tuple[int, int], preset: str, top_k: int) -> Any:
    """The exported program (weights, canvases) -> (boxes, scores, labels), or what else `outputs_of` names.

    weights: the leaves of the variables, in the tree's order.  canvases: (B, H, W, 3) uint8 RGB, B symbolic; an
    image has to fill its canvas, or lie on it with the border of its model's family.  boxes: (B, N, 4) float32 in the
    canvas's pixels.  scores (B, N) float32, 0 for an empty slot.  labels (B, N) int32.  keypoints (B, N, J, 3) float32
    x, y in the canvas's pixels and score, of detectors that find points.  Detectors of 3D boxes take cameras (B, 3, 4)
    float32 beside the canvases, metres to the canvas's pixels, and give boxes3d (B, N, 7) and alpha (B, N), see
    `kpjax.objects.Detections`.
    Raises ConfigError for a preset that the detector lacks, or that is not one program; see `exportable`.
    """
    import jax

    check_preset(detector, preset)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    (batch,) = jax.export.symbolic_shape("b")
    inputs = [jax.ShapeDtypeStruct((batch, *shape), dtype) for _, shape, dtype in inputs_of(detector, size)]
    program = one_program(detector, tree, size, preset, top_k)
    return jax.export.export(jax.jit(program), platforms=PLATFORMS)(shapes, *inputs)


def check_preset(detector: Detector, preset: str) -> None:
    """Raise ConfigError, one line, unless the detector's test protocol of that name is one program."""
    from kpjax.inference.program import protocol_of

    if protocol_of(detector, preset).merge is not None:
        single = " or ".join(exportable(detector))
        raise ConfigError(f"preset {preset!r} of {detector.name} merges several programs; export {single}")


def one_program(detector: Detector, tree: Any, size: tuple[int, int], preset: str, top_k: int) -> Callable[..., Any]:
    """The function of `export`, not exported yet: the test-time program's, for images that fill their canvas."""
    import jax
    import jax.numpy as jnp

    from kpjax.inference.program import functions_of

    heads_of, decode = functions_of(detector, preset=preset, top_k=top_k)

    def program(weights: list[Any], canvases: Any, *camera: Any) -> tuple[Any, ...]:
        whole = jnp.broadcast_to(jnp.asarray([0, 0, *size], jnp.int32), (canvases.shape[0], 4))
        placed = Placed(size, whole)
        if detector.solid:  # the canvas is the image
            zoom, shift = jnp.ones((canvases.shape[0], 2)), jnp.zeros((canvases.shape[0], 2))
            placed = Placed(size, whole, camera=camera[0], zoom=zoom, shift=shift)
        found = decode(heads_of(jax.tree.unflatten(tree, weights), canvases, whole), placed)
        if detector.inclusive:
            found = move_ends(found, 1)
        return tuple(getattr(found, name) for name in outputs_of(detector))

    return program


def outputs_of(detector: Detector) -> tuple[str, ...]:
    """The names of what the exported program returns, in its order: fields of Detections."""
    more = ("keypoints",) if detector.points is not None else ("boxes3d", "alpha") if detector.solid else ()
    return ("boxes", "scores", "labels", *more)


def inputs_of(detector: Detector, size: tuple[int, int]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """What the exported program takes beside the weights: (name, shape of one image's, dtype)."""
    more = (("cameras", (3, 4), "float32"),) if detector.solid else ()
    return (("canvases", (*size, 3), "uint8"), *more)


def exportable(detector: Detector) -> list[str]:
    """The presets of the detector that are one program: those whose detections nothing merges afterwards."""
    return [name for name, protocol in detector.protocols.items() if protocol.merge is None]
