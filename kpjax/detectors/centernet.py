"""CenterNet: Objects as Points (arXiv 1904.07850), and mmdetection's version of it.

An object is the cell of its box's centre.  Three heads: a heatmap of centres for each class,
the box's width and height, and the centre's offset within its cell (lost by the stride of 4).
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from kpjax.detectors.base import Array, Detector, Outputs, Targets
from kpjax.detectors.center_config import STRIDE, CenterNetConfig, Rules, multiple, with_options
from kpjax.detectors.center_decode import best_centers, merge_flip, protocols
from kpjax.detectors.center_network import CenterNet, center_heads
from kpjax.detectors.center_targets import encode, normaliser, oracle
from kpjax.objects import Detections, Placed
from kpjax.ops import losses


def loss(
    outputs: Outputs, targets: Targets, counts: dict[str, Array], *, config: CenterNetConfig
) -> tuple[Array, dict[str, Array]]:
    """Objects as Points eq. 4: heatmap + 0.1 wh + offset, the mean over the stacks.

    counts: what `normaliser` returned for the whole batch.  Returns the loss and its unweighted
    parts ("heatmap", "wh", "offset"), float32 scalars.
    """
    rules = config.rules
    index, mask = targets["index"], targets["mask"]
    l1_divisor = 2 * jnp.maximum(counts["peaks"], 1) if rules.count == "peaks" else 2 * counts["boxes"] + 1e-4
    parts = {"heatmap": jnp.float32(0), "wh": jnp.float32(0), "offset": jnp.float32(0)}
    for maps in outputs:
        if rules.probabilities:
            heat = losses.gaussian_focal_loss(maps["heatmap"], targets["heatmap"], jnp.maximum(counts["peaks"], 1))
        else:
            heat = losses.focal_loss(maps["heatmap"], targets["heatmap"], counts["peaks"])
        if config.class_specific_wh:
            wh = losses.class_l1_at(maps["wh"], index, mask, targets["label"], targets["wh"], l1_divisor)
        else:
            wh = losses.l1_at(maps["wh"], index, mask, targets["wh"], l1_divisor)
        offset = losses.l1_at(maps["offset"], index, mask, targets["offset"], l1_divisor)
        for key, value in (("heatmap", heat), ("wh", wh), ("offset", offset)):
            parts[key] += value / len(outputs)
    total = parts["heatmap"] + config.wh_weight * parts["wh"] + config.offset_weight * parts["offset"]
    return total, parts


def decode(maps: dict[str, Array], placed: Placed | None = None, top_k: int = 100, *, rules: Rules) -> Detections:
    """Boxes of the best peaks, (B, top_k, ...), best first, in input pixels, wherever the image is placed.

    maps: as `best_centers` takes them.
    """
    return best_centers(maps, top_k, rules).detections()


def build(name: str, released: CenterNetConfig, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build the detector's record.

    released: the configuration that `name` stands for.  options: fields of it to replace.
    Raises ConfigError for an option that does not exist or a value that cannot work.
    """
    config = with_options(name, released, options)
    return Detector(
        name=name,
        net=CenterNet(config, center_heads(config, num_classes)),
        num_classes=num_classes,
        preprocess=config.preprocess,
        encode=functools.partial(encode, rules=config.rules, num_classes=num_classes),
        normaliser=normaliser,
        loss=functools.partial(loss, config=config),
        decode=functools.partial(decode, rules=config.rules),
        merge_flip=functools.partial(merge_flip, rules=config.rules),
        protocols=protocols(config),
        oracle=functools.partial(oracle, config=config),
        stride=STRIDE,
        multiple=multiple(config),
        import_rules=config.import_rules,
        options=options,
    )
