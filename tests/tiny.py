"""The smallest things that train: a narrow CenterNet, a two-layer one that compiles in a second, random batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import kpjax
from kpjax.config import Config
from kpjax.detectors.base import Detector
from kpjax.nn.layers import BatchNorm, Conv
from tests.records import objects_of

OPTIONS = {"width": 8, "deconv": (8,), "head_channels": 8}
CLASSES = 3
SIDE = 64


def tiny_config(batch: int = 8, steps: int = 12) -> Config:
    """Images of 64x64, half of them mirrored, the network of `OPTIONS`; no data set."""
    config = Config(batch=batch, steps=steps)
    config.model.options = dict(OPTIONS)
    config.data.canvas = SIDE
    config.data.max_boxes = 4
    config.augment.kind = "none"
    config.augment.color = config.augment.lighting = 0.0  # their draws take longer to compile than two layers
    config.augment.height = config.augment.width = SIDE
    config.optim.lr = 1e-3
    config.log_every = 1
    return config


def tiny_detector(**options: Any) -> Detector:
    """CenterNet-ResNet-18, eight channels wide, with two of its four stages."""
    return kpjax.build("centernet_r18", num_classes=CLASSES, **OPTIONS, **options)


class TwoLayers(nn.Module):
    """Images -> heads at a stride of 4, or another, through one convolution with BatchNorm."""

    bn_groups: int = 1
    classes: int = CLASSES
    width: int = 4
    more: tuple[tuple[str, int], ...] = ()  # further heads and their channels
    stride: int = 4

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> list[dict[str, jax.Array]]:
        x = Conv(self.width, kernel=self.stride, stride=self.stride, padding=0, name="stem")(images)
        x = nn.relu(BatchNorm(groups=self.bn_groups, name="bn")(x, train))
        x = x * (4 / self.width)  # heads of as many inputs would begin with huge outputs
        channels = {"heatmap": self.classes, "wh": 2, "offset": 2, **dict(self.more)}
        return [{head: Conv(c, bias=True, name=head)(x) for head, c in channels.items()}]


def two_layer_detector(bn_groups: int = 1) -> Detector:
    """CenterNet's targets and losses around `TwoLayers`."""
    return dataclasses.replace(tiny_detector(), net=TwoLayers(bn_groups))


def random_variables(net: nn.Module, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Any:
    """Variables as `net.init` gives them, drawn by NumPy: a program that draws each kernel takes seconds to compile."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    draw = np.random.default_rng(seed).normal

    def one(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(shape.shape) == 4:
            return draw(scale=math.sqrt(2 / math.prod(shape.shape[:3])), size=shape.shape).astype(np.float32)
        return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(net.init, jax.random.key(0), images))


def random_batch(count: int = 8, step: int = 0, seed: int = 0, boxes: int = 4) -> dict[str, Any]:
    """A pipeline's batch of noise with up to `boxes` boxes an image, some images with none."""
    rng = np.random.default_rng([seed, step])
    corner = rng.uniform(0, SIDE / 2, (count, boxes, 2))
    sides = rng.uniform(SIDE / 8, SIDE / 2, (count, boxes, 2))
    return {
        "canvas": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        "size": np.full((count, 2), SIDE, np.int32),
        "objects": objects_of(
            np.concatenate([corner, corner + sides], -1).astype(np.float32),
            rng.integers(0, CLASSES, (count, boxes), np.int32),
            np.arange(boxes) < rng.integers(0, boxes + 1, (count, 1)),
        ),
        "counter": (step * count + np.arange(count)).astype(np.int32),
    }
