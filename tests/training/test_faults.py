"""What goes wrong around a run on one machine: killed writers, damaged files, files that vanish, disks, clocks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kpjax.training.run
from kpjax.checkpoint.orbax import CheckpointError
from kpjax.checkpoint.scores import read_metrics
from kpjax.commands import flags
from kpjax.config import Config
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.data.source import Source
from kpjax.errors import ConfigError, DataError
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.log import RunLog
from kpjax.training.run import Result, run
from tests.programs import ROOT, config_file, environment, same_arrays, shapes_set, stored
from tests.tiny import tiny_config, two_layer_detector


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return shapes_set(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def config(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: _three_classes())
    config = tiny_config(steps=6)
    config.data.max_boxes, config.data.threads = 8, 1
    config.data.train.images = str(data / "train")
    config.data.train.annotations = str(data / "annotations" / "instances_train.json")
    config.checkpoint.every = 2
    return config


def _three_classes() -> Any:
    full = kpjax.build("centernet_r18", num_classes=3)
    return dataclasses.replace(full, net=two_layer_detector().net, options={})


def three_classes(config: Config) -> Source:
    source = open_source(config.data, "train")
    objects = tuple(one.replace(labels=one.labels % 3) for one in source.objects)
    return dataclasses.replace(source, classes=source.classes[:3], objects=objects)


def train(config: Config, workdir: pathlib.Path) -> Result:
    source = three_classes(config)

    def feed(start: int) -> Any:
        return memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)

    return run(config, str(workdir), train_source=source, batches=feed)


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_the_whole_one(
    config: Config, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, tmp_path / "whole")
    config.eval.every = 0
    half = dataclasses.replace(config)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    shutil.rmtree(tmp_path / "damaged" / "model")
    for file in (tmp_path / "damaged" / "checkpoints" / "6").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    assert train(half, tmp_path / "damaged").finished
    said = capsys.readouterr().out
    assert "checkpoints/6 cannot be re" in said and "going on from step 4" in said and "resuming at step 4" in said
    assert same_arrays(stored(tmp_path / "damaged"), stored(tmp_path / "whole"))
    assert (tmp_path / "damaged" / "damaged-6").is_dir()
    steps = [line["step"] for line in read_metrics(str(tmp_path / "damaged"))]
    assert steps == list(range(1, 7))


WRITER = """
import sys
import jax.numpy as jnp
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.step import TrainState
checkpoints = Checkpoints(sys.argv[1], 2, {})
newest = checkpoints.latest() or 0
print("begun", newest, flush=True)
for step in range(newest + 1, newest + 1000):
    value = jnp.full((1500, 1000), float(step))
    checkpoints.save(TrainState(jnp.int32(step), {"w": value}, {"m": value[0]}, (), None, jnp.int32(-1)))
"""


def test_killed_while_a_checkpoint_is_written(tmp_path: pathlib.Path) -> None:
    """SIGKILL at moments of writing: what restores is a whole step, and the next writer goes on after it."""
    import jax
    import jax.numpy as jnp

    from kpjax.training.step import TrainState

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def like(shape: tuple[int, ...], kind: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    wanted = TrainState(
        like((), jnp.int32),
        {"w": like((1500, 1000), jnp.float32)},
        {"m": like((1000,), jnp.float32)},
        (),
        None,
        like((), jnp.int32),
    )
    reached, interrupted = 0, 0
    for after in (0.0, 0.004, 0.02):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
        assert process.stdout is not None and process.stdout.readline() == f"begun {reached}\n"
        folder, limit = tmp_path / "checkpoints", time.monotonic() + 60
        while not (steps := [int(p.name) for p in folder.iterdir() if p.name.isdigit()]) or max(steps) < reached + 2:
            assert time.monotonic() < limit
            time.sleep(0.001)
        while not any("tmp" in p.name for p in folder.iterdir()):
            assert time.monotonic() < limit
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        interrupted += any("tmp" in p.name for p in folder.iterdir())
        checkpoints = Checkpoints(str(tmp_path), 2, {})
        found = checkpoints.restore_newest(wanted, lambda *_: None, pytest.fail)
        assert found is not None
        state, step, _ = found
        assert step >= max(steps) and int(state.step) == step and step == checkpoints.latest()
        assert (np.asarray(state.params["w"]) == step).all() and (np.asarray(state.batch_stats["m"]) == step).all()
        checkpoints.close()
        assert not any("tmp" in p.name for p in folder.iterdir())
        reached = step
    assert interrupted  # or the test has not done what it says


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
def test_a_data_file_that_vanishes_during_training(
    config: Config,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    bad_images: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(data / "train", tmp_path / "images")
    config.data.train.images, config.data.bad_images = str(tmp_path / "images"), bad_images
    config.data.prefetch, config.checkpoint.every = 1, 100
    source = three_classes(config)
    lost = sorted((tmp_path / "images").iterdir())[5]

    def feed(start: int) -> Iterator[dict[str, np.ndarray]]:
        stream = train_batches(source, config.data, batch=8, seed=0, start_step=start)
        for step in range(start, config.steps):
            if step == 2:
                lost.unlink(missing_ok=True)
            batch = next(stream)
            assert step < 4 or bad_images == "skip"  # 18 images, 8 a step: it is met again before the third epoch
            feed_of.bad_files = stream.bad_files
            yield batch

    class Feed:
        """The generator with what `train` asks of a pipeline."""

        def __init__(self, start: int):
            self.bad_files: list[str] = []
            self._stream = feed(start)

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self._stream)

    feed_of: Any = None

    def batches(start: int) -> Any:
        nonlocal feed_of
        feed_of = Feed(start)
        return feed_of

    if bad_images == "skip":
        assert run(config, str(tmp_path / "run"), train_source=source, batches=batches).finished
        assert f"trained on as an empty image: {lost}: cannot be read" in capsys.readouterr().out
        return
    with pytest.raises(DataError, match=f"{lost.name}: cannot be read") as caught:
        run(config, str(tmp_path / "run"), train_source=source, batches=batches)
    assert "\n" not in str(caught.value) and "config.data.bad_images='skip'" in str(caught.value)
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] >= 1  # the steps before it are kept
    shutil.copy(data / "train" / lost.name, lost)  # mended
    assert run(config, str(tmp_path / "run"), train_source=source, batches=lambda s: _rest(source, config, s)).finished


def test_every_process_tells_of_the_files_that_it_skips(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import jax

    for process, before in ((0, ""), (1, "process 1 of 2: ")):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        log = RunLog(str(tmp_path), 0, 10, silent=process != 0)
        kpjax.training.loop.say_skipped("a.jpg: cannot be read", log)
        log.close()
        assert capsys.readouterr().out == f"{before}skipped, and trained on as an empty image: a.jpg: cannot be read\n"


def _rest(source: Source, config: Config, start: int) -> Any:
    return train_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)


@pytest.fixture
def read_only(tmp_path: pathlib.Path) -> Iterator[Any]:
    """Mounts a folder's copy so that nothing can be written to it."""
    mounted = []

    def mount(folder: pathlib.Path) -> pathlib.Path:
        if os.name != "posix" or os.geteuid() != 0:
            pytest.skip("needs to mount a folder")
        for command in (
            ["mount", "--bind", str(folder), str(folder)],
            ["mount", "-o", "remount,ro,bind", str(folder)],
        ):
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("needs to mount a folder")
            mounted.append(folder)
        return folder

    yield mount
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_work_directory_is_one_line(config: Config, tmp_path: pathlib.Path, read_only: Any) -> None:
    (tmp_path / "fresh").mkdir()
    steps, config.steps = config.steps, 2
    config.optim.schedule = "step"
    train(config, tmp_path / "used")
    config.steps = steps
    (tmp_path / "used" / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    for folder in (read_only(tmp_path / "fresh"), read_only(tmp_path / "used"), tmp_path / "fresh" / "below"):
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            train(config, folder)
        assert os.strerror(errno.EROFS) in str(caught.value) and "\n" not in str(caught.value)


def test_a_log_that_cannot_be_written_is_one_line(
    config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: RunLog, kind: str, step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))
        real(self, kind, step, values)

    real = RunLog.numbers
    monkeypatch.setattr(RunLog, "numbers", full)
    assert flags.guarded(lambda: train(config, tmp_path) and 0) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'metrics.jsonl'}: {os.strerror(errno.ENOSPC)}\n"
    monkeypatch.setattr(RunLog, "numbers", real)
    assert train(config, tmp_path).finished
    assert [line["step"] for line in read_metrics(str(tmp_path))] == list(range(1, 7))


def test_a_clock_that_is_put_back_between_and_during_runs(
    config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path / "whole")
    real, ahead, taken = time.time, 0.0, 0
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + ahead) * 1e9))

    def feed(start: int) -> Any:
        nonlocal ahead, taken
        for batch in memory_batches(source, config.data, batch=config.batch, seed=0, start_step=start):
            taken += 1
            if taken in (1, 4):  # the first of either run; put forward, then back behind its beginning
                ahead += {1: 86400.0, 4: -3 * 86400.0}[taken]
            if taken == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    source = three_classes(config)
    first = run(config, str(tmp_path / "jumping"), train_source=source, batches=feed)
    assert not first.finished and first.step == 3
    ahead -= 86400.0
    assert run(config, str(tmp_path / "jumping"), train_source=source, batches=feed).finished
    assert taken == 6 and same_arrays(stored(tmp_path / "jumping"), stored(tmp_path / "whole"))
    rates = [line.get("images_per_s", 1.0) for line in read_metrics(str(tmp_path / "jumping"))]
    assert len(rates) == 6 and all(0 < rate < 1e6 for rate in rates)


STUCK = """
import sys, time
import jax
import kpjax.training.run
from kpjax.commands import flags
from kpjax.training.workdir import check_workdir

class Compiler:
    def lower(self, *shapes): return self
    def compile(self):
        print("compiling", flush=True)
        import ctypes
        while True:  # a signal ends sleep(), but not XLA's compiler
            ctypes.CDLL(None).sleep(120)  # as XLA: in C, without Python's lock, deaf to Python's signal handlers
kpjax.training.run.jit_step = lambda *_: Compiler()
sys.argv = ["train.py", *sys.argv[1:]]
exec(open("train.py").read())
"""


def test_sigterm_while_the_step_is_compiled_ends_at_once_with_0(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        "-c",
        STUCK,
        "--config",
        str(config_file(tmp_path, data, 4)),
        "--workdir",
        str(tmp_path / "w"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None and process.stdout.readline() == "compiling\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and out.startswith("stopped by SIGTERM before training began"), (out, errors)
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["checkpoints"]  # neither config.json nor run.lock
