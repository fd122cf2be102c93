"""Weights that a run starts from (config.init_from): ImageNet trunks, kpjax checkpoints, released detectors."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from kpjax import convert, detectors
from kpjax.checkpoint.orbax import absolute
from kpjax.checkpoint.weights import load_inference
from kpjax.detectors.base import Detector
from kpjax.detectors.center_config import CenterNetConfig
from kpjax.errors import ConfigError
from kpjax.training.log import say
from kpjax.training.step import TrainState


def _matching(new: Any, old: Any) -> tuple[Any, list[str]]:
    """The leaves of `old` where names and shapes agree, and a line for each that stays as initialised."""
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(old)}
    lines = []

    def one(path: Any, leaf: Any) -> Any:
        key = jax.tree_util.keystr(path)
        if key in flat and flat[key].shape == leaf.shape:
            return flat[key]
        lines.append(f"  initialised anew: {key} {leaf.shape}")
        return leaf

    return jax.tree_util.tree_map_with_path(one, new), lines


def _in_words(detector: Detector) -> str:
    """Name and options, points by their number."""
    options = {key: value for key, value in detector.options.items() if key != "points"}
    points = f"{len(detector.points)} points " if detector.points else ""
    return f"{detector.name} {points}{options or ''}".rstrip()


def init_from(path: str, detector: Detector, state: TrainState, shardings: Any) -> TrainState:
    """The state with the weights of a checkpoint: a folder is one of kpjax, a file one of PyTorch or safetensors.

    Raises ConfigError or CheckpointError where they cannot be read or do not fit.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    place = absolute(path)
    if not place.exists():
        raise ConfigError(f"config.init_from: {path}: no such file, checkpoint or work directory")
    if not place.is_dir():
        variables, lines = _from_torch(path, detector, variables)
    else:
        loaded = load_inference(path)
        variables, lines = _matching(variables, loaded.variables)
        left = sum(line.startswith("  initialised anew") for line in lines)
        if 2 * left > len(jax.tree.leaves(variables)):
            raise ConfigError(
                f"config.init_from: {path} is a checkpoint of another model ({_in_words(loaded.detector)}): "
                f"{left} of {len(jax.tree.leaves(variables))} arrays of {_in_words(detector)} are not in it"
            )
    say("\n".join([f"starting from {path}", *lines]))
    placed = jax.device_put(variables, {"params": shardings.params, "batch_stats": shardings.batch_stats})
    # The average is a copy: the step gives away its state's memory, each array once.
    average = jax.tree.map(lambda x: x.copy(), placed["params"]) if state.ema is not None else None
    return dataclasses.replace(state, params=placed["params"], batch_stats=placed["batch_stats"], ema=average)


def _from_torch(path: str, detector: Detector, variables: Any) -> tuple[Any, list[str]]:
    """The trunk of an ImageNet classifier or of another detector, or all but the class heads of this one as released.

    A released detector is this one where it is of this model, for any points, or of the boxes on the same network: then
    this model's further heads start anew too.
    """

    def build(classes: int, points: int = 0) -> Detector:
        options = dict(detector.options)
        if points:
            options["points"] = {"names": [str(j) for j in range(points)]}
        return detectors.build(detector.name, classes, **options)

    def build_boxes(classes: int) -> Detector:
        known = {field.name for field in dataclasses.fields(CenterNetConfig)}
        options = {key: value for key, value in detector.options.items() if key in known}
        return detectors.build(detector.boxes_model, classes, **options)

    try:
        weights = convert.read_torch_weights(path)
        state_dict = weights.state_dict
        classes = convert.count_classes(build, state_dict)
        if classes:
            count = convert.count_points(detector, state_dict)
            released = build_boxes if detector.boxes_model and not count else functools.partial(build, points=count)
            matching, lines = _matching(variables, convert.import_torch(released(classes), state_dict))
            return matching, [*_sets(weights), *lines]
        backbone = convert.load_backbone(detector, variables, state_dict)
    except convert.TorchFileError as error:
        raise ConfigError(f"config.init_from: {error}") from error
    except convert.ImportMismatch as error:
        raise ConfigError(f"config.init_from: {path}: {error.one_line()}") from error
    return backbone.variables, [*_sets(weights), *(f"  initialised anew: {key}" for key in backbone.kept)]


def _sets(weights: convert.Weights) -> list[str]:
    """Which weights were taken, where a file has several sets."""
    taken = weights.taken or "the network itself"
    return [
        f"  left out: {convert.shown(name)}, another set of weights; {taken} was taken" for name in weights.other_sets
    ]
