"""Reading and writing weights: inference checkpoints, and the weights of a training run's checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from kpjax import config as configs
from kpjax.checkpoint.orbax import (
    CheckpointError,
    absolute,
    first_line,
    load_orbax,
    on_host,
    plain_errors,
    quiet_writing,
    step_metadata,
    write_text,
)
from kpjax.checkpoint.scores import best_step, logged_scores
from kpjax.config import Config
from kpjax.detectors import build
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError

INFO = "config.json"


_OLD_INFO = "kpjax.json"  # INFO's name in the earliest checkpoints; still read


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights ready for inference.  variables: {"params", "batch_stats"} as NumPy arrays."""

    detector: Detector
    variables: dict[str, Any]
    names: tuple[str, ...]
    config: Config | None
    step: int | None


def describe(detector: Detector, names: tuple[str, ...], config: Config | None) -> dict[str, Any]:
    """What a reader needs beside the arrays, as plain JSON values."""
    return {
        "format": 1,
        "model": detector.name,
        "num_classes": detector.num_classes,
        "options": detector.options,
        "classes": list(names),
        "input": dataclasses.asdict(detector.preprocess) | _input_rules(detector),
        "config": json.loads(configs.to_json(config)) if config else None,
    }


def _input_rules(detector: Detector) -> dict[str, Any]:
    """`Preprocess` in words, for those who read config.json without kpjax."""
    preprocess = detector.preprocess
    canvas = f"(side | {preprocess.pad}) + 1" if preprocess.pad_plus_one else f"side | {preprocess.pad}"
    padded = f"{canvas} pixels for each side of an image, the rest filled with `border` before normalisation"
    one = "one for all images: the image's width fills its width, their middles meet, the rest is `border`"
    if preprocess.fills == "both":
        one = "one for all images: width and height of an image are stretched to it"
    return {
        "layout": "NHWC",
        "dtype": "float32",
        "normalisation": "(pixel / 255 - mean) / std, channels in `order`",
        "canvas": one if preprocess.one_canvas else padded,
        "stride": detector.stride,
        "sides": f"multiples of {detector.multiple}" + (f" less {detector.less}" if detector.less else ""),
    }


def save_inference(
    path: str, detector: Detector, variables: Any, names: tuple[str, ...] = (), config: Config | None = None
) -> None:
    """Write an inference checkpoint, in place of an older one at the same path.

    All of it is written to PATH.part first and then renamed, so that the older one stays until the
    new one is whole.  Raises CheckpointError, before writing, where something else is at the path.
    """
    target = absolute(path)
    if target.exists() and not is_inference(target) and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{path} is there and is no inference checkpoint; name another path, or remove it")
    part, old = (target.parent / (target.name + end) for end in (".part", ".old"))
    first = jax.process_index() == 0
    quiet_writing()
    with plain_errors(target):
        if first:
            # Where Orbax cannot make the folder, a thread of it keeps the program from ending: make it here first.
            part.mkdir(parents=True, exist_ok=True)
            part.rmtree(missing_ok=True)  # and what a killed run left there
        try:
            load_orbax().save(part, {"params": variables["params"], "batch_stats": variables["batch_stats"]})
            if not first:
                return
            write_text(part / INFO, json.dumps(describe(detector, names, config), indent=1))
            if target.exists():
                if old.exists():
                    old.rmtree()
                target.rename(old)
        except Exception:
            if first:
                _remove_unfinished(part)
            raise
        part.rename(target)
        if old.exists():
            old.rmtree()


def _remove_unfinished(part: epath.Path) -> None:
    """Remove what a failed save left, as far as that can be done: why it failed matters more."""
    gone = 0
    for _ in range(100):  # files that are still being written reappear, with their folders
        with contextlib.suppress(OSError):
            left = [
                path for path in part.parent.iterdir() if path.name.partition(".orbax-checkpoint-tmp")[0] == part.name
            ]
            gone = 0 if left else gone + 1
            for path in left:
                path.rmtree(missing_ok=True)
        if gone == 3:
            return
        time.sleep(0.1)


def is_inference(folder: epath.Path) -> bool:
    """Whether a folder is an inference checkpoint: its config.json says so, which a work directory's does not."""
    if not (folder / INFO).exists():
        return (folder / _OLD_INFO).exists()
    try:
        info = json.loads((folder / INFO).read_text())
    except (OSError, ValueError):
        return (folder / "state").exists()  # it has Orbax's arrays: damaged, and reading reports how
    return isinstance(info, dict) and {"format", "model"} <= set(info)


def load_inference(path: str, best: bool = False) -> Loaded:
    """Weights from an inference checkpoint, or from a work directory's newest (or best) step.

    best: the step with the highest AP; CheckpointError if no step has one.
    If the run has a moving average, that is loaded.  Raises CheckpointError.
    """
    root = absolute(path)
    if not root.exists():
        raise CheckpointError(f"{path}: no such checkpoint or work directory")
    if not root.is_dir():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint is a folder; one of PyTorch becomes one with "
            f"python -m kpjax convert {path} --model NAME --out DIR"
        )
    if is_inference(root):
        ocp = load_orbax()
        place = root / (INFO if (root / INFO).exists() else _OLD_INFO)
        info = _read_json(place)
        return _loaded(path, place, info, lambda: ocp.load(root, on_host(ocp.metadata(root).metadata)), None)
    folder, wanted = root / "checkpoints", None
    if not folder.exists() and root.name.isdigit():
        folder, wanted = root.parent, int(root.name)
    if not folder.exists():
        raise CheckpointError(f"{path} is neither an inference checkpoint (no {INFO} of one) nor a work directory")
    with load_orbax().training.Checkpointer(folder) as checkpointer:
        step = _step_to_load(checkpointer, folder, wanted, best)
        found = step_metadata(checkpointer, step, folder)
        item = next((name for name in ("average", "weights") if name in found.metadata), None)
        if item is None:
            raise CheckpointError(f"{folder / str(step)} cannot be read: it holds no weights")
        tree = on_host(found.metadata[item])
        info = found.custom_metadata or {}
        read = lambda: checkpointer.load_checkpointables(step, {item: tree})[item]  # noqa: E731
        return _loaded(path, folder / str(step), info, read, step)


def _step_to_load(checkpointer: Any, folder: epath.Path, wanted: int | None, best: bool) -> int:
    """The wanted step, else the best or the newest one.  Raises CheckpointError where there is none."""
    steps = [c for c in checkpointer.checkpoints if wanted in (None, c.step)]
    if not steps:
        raise CheckpointError(f"{folder} holds no complete checkpoint; train first, or name another directory")
    newest = max(c.step for c in steps)
    if not best:
        return newest
    scored = best_step(steps, logged_scores(folder.parent))
    if scored is None:
        raise CheckpointError(
            f"{folder}: no checkpoint has an AP (newest step: {newest}), so there is no best one; leave --best "
            "out, or train with validation data and config.eval.every"
        )
    return scored[0]


def _loaded(path: str, place: epath.Path, info: dict[str, Any], read: Callable[[], Any], step: int | None) -> Loaded:
    """What a checkpoint holds.  info: what was stored beside the arrays, at `place`.  read: gives the arrays."""
    if not {"model", "num_classes", "options", "classes"} <= set(info):
        raise CheckpointError(f"{path} was not written by kpjax: it does not say which model it holds")
    for key, fits, wanted in (
        ("model", lambda x: isinstance(x, str), "a name"),
        ("num_classes", lambda x: type(x) is int, "a whole number"),
        ("options", lambda x: isinstance(x, dict), "an object of options"),
        ("classes", lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x), "a list of names"),
    ):
        if not fits(info[key]):
            raise CheckpointError(f"{place}: {key} is {info[key]!r}; it must be {wanted}"[:500])
    try:
        detector = build(info["model"], info["num_classes"], **info["options"])
        config = configs.from_json(json.dumps(info["config"])) if info.get("config") else None
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from error
    try:
        variables = read()
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    check_shapes(detector, variables, path)
    return Loaded(detector, variables, tuple(info["classes"]), config, step)


def check_shapes(detector: Detector, variables: Any, path: str) -> None:
    """Raise CheckpointError where the arrays are not those of the detector."""
    wanted = jax.eval_shape(
        lambda key: detector.net.init(key, np.zeros((1, 64, 64, 3), np.float32), train=False), jax.random.key(0)
    )
    flat = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(dict(wanted))}
    found = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(dict(variables))}
    for key in sorted(flat.keys() | found.keys()):
        if flat.get(key) != found.get(key):
            raise CheckpointError(
                f"{path} is a checkpoint of another model than {detector.name}: "
                f"{key} is {found.get(key, 'missing')}, expected {flat.get(key, 'nothing')}"
            )


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
