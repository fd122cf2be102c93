"""A detector as StableHLO: the function from canvases to detections, for CPU, CUDA and TPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kpjax.objects import Placed

PLATFORMS = ("cpu", "cuda", "tpu")


def export(detector: Any, tree: Any, leaves: list[Any], size: tuple[int, int], preset: str, top_k: int) -> Any:
    """The exported program (weights, canvases) -> (boxes, scores, labels).

    weights: the leaves of the variables, in the tree's order.  canvases: (B, H, W, 3) uint8 RGB, B symbolic; an
    image has to fill its canvas, or lie on it with the border its family has.  boxes: (B, N, 4) float32 in the
    canvas's pixels.  scores (B, N) float32, 0 for an empty slot.  labels (B, N) int32.
    """
    import jax
    import jax.numpy as jnp

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    (batch,) = jax.export.symbolic_shape("b")
    canvases = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    return jax.export.export(jax.jit(test_program(detector, tree, size, preset, top_k)), platforms=PLATFORMS)(
        shapes, canvases
    )


def test_program(detector: Any, tree: Any, size: tuple[int, int], preset: str, top_k: int) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    from kpjax.inference.program import normalise, protocol_of

    mirrored = protocol_of(detector, preset).mirror == "maps"

    def program(weights: list[Any], canvases: Any) -> tuple[Any, Any, Any]:
        whole = jnp.broadcast_to(jnp.asarray([0, 0, *size], jnp.int32), (canvases.shape[0], 4))
        images = normalise(detector.preprocess, canvases, whole)
        if mirrored:
            images = jnp.concatenate([images, images[:, :, ::-1]])
        heads = detector.net.apply(jax.tree.unflatten(tree, weights), images, train=False)[-1]
        found = detector.decode(detector.merge_flip(heads) if mirrored else heads, Placed(size), top_k)
        return found.boxes, found.scores, found.labels

    return program
