"""Which settings suit a data set and a machine?  A configuration, and the reason of each choice in it.

Boxes are learnt as configs/own.py says, on a CPU by its small network, which sees more images in the same minutes
(docs/recipes.md).  Other models have the settings of `configs/bccd_r18.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from kpjax.config import Config, recipe
from kpjax.data.source import Source, all_objects, object_counts
from kpjax.detectors import build, data_needed
from kpjax.errors import ConfigError

SIZES_OF_CPU = (256, 384, 512)
SIZES = (512, 640, 768, 1024)
LEAST_OBJECT = 12  # pixels of the input, 3 cells of 4: what the smallest tenth of the objects should keep
LEAST_SIZE = 128
WIDTH_3D, WIDTH_3D_OF_CPU = 1280, 640  # KITTI's images are 1242 wide, and half of it serves a CPU
BATCH_OF_CPU = 8  # more is no faster there, and takes more images for the same number of steps
BATCHES = (8, 16, 32, 64, 128)
STEPS_AN_EPOCH = 25  # at least: a larger batch would leave a small data set too few steps
EPOCHS, LEAST_STEPS = 60, 1500
RATE = 5e-4  # Adam's, for batches of 8 to 128 images
DROP = 0.75  # of the run, after which the rate is a tenth
OWN_EPOCHS, OWN_LEAST_STEPS = 100, 2000  # of configs/own.py


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices depend on in a data set.

    images, val_images: of the splits.  side: pixels of the longer side that 98% of the images do not exceed.
    aspect: the median of height / width.  object_size: the square root of the area that a tenth of the objects do not
    exceed, as a fraction of its image's longer side.  most_objects: in one image.
    """

    images: int
    val_images: int
    side: int
    aspect: float
    object_size: float
    most_objects: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """platform: JAX's "cpu", "gpu" or "tpu".  devices: how many.  memory: free bytes of each."""

    platform: str
    devices: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user has said; zeros and empty texts where he has not.  size: the input's side (3D: its width)."""

    model: str = ""
    size: int = 0
    minutes: float = 0.0
    epochs: float = 0.0
    init_from: str = ""


@dataclasses.dataclass(frozen=True)
class Choices:
    """A configuration without its data's paths, and why: key of a setting -> the reason, in the order to print them."""

    config: Config
    reasons: dict[str, str]


def facts_of(source: Source, val_images: int) -> Facts:
    """The facts of a training split."""
    objects, images = all_objects(source)
    longer = np.maximum(source.heights, source.widths)
    sides = np.maximum(objects.boxes[:, 2:] - objects.boxes[:, :2], 0).astype(np.float64)
    sizes = np.sqrt(sides.prod(axis=1)) / longer[images]
    return Facts(
        images=len(source),
        val_images=val_images,
        side=int(np.percentile(longer, 98, method="higher")),
        aspect=float(np.median(source.heights / source.widths)),
        object_size=float(np.percentile(sizes, 10)) if len(sizes) else 1.0,
        most_objects=int(object_counts(source).max(initial=0)),
    )


def own_options(small: bool) -> dict[str, Any]:
    """The model options of configs/own.py; not small: without those that make it smaller than the released network."""
    options = dict(recipe("own").model.options)
    return options if small else {"dcn": options["dcn"]}


def is_own(model: str) -> bool:
    """Whether configs/own.py is for this model: its network, of another width or depth."""
    return model.partition("_")[0] == recipe("own").model.name.partition("_")[0]


def choose(
    facts: Facts, machine: Machine, wishes: Wishes, model: str, options: dict[str, Any], why_model: str
) -> Choices:
    """The settings for `model` with `options`, of which `why_model` says why it was chosen.

    The batch is the largest that suits the data; `kpjax.training.step_speed` lowers it to what the memory holds, and
    sets the steps by `minutes`.  Raises ConfigError for a size that the model cannot take.
    """
    config, reasons = recipe("own") if is_own(model) else Config(), {"model.name": why_model}
    config.model.name, config.model.options = model, dict(options)
    config.init_from = wishes.init_from
    reasons["init_from"] = (
        "the weights that --from names"
        if wishes.init_from
        else "random weights: no --from was given; a detector or an ImageNet file learns faster"
    )
    solid = data_needed(model)["solid"]
    (_choose_3d if solid else _choose_size)(config, facts, machine, wishes, reasons)
    _choose_batch(config, facts, machine, reasons)
    choose_steps(config, facts, machine, wishes, reasons)
    most = max(32, 2 ** math.ceil(math.log2(max(facts.most_objects, 1))))
    config.data.max_boxes = min(most, 1024)
    reasons["data.max_boxes"] = f"an image has at most {facts.most_objects:,} objects"
    if facts.most_objects > config.eval.top_k:
        config.eval.top_k = min(most, 1024)
        reasons["eval.top_k"] = reasons["data.max_boxes"]
    return Choices(config, reasons)


def _choose_size(config: Config, facts: Facts, machine: Machine, wishes: Wishes, reasons: dict[str, str]) -> None:
    sizes = SIZES_OF_CPU if machine.platform == "cpu" else SIZES
    object_pixels = facts.object_size * np.array(sizes)
    large_enough = [size for size, pixels in zip(sizes, object_pixels, strict=True) if pixels >= LEAST_OBJECT]
    size = large_enough[0] if large_enough else sizes[-1]
    reason = f"a tenth of the objects are below {facts.object_size * size:.0f} pixels of it"
    if not large_enough:
        reason = f"the largest for a {machine.platform}, yet {reason}: cut the images into parts to show more"
    if size > facts.side:
        size = max(LEAST_SIZE, math.ceil(facts.side / 32) * 32)
        reason = f"no larger than the images, of {facts.side} pixels"
    if wishes.size:
        size, reason = wishes.size, "--size"
    size = _fitting(config, size, bool(wishes.size))
    config.augment.height = config.augment.width = size
    reasons["augment.height"] = reason
    config.eval.resolution = "fixed"
    reasons["eval.resolution"] = "images are evaluated at the size that they are trained at"
    wanted = max(640, 2 * size)
    config.data.canvas = max(32, min(math.ceil(facts.side / 32) * 32, wanted))
    reasons["data.canvas"] = (
        f"images are decoded at up to {config.data.canvas} of their {facts.side} pixels: crops of them are enlarged"
    )


def _fitting(config: Config, size: int, exactly: bool) -> int:
    """The size, or the next larger that the model takes.  Raises ConfigError where it has to be exactly that one."""
    detector = build(config.model.name, 1, **config.model.options)
    step, less = detector.multiple, detector.less
    fits = max(1, math.ceil((size + less) / step)) * step - less
    if exactly and fits != size:
        raise ConfigError(
            f"--size {size}: {detector.name} takes sides that are multiples of {step} less {less}, e.g. {fits}"
        )
    return fits


def _choose_3d(config: Config, facts: Facts, machine: Machine, wishes: Wishes, reasons: dict[str, str]) -> None:
    width = wishes.size or (WIDTH_3D_OF_CPU if machine.platform == "cpu" else WIDTH_3D)
    width = _fitting(config, width, bool(wishes.size))
    config.augment.width = width
    config.augment.height = _fitting(config, max(32, round(width * facts.aspect)), False)
    reasons["augment.width"] = "--size" if wishes.size else f"what a {machine.platform} trains in reasonable time"
    reasons["augment.height"] = "the images' shape"
    config.data.canvas = math.ceil(facts.side / 32) * 32
    reasons["data.canvas"] = f"the images' own size, up to {facts.side} pixels"
    config.augment.kind, config.augment.shift_unit, config.augment.shift_probability = "shift", "side", 0.5
    config.augment.flip = config.augment.color = config.augment.lighting = 0.0
    reasons["augment.kind"] = "as the authors' recipe for KITTI: half of the images are moved, none is mirrored"
    config.eval.resolution = "fixed"
    config.eval.score_threshold = 0.05


def _choose_batch(config: Config, facts: Facts, machine: Machine, reasons: dict[str, str]) -> None:
    if machine.platform == "cpu":
        batch, reason = BATCH_OF_CPU, "more is no faster on a CPU"
    else:
        batch = max(b for b in BATCHES if b == BATCHES[0] or facts.images >= STEPS_AN_EPOCH * b)
        reason = f"{facts.images:,} images are {facts.images // batch:,} steps an epoch"
    config.batch = math.ceil(batch / machine.devices) * machine.devices
    reasons["batch"] = reason
    config.eval.batch = math.ceil((8 if machine.platform == "cpu" else 32) / machine.devices) * machine.devices


def choose_steps(config: Config, facts: Facts, machine: Machine, wishes: Wishes, reasons: dict[str, str]) -> None:
    """Set optimiser, rate and steps for `config.batch`, and their reasons."""
    own = is_own(config.model.name)
    if own:
        config.optim = recipe("own").optim
        reasons["optim.name"] = "learns in fewer steps than Adam, as docs/recipes.md shows"
        if machine.platform == "cpu" and "width" not in config.model.options:
            config.optim.name, config.optim.lr = "adam", RATE
            reasons["optim.name"] = "Muon would double the time of a CPU's step with a network of this width"
        config.optim.lr *= min(1.0, config.batch / BATCHES[0])
        reasons["optim.lr"] = f"after a warm-up; from {config.optim.hold:.0%} of the run on it falls to zero"
        reasons["optim.ema"] = "the weights' average over the last seventh of the run is evaluated"
    else:
        config.optim.lr = RATE * min(1.0, config.batch / BATCHES[0])
        config.optim.drops = (DROP,)
        reasons["optim.lr"] = "Adam's for a few hundred images and for COCO, a tenth of it in the last quarter"
    config.optim.lr_batch = config.batch
    if wishes.epochs:
        set_steps(config, max(1, round(wishes.epochs * facts.images / config.batch)))
        reasons["steps"] = f"--epochs {wishes.epochs:g} of {facts.images:,} images"
        return
    passes, least = (OWN_EPOCHS, OWN_LEAST_STEPS) if own else (EPOCHS, LEAST_STEPS)
    set_steps(config, max(least, round(passes * facts.images / config.batch)))
    epochs = config.steps * config.batch / facts.images
    reasons["steps"] = f"{epochs:,.0f} epochs: at least {passes}, and at least {least:,} steps; --minutes sets them"


def set_steps(config: Config, steps: int, evaluations: int = 5) -> None:
    """Set the length of the run, and by it how often it evaluates and saves."""
    config.steps = steps
    evaluations = min(evaluations, steps // 20)  # of a few steps there is nothing to see
    config.eval.every = math.ceil(steps / evaluations) if evaluations > 1 else 0
    config.checkpoint.every = min(1000, max(20, math.ceil(steps / 15)))
    config.log_every = min(10, max(1, steps // 10))
    if config.optim.schedule != "step":
        config.optim.warmup_steps = min(100, steps // 10)
        config.optim.ema = min(0.9998, max(0.0, round(1 - 7 / steps, 4)))


def steps_in_time(seconds: float, step: float, evaluation: float) -> tuple[int, int]:
    """How many steps fit into the time, and how many evaluations: those before the last take at most a tenth of it.

    seconds: for the steps and the evaluations between them; the last one comes on top.  step, evaluation: seconds of
    one.  Raises ConfigError where there is time for no step.
    """
    evaluations = max(1, min(5, 1 + int(0.1 * seconds / max(evaluation, 1e-9))))
    steps = int((seconds - (evaluations - 1) * evaluation) / step)
    if steps < 1:
        raise ConfigError(
            f"--minutes leaves {max(seconds, 0):.0f} s for training, and a step takes {step:.1f} s; "
            "give more minutes, or a smaller --size"
        )
    return steps, evaluations
