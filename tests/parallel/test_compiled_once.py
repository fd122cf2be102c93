"""A second evaluation of another process finds every program in the persistent cache."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

PROGRAM = """
import collections, json, sys
import jax
from kpjax.commands import flags
from kpjax.inference import evaluate as ev
from kpjax.config import Config
from tests import fakes
from tests.inference.test_evaluate import ITEMS, scaled_detector

events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[-1]]))

def main():
    config = Config()
    config.eval.batch, config.eval.preset = 3, "ms"
    result = ev.evaluate(scaled_detector(), fakes.variables(), fakes.marker_source(ITEMS), config, progress=False)
    json.dump({"ap": result.ap, **events}, open(sys.argv[1], "w"))

sys.exit(flags.guarded(main))
"""


def test_a_second_evaluation_compiles_nothing(tmp_path: pathlib.Path) -> None:
    """Three canvases, and the merge of two scales: all compiled once, by the first process."""
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": root}
    environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
    runs = []
    for name in ("first", "second"):
        report = tmp_path / name
        command = [sys.executable, "-c", PROGRAM, str(report)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(report.read_text()))
    first, second = runs
    assert first["ap"] == second["ap"] == 1.0
    asked = "compile_requests_use_cache"
    assert first[asked] >= 4 and first.get("cache_hits", 0) < first[asked]
    assert second["cache_hits"] == second[asked] >= 4, f"compiled again: {second}"
