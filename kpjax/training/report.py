"""What a run says of itself before its first step."""

from __future__ import annotations

from typing import Any

import jax

from kpjax.config import Config
from kpjax.data.source import Source
from kpjax.data.turned import notice
from kpjax.detectors.base import Detector
from kpjax.parallel.compiling import memory_of, sorts_of
from kpjax.training.optimizer import scaled
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
    from kpjax.data.source import count_over, object_counts

    count = sum(x.size for x in jax.tree.leaves(shapes.params))
    boxes = int(object_counts(source).sum())
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
        f"data     {source.name}: {len(source):,} images, {boxes:,} boxes; boxes dropped: {reasons}",
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
    lines += [f"note     {line}" for line in unused(config, largest)]
    if start:
        lines.append(f"resuming at step {start}")
    return "\n".join(lines)
