"""Are the detections in a file those of this checkpoint, split and settings?  What stands beside detections.json.

`detections.json` has COCO's format, in which there is no room for it: `detections.about.json` says it.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

import kpjax.config as configs
from kpjax.config import Config
from kpjax.data.source import Source, fingerprint
from kpjax.detectors.base import Detector
from kpjax.inference.outputs import Evaluation, write_detections, write_json

# Settings of an evaluation that change nothing of what is found.
_FREE = ("config.eval.every", "config.eval.batch")


def made_of(
    detector: Detector, variables: Any, config: Config, source: Source, oracle: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What detections follow from: the weights' digest, the model, the split and the settings, as plain JSON values.

    variables: {"params", "batch_stats"}, NumPy.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    settings = {
        key: value
        for key, value in configs.flat(config).items()
        if key.startswith(("config.eval.", "config.augment.height", "config.augment.width")) and key not in _FREE
    }
    about = {
        "weights": digest.hexdigest()[:32],
        "model": detector.name,
        "options": detector.options,
        "split": fingerprint(source),
        "settings": settings | {"config.data.bad_images": config.data.bad_images},
        "oracle": list(oracle),
    }
    plain: dict[str, Any] = json.loads(json.dumps(about, default=str))  # as it will be read: tuples are lists
    return plain


def keep_detections(path: str, evaluation: Evaluation, about: dict[str, Any]) -> None:
    """Write the detections, and beside them what they were made of.  Raises UserError as `write_detections` does."""
    write_detections(path, evaluation)
    run = {"images": evaluation.images, "skipped": evaluation.skipped, "seconds": evaluation.seconds}
    write_json(_about(path), about | {"file": _digest(path), "run": run}, indent=1)


def kept_detections(path: str, about: dict[str, Any], metric: str) -> Evaluation | None:
    """The detections of a file, still without numbers, where they were made of the same; else None.

    metric: the detector's.
    """
    try:
        with open(_about(path), encoding="utf-8") as file:
            said = json.load(file)
        run, digest = said.pop("run"), said.pop("file")
        if said != about or digest != _digest(path):
            return None
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        counts = {name: int(run[name]) for name in ("images", "skipped")}
        return Evaluation({}, "", {}, rows, **counts, seconds=float(run["seconds"]), metric=metric)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _about(path: str) -> str:
    return f"{os.path.splitext(path)[0]}.about.json"


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
