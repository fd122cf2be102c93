"""Mapping a PyTorch state dict to a network's variables by a table of name rules.

A table is a tuple of `Rule`s.  Every key of the checkpoint has to be matched in full by
exactly one rule.  Every leaf of the network has to be filled by exactly one key with an array
of the leaf's shape.  Anything else raises `ImportMismatch`, whose text is the difference
between the two; nothing is imported in part.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kpjax.detectors.base import Detector
from kpjax.errors import UserError

Variables = dict[str, Any]
Transform = Callable[[np.ndarray], np.ndarray]

_SHOWN = 10  # lines of each kind in a mismatch; the count is always complete
_INIT_SIDE = 128  # a side that every network accepts; the shapes of parameters do not depend on it


class ImportMismatch(UserError):
    """The checkpoint and the network do not fit.  The text lists what is missing, unexpected or of another shape."""

    def one_line(self) -> str:
        """The counts, and the first of what is listed below them."""
        lines = str(self).splitlines()
        detail = next((line.strip() for line in lines[2:]), "")
        return f"{lines[0]}{f' (e.g. {detail})' if detail else ''}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of the keys that `pattern` matches in full.

    pattern: regular expression of a checkpoint key.
    target: the leaf's path, as `params/backbone/conv1/kernel`, with groups of the pattern put in
        (`\\1`); unused by a rule that drops.
    transform: from the checkpoint's layout to the leaf's.
    drop: why the keys are left out; empty for a rule that imports.
    """

    pattern: str
    target: str = ""
    transform: Transform = np.asarray
    drop: str = ""


def conv_kernel(kernel: np.ndarray) -> np.ndarray:
    """A convolution's kernel from PyTorch's (out, in, kh, kw) to (kh, kw, in, out)."""
    return kernel.transpose(2, 3, 1, 0)


def depthwise_kernel(kernel: np.ndarray) -> np.ndarray:
    """A depthwise convolution's kernel, transposed or not: PyTorch's (C, 1, kh, kw) to (kh, kw, C), not mirrored."""
    return kernel.transpose(2, 3, 0, 1).squeeze(3)


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a BatchNorm layer.

    source: regular expression of the layer's key in the checkpoint; target: its module path.
    """
    return (
        Rule(rf"{source}\.weight", f"params/{target}/scale"),
        Rule(rf"{source}\.bias", f"params/{target}/bias"),
        Rule(rf"{source}\.running_mean", f"batch_stats/{target}/mean"),
        Rule(rf"{source}\.running_var", f"batch_stats/{target}/var"),
        Rule(rf"{source}\.num_batches_tracked", drop="PyTorch's count of updates; nothing here reads it"),
    )


def leaf_shapes(det: Detector) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the network's variables by its path, without computing anything."""
    images = jax.ShapeDtypeStruct((1, _INIT_SIDE, _INIT_SIDE, 3), jnp.float32)
    tree = jax.eval_shape(lambda key, x: det.net.init(key, x, train=False), jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries -> {"a/b/c": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Variables:
    """The inverse of `flatten`."""
    tree: Variables = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


_compiled = functools.lru_cache(maxsize=None)(re.compile)  # re keeps 512, fewer than an hourglass has rules


def destination(rules: Sequence[Rule], key: str) -> str | None:
    """Where a table sends a checkpoint's key: a leaf's path, "" for one that is dropped, None for an unknown one."""
    for rule in rules:
        if match := _compiled(rule.pattern).fullmatch(key):
            return "" if rule.drop else match.expand(rule.target)
    return None


def apply_rules(
    rules: Sequence[Rule], state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str
) -> dict[str, np.ndarray]:
    """Fill the leaves named in `shapes` from a state dict.

    rules: a table.  state_dict: {key: array}, NumPy or torch tensors.  shapes: {leaf path: shape}
    of everything that has to be filled.  name: what the network is called in a mismatch.
    Returns {leaf path: float32 array}.  Raises ImportMismatch, with all differences, if there are any.
    """
    compiled = [(_compiled(rule.pattern), rule) for rule in rules]
    filled: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    unexpected: list[str] = []
    twice: list[str] = []
    misshapen: list[str] = []
    for key, value in state_dict.items():
        matches = [(match, rule) for pattern, rule in compiled if (match := pattern.fullmatch(key))]
        if len(matches) > 1:
            twice.append(f"{key}: matched by {len(matches)} rules")
            continue
        if not matches:
            unexpected.append(f"{key} {tuple(value.shape)}")
            continue
        match, rule = matches[0]
        if rule.drop:
            continue
        path = match.expand(rule.target)
        if path not in shapes:
            unexpected.append(f"{key} {tuple(value.shape)}: the network has no {path}")
        elif path in origin:
            twice.append(f"{path}: from {origin[path]} and from {key}")
        else:
            origin[path] = key
            array = _to_numpy(value)
            try:
                leaf = rule.transform(array)
            except ValueError:  # an array of another rank; its shape is reported below
                leaf = array
            if leaf.shape != tuple(shapes[path]):
                misshapen.append(f"{key} -> {path}: {leaf.shape} in the checkpoint, {tuple(shapes[path])} here")
            else:
                filled[path] = np.array(leaf, np.float32, order="C")  # a copy: the caller may free the checkpoint
    missing = [f"{path} {tuple(shape)}" for path, shape in shapes.items() if path not in origin]
    problems = (
        ("missing from the checkpoint", missing),
        ("unexpected in the checkpoint", unexpected),
        ("of another shape", misshapen),
        ("given twice", twice),
    )
    if any(lines for _, lines in problems):
        raise ImportMismatch(_difference(name, problems))
    return filled


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; NumPy has no bfloat16, so torch converts it
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return value.numpy()
    return np.asarray(value)


def _difference(name: str, problems: Sequence[tuple[str, list[str]]]) -> str:
    lines = [f"the checkpoint does not fit {name}: " + ", ".join(f"{len(v)} {k}" for k, v in problems if v)]
    for kind, entries in problems:
        if entries:
            lines.append(f"  {kind} ({len(entries)}):")
            lines += [f"    {entry}" for entry in entries[:_SHOWN]]
            if len(entries) > _SHOWN:
                lines.append(f"    ... and {len(entries) - _SHOWN} more")
    return "\n".join(lines)
