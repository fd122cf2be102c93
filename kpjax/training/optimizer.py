"""The published optimisers and learning-rate schedules, out of optax."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kpjax.config import Config, OptimConfig


def scaled(config: Config) -> OptimConfig:
    """`config.optim` with lr and warm-up as `optim.scale_lr` makes them for `config.batch` images a step.

    "linear", with k = batch / lr_batch: k times the rate, and k times the steps of warm-up (none stay none), so that
    the rate climbs from step to step as it does in the recipe.  A rate that is raised is warmed up in any case, for
    `scale_warmup` steps or more from the recipe's own first rate (Goyal et al., arXiv 1706.02677, section 2.2).
    The length of the run is not touched: `epochs` follow the batch by themselves, `steps` do not.
    """
    optim = config.optim
    if optim.scale_lr == "none":
        return optim
    k = config.batch / optim.lr_batch
    steps, start = round(k * optim.warmup_steps), optim.warmup_start
    if k > 1:
        start = (start if optim.warmup_steps else 1.0) / k
        steps = max(steps, optim.scale_warmup)
    return dataclasses.replace(optim, lr=k * optim.lr, warmup_steps=steps, warmup_start=start)


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """step number -> rate.

    "step": lr, times `gamma` from each of the fractions `drops` of the run on.  "cosine": half a
    cosine from lr to 0.  Both after a linear warm-up from warmup_start * lr.
    """
    if config.schedule == "cosine":
        base = optax.cosine_decay_schedule(config.lr, max(steps, 1))
    else:
        boundaries: dict[int, float] = {}
        for fraction in config.drops:  # in a short run several may fall on one step
            step = round(fraction * steps)
            boundaries[step] = boundaries.get(step, 1.0) * config.gamma
        base = optax.piecewise_constant_schedule(config.lr, boundaries)
    if not config.warmup_steps:
        return base

    def warmed(step: jnp.ndarray) -> jnp.ndarray:
        part = jnp.minimum(step / config.warmup_steps, 1.0)
        return base(step) * (config.warmup_start + (1 - config.warmup_start) * part)

    return warmed


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Gradient -> update.  Weight decay is added to the gradient, as PyTorch's Adam and SGD do."""
    rate = learning_rate(config, steps)
    chain = []
    if config.clip > 0:
        chain.append(optax.clip_by_global_norm(config.clip))
    if config.weight_decay > 0:
        mask = None if config.bias_decay else lambda params: jax.tree.map(lambda bias: not bias, is_bias(params))
        chain.append(optax.add_decayed_weights(config.weight_decay, mask))
    chain.append(optax.adam(rate) if config.name == "adam" else optax.sgd(rate, momentum=config.momentum or None))
    if config.offset_lr != 1:
        chain.append(optax.masked(optax.scale(config.offset_lr), predicts_offsets))
    if config.bias_lr != 1:
        chain.append(optax.masked(optax.scale(config.bias_lr), is_bias))
    return optax.chain(*chain)


def is_bias(params: Any) -> Any:
    """A tree like `params`: which leaves are biases, but those of a BatchNorm that is named bn, bn1, ...

    mmdetection 1 tells BatchNorms by their names alone (golden: fwd_ttfnet_*, `optimizer_multipliers`).
    """

    def one(path: Any, _: Any) -> bool:
        *_, layer, leaf = ("", *(getattr(k, "key", "") for k in path))
        return leaf == "bias" and not re.fullmatch(r"bn\d*", layer)

    return jax.tree_util.tree_map_with_path(one, params)


def predicts_offsets(params: Any) -> Any:
    """A tree like `params`: which leaves belong to a convolution that predicts a deformable one's offsets and mask."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(k, "key", "") == "offset" for k in path), params
    )
