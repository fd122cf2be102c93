"""Training states on disk, and inference weights."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kpjax
import kpjax.checkpoint.weights
import kpjax.training.checkpoints
from kpjax.checkpoint.orbax import CheckpointError, plain_errors
from kpjax.checkpoint.weights import describe, load_inference, save_inference
from kpjax.config import Config
from kpjax.parallel.sharding import make_mesh, replicated
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.environment import environment
from kpjax.training.step import TrainState
from tests.tiny import tiny_detector


def small_state(step: int, ema: bool = False) -> TrainState:
    value = jnp.full((300, 200), float(step))
    return TrainState(
        step=jnp.int32(step),
        params={"w": value},
        batch_stats={"mean": jnp.arange(3.0) * step},
        opt_state=({"m": value * 2},),
        ema={"w": value * 3} if ema else None,
        first_bad_step=jnp.int32(-1),
    )


def like(state: TrainState) -> Any:
    place = replicated(make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)


@pytest.mark.parametrize("ema", [False, True])
def test_a_state_comes_back_bit_for_bit(tmp_path: pathlib.Path, ema: bool) -> None:
    checkpoints = Checkpoints(str(tmp_path), 2, {"model": "x"})
    checkpoints.save(small_state(7, ema))
    checkpoints.close()
    again = Checkpoints(str(tmp_path), 2, {})
    assert again.latest() == 7 and again.metadata(7)["model"] == "x"
    assert again.metadata(7)["environment"]["jax"] == jax.__version__
    restored = again.restore(7, like(small_state(7, ema)))
    expected = small_state(7, ema)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    again.close()


def test_steps_taken_while_a_state_is_written_do_not_reach_it(tmp_path: pathlib.Path) -> None:
    # The step gives away its state's memory; the writer must have its own copy.
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    state = step(small_state(1))
    expected = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(str(tmp_path), 2, {})
    checkpoints.save(state)
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    restored = checkpoints.restore(2, like(expected))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    checkpoints.close()


def test_the_newest_stay_and_the_best_beside_them(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 2, {})
    for step, ap in ((1, 0.2), (2, 0.6), (3, None), (4, 0.4), (5, None)):
        checkpoints.save(small_state(step))
        checkpoints.score(step, ap)
        checkpoints.wait()
    assert checkpoints.best() == (2, 0.6)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_a_step_scored_after_it_was_saved_can_be_the_best(tmp_path: pathlib.Path) -> None:
    def log(step: int, ap: float) -> None:
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "eval", "step": step, "AP": ap}) + "\n")

    checkpoints = Checkpoints(str(tmp_path), 1, {})
    checkpoints.save(small_state(1))
    checkpoints.score(1, 0.2)
    checkpoints.save(small_state(2))
    checkpoints.wait()
    log(2, 0.6)
    checkpoints.score(2, 0.6)
    for step in (3, 4):
        checkpoints.save(small_state(step))
        checkpoints.score(step, 0.4)
        checkpoints.wait()
    assert checkpoints.best() == (2, 0.6)
    checkpoints.close()
    log(9, 0.9)  # of a run that was killed before it saved the step
    again = Checkpoints(str(tmp_path), 1, {})
    assert again.best() == (2, 0.6)
    again.save(small_state(9))
    again.wait()
    assert again.best() == (2, 0.6)
    again.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "9"]


def tiny_variables() -> Any:
    detector = tiny_detector()
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), dict(shapes))


def detector_state(step: int) -> TrainState:
    variables = jax.tree.map(lambda x: jnp.full_like(x, step), tiny_variables())
    state = small_state(step)
    return TrainState(state.step, variables["params"], variables["batch_stats"], (), None, state.first_bad_step)


def test_the_best_step_is_loaded_or_said_to_be_unknown(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 3, describe(tiny_detector(), ("a", "b", "c"), None))
    for step in (1, 2):
        checkpoints.save(detector_state(step))
        checkpoints.wait()
    checkpoints.close()
    with pytest.raises(CheckpointError, match="no checkpoint has an AP") as caught:
        load_inference(str(tmp_path), best=True)
    assert "\n" not in str(caught.value)
    assert load_inference(str(tmp_path)).step == 2
    (tmp_path / "metrics.jsonl").write_text('{"kind": "eval", "step": 1, "AP": 0.5}\n')
    assert load_inference(str(tmp_path), best=True).step == 1


def test_damaged_metadata_are_one_line(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 3, describe(tiny_detector(), ("a", "b", "c"), None))
    checkpoints.save(detector_state(1))
    checkpoints.close()
    for file in (tmp_path / "checkpoints" / "1").rglob("*METADATA"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError) as caught:
        load_inference(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_that_fails_leaves_the_older_one(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "model")
    save_inference(path, tiny_detector(), tiny_variables(), ("a", "b", "c"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kpjax.checkpoint.weights, "write_text", full)
        with pytest.raises(CheckpointError, match="No space left"):
            save_inference(path, tiny_detector(), tiny_variables(), ("x", "y", "z"))
    assert load_inference(path).names == ("a", "b", "c")
    shutil.copytree(path, tmp_path / "model.old")  # killed between the two renamings
    save_inference(path, tiny_detector(), tiny_variables(), ("x", "y", "z"))
    assert load_inference(path).names == ("x", "y", "z")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_export_over_something_else_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "photos").mkdir()
    save_inference(str(tmp_path / "photos"), tiny_detector(), tiny_variables(), ("a", "b", "c"))  # empty: taken
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("long")
    for name in ("thesis", "thesis/text.tex"):
        with pytest.raises(CheckpointError, match="is no inference checkpoint"):
            save_inference(str(tmp_path / name), tiny_detector(), tiny_variables(), ("a", "b", "c"))
    assert (tmp_path / "thesis" / "text.tex").read_text() == "long"


def test_the_environment_names_what_the_numbers_depend_on() -> None:
    import optax
    import PIL

    found = environment()
    assert (found["optax"], found["pillow"]) == (optax.__version__, PIL.__version__)
    assert found["opencv"][0].isdigit() and found["tensorflow"]


def test_a_damaged_checkpoint_is_one_line(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 2, {})
    checkpoints.save(small_state(1))
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "1" / "weights").rglob("*"):
        if file.is_file() and "commit" not in file.name:
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="cannot be restored") as caught:
        checkpoints.restore(1, like(small_state(1)))
    assert "\n" not in str(caught.value)


def test_another_shape_is_not_restored(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), 2, {})
    checkpoints.save(small_state(1))
    checkpoints.wait()
    wanted = like(small_state(1))
    place = wanted.params["w"].sharding
    wanted.params["w"] = jax.ShapeDtypeStruct((200, 300), jnp.float32, sharding=place)
    with pytest.raises(CheckpointError):
        checkpoints.restore(1, wanted)


def test_inference_weights_are_readable_without_kpjax(tmp_path: pathlib.Path) -> None:
    from orbax.checkpoint import v1 as ocp

    detector = tiny_detector()
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    save_inference(str(tmp_path / "model"), detector, variables, ("a", "b", "c"))
    save_inference(str(tmp_path / "model"), detector, variables, ("x", "y", "z"))  # replaces
    plain = ocp.load(tmp_path / "model")
    assert set(plain) == {"params", "batch_stats"}
    loaded = load_inference(str(tmp_path / "model"))
    assert loaded.names == ("x", "y", "z") and loaded.detector.name == detector.name
    assert loaded.detector.net == detector.net
    for a, b in zip(jax.tree.leaves(loaded.variables), jax.tree.leaves(dict(variables)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_model_are_refused(tmp_path: pathlib.Path) -> None:
    narrow = kpjax.build("centernet_r18", num_classes=3, width=4, deconv=(4, 4, 4), head_channels=4)
    shapes = jax.eval_shape(lambda: narrow.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    save_inference(
        str(tmp_path / "m"), tiny_detector(), jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), ("a",)
    )
    with pytest.raises(CheckpointError, match="is a checkpoint of another model than centernet_r18"):
        load_inference(str(tmp_path / "m"))


def test_paths_that_hold_nothing(tmp_path: pathlib.Path) -> None:
    for name in ("none", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=name):
            load_inference(str(tmp_path / name))


def test_refusals_of_the_system_are_one_line() -> None:
    for error in (OSError(28, "No space left on device"), ValueError("x: No space left on device [source ...]\nmore")):
        text = "run/1 cannot be written: No space left on device"
        with pytest.raises(CheckpointError, match=text), plain_errors("run/1"):
            raise error
    with pytest.raises(CheckpointError, match="File too large"), plain_errors("run/1"):
        try:
            raise ValueError("OUT_OF_RANGE: Failed writing: File too large [os_error_code='27']")
        finally:  # what Orbax does where a barrier fails on the way out
            raise RuntimeError("Barrier timed out")
    gone = jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")
    with pytest.raises(TimeoutError), plain_errors("run/1"):  # the disk has nothing to do with it
        raise TimeoutError("Timed out while waiting for async_write_complete barrier.") from gone
    with pytest.raises(CheckpointError, match="run/1 was not written in time"), plain_errors("run/1"):
        raise TimeoutError("Timed out while waiting for commit to complete.")
    with pytest.raises(ValueError, match="a bug"), plain_errors("run/1"):
        raise ValueError("a bug")


@pytest.mark.parametrize("place", ["file", "/proc"])
def test_a_place_without_folders_is_one_line_and_leaves_no_thread(tmp_path: pathlib.Path, place: str) -> None:
    """A thread of Orbax's that is still there would keep the program from ending."""
    if place == "/proc" and not os.path.isdir("/proc/self"):
        pytest.skip("needs Linux")
    (tmp_path / "file").write_text("")
    before = set(threading.enumerate())
    path = str(tmp_path / place / "model")  # /proc/model: an absolute path takes the place of the first
    with pytest.raises(CheckpointError, match=f"{path} cannot be written") as caught:
        save_inference(path, tiny_detector(), tiny_variables(), ("a", "b", "c"))
    assert "\n" not in str(caught.value)
    assert not [thread for thread in set(threading.enumerate()) - before if not thread.daemon]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ["centernet_r18"]),
        ("num_classes", "80"),
        ("options", None),
        ("options", [1]),
        ("classes", 5),
        ("classes", [1, 2, 3]),
        ("config.eval.top_k", "many"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path: pathlib.Path, key: str, value: Any) -> None:
    save_inference(str(tmp_path / "m"), tiny_detector(), tiny_variables(), ("a", "b", "c"), Config())
    file = tmp_path / "m" / "config.json"
    info = node = json.loads(file.read_text())
    *groups, last = key.split(".")
    for group in groups:
        node = node[group]
    node[last] = value
    file.write_text(json.dumps(info))
    with pytest.raises(CheckpointError) as caught:
        load_inference(str(tmp_path / "m"))
    assert f"{file}: {key} is {value!r}; it must be" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_pytorch_is_pointed_to_convert(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="python -m kpjax convert"):
        load_inference(str(tmp_path / "model.pth"))


def test_what_is_an_inference_checkpoint(tmp_path: pathlib.Path) -> None:
    """Neither a work directory's configuration nor anybody's config.json: those are never overwritten."""
    from kpjax.checkpoint.orbax import absolute
    from kpjax.checkpoint.weights import is_inference

    folder = absolute(str(tmp_path))
    assert not is_inference(folder)
    for text, expected in (('{"steps": 6}', False), ('{"format": 1, "model": "x"}', True), ("{", False), ("[]", False)):
        (tmp_path / "config.json").write_text(text)
        assert is_inference(folder) is expected, text
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "state").mkdir()
    assert is_inference(folder)


def save_steps(folder: pathlib.Path, *steps: int) -> None:
    checkpoints = Checkpoints(str(folder), len(steps), {"model": "x"})
    for step in steps:
        checkpoints.save(small_state(step, ema=True))
        checkpoints.wait()
    checkpoints.close()


def restore_newest(folder: pathlib.Path) -> tuple[Any, int, list[str]]:
    said: list[str] = []
    checkpoints = Checkpoints(str(folder), 2, {"model": "x"})
    found = checkpoints.restore_newest(like(small_state(0, ema=True)), lambda *_: None, said.append)
    checkpoints.close()
    assert found is not None
    return found[0], found[1], said


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: b"\0" * len(data),
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
    "gone": None,
}


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # what Orbax drops when it gives up on reading
@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_damage_to_the_newest_falls_back_or_changes_nothing(tmp_path: pathlib.Path, turn: int) -> None:
    """Each file of a checkpoint damaged in turn: either its exact state comes back, or that of the step before it."""
    save_steps(tmp_path / "whole", 3, 5)
    files = [p.relative_to(tmp_path) for p in (tmp_path / "whole" / "checkpoints" / "5").rglob("*") if p.is_file()]
    fell_back = 0
    for n, file in enumerate(files):
        shutil.copytree(tmp_path / "whole", tmp_path / "copy")
        victim = tmp_path / "copy" / file.relative_to("whole")
        how = list(DAMAGE)[(2 * n + turn) % len(DAMAGE)]
        if DAMAGE[how] is None:
            victim.unlink()
        else:
            victim.write_bytes(DAMAGE[how](victim.read_bytes()))
        state, step, said = restore_newest(tmp_path / "copy")
        assert step in (3, 5)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(small_state(step, ema=True)), strict=True):
            np.testing.assert_array_equal(a, b)
        if step == 3:
            fell_back += 1
            assert (tmp_path / "copy" / "damaged-5").is_dir() and not (tmp_path / "copy" / "checkpoints" / "5").exists()
            assert len(said) == 1 and "going on from step 3" in said[0] and "\n" not in said[0]
            save_steps(tmp_path / "copy", 5)  # the step comes again, and stands
            assert restore_newest(tmp_path / "copy")[1] == 5
        shutil.rmtree(tmp_path / "copy")
    assert fell_back >= 3, files


def test_changed_values_are_not_restored(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that reads well but says something else than was written."""
    save_steps(tmp_path, 3)
    real = kpjax.training.checkpoints.digest
    monkeypatch.setattr(kpjax.training.checkpoints, "digest", lambda state: real(state) ^ 1)
    checkpoints = Checkpoints(str(tmp_path), 2, {"model": "x"})
    checkpoints.save(small_state(5, ema=True))
    checkpoints.close()
    monkeypatch.setattr(kpjax.training.checkpoints, "digest", real)
    state, step, said = restore_newest(tmp_path)
    assert step == 3 and "not those that were written" in said[0]
    assert int(state.step) == 3


def test_where_all_are_damaged_the_newest_is_named_and_nothing_is_moved(tmp_path: pathlib.Path) -> None:
    save_steps(tmp_path, 3, 5)
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file() and "commit" not in file.name:
            file.write_bytes(b"")
    checkpoints = Checkpoints(str(tmp_path), 2, {"model": "x"})
    try:
        with pytest.raises(CheckpointError, match=r"checkpoints/5 cannot be (read|restored)"):
            checkpoints.restore_newest(like(small_state(0, ema=True)), lambda *_: None, print)
    finally:
        checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "5"]


def test_the_digest_depends_on_every_number_and_not_on_the_layout() -> None:
    import dataclasses

    from jax.sharding import NamedSharding, PartitionSpec

    from kpjax.training.digest import digest

    rng = np.random.default_rng(0)
    leaves = {
        "f": rng.normal(size=(4, 6, 8)).astype(np.float32),
        "h": rng.normal(size=(5,)).astype(jnp.bfloat16),
        "i": rng.integers(-9, 9, (3, 2), np.int32),
        "b": np.array([True, False]),
        "s": np.float32(2),
    }
    state = dataclasses.replace(small_state(1), params=leaves)
    before = digest(state)
    sharded = jax.device_put(leaves["f"], NamedSharding(make_mesh(), PartitionSpec(None, None, "data")))
    assert digest(dataclasses.replace(state, params=leaves | {"f": sharded})) == before
    swapped = leaves["f"].copy()
    swapped[0, 0, 0], swapped[0, 0, 1] = leaves["f"][0, 0, 1], leaves["f"][0, 0, 0]
    flipped = leaves["f"].view(np.uint32).copy()
    flipped[3, 2, 1] ^= 1 << 31
    for changed in (
        {"f": swapped},
        {"f": flipped.view(np.float32)},
        {"b": np.array([True, True])},
        {"h": leaves["h"] * 2},
        {"s": np.float32(3)},
    ):
        assert digest(dataclasses.replace(state, params=leaves | changed)) != before


def test_no_clock_decides_which_checkpoint_is_newest(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for step, moved in ((1, 0), (2, -86400), (3, 86400 * 365), (4, -86400 * 365)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda moved=moved: now + moved)
            patch.setattr(time, "time_ns", lambda moved=moved: int((now + moved) * 1e9))
            checkpoints = Checkpoints(str(tmp_path), 2, {"model": "x"})
            checkpoints.save(small_state(step, ema=True))
            checkpoints.close()
        for n, path in enumerate(sorted((tmp_path / "checkpoints").iterdir())):
            os.utime(path, (now - 1000 * n, now - 1000 * n))  # the newest looks the oldest
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert restore_newest(tmp_path)[1] == 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), CheckpointError),
        (ValueError("UNAVAILABLE: 503"), CheckpointError),
        (MemoryError(), MemoryError),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), ValueError),
    ],
)
def test_what_passes_is_no_damage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    """Want of permission, connection or memory ends the run and leaves the newest checkpoint where it is."""
    save_steps(tmp_path, 3, 5)

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    checkpoints = Checkpoints(str(tmp_path), 2, {"model": "x"})
    monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", fails)
    try:
        with pytest.raises(kind) as raised:
            checkpoints.restore_newest(like(small_state(0, ema=True)), lambda *_: None, print)
    finally:
        checkpoints.close()
    assert not isinstance(raised.value, kpjax.training.checkpoints.DamagedCheckpoint)
    assert sorted(p.name for p in tmp_path.glob("checkpoints/*")) == ["3", "5"] and not list(tmp_path.glob("damaged*"))
