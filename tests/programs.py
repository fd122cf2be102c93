"""train.py as a person runs it: in a process of its own, on a small set of shapes, stopped by signals."""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

import jax
import numpy as np

from kpjax.checkpoint.weights import load_inference
from kpjax.datasets import shapes

ROOT = pathlib.Path(__file__).parents[1]

GRACE = 30  # seconds between a preemption's SIGTERM and its SIGKILL, on the usual clouds

CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=4, steps={steps}, log_every=1)
    config.model.options = {{"width": 4, "deconv": (4,), "head_channels": 4}}
    config.data.canvas = 64
    config.data.max_boxes = 8
    config.data.threads = 1
    config.data.train.images = {folder!r} + "/train"
    config.data.train.annotations = {folder!r} + "/annotations/instances_train.json"
    config.augment.kind = "shift"
    config.augment.height = config.augment.width = 64
    config.optim.lr = 1e-3
    config.optim.ema = 0.9
    config.checkpoint.every = 3
    config.eval.resolution = "fixed"
    return config
"""


def shapes_set(folder: pathlib.Path, train: int = 18, val: int = 4) -> pathlib.Path:
    """Draw a small data set and return its folder."""
    shapes.write(str(folder), train=train, val=val, size=64)
    return folder


def config_file(folder: pathlib.Path, data: pathlib.Path, steps: int) -> pathlib.Path:
    """A configuration file for that data set."""
    path = folder / "tiny_shapes.py"
    path.write_text(CONFIG.format(steps=steps, folder=str(data)))
    return path


def environment(devices: int = 1) -> dict[str, str]:
    """So many CPU devices; all programs compiled once are kept, as without tests, so that a restart takes seconds."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
    flag = "--xla_force_host_platform_device_count"
    others = [x for x in os.environ.get("XLA_FLAGS", "").split() if not x.startswith(flag)]
    flags = " ".join([*others, f"{flag}={devices}"])
    return kept | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def run_program(name: str, *arguments: str, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    """Run train.py or eval.py to its end.  more: environment variables."""
    command = [sys.executable, str(ROOT / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment() | more)


def stop_at(
    number: signal.Signals, when: float, *arguments: str, pattern: str = r"^step \d+/", match: int = 1
) -> tuple[int, list[str], str]:
    """Start train.py, send it a signal `when` seconds after the line of this match; return (code, lines, stderr)."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        match -= bool(re.search(pattern, line))
        if not match:
            time.sleep(when)
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=GRACE if number == signal.SIGTERM else 300)
    return process.returncode, lines + rest.splitlines(), errors


STEPS_A_KILL = 12  # a run of so many times `kills` steps is not done before the last of them


def kill_until_done(arguments: Iterable[str], kills: int, seed: int, steps: int) -> list[tuple[int, float]]:
    """Kill train.py (SIGKILL) `kills` times, each some steps and a random moment after it began to train, then let it
    finish.

    Returns (how many lines of steps were seen, seconds waited after the last that was waited for) of each start.
    """
    draw = random.Random(seed)
    arguments = tuple(arguments)
    starts = []
    for _ in range(kills):
        match, when = draw.randint(1, 6), draw.uniform(0, 0.1)
        code, lines, errors = stop_at(signal.SIGKILL, when, *arguments, match=match)
        assert code == -signal.SIGKILL, f"kill {len(starts) + 1} of {kills} did not happen: exit {code}. {errors}"
        starts.append((sum(line.startswith("step ") for line in lines), when))
    done = run_program("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "done:" in done.stdout or f"step {steps} of {steps}" in done.stdout, done.stdout
    return starts


def stored(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint (None: the newest) as Orbax alone reads them, by their path from its folders on."""
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(workdir / "checkpoints") as checkpointer:
        step = checkpointer.latest.step if step is None else step
        kept = checkpointer.checkpointables_metadata(step).metadata
        parts = {k: kept[k] for k in ("weights", "average", "train") if k in kept}
        # NumPy arrays: the devices of the run that wrote it, perhaps of several processes, are not here.
        on_host = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), parts)
        found = checkpointer.load_checkpointables(step, on_host)
    leaves = jax.tree_util.tree_leaves_with_path({k: found[k] for k in parts})
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two checkpoints that `stored` read are equal, bit for bit."""
    assert one.keys() == other.keys()
    return all(one[key].tobytes() == other[key].tobytes() for key in one)


def same_weights(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether the newest checkpoints of two work directories are equal, bit for bit, moving average and state too."""
    arrays = [stored(w) for w in (one, other)]
    exported = [load_inference(str(w / "model")).variables for w in (one, other)]
    pairs = list(zip(*map(jax.tree.leaves, exported), strict=True))
    assert len(arrays[0]) > 60 and len(pairs) > 20
    return same_arrays(*arrays) and all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
