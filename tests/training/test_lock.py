"""One run at a time in a work directory."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from kpjax.checkpoint.scores import read_metrics
from kpjax.errors import ConfigError
from kpjax.training import lock
from kpjax.training.lock import LOCK, WorkdirInUse, WorkdirLock, this_process
from tests.distributed.processes import Ended, Processes, write_config
from tests.programs import environment, same_arrays, shapes_set, stored

STEPS = 24

HOLD = """
import signal, sys, time
from kpjax.training.lock import WorkdirLock
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off in the background
with WorkdirLock(sys.argv[1]) as lock:
    print("held", flush=True)
    time.sleep(600)
"""


def holding(workdir: pathlib.Path) -> subprocess.Popen[str]:
    """A process that holds a work directory."""
    root = str(pathlib.Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True, cwd=root, env=environment()
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(workdir: pathlib.Path, **changes: object) -> lock.Holder:
    """Leave the lock of a run on another host."""
    holder = dataclasses.replace(this_process(), host="other", boot="x", **changes)
    workdir.mkdir(exist_ok=True)
    (workdir / LOCK).write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def files(workdir: pathlib.Path) -> list[str]:
    return sorted(p.name for p in workdir.iterdir())


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: pathlib.Path) -> None:
    with WorkdirLock(str(tmp_path)):
        with pytest.raises(WorkdirInUse) as caught, WorkdirLock(str(tmp_path)):
            pass
        assert str(caught.value).startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
        assert "--force" in str(caught.value) and "\n" not in str(caught.value)
        assert files(tmp_path) == [LOCK]
    assert files(tmp_path) == []
    with WorkdirLock(str(tmp_path)):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_lock_whose_process_is_gone_holds_nobody_up(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    process = holding(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert (tmp_path / LOCK).exists() is (number == signal.SIGKILL)
    said: list[str] = []
    with WorkdirLock(str(tmp_path), say=said.append):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        assert files(tmp_path) == [LOCK]
    assert said == []


def test_a_process_number_that_is_used_again_is_another_process(tmp_path: pathlib.Path) -> None:
    process = holding(tmp_path)
    try:
        holder = json.loads((tmp_path / LOCK).read_text())
        with pytest.raises(WorkdirInUse, match=f"process {process.pid} on"):
            WorkdirLock(str(tmp_path)).acquire()
        (tmp_path / LOCK).write_text(json.dumps(holder | {"started": "1"}))
        with WorkdirLock(str(tmp_path)):
            pass
    finally:
        process.kill()
        process.communicate()


def test_another_host_counts_as_gone_when_nothing_is_heard_of_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE", 2.0)
    said: list[str] = []
    holder = elsewhere(tmp_path)
    living = threading.Thread(target=lambda: [time.sleep(0.7), os.utime(tmp_path / LOCK)])
    living.start()
    with pytest.raises(WorkdirInUse, match=r"in use by process .* on other since"):
        WorkdirLock(str(tmp_path), say=said.append).acquire()
    living.join()
    assert len(said) == 1 and "waiting 2 s for another" in said[0] and "on other since" in said[0]
    assert json.loads((tmp_path / LOCK).read_text())["token"] == holder.token
    with WorkdirLock(str(tmp_path), say=said.append):
        assert len(said) == 3 and "nothing was heard of process" in said[2]
    elsewhere(tmp_path)
    os.utime(tmp_path / LOCK, (time.time() - 60, time.time() - 60))  # long ago: no need to wait
    begun = time.monotonic()
    with WorkdirLock(str(tmp_path), say=said.append):
        assert time.monotonic() - begun < 1 and len(said) == 4


def test_a_holder_gives_signs_of_life(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with WorkdirLock(str(tmp_path)):
        os.utime(tmp_path / LOCK, (0, 0))
        limit = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime < 1e9:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_force_takes_it_and_the_first_run_finds_out(tmp_path: pathlib.Path) -> None:
    first = WorkdirLock(str(tmp_path))
    first.acquire()
    first.check()
    with WorkdirLock(str(tmp_path), force=True):
        with pytest.raises(WorkdirInUse, match=f"was taken over by process {os.getpid()} on"):
            first.check()
        first.release()  # not its own any more
        assert files(tmp_path) == [LOCK]
    assert files(tmp_path) == []


@pytest.mark.parametrize("text", ["", '{"host": ', "[]", '{"another": 1}'])
def test_a_damaged_lock_is_waited_for_and_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(lock, "STALE", 0.5)
    (tmp_path / LOCK).write_text(text)
    with WorkdirLock(str(tmp_path)):
        pass
    assert files(tmp_path) == []


def test_without_hard_links(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    with WorkdirLock(str(tmp_path)), pytest.raises(WorkdirInUse):
        WorkdirLock(str(tmp_path)).acquire()
    assert files(tmp_path) == []


@pytest.mark.parametrize("tries, flock", [(40, True), (1, False)])
def test_of_many_that_start_at_once_one_gets_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tries: int, flock: bool
) -> None:
    """Beside a lock that a killed run has left, which all of them find stale."""
    if not flock:

        def none(*_: object) -> None:
            raise OSError(errno.EBADF, "NFS")

        monkeypatch.setattr("fcntl.flock", none)
        monkeypatch.setattr("kpjax.training.lock.SETTLE", 6.0)  # a thread of a busy machine can be held up for seconds
    for _ in range(tries):
        process = this_process()
        (tmp_path / LOCK).write_text(json.dumps(dataclasses.asdict(process) | {"started": "1"}))
        got: list[WorkdirLock] = []
        gate = threading.Barrier(8)

        def one(gate: threading.Barrier = gate, got: list[WorkdirLock] = got) -> None:
            mine = WorkdirLock(str(tmp_path))
            gate.wait()
            try:
                mine.acquire()
            except WorkdirInUse:
                return
            got.append(mine)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()
        assert files(tmp_path) == []


def test_a_mistake_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError), WorkdirLock(str(tmp_path / "a" / "b")):
        raise KeyError
    assert files(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"), WorkdirLock(str(tmp_path / "file")):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = shapes_set(tmp_path_factory.mktemp("lock"), train=12, val=1)
    write_config(folder, 4, STEPS, "config.checkpoint.every = 4")
    return folder


def arguments(folder: pathlib.Path, name: str, *more: str) -> tuple[str, ...]:
    return ("train.py", "--config", str(folder / "config.py"), "--workdir", str(folder / name), *more)


@pytest.fixture(scope="module")
def alone(folder: pathlib.Path) -> pathlib.Path:
    with Processes(1, *arguments(folder, "alone")) as processes:
        (ended,) = processes.wait()
    assert ended.code == 0, ended
    assert not (folder / "alone" / LOCK).exists()
    return folder / "alone"


def assert_as_alone(workdir: pathlib.Path, alone: pathlib.Path) -> None:
    """Bitwise the same state, the same log, nothing left over."""
    assert same_arrays(stored(workdir, STEPS), stored(alone, STEPS))
    logs = [[(x["step"], x["loss"]) for x in read_metrics(str(w))] for w in (workdir, alone)]
    assert logs[0] == logs[1] and [step for step, _ in logs[0]] == list(range(1, STEPS + 1))
    without_events = [sorted(n for n in files(w) if not n.startswith("events.")) for w in (workdir, alone)]
    assert without_events[0] == without_events[1] and files(workdir / "checkpoints") == files(alone / "checkpoints")


def assert_refused(ended: Ended, workdir: pathlib.Path) -> None:
    assert ended.code == 2 and len(ended.err) == 1, ended
    assert ended.err[0].startswith(f"error: {workdir} is in use by process ")
    assert not [line for line in ended.out if line.startswith("step ")]


@pytest.mark.parametrize("started", [pytest.param("together", marks=pytest.mark.slow), "later"])
def test_two_runs_in_one_work_directory(folder: pathlib.Path, alone: pathlib.Path, started: str) -> None:
    """The first one's result is bitwise that of a lone run; the second ends at once, in one line."""
    command = arguments(folder, started)
    with Processes(1, *command, KPJAX_TEST_SECONDS="0.15") as one:
        if started == "later":
            one.until(r"^step 6/")
        with Processes(1, *command, KPJAX_TEST_SECONDS="0.15") as other:
            ended = [*one.wait(), *other.wait()]
    ended.sort(key=lambda e: e.code)
    assert ended[0].code == 0 and ended[0].err == [], ended
    assert_refused(ended[1], folder / started)
    assert_as_alone(folder / started, alone)


@pytest.mark.slow
def test_a_run_that_was_forced_out_stops_and_the_other_ends_as_a_lone_one(
    folder: pathlib.Path, alone: pathlib.Path
) -> None:
    with Processes(1, *arguments(folder, "forced"), KPJAX_TEST_SECONDS="0.5") as one:
        one.until(r"^step 9/")
        with Processes(1, *arguments(folder, "forced", "--force")) as other:
            (second,) = other.wait()
            (first,) = one.wait()
    assert first.code == 2 and len(first.errors) == 1 and "was taken over by process" in first.errors[0], first
    assert second.code == 0 and any(line.startswith("resuming at step ") for line in second.out), second
    assert_as_alone(folder / "forced", alone)


def test_ctrl_c_gives_the_lock_back(folder: pathlib.Path) -> None:
    workdir = folder / "stopped"
    with Processes(1, *arguments(folder, "stopped"), KPJAX_TEST_SECONDS="0.1") as one:
        one.until("^step 6/")
        assert (workdir / LOCK).exists()
        one.send(signal.SIGINT, 0)
        (ended,) = one.wait()
    assert ended.code == 0 and not (workdir / LOCK).exists(), ended


@pytest.mark.slow
def test_process_0_holds_it_for_all(folder: pathlib.Path) -> None:
    with Processes(2, *arguments(folder, "many"), KPJAX_TEST_SECONDS="0.1") as run:
        run.until(r"^step 3/")
        with Processes(2, *arguments(folder, "many")) as second:
            for ended in second.wait():
                assert ended.code == 2 and "is in use by process" in ended.errors[0], ended
        for ended in run.wait():
            assert ended.code == 0, ended
    assert not (folder / "many" / LOCK).exists()


def test_in_a_bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files can only be read, written and removed as a whole: signs of life are counted in the file."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    monkeypatch.setattr(lock, "STALE", 2.0)
    first, second = WorkdirLock(str(tmp_path)), WorkdirLock(str(tmp_path), say=lambda _: None)
    first._local = second._local = False
    with first:
        with pytest.raises(WorkdirInUse, match="in use by"):
            second.acquire()
        limit = time.monotonic() + 10
        while not json.loads((tmp_path / LOCK).read_text() or '{"beats": 0}')["beats"]:
            assert time.monotonic() < limit
    assert files(tmp_path) == []
    elsewhere(tmp_path)
    living = threading.Thread(target=lambda: [time.sleep(0.7), elsewhere(tmp_path, beats=1)])
    living.start()
    with pytest.raises(WorkdirInUse, match="on other since"):
        second.acquire()
    living.join()
    with second:
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert files(tmp_path) == []


def test_a_second_release_waits_for_the_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's thread releases the lock while the main thread does, and ends the process right afterwards."""
    lock = WorkdirLock(str(tmp_path))
    lock.acquire()
    read, reading = lock._read, threading.Event()

    def slowly() -> object:
        reading.set()
        time.sleep(0.3)
        return read()

    monkeypatch.setattr(lock, "_read", slowly)
    first = threading.Thread(target=lock.release)
    first.start()
    assert reading.wait(10)
    lock.release()
    assert not (tmp_path / LOCK).exists()
    first.join()
