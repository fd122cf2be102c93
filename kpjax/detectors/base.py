"""What every detector is: a record of functions around one linen module.

Shapes in this package: B images of a batch, H W their input size, h w the output
map (H / stride, W / stride), K classes, M box slots of an image, N detections.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Set
from typing import Any

import flax.linen as nn
import jax

from kpjax.errors import ConfigError
from kpjax.images.preprocess import Preprocess
from kpjax.objects import Detections, PointSet

Array = jax.Array
Targets = dict[str, Array]
Outputs = list[dict[str, Array]]  # one dictionary of NHWC head maps a stack; the last is final


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A test protocol as values: what the network gets to see, and how its results are merged.

    mirror: "" the image alone; "maps" with its canvas's mirror image, the head maps merged by `merge_flip`;
        "boxes" with the image mirrored within its canvas, both decoded, the boxes of the second turned back.
    scales: test scales, ascending; each is a view of the image on a canvas of its own.
    look: where the network sees something else than the placed image: (apply, canvases (B, H, W, 3) uint8 RGB,
        windows (B, 4)) -> arrays (B, ...) by name, for `rows`, with apply(normalised images) -> head maps of the last
        stack.  It may run the network several times, on inputs of its own size; pure, and each image for itself.
    rows: decodes in place of `Detector.decode`, with its arguments, where the merge needs more than
        Detections: any dataclass of arrays (B, ...) with `boxes` among them and, optionally, `points` (x, y).
    merge: (one image's rows for each scale, in image pixels, without the batch axis; top_k) ->
        Detections in image pixels, score 0 for an empty slot; pure.  None: Detections are final as decoded.
    """

    mirror: str = ""
    scales: tuple[float, ...] = (1.0,)
    look: Callable[..., dict[str, Array]] | None = None
    rows: Callable[..., Any] | None = None
    merge: Callable[..., Detections] | None = None


PLAIN_AND_FLIP = {"na": Protocol(), "flip": Protocol(mirror="maps")}


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector is this record; nothing inherits from it.

    name: the key of `MODELS` it was built from.
    net: the linen module; `net.apply(variables, images, train=False)` -> Outputs.
    num_classes: K.
    preprocess: how images are normalised and padded.
    encode: (Objects of one image in input pixels, Placed) -> Targets of it; pure and vmappable.
    normaliser: (batched targets) -> the counts that the loss divides by, a dict of float32
        scalars over the whole batch, to be summed over micro-batches.
    loss: (outputs, batched targets, normaliser) -> (loss, parts): float32 scalars.
    decode: (head maps of the last stack, Placed or None, top_k=100) -> Detections in input pixels, (B, N, ...).
        Only the corner detectors read where the image is placed; without it, it fills the input.
    merge_flip: head maps of [plain images; mirrored images] (2B) -> maps for `decode` (B), as published.
    protocols: the published test protocols by preset ("na", "flip", "ms"), and "first" of one that looks twice.
    oracle: (batched targets, (H, W)) -> head maps like the network's that hold the targets, for the analysis
        of errors; None: there is none.
    points: the points of an object that it learns and finds; None: boxes alone.
    outlines: whether these are the extreme points of an object's outline: training needs outlines (polygons or masks),
        and what is measured are boxes.
    solid: whether it learns and finds 3D boxes: it needs `Objects.solid` in training, and cameras at test time.
    inclusive: whether its boxes end on their last pixel, x2 = x1 + w - 1 of the image's own pixels, in `encode` and as
        decoded (mmdetection 1); training and the engine at test time convert.  False: x2 = x1 + w, as in `Objects`.
    metric: what evaluation measures first, and the best checkpoint is chosen by: "boxes" (COCO's AP by IoU),
        "keypoints" (by object keypoint similarity; the boxes' AP beside it) or "kitti" (KITTI's, in 2D and 3D).
    heatmaps: which of its targets are heatmaps, (h, w, K) each, for pictures.
    stride: input pixels an output cell, the map's sides rounded up.
    multiple, less: the input's sides have to be multiples of `multiple` pixels, minus `less`; see `check_size`.
    view: side of the square that its network sees at test time, which it cuts out itself, see `Protocol.look`, and in
        training.  0: it sees the canvases.
    boxes_model: the model of boxes on the same network, whose checkpoints can start a training of this one too; "":
        none.
    import_rules: which table of kpjax.convert reads the model's released checkpoints.
    options: what `build` was given beside the name, so that a checkpoint can build it again.
    """

    name: str
    net: nn.Module
    num_classes: int
    preprocess: Preprocess
    encode: Callable[..., Targets]
    normaliser: Callable[[Targets], dict[str, Array]]
    loss: Callable[[Outputs, Targets, dict[str, Array]], tuple[Array, dict[str, Array]]]
    decode: Callable[..., Detections]
    merge_flip: Callable[[dict[str, Array]], dict[str, Array]]
    protocols: Mapping[str, Protocol] = dataclasses.field(default_factory=lambda: PLAIN_AND_FLIP)
    oracle: Callable[[Targets, tuple[int, int]], dict[str, Array]] | None = None
    points: PointSet | None = None
    outlines: bool = False
    solid: bool = False
    inclusive: bool = False
    metric: str = "boxes"
    heatmaps: tuple[str, ...] = ("heatmap",)
    stride: int = 4
    multiple: int = 1
    less: int = 0
    view: int = 0
    boxes_model: str = ""
    import_rules: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_size(detector: Detector, size: tuple[int, int], height: str, width: str) -> None:
    """Raise ConfigError, one line, unless the network takes inputs of `size` (height, width) pixels.

    height, width: what the message calls the two sides, e.g. "config.augment.height".
    """
    step, less = detector.multiple, detector.less
    for key, side in zip((height, width), size, strict=True):
        if side < 1 or (side + less) % step:
            below = (side + less) // step * step - less
            near = f"{below} or {below + step}" if below > 0 else f"{step - less}"
            wanted = f"multiples of {step} pixels" + (f" less {less}" if less else "")
            raise ConfigError(f"{key} is {side}; {detector.name} takes sides that are {wanted}, the nearest: {near}")


# Options of all models that say how a network computes, not which network it is: checkpoints fit with any of them.
COMPUTATION = frozenset({"dtype", "precision", "remat", "bn_groups"})

# Fields that define a released model: no options.
_FIXED = frozenset({"rules", "preprocess", "import_rules"})


def replace_options(
    name: str, released: Any, options: dict[str, Any], *, fixed: Set[str] = frozenset(), **choices: tuple[Any, ...]
) -> Any:
    """A model's configuration `released` (a frozen dataclass) with `options` put in; lists (from JSON) become tuples.

    fixed: fields that are no options, beside rules, preprocess and import_rules.  choices: field -> the values it
    may have.  Raises ConfigError, one line, for an option that does not exist, one of another type, and one
    that is not among its choices.
    """
    allowed = {f.name for f in dataclasses.fields(released)} - _FIXED - fixed
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key not in allowed:
            raise ConfigError(f"model {name} has no option {key!r}; it has {', '.join(sorted(allowed))}")
        old = getattr(released, key)
        value = tuple(value) if isinstance(value, list) else value
        fits = type(value) is type(old) or (isinstance(old, float) and type(value) is int)
        fits = fits and not (isinstance(value, float) and not math.isfinite(value))
        if not fits or (isinstance(value, tuple) and not all(type(v) is int for v in value)):
            raise ConfigError(f"model {name}: {key} is {value!r}; give a value like {old!r}")
        changes[key] = value
    config = dataclasses.replace(released, **changes)
    for key, values in choices.items():
        if getattr(config, key) not in values:
            raise ConfigError(
                f"model {name}: {key} is {getattr(config, key)!r}; choose one of {', '.join(map(repr, values))}"
            )
    return config
