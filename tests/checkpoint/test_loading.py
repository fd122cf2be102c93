"""Loading weights: what it touches, and what it leaves alone."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from kpjax.checkpoint import orbax as orbax_door
from kpjax.checkpoint.weights import describe, load_inference, save_inference
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.step import TrainState
from tests.tiny import tiny_detector

ROOT = pathlib.Path(__file__).parents[2]


def tiny_variables() -> Any:
    detector = tiny_detector()
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), dict(shapes))


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A work directory with a step, and an inference checkpoint in it."""
    variables = tiny_variables()
    checkpoints = Checkpoints(str(tmp_path), 3, describe(tiny_detector(), ("a", "b", "c"), None))
    state = TrainState(
        jnp.int32(4), variables["params"], variables["batch_stats"], {"m": jnp.zeros(3)}, None, jnp.int32(-1)
    )
    checkpoints.save(state)
    checkpoints.close()
    save_inference(str(tmp_path / "model"), tiny_detector(), variables, ("a", "b", "c"))
    return tmp_path


LOAD = """
import json, logging, signal, sys, threading
from orbax.checkpoint import v1  # what Orbax itself imports and changes is not ours
modules = set(sys.modules)
names = ("absl", "asyncio", "jax", "orbax", "")
before = ([list(logging.getLogger(name).filters) for name in names], logging.root.level, sys.unraisablehook,
          sys.excepthook, threading.excepthook, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
from kpjax.checkpoint.weights import load_inference
found = [load_inference(path).step for path in sys.argv[1:]]
after = ([list(logging.getLogger(name).filters) for name in names], logging.root.level, sys.unraisablehook,
         sys.excepthook, threading.excepthook, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
threads = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
print(json.dumps({"steps": found, "same": [a == b for a, b in zip(before, after)], "threads": threads,
                  "modules": sorted(set(sys.modules) - modules)}))
"""


def test_loading_imports_no_training_and_changes_nothing_global(workdir: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(workdir), str(workdir / "model"), str(workdir / "checkpoints" / "4")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == [4, None, 4]
    assert all(found["same"]), found["same"]
    unwanted = ("kpjax.training", "kpjax.inference", "kpjax.commands", "tensorflow", "tensorboard", "optax")
    assert not [name for name in found["modules"] if name.startswith(unwanted)]
    assert not found["threads"]


def test_a_work_directory_is_closed_after_reading(workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends."""
    closed = []
    kind = orbax_door.load_orbax().training.Checkpointer
    real = kind.close
    monkeypatch.setattr(kind, "close", lambda self: (closed.append(self), real(self))[1])
    load_inference(str(workdir))
    assert len(closed) == 1
    for path, best in ((workdir, True), (workdir / "checkpoints" / "5", False)):
        (workdir / "checkpoints" / "5").mkdir(exist_ok=True)
        with pytest.raises(orbax_door.CheckpointError):
            load_inference(str(path), best=best)
    assert len(closed) == 3


def test_what_is_used_of_orbax_without_a_public_name_is_there(tmp_path: pathlib.Path) -> None:
    """`call_on_failure` wraps a method of the manager within Orbax's Checkpointer, which calls it in its thread."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    found: list[Exception] = []
    checkpointer = orbax_door.load_orbax().training.Checkpointer(tmp_path / "checkpoints")
    manager = getattr(checkpointer, "_manager", None)
    if not hasattr(manager, "_wait_for_checkpointers"):
        pytest.fail(
            f"Orbax {orbax.checkpoint.__version__} has no Checkpointer._manager._wait_for_checkpointers any more; "
            "find what waits for this process's writes and mend kpjax/checkpoint/orbax.py"
        )
    real, manager._wait_for_checkpointers = manager._wait_for_checkpointers, full
    orbax_door.call_on_failure(checkpointer, found.append)
    checkpointer.save_checkpointables_async(1, {"x": {"a": jnp.zeros(3)}}, force=True)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.wait()
    if not found:
        pytest.fail("Orbax does not wait for its writes by _wait_for_checkpointers: mend kpjax/checkpoint/orbax.py")
    assert [error.errno for error in found if isinstance(error, OSError)] == [28]
    real()


def test_nothing_else_uses_private_parts_of_orbax() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "kpjax").rglob("*.py")]
    assert len(files) > 50
    for file in files:
        text = file.read_text()
        if file.relative_to(ROOT).as_posix() != "kpjax/checkpoint/orbax.py":
            assert "._manager" not in text and "orbax.checkpoint._src" not in text, file
