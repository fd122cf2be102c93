"""Which part of a network is its trunk, in which stages, and what of it does not learn?

The trunk is what pretrained weights are for: of a ResNet, DarkNet or DLA all but neck and heads, of hourglasses all but
the heads and what is before them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.nn.layers import BatchNorm


def in_trunk(params: Any) -> Any:
    """A tree like `params`: which leaves belong to the trunk."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_trunk(_names(path)), params)


def is_frozen(params: Any, stages: int) -> Any:
    """A tree like `params`: which leaves belong to the stem or to the first `stages` stages of the trunk (0: none)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _in_first(_names(path), stages), params)


def without_gradient(params: Any, stages: int) -> Any:
    """`params`, of which those of the first `stages` stages get the gradient 0 without a backward pass."""
    if not stages:
        return params
    return jax.tree.map(lambda p, frozen: jax.lax.stop_gradient(p) if frozen else p, params, is_frozen(params, stages))


def norms_at_rest(config: Config) -> contextlib.AbstractContextManager[Any]:
    """A block in which the BatchNorms that `config.model` freezes compute as at test, in a network that trains.

    They use their running statistics and do not move them.
    """
    stages = config.model.freeze_stages
    at_rest: Callable[[Sequence[str]], bool] = {
        "none": lambda path: _in_first(path, stages),
        "trunk": _is_trunk,
        "all": lambda path: True,
    }[config.model.freeze_bn]

    def call(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__" and at_rest(context.module.path):
            return next_fun(args[0], False)
        return next_fun(*args, **kwargs)

    if config.model.freeze_bn == "none" and not stages:
        return contextlib.nullcontext()
    return nn.intercept_methods(call)


def check_stages(params: Any, config: Config) -> None:
    """Raise ConfigError where the network has no such stages to freeze, or nothing but them.  params: may be shapes."""
    frozen = config.model.freeze_stages
    if not frozen:
        return
    paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    stages = {stage for stage in map(_stage, paths) if stage is not None}
    if frozen > max(stages, default=0):
        has = f"has {max(stages)}" if stages else "has none"
        raise ConfigError(f"config.model.freeze_stages is {frozen}, but the trunk of {config.model.name} {has}")


def _names(path: Any) -> tuple[str, ...]:
    return tuple(getattr(key, "key", "") for key in path)


def _is_trunk(path: Sequence[str]) -> bool:
    return tuple(path[:1]) == ("backbone",) and path[1] != "neck"


def _in_first(path: Sequence[str], stages: int) -> bool:
    stage = _stage(path)
    return stages > 0 and stage is not None and stage <= stages


def _stage(path: Sequence[str]) -> int | None:
    """0: the stem; None: not in a trunk of stages.  `layer1_0` is in the first of a ResNet, `level0` of a DLA."""
    if tuple(path[:2]) != ("backbone", "trunk"):
        return None
    found = re.match(r"(layer|level)(\d+)", path[2])
    return 0 if found is None else int(found[2]) + (found[1] == "level")
