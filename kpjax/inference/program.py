"""The compiled test-time program: canvases in, detections out.  The same for `Predictor`, evaluation and `export`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.detectors.base import Array, Detector, Protocol
from kpjax.errors import ConfigError
from kpjax.images.preprocess import Preprocess
from kpjax.objects import (
    Detections,
    Objects,
    Placed,
    PointSet,
    Record,
    in_mirror_order,
    map_coordinates,
    object_shapes,
)
from kpjax.parallel.compiling import compiler_options

Infer = Callable[..., tuple[Any, Array]]
Merge = Callable[[tuple[Any, ...]], Detections]
HeadsOf = Callable[[Any, Array, Array], dict[str, Array]]
Decode = Callable[[dict[str, Array], Placed], Any]


def make_infer(
    detector: Detector, mesh: Mesh, *, preset: str = "na", top_k: int = 100, oracle: Sequence[str] = ()
) -> Infer:
    """The jitted function (variables, canvases, windows, tags) -> (rows in canvas pixels, tags).

    The rows are Detections, or what the preset's protocol decodes to where it merges later; see `make_merge`.

    canvases: (B, H, W, 3) uint8 RGB.  windows: (B, 4) int32 top, left, bottom, right of the image
    on each canvas.  tags: (B, T) int32 that come back beside the detections, so that the
    caller can tell which image each row belongs to.  B is a multiple of the mesh's devices.
    One compilation for each shape of canvases; the programs live as long as the function.

    oracle: heads whose maps are replaced by the ground truth's.  The function then has the keyword `objects`:
    `Objects` (B, M, ...) in canvas pixels.

    Of a detector of 3D boxes the function has a fifth argument, cameras: {"camera": (B, 3, 4), "zoom": (B, 2),
    "shift": (B, 2)}, float32, see `kpjax.objects.Placed`.

    The batch is divided over all axes of the mesh.  Decoding runs under `jax.shard_map`: `lax.top_k` on
    a sharded heatmap would gather it.  Only the detections are replicated.

    Raises ConfigError for a preset that the detector lacks, and for an oracle's head that it lacks.
    """
    if oracle:
        _check_oracle(detector, preset, oracle)
    heads_of, rows_of = make_parts(detector, mesh, preset=preset, top_k=top_k)

    def infer(
        variables: Any,
        canvases: Array,
        windows: Array,
        tags: Array,
        cameras: dict[str, Array] | None = None,
        objects: Objects | None = None,
    ) -> tuple[Detections, Array]:
        size = (canvases.shape[1], canvases.shape[2])
        heads = heads_of(variables, canvases, windows)
        if oracle and objects is not None:
            truth = true_heads(detector, objects, size)
            heads = {**heads, **{name: truth[name] for name in oracle}}
        return rows_of(heads, Placed(size, windows, **(cameras or {}))), tags

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(infer, out_shardings=everywhere, compiler_options=compiler_options(mesh))


def make_parts(detector: Detector, mesh: Mesh, *, preset: str = "na", top_k: int = 100) -> tuple[HeadsOf, Decode]:
    """The two halves of `make_infer`, neither of them jitted yet: the network's, and what comes after it.

    As `functions_of`, the second one under `jax.shard_map` on the mesh; both where the protocol looks by itself.
    """
    heads_of, decode = functions_of(detector, preset=preset, top_k=top_k)
    rows = PartitionSpec(tuple(mesh.axis_names))
    # check_vma=False: decoders may start a loop from constants, which the check would refuse
    divided = functools.partial(jax.shard_map, mesh=mesh, out_specs=rows, check_vma=False)
    if protocol_of(detector, preset).look:  # what it looks at, it chooses by decoding
        heads_of = divided(heads_of, in_specs=(PartitionSpec(), rows, rows))
    return heads_of, divided(decode, in_specs=rows)


def functions_of(detector: Detector, *, preset: str = "na", top_k: int = 100) -> tuple[HeadsOf, Decode]:
    """A test protocol as two pure functions without a mesh, which `make_infer` compiles and `export` writes to files.

    The first is (variables, canvases, windows) -> head maps of the last stack, float32 (B, h, w, .); with a mirrored
    view (2 B, h, w, .), image and mirror image in turn; or what the protocol's `look` finds.  The second is (those,
    `Placed` of the images) -> rows.
    Raises ConfigError for a preset that the detector lacks.
    """
    protocol = protocol_of(detector, preset)
    to_rows = protocol.rows or detector.decode

    def apply(variables: Any, images: Array) -> dict[str, Array]:
        outputs: Any = detector.net.apply(variables, images, train=False)
        return outputs[-1]

    def heads_of(variables: Any, canvases: Array, windows: Array) -> dict[str, Array]:
        if protocol.look:
            return protocol.look(functools.partial(apply, variables), canvases, windows)
        images = normalise(detector.preprocess, canvases, windows)
        if protocol.mirror:  # image and mirror image side by side, so that both stay on one device
            mirrored = images[:, :, ::-1]
            if protocol.mirror == "boxes":
                mirrored = normalise(detector.preprocess, mirror_within(canvases, windows), windows)
            images = jnp.stack([images, mirrored], axis=1).reshape(-1, *images.shape[1:])
        return apply(variables, images)

    def decode(heads: dict[str, Array], placed: Placed) -> Any:
        if not protocol.mirror:
            return to_rows(heads, placed, top_k)
        pairs = {name: x.reshape(-1, 2, *x.shape[1:]) for name, x in heads.items()}
        plain, mirrored = ({name: x[:, view] for name, x in pairs.items()} for view in (0, 1))
        if protocol.mirror == "maps":  # merge_flip wants [plain; mirrored]
            heads = {name: jnp.concatenate([plain[name], mirrored[name]]) for name in heads}
            return to_rows(detector.merge_flip(heads), placed, top_k)
        one, other = (to_rows(maps, placed, top_k) for maps in (plain, mirrored))
        other = mirror_in_window(other, placed.window, detector.points)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), one, other)

    return heads_of, decode


def true_heads(detector: Detector, objects: Objects, size: tuple[int, int]) -> dict[str, Array]:
    """The detector's head maps as the ground truth has them, (B, h, w, .).  objects: as in `make_infer`."""
    assert detector.oracle is not None
    targets = jax.vmap(lambda one: detector.encode(one, Placed(size)))(objects)
    return detector.oracle(targets, size)


def _check_oracle(detector: Detector, preset: str, heads: Sequence[str]) -> None:
    if detector.oracle is None:
        raise ConfigError(f"{detector.name} has no ground truth for its heads; leave the oracle out")
    protocol = protocol_of(detector, preset)
    if protocol.mirror or protocol.scales != Protocol().scales:
        raise ConfigError(f"the oracle works on one view of an image, as in the paper; preset {preset!r} has more")
    known = oracle_heads(detector)
    for head in heads:
        if head not in known:
            raise ConfigError(f"oracle: {detector.name} has no head {head!r}; choose among {', '.join(known)}")


def oracle_heads(detector: Detector) -> tuple[str, ...]:
    """The heads that an oracle can replace, sorted; () where it can none."""
    if detector.oracle is None:
        return ()
    side = 2 * detector.multiple - detector.less
    objects = object_shapes((1, 1), detector.points, detector.solid)
    return tuple(sorted(jax.eval_shape(lambda x: true_heads(detector, x, (side, side)), objects)))


def normalise(preprocess: Preprocess, canvases: Array, windows: Array) -> Array:
    """(B, H, W, 3) uint8 RGB canvases -> the network's float32 input.

    A border of the mean is exactly 0 afterwards; its uint8 pixels can only be near it.  An image that reaches the last
    row or column of a canvas of odd sides loses it to the border: the originals paste 2 (side // 2) of them (golden:
    pipeline_cornernet, image 000000403385; mmdetection's RandomCenterCropPad does the same).
    """
    y = jnp.arange(canvases.shape[1])[None, :, None, None]
    x = jnp.arange(canvases.shape[2])[None, None, :, None]
    top, left, bottom, right = (windows[:, i, None, None, None] for i in range(4))
    if preprocess.centred:
        bottom, right = (jnp.minimum(end, canvases.shape[i] // 2 * 2) for i, end in ((1, bottom), (2, right)))
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    if preprocess.border == "mean":
        return jnp.where(inside, preprocess.normalise(canvases), 0.0)
    return preprocess.normalise(jnp.where(inside, canvases, jnp.uint8(0)))


def mirror_within(images: Array, windows: Array) -> Array:
    """Mirror each image where it lies on its canvas, (B, H, W, 3); the border, which is of one colour, stays."""
    turned = windows[:, 1, None] + windows[:, 3, None] - 1 - jnp.arange(images.shape[2])
    return jnp.take_along_axis(images, (turned % images.shape[2])[:, None, :, None], axis=2)


def mirror_in_window(found: Record, windows: Array, points: PointSet | None = None) -> Record:
    """Move what was found, (B, N, ...), from canvases mirrored by `mirror_within` to the plain ones, or back."""
    turn = (windows[:, 1] + windows[:, 3]).astype(jnp.float32)[:, None, None]

    def turned(xy: Array) -> Array:
        return jnp.stack([turn - xy[..., 0], xy[..., 1]], axis=-1)

    return in_mirror_order(map_coordinates(found, turned), True, points)


def make_merge(detector: Detector, preset: str, top_k: int) -> Merge | None:
    """The jitted function (one image's rows for each scale, in image pixels) -> Detections; None: nothing to merge."""
    merge = protocol_of(detector, preset).merge
    return None if merge is None else jax.jit(functools.partial(merge, top_k=top_k))


def protocol_of(detector: Detector, preset: str) -> Protocol:
    """The detector's protocol of a preset, or ConfigError: one line that lists those it has."""
    if preset not in detector.protocols:
        has = ", ".join(map(repr, detector.protocols))
        raise ConfigError(f"preset {preset!r}: {detector.name} has no such test protocol; choose one of {has}")
    return detector.protocols[preset]
