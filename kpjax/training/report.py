"""What a run says of itself before its first step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from kpjax.config import Config
from kpjax.data.augment import images_of
from kpjax.data.source import Source, count_over, object_counts
from kpjax.data.turned import notice
from kpjax.detectors.base import Detector
from kpjax.parallel.compiling import memory_of, sorts_of
from kpjax.training.optimizer import scaled
from kpjax.training.sizes import sizes_of
from kpjax.training.step import TrainState
from kpjax.training.unused import unused


def describe_run(
    detector: Detector,
    source: Source,
    config: Config,
    mesh: Any,
    steps: int,
    shapes: TrainState,
    step: Any,
    seconds: float,
    start: int,
) -> str:
    """What a person wants to know before step 1."""
    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    counts = object_counts(source)
    over = count_over(source, config.data.max_boxes)
    dropped = dict(source.dropped) | ({f"over {config.data.max_boxes} in an image": over} if over else {})
    reasons = ", ".join(f"{n} {why}" for why, n in dropped.items() if n) or "none"
    largest = int(max(source.heights.max(), source.widths.max()))
    memory, cost = memory_of(step), step.cost_analysis() or {}
    total, arguments, temporaries = (n / 2**20 for n in (memory.total, memory.arguments, memory.temporaries))
    size = f"{total:,.0f} MiB a device ({arguments:,.0f} arguments, {temporaries:,.0f} temporaries), " if total else ""
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    lines = [
        f"model    {detector.name}, {detector.num_classes} classes, {count:,} parameters, {config.model.dtype}",
        f"data     {source.name}: {len(source):,} images, {counts.sum():,} boxes; boxes dropped: {reasons}",
        f"devices  {mesh.size} x {jax.devices()[0].device_kind}{several}, mesh {dict(mesh.shape)}",
        f"step     {size}{cost.get('flops', 0) / 1e9:,.1f} GFLOP, compiled in {seconds:.1f} s",
        f"run      {steps:,} steps of {config.batch} images, {steps * config.batch / len(source):.1f} epochs",
    ]
    if config.optim.scale_lr != "none":
        optim = scaled(config)
        lines.append(
            f"rate     {optim.lr:g}: {config.optim.lr:g} for {config.optim.lr_batch} images a step, "
            f"{config.optim.scale_lr}; warm-up {optim.warmup_steps:,} steps"
        )
    if config.deterministic and jax.devices()[0].platform == "gpu":
        lines.append(
            f"note     config.deterministic: sums into shared places run as sorts, {sorts_of(step)} a step, and "
            "convolutions by cuDNN's repeatable algorithms alone, so that a step takes longer"
        )
    turned = notice(source) if jax.process_index() == 0 else ""
    lines += [f"exif     {turned}"] if turned else []
    lines += [f"note     {line}" for line in [*unused(config, largest), *crowded(config, counts)]]
    if len(sizes := sizes_of(config)) > 1:
        lines.append(
            f"sizes    inputs are {', '.join(map(str, sizes))} pixels wide, by turns; the step above is the largest"
        )
    if start:
        lines.append(f"resuming at step {start}")
    return "\n".join(lines)


def crowded(config: Config, counts: np.ndarray) -> list[str]:
    """A line where inputs of several images probably have more boxes than slots.  counts: (N,), of each image."""
    images = images_of(config.augment)
    # Two standard deviations above the mean: of whole images, while most tiles show a part of theirs.
    usual = images * counts.mean() + 2 * np.sqrt(images) * counts.std() if len(counts) else 0.0
    if images == 1 or usual <= config.data.max_boxes:
        return []
    return [
        f"{images} images have up to about {usual:.0f} boxes; where more than config.data.max_boxes = "
        f"{config.data.max_boxes} are seen in one input the smallest are left out"
    ]
