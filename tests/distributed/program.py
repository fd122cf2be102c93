"""train.py or eval.py as they are, with a model "two_layers" added that compiles in a second.

    python -m tests.distributed.program train.py --config ...

KPJAX_TEST_SECONDS: each training batch comes that much later, so that a signal finds the run at work.
KPJAX_TEST_RESTORED: a file for what a checkpoint gave back, a sum for each whole array.
KPJAX_TEST_START: seconds within which all processes have to be there.
KPJAX_TEST_FULL: the number of a process that can write only small files when it saves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import kpjax.parallel.distributed
import kpjax.training.run
from kpjax.data.memory import memory_batches
from kpjax.detectors import MODELS
from kpjax.detectors.base import Detector
from tests.tiny import TwoLayers

ROOT = pathlib.Path(__file__).parents[2]


def two_layers(classes: int, options: dict[str, Any]) -> Detector:
    """CenterNet around `TwoLayers`, wide enough for a kernel that fsdp divides (2**14 numbers or more)."""
    centernet = MODELS["centernet_r18"](classes, {})
    net = TwoLayers(classes=classes, width=352, **options)
    return dataclasses.replace(centernet, name="two_layers", net=net, options=options)


def feed(source: Any, config: Any, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's slices, without TensorFlow."""
    place = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start, **place)
    for batch in batches:
        time.sleep(float(os.environ.get("KPJAX_TEST_SECONDS", "0")))
        yield batch


def sums(state: Any) -> dict[str, str]:
    """Each array of a state, whole, wherever its parts lie -> the sum of its bytes."""
    from jax.experimental import multihost_utils

    whole = multihost_utils.process_allgather(state, tiled=True)
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    return {jax.tree_util.keystr(k): hashlib.sha256(np.asarray(v).tobytes()).hexdigest() for k, v in leaves}


class Checkpoints(kpjax.training.run.Checkpoints):
    """Writes down what it restores; its disk can be full."""

    def save(self, state: Any) -> None:
        if os.environ.get("KPJAX_TEST_FULL") == str(jax.process_index()):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, resource.RLIM_INFINITY))
        super().save(state)

    def restore(self, step: int, like: Any) -> Any:
        state = super().restore(step, like)
        if path := os.environ.get("KPJAX_TEST_RESTORED"):
            found = {"sums": sums(state), "specs": sorted({str(x.sharding.spec) for x in jax.tree.leaves(state)})}
            if jax.process_index() == 0:
                pathlib.Path(path).write_text(json.dumps(found))
        return state


if __name__ == "__main__":
    kpjax.parallel.distributed.START_SECONDS = int(
        os.environ.get("KPJAX_TEST_START", kpjax.parallel.distributed.START_SECONDS)
    )
    MODELS["two_layers"] = two_layers
    kpjax.training.run._pipeline = feed
    kpjax.training.run.Checkpoints = Checkpoints  # type: ignore[misc]
    del sys.argv[0]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
