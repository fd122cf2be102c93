"""The compiled test-time program: canvases in, detections out.  Shared by `Predictor` and `evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.config import ConfigError
from kpjax.detectors.base import Array, Detections, Detector, Preprocess

# The test protocols of this version: plain, and the image with its mirror image.
PRESETS = ("na", "flip")

Infer = Callable[..., tuple[Detections, Array]]


def make_infer(detector: Detector, mesh: Mesh, *, preset: str = "na", top_k: int = 100) -> Infer:
    """The jitted function (variables, canvases, windows, tags) -> (Detections in canvas pixels, tags).

    canvases: (B, H, W, 3) uint8 RGB.  windows: (B, 4) int32 top, left, bottom, right of the image
    on each canvas.  tags: (B, T) int32 that come back beside the detections, so that the
    caller can tell which image each row belongs to.  B is a multiple of the mesh's devices.
    One compilation for each shape of canvases; keep the function to keep its programs.

    The batch is divided over all axes of the mesh.  Decoding runs under `jax.shard_map`: `lax.top_k` on
    a sharded heatmap would gather it.  Only the detections are replicated.

    Raises ConfigError for a preset that this version lacks.
    """
    check_preset(preset)
    rows = PartitionSpec(tuple(mesh.axis_names))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def decode(heads: dict[str, Array], windows: Array, size: tuple[int, int]) -> Detections:
        if preset == "flip":
            # pairs were interleaved for the sharding's sake; merge_flip wants [plain; mirrored]
            heads = {name: jnp.concatenate([x[0::2], x[1::2]]) for name, x in heads.items()}
            heads = detector.merge_flip(heads)
        return detector.decode(heads, top_k=top_k, size=size, windows=windows)

    def infer(variables: Any, canvases: Array, windows: Array, tags: Array) -> tuple[Detections, Array]:
        images = normalise(detector.preprocess, canvases, windows)
        if preset == "flip":  # image and mirror image side by side, so that both stay on one device
            images = jnp.stack([images, images[:, :, ::-1]], axis=1).reshape(-1, *images.shape[1:])
        outputs: Any = detector.net.apply(variables, images, train=False)
        # check_vma=False: decoders may start a loop from constants, which the check would refuse
        sharded_decode = jax.shard_map(
            functools.partial(decode, size=(canvases.shape[1], canvases.shape[2])),
            mesh=mesh,
            in_specs=rows,
            out_specs=rows,
            check_vma=False,
        )
        return sharded_decode(outputs[-1], windows), tags

    return jax.jit(infer, out_shardings=everywhere)


def normalise(preprocess: Preprocess, canvases: Array, windows: Array) -> Array:
    """(B, H, W, 3) uint8 RGB canvases -> the network's float32 input.

    A border of the mean is exactly 0 afterwards; its uint8 pixels can only be near it.
    """
    images = preprocess.normalise(canvases)
    if preprocess.border != "mean":
        return images
    y = jnp.arange(canvases.shape[1])[None, :, None, None]
    x = jnp.arange(canvases.shape[2])[None, None, :, None]
    top, left, bottom, right = (windows[:, i, None, None, None] for i in range(4))
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return jnp.where(inside, images, 0.0)


def check_preset(preset: str) -> str:
    """Return the preset, or raise ConfigError: one line that lists those of this version."""
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is not in this version; choose one of {', '.join(map(repr, PRESETS))}")
    return preset
