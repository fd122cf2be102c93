"""What every detector is: a record of functions around one linen module.

Shapes in this package: B images of a batch, H W their input size, h w the output
map (H / stride, W / stride), K classes, M box slots of an image, N detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kpjax.errors import ConfigError

Array = jax.Array
Targets = dict[str, Array]
Outputs = list[dict[str, Array]]  # one dictionary of NHWC head maps a stack; the last is final


@flax.struct.dataclass
class Detections:
    """Boxes found, best first.

    On the device (what `decode` returns) the arrays have fixed shapes with a leading batch
    axis, boxes are in pixels of the network's input, and a slot without a detection has the
    score 0.  What `Predictor` returns are NumPy arrays of one image, in that image's pixels,
    empty slots removed.

    boxes: (..., N, 4) float32, x1 y1 x2 y2.  scores: (..., N) float32.  labels: (..., N) int32,
    0-based.  names: the class names that labels index; empty on the device.
    """

    boxes: Any
    scores: Any
    labels: Any
    names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    def __len__(self) -> int:
        return self.scores.shape[-1]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input, as values.

    order: "BGR" or "RGB", the channel order the network was trained with (images arrive as RGB).
    mean, std: of the channels in that order, of pixel values divided by 255.
    pad: the canvas of an image that keeps its resolution: side -> (side | pad) + 1 (`pad_plus_one`)
        or side | pad.
    border: what fills the canvas outside the image: 0 (black, before normalisation) or the mean.
    centred: the image stands in the middle of the canvas (the originals) or in its top left corner.
    """

    order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int = 31
    pad_plus_one: bool = True
    border: str = "black"
    centred: bool = True

    def canvas(self, side: int) -> int:
        """The padded side of an image side, in pixels."""
        return (side | self.pad) + 1 if self.pad_plus_one else side | self.pad

    def normalise(self, images: Array) -> Array:
        """RGB pixels 0..255, (..., 3), any dtype -> the network's float32 input."""
        if self.order == "BGR":
            images = images[..., ::-1]
        mean, std = (jnp.asarray(values, jnp.float32) for values in (self.mean, self.std))

        def divide(images: Array) -> Array:
            return (images.astype(jnp.float32) / 255.0 - mean) / std

        def look_up(images: Array) -> Array:
            whole, levels = np.float32(255), np.arange(256, dtype=np.float32)[:, None]
            table = (levels / whole - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
            return jnp.take(table.T.reshape(-1), images.astype(jnp.int32) + 256 * jnp.arange(3), mode="clip")

        images = jnp.asarray(images)
        if images.dtype != jnp.uint8:
            return divide(images)
        # XLA divides by a constant as a product with its reciprocal: two values in three then differ from the
        # originals' in the last bit, and of two level cells of a heatmap the other one wins.  A TPU gathers slowly.
        return jax.lax.platform_dependent(images, cpu=look_up, cuda=look_up, default=divide)

    def border_rgb(self) -> tuple[float, float, float]:
        """The border's colour in RGB pixel values (0..255)."""
        if self.border == "black":
            return (0.0, 0.0, 0.0)
        mean = self.mean[::-1] if self.order == "BGR" else self.mean
        return (255.0 * mean[0], 255.0 * mean[1], 255.0 * mean[2])


# xingyizhou's CenterNet, CornerNet and the triplet paper: statistics of COCO, in OpenCV's order.
COCO_BGR = Preprocess(
    order="BGR",
    mean=(0.40789654, 0.44719302, 0.47026115),
    std=(0.28863828, 0.27408164, 0.27809835),
)
# mmdetection's CenterNet: statistics of ImageNet; the canvas is filled with black (golden: FACTS_centernet).
IMAGENET_RGB = Preprocess(
    order="RGB",
    mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
    std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    centred=True,
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a preset tests an image, as values: what the network sees, and what merges its findings.

    mirror: "" the image alone; "maps" with its canvas's mirror image, the head maps merged by `merge_flip`;
        "boxes" with the image mirrored within its canvas, both decoded, the boxes of the second turned back.
    scales: test scales, ascending; each is a view of the image on a canvas of its own.
    rows: decodes in place of `Detector.decode`, with its arguments, where the merge needs more than
        Detections: any dataclass of arrays (B, ...) with `boxes` among them and, optionally, `points` (x, y).
    merge: (one image's rows for each scale, in image pixels, without the batch axis; top_k) ->
        Detections in image pixels, score 0 for an empty slot; pure.  None: Detections are final as decoded.
    """

    mirror: str = ""
    scales: tuple[float, ...] = (1.0,)
    rows: Callable[..., Any] | None = None
    merge: Callable[..., Detections] | None = None


PLAIN_AND_FLIP = {"na": Protocol(), "flip": Protocol(mirror="maps")}


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector is this record; nothing inherits from it.

    name: the key of `MODELS` it was built from.
    net: the linen module; `net.apply(variables, images, train=False)` -> Outputs.
    num_classes: K.
    preprocess: what images have to look like.
    encode: (boxes (M, 4) xyxy in input pixels, labels (M,), valid (M,), (H, W)) -> Targets of one
        image; pure and vmappable.
    normaliser: (batched targets) -> the counts that the loss divides by, a dict of float32
        scalars over the whole batch, to be summed over micro-batches.
    loss: (outputs, batched targets, normaliser) -> (loss, parts): float32 scalars.
    decode: (head maps of the last stack, top_k=100, size=None, windows=None) -> Detections in input
        pixels, (B, N, ...).  size: (H, W) of the input, static.  windows: (B, 4) top, left, bottom, right
        of the image in it.  What they are good for is the detector's affair; both may be left out.
    merge_flip: head maps of [plain images; mirrored images] (2B) -> maps for `decode` (B), as published.
    protocols: the published test protocols by preset ("na", "flip", "ms").
    oracle: (batched targets, (H, W)) -> head maps like the network's that say what the targets say, for the analysis
        of errors; None: there is none.
    stride: input pixels an output cell, the map's sides rounded up.
    multiple, less: the input's sides have to be multiples of so many pixels, less so many; see `check_size`.
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
    stride: int = 4
    multiple: int = 1
    less: int = 0
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


# What makes a released model what it is: no option.
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
