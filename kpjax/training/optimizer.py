"""The published optimisers and learning-rate schedules, out of optax."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from kpjax.config import Config, OptimConfig
from kpjax.training.trunk import in_trunk, is_frozen

# The root mean square of Muon's updates at a rate of 1; that of Adam's is 0.2 to 0.4.
_MUON_RMS = 0.2
# Coefficients of the iterations of Newton and Schulz.  Five equal ones: optax then runs them in a loop, where it would
# write out five for each kernel, which takes compilers for TPUs many minutes.
_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
_DECOUPLED = ("adamw", "muon")


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
    cosine from lr to final_lr * lr.  "wsd", as arXiv 2405.18392: lr for the fraction `hold` of the run, then a straight
    line to final_lr * lr.  All after a linear warm-up from warmup_start * lr.
    """
    if config.schedule == "cosine":
        base = optax.cosine_decay_schedule(config.lr, max(steps, 1), config.final_lr)
    elif config.schedule == "wsd":
        held = round(config.hold * steps)
        base = optax.linear_schedule(config.lr, config.final_lr * config.lr, max(steps - held, 1), held)
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


def make_optimizer(config: OptimConfig, steps: int, freeze_stages: int = 0) -> optax.GradientTransformation:
    """Gradient -> update.

    Weight decay is added to the gradient, as PyTorch's Adam and SGD do; that of "adamw" is decoupled: the rate times
    the decay times the parameter, beside Adam's update (Loshchilov & Hutter, arXiv 1711.05101).  "muon": kernels, seen
    as matrices of (inputs, outputs), move by the nearest orthogonal matrix to their gradient's average, scaled so that
    Adam's rates suit it (arXiv 2502.16982, section 2.2), with decoupled decay; NAdam moves all else.
    freeze_stages: so many stages of the trunk do not decay; `kpjax.training.trunk` gives them no gradient.
    """
    rate = learning_rate(config, steps)
    chain = []
    if config.clip > 0:
        chain.append(optax.clip_by_global_norm(config.clip))
    if config.name == "adamw":
        chain.append(
            optax.adamw(
                rate, weight_decay=config.weight_decay, mask=lambda params: decays(params, config, freeze_stages)
            )
        )
    elif config.name == "muon":
        chain.append(
            optax.contrib.muon(
                rate,
                ns_coeffs=_NEWTON_SCHULZ,
                weight_decay=config.weight_decay,
                weight_decay_mask=lambda params: decays(params, config, freeze_stages),
                muon_weight_dimension_numbers=_as_matrices,
                consistent_rms=_MUON_RMS,
            )
        )
    else:
        if config.weight_decay > 0:
            all_decay = config.bias_decay and config.norm_decay and not freeze_stages
            mask = None if all_decay else lambda params: decays(params, config, freeze_stages)
            chain.append(optax.add_decayed_weights(config.weight_decay, mask))
        chain.append(optax.adam(rate) if config.name == "adam" else optax.sgd(rate, momentum=config.momentum or None))
    if config.offset_lr != 1:
        chain.append(optax.masked(optax.scale(config.offset_lr), predicts_offsets))
    if config.bias_lr != 1:
        chain.append(optax.masked(optax.scale(config.bias_lr), is_bias))
    if config.trunk_lr != 1:
        chain.append(optax.masked(optax.scale(config.trunk_lr), in_trunk))
    return optax.chain(*chain)


def _as_matrices(params: Any) -> Any:
    """A tree like `params`: the axes of each kernel that Muon takes for rows and for columns; None for what is none."""

    def one(leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        rows = tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(rows, leaf.ndim - 1) if rows else None

    return jax.tree.map(one, params)


def decays(params: Any, config: OptimConfig, freeze_stages: int = 0) -> Any:
    """A tree like `params`: which leaves `config.weight_decay` is for.  "adamw" and "muon": kernels alone."""

    def one(leaf: Any, bias: bool, norm: bool, frozen: bool) -> bool:
        if frozen or (config.name in _DECOUPLED and leaf.ndim == 1):
            return False
        return (config.bias_decay or not bias) and (config.norm_decay or not norm)

    return jax.tree.map(one, params, is_bias(params), of_norm(params), is_frozen(params, freeze_stages))


def average_decay(config: OptimConfig, step: jax.Array) -> float | jax.Array:
    """The share of the old value in the parameters' moving average, after update number `step` (1 is the first).

    It rises to `ema` as ema * (1 - exp(-step / ema_tau)), as in ultralytics' YOLO; at once where ema_tau is 0.
    """
    return config.ema * (1 - jnp.exp(-step / config.ema_tau)) if config.ema_tau else config.ema


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


def of_norm(params: Any) -> Any:
    """A tree like `params`: which leaves are the scale or the bias of a normalisation."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    norms = {path[:-1] for path in paths if getattr(path[-1], "key", "") == "scale"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[:-1] in norms, params)
