"""Importing PyTorch weights: released detectors and ImageNet backbones as variables of kpjax's networks.

detector = kpjax.build("centernet_r18", num_classes=80)
variables = kpjax.import_torch(detector, read_torch_file("ctdet_coco_res18.pth"))
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from kpjax.convert import hourglass, resnet
from kpjax.convert.rules import (
    ImportMismatch,
    Variables,
    apply_rules,
    destination,
    flatten,
    leaf_shapes,
    unflatten,
)
from kpjax.convert.state_dict import Weights, find_weights, listed, shown, unwrap
from kpjax.convert.tables import BACKBONES, RULES, SHARED_BACKBONES
from kpjax.convert.torch_file import TorchFileError, read_torch_checkpoint, read_torch_file, read_torch_weights
from kpjax.detectors.base import Detector

__all__ = [
    "BackboneLoad",
    "ImportMismatch",
    "Nearest",
    "TorchFileError",
    "Weights",
    "class_axes",
    "count_classes",
    "count_points",
    "destination",
    "find_weights",
    "import_torch",
    "is_backbone",
    "listed",
    "load_backbone",
    "nearest",
    "read_torch_checkpoint",
    "read_torch_file",
    "read_torch_weights",
    "resembles",
    "shown",
]

_MARK = 7919  # classes; a prime: only sides that depend on the number of classes are multiples of it


@dataclasses.dataclass(frozen=True)
class BackboneLoad:
    """What `load_backbone` did.

    variables: the network's variables, the backbone's replaced.  loaded: paths of the leaves that
    were replaced.  kept: paths of those that were left as they were.  ignored: keys of the
    checkpoint that were not used, with the reason.
    """

    variables: Variables
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]


def import_torch(det: Detector, state_dict: Mapping[str, Any]) -> Variables:
    """The variables of a released checkpoint: {"params": ..., "batch_stats": ...} of float32 NumPy arrays.

    state_dict: {key: array}, of NumPy arrays or torch tensors in PyTorch's layouts; dictionaries around it, and
    prefixes of wrappers before its keys (`module.`, `_orig_mod.`, ...), are accepted.
    Raises ImportMismatch, with every difference, unless each key is known and each leaf of the
    network is filled with an array of its own shape.
    """
    if det.import_rules not in RULES:
        raise ImportMismatch(f"{det.name}: no table of checkpoint names is known for this model")
    shapes = leaf_shapes(det)
    return unflatten(apply_rules(RULES[det.import_rules], unwrap(state_dict), shapes, det.name))


def load_backbone(
    det: Detector, variables: Mapping[str, Any], source: str | pathlib.Path | Mapping[str, Any]
) -> BackboneLoad:
    """Start a network's trunk from an ImageNet classifier: a ResNet of torchvision or timm, a DLA of ucbdrive.

    An hourglass starts from that of another detector: princeton-vl's CornerNet, by the names of CornerNet-Lite too,
    Duankaiwen's triplets, xingyizhou's CenterNet or ExtremeNet.

    variables: the network's own {"params", "batch_stats"}, as `det.net.init` makes them.
    source: a file of PyTorch or safetensors, or its state dict; of a whole network the part that is such a trunk.
    The channel order of the first kernel is left as
    it is, as in xingyizhou's training, which feeds BGR to weights that were trained on RGB.
    Raises ImportMismatch where the trunk does not fit, TorchFileError where the file cannot be read.
    """
    leaves = flatten(variables)
    rules = next((table for leaf, table in {**BACKBONES, **SHARED_BACKBONES}.items() if leaf in leaves), None)
    if rules is None:
        raise ImportMismatch(f"{det.name}: this model has no backbone to start from another network's")
    trunk = resnet.TRUNK if rules in BACKBONES.values() else hourglass.BACKBONE
    wanted = {path: leaf.shape for path, leaf in leaves.items() if path.split("/", 1)[1].startswith(f"{trunk}/")}
    given = source if isinstance(source, Mapping) else read_torch_file(source)
    weights = find_weights(given, lambda key: destination(rules, key) is not None)
    state_dict = weights.state_dict
    filled = apply_rules(rules, state_dict, wanted, f"the backbone of {det.name}")
    dropped = {
        key: rule.drop
        for key in sorted(state_dict)
        for rule in rules
        if rule.drop and re.fullmatch(rule.pattern, key) and not key.endswith("num_batches_tracked")
    }
    return BackboneLoad(
        variables=unflatten({**leaves, **filled}),
        loaded=tuple(filled),
        kept=tuple(path for path in leaves if path not in filled),
        ignored=(
            *(f"{key}: {reason}" for key, reason in dropped.items()),
            *(f"{name}: beside the backbone" for name in weights.left_out),
        ),
    )


def class_axes(build: Callable[[int], Detector]) -> dict[str, tuple[int, int]]:
    """The leaves whose shape depends on the number of classes: path -> (axis, entries a class).

    build: number of classes -> Detector.  Costs two shape inferences.
    """
    one, two = leaf_shapes(build(1)), leaf_shapes(build(2))
    axes = {}
    for path, shape in one.items():
        for axis, (a, b) in enumerate(zip(shape, two[path], strict=True)):
            if a != b:
                axes[path] = (axis, b - a)
    return axes


def count_classes(build: Callable[[int], Detector], state_dict: Mapping[str, Any]) -> int:
    """The number of classes that a released checkpoint has, read off its class heads; 0 where it has none."""
    axes, rules = class_axes(build), RULES.get(build(1).import_rules, ())
    for key, value in state_dict.items():
        path = destination(rules, key)
        if path in axes:
            axis, each = axes[path]
            # Transforms move a kernel's axes; the one that we know, the last, is PyTorch's first.
            last = axis == len(value.shape) - 1
            at = 0 if last and len(value.shape) > 1 else axis
            side = value.shape[at] if at < len(value.shape) else 0  # of another rank: import_torch reports it
            if side and side % each == 0:
                return side // each
    return 0


def count_points(det: Detector, state_dict: Mapping[str, Any]) -> int:
    """The number of points an object that a released checkpoint finds; 0 where it finds boxes alone."""
    for key, value in state_dict.items():
        path = destination(RULES.get(det.import_rules, ()), key) or ""
        if path.endswith("/joint_heatmap_out/bias"):
            return int(value.shape[0])
    return 0


@functools.lru_cache(maxsize=32)
def _shapes_of(build: Callable[[int], Detector]) -> dict[str, tuple[int, ...]]:
    return leaf_shapes(build(_MARK))


def resembles(state_dict: Mapping[str, Any], models: Mapping[str, Callable[[int], Detector]]) -> tuple[str, float]:
    """The model whose table knows most of the checkpoint's keys and leaves, and that share; ("", 0.0) for none.

    A table has to know at least half of the keys.
    models: name -> (number of classes -> Detector).  Of several that fit alike the first is returned.
    """
    best, most = "", 0.0
    tables = {name: RULES.get(build(1).import_rules, ()) for name, build in models.items()}
    targets = {name: {key: destination(rules, key) for key in state_dict} for name, rules in tables.items()}
    known_by = {name: [key for key, path in paths.items() if path is not None] for name, paths in targets.items()}
    for name in sorted(models, key=lambda name: -len(known_by[name])):  # shapes take seconds: the likeliest first
        build, known = models[name], known_by[name]
        if len(known) <= max(most, 0.5) * len(state_dict):  # the share of filled leaves can only lower it
            break
        shapes = _shapes_of(build)
        filled = 0
        for key in known:
            shape = shapes.get(targets[name][key] or "")
            of_classes = shape is not None and any(side % _MARK == 0 for side in shape)
            filled += shape is not None and (of_classes or sorted(shape) == sorted(state_dict[key].shape))
        share = len(known) / len(state_dict) * filled / max(len(shapes), filled)
        if share > most:
            best, most = name, share
    return best, most


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The model that knows most of a checkpoint's names, whatever its arrays' shapes.

    model: its name; "" where no model knows a single one.  known: how many of the checkpoint's keys its network has.
    missing: how many of the network's arrays the checkpoint lacks.
    """

    model: str
    known: int
    missing: int


def nearest(state_dict: Mapping[str, Any], models: Mapping[str, Callable[[int], Detector]]) -> Nearest:
    """Every model's table is asked.  models: name -> (number of classes -> Detector)."""
    targets: dict[str, list[str]] = {}
    for name, build in models.items():
        paths = (destination(RULES.get(build(1).import_rules, ()), key) for key in state_dict)
        targets[name] = [path for path in paths if path is not None]
    best, closeness = Nearest("", 0, 0), (0, 0)
    for name in sorted(models, key=lambda name: -len(targets[name])):
        if len(targets[name]) < max(best.known, 1):  # a network has at most the names that its table knows
            break
        leaves = _shapes_of(models[name])
        known = sum(not path or path in leaves for path in targets[name])
        missing = len(leaves) - len(set(targets[name]) & set(leaves))
        if known and (known, -missing) > closeness:
            best, closeness = Nearest(name, known, missing), (known, -missing)
    return best


def is_backbone(state_dict: Mapping[str, Any]) -> bool:
    """Whether it is a backbone alone, perhaps with its classifier (`load_backbone`)."""
    return any(all(destination(rules, key) is not None for key in state_dict) for rules in BACKBONES.values())
