"""One run of several processes: equal to that of one, ended together, gone on with in other numbers."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import shutil
import signal
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import load_inference
from kpjax.datasets import shapes
from kpjax.detectors import MODELS
from tests.distributed.processes import LIMIT, SILENCE, Ended, Processes, free_port, run, write_config
from tests.distributed.program import two_layers
from tests.programs import same_arrays, stored

STEPS, SAVED = 24, 6

SETTINGS = (
    'config.optim.name = "sgd"',
    "config.optim.lr = 1e-3",
    "config.optim.momentum = 0.9",
    "config.optim.ema = 0.9",
    f"config.checkpoint.every = {SAVED}",
    "config.checkpoint.keep = 100",
    "config.eval.batch = 4",
    "config.eval.images = 1",
)


@pytest.fixture(scope="module", autouse=True)
def two_layer_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "two_layers", two_layers)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set and its configuration: 21 training images, which 8 does not divide, 7 of other sizes to evaluate."""
    folder = tmp_path_factory.mktemp("processes")
    shapes.write(str(folder), train=21, val=1, size=64)
    shapes.write(str(folder / "wide"), train=1, val=7, size=96)
    write_config(folder, 8, STEPS, *SETTINGS)
    return folder


def training(folder: pathlib.Path, name: str, *more: str) -> tuple[str, ...]:
    return ("train.py", "--config", str(folder / "config.py"), "--workdir", str(folder / name), *more)


def validation(folder: pathlib.Path) -> tuple[str, str]:
    file = folder / "annotations" / "instances_val.json"
    return f"--config.data.val.images={folder}/val", f"--config.data.val.annotations={file}"


@pytest.fixture(scope="module")
def one(folder: pathlib.Path) -> pathlib.Path:
    """The run of one process."""
    (ended,) = run(1, *training(folder, "one"))
    assert ended.err == []
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder: pathlib.Path) -> tuple[pathlib.Path, list[Ended]]:
    """The run of two processes."""
    return folder / "two", run(2, *training(folder, "two"))


def losses(workdir: pathlib.Path) -> np.ndarray:
    lines = [line for line in read_metrics(str(workdir)) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in lines])


def assert_same_training(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """The same losses and final weights, but for the order of float32 sums.

    Gradients and BatchNorm's statistics are sums over the batch: each process adds up its images, then the
    processes' sums are added.  Two orders differ by some 1e-7 of a sum, and each step passes the difference on; where
    it takes a ReLU's input past zero, a channel takes another step.  Seen: 2e-5 of a loss after 37 steps, weights
    that move by 0.002 or more on average 1e-6 apart, 2 channels of 512 3e-4.
    """
    np.testing.assert_allclose(losses(workdir)[:5], losses(reference)[:5], rtol=1e-6)
    np.testing.assert_allclose(losses(workdir), losses(reference), rtol=2e-4)
    a, b = (load_inference(str(w / "model")).variables for w in (workdir, reference))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(x - y).mean() < 5e-6 and np.abs(x - y).max() < 2e-3


def test_two_processes_train_as_one(one: pathlib.Path, two: tuple[pathlib.Path, list[Ended]]) -> None:
    workdir, (first, second) = two
    assert_same_training(workdir, one)
    assert abs(losses(one)[-5:].mean() / losses(one)[:5].mean() - 1) > 0.05  # it did learn something
    assert any("devices  2 x cpu in 2 processes" in line for line in first.out)
    assert sum(line.startswith("step ") for line in first.out) >= STEPS - 1
    assert not [line for line in second.out if "[Gloo]" not in line]  # only process 0 speaks
    assert first.err == second.err == []
    assert len(list(workdir.glob("events.out.*"))) == 1


@pytest.mark.slow  # tests/soak kills processes too
def test_killed_and_stopped_together(folder: pathlib.Path, two: tuple[pathlib.Path, list[Ended]]) -> None:
    """SIGKILL to either process ends both, and so does a crash, which stays one; SIGTERM to one stops both at one step.
    In the end nothing is lost, and what is evaluated on the way changes nothing."""
    arguments = training(folder, "parts", *validation(folder))
    for number, victim, at in (
        (signal.SIGKILL, 1, SAVED + 2),
        (signal.SIGKILL, 0, 2 * SAVED + 2),
        (signal.SIGABRT, 1, 2 * SAVED + 2),
    ):
        with Processes(2, *arguments, KPJAX_TEST_SECONDS="0.2") as processes:
            processes.until(rf"^step {at}/")
            processes.send(number, victim)
            ended = processes.wait(SILENCE + 45)
        other = ended[1 - victim]
        assert ended[victim].code == -number and not ended[victim].errors
        assert other.code == 3 and other.seconds < 20, other  # long before JAX would abort it
        assert len(other.errors) == 1 and other.errors[0] in other.err
        assert re.match(rf"error: process {1 - victim} of 2: .*(is gone|as gone).*goes on", other.errors[0])
    with Processes(2, *arguments, KPJAX_TEST_SECONDS="0.2") as processes:
        processes.until(rf"^step {2 * SAVED + 4}/")
        processes.send(signal.SIGTERM, 1)
        first, second = processes.wait()
    assert first.code == second.code == 0
    assert first.errors == second.errors == []
    stopped = re.search(r"stopped by SIGTERM.* at step (\d+) of", first.out[-1])
    assert stopped, first.out
    assert 2 * SAVED + 4 <= int(stopped[1]) < STEPS
    steps = sorted(int(p.name) for p in (folder / "parts" / "checkpoints").iterdir())
    assert steps[-1] == int(stopped[1])
    first, _ = run(2, *arguments)
    assert f"resuming at step {stopped[1]}" in first.out
    assert same_arrays(stored(two[0], STEPS), stored(folder / "parts", STEPS))
    assert [line["step"] for line in read_metrics(str(folder / "parts")) if line["kind"] == "eval"] == [STEPS]


def begun(workdir: pathlib.Path, name: str, step: int) -> pathlib.Path:
    """A copy of a run as it was after a step."""
    copy = workdir.parent / name
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "model")
    for later in (copy / "checkpoints").iterdir():
        if int(later.name) > step:
            shutil.rmtree(later)
    return copy


@pytest.mark.parametrize(
    "count, devices, fsdp, written_by",
    [
        (1, 2, 2, "two"),
        pytest.param(2, 1, 2, "one", marks=pytest.mark.slow),
        pytest.param(4, 1, 2, "two", marks=pytest.mark.slow),
    ],
    ids=["2to1", "1to2", "2to4"],
)
def test_restored_on_other_processes_and_meshes(
    folder: pathlib.Path,
    one: pathlib.Path,
    two: tuple[pathlib.Path, list[Ended]],
    count: int,
    devices: int,
    fsdp: int,
    written_by: str,
) -> None:
    import hashlib

    source = one if written_by == "one" else two[0]
    name = f"{written_by}_on_{count}"
    workdir = begun(source, name, 2 * SAVED)
    report = folder / f"{name}.json"
    arguments = training(folder, name, f"--config.sharding.fsdp={fsdp}")
    first, *_ = run(count, *arguments, devices=devices, KPJAX_TEST_RESTORED=str(report))
    assert f"resuming at step {2 * SAVED}" in first.out
    assert any("processes 2 -> 1" in line or "devices 1 -> 2" in line or "2 -> 4" in line for line in first.out)
    restored = json.loads(report.read_text())
    assert len(restored["specs"]) > 1  # something is divided
    expected = sorted(hashlib.sha256(x.tobytes()).hexdigest() for x in stored(source, 2 * SAVED).values())
    found = sorted(restored["sums"].values())
    # BatchNorm's statistics are stored beside the weights and beside the average.
    assert set(found) == set(expected) and len(found) > 15
    assert_same_training(workdir, one)


def test_every_image_once_whatever_the_processes(folder: pathlib.Path, one: pathlib.Path) -> None:
    """8 images of two sizes in batches of 4, on one and on two processes: the same detections."""
    annotations = mixed(folder)
    rows = {}
    for count in (1, 2):
        out = folder / f"detections{count}.json"
        first, *others = run(
            count,
            "eval.py",
            "--config",
            str(folder / "config.py"),
            "--workdir",
            str(one),
            "--out",
            str(out),
            "--config.eval.images=0",
            f"--config.data.val.images={annotations.parent}",
            f"--config.data.val.annotations={annotations}",
        )
        assert any(line.startswith("8 images in") for line in first.out)
        assert not [line for other in others for line in other.out if "[Gloo]" not in line]
        rows[count] = json.loads(out.read_text())
        ids = [row["image_id"] for row in rows[count]]
        assert sorted(set(ids)) == sorted(i["id"] for i in json.loads(annotations.read_text())["images"])
    assert len(rows[1]) == len(rows[2]) > 8 * 10
    for a, b in zip(rows[1], rows[2], strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        # A process's program has a batch of another size: sums in another order.
        np.testing.assert_allclose(b["bbox"], a["bbox"], atol=2e-3)
        assert b["score"] == pytest.approx(a["score"], abs=2e-6)


def mixed(folder: pathlib.Path) -> pathlib.Path:
    """The two sets' validation images in one folder: 1 of 64 and 7 of 96 pixels."""
    both = folder / "mixed"
    both.mkdir()
    parts = [json.loads((f / "annotations" / "instances_val.json").read_text()) for f in (folder, folder / "wide")]
    for part, (source, shift) in zip(parts, ((folder, 0), (folder / "wide", 1000)), strict=True):
        for image in part["images"]:
            name = f"{shift}_{image['file_name']}"
            shutil.copy(source / "val" / image["file_name"], both / name)
            image |= {"file_name": name, "id": image["id"] + shift}
        for box in part["annotations"]:
            box |= {"image_id": box["image_id"] + shift, "id": box["id"] + shift}
    for key in ("images", "annotations"):
        parts[0][key] += parts[1][key]
    path = both / "instances.json"
    path.write_text(json.dumps(parts[0]))
    return path


@pytest.mark.parametrize(
    "own, code, said",
    [
        ("--config.data.train.images=gone", 2, "image not found"),
        ("--config.optim.lr=0.5", 2, "config.optim.lr is 0.001 in process 0 and 0.5 in process 1"),
        ("--config.optim.lrr=1", 2, "did you mean config.optim.lr?"),
    ],
)
def test_a_mistake_in_one_process_stops_all(folder: pathlib.Path, own: str, code: int, said: str) -> None:
    own = own.replace("=gone", f"={folder}/gone")
    (folder / "gone").mkdir(exist_ok=True)
    with Processes(2, *training(folder, "mistake"), own={1: [own]}) as processes:
        ended = processes.wait(60)
    for i, process in enumerate(ended):
        assert process.code == code, ended
        assert len(process.err) == 1 and said in process.err[0]
        assert process.err[0].startswith(f"error: process {i} of 2: ")
    if "gone" in own:
        assert "process 0 of 2: stops because process 1 did: " in ended[0].err[0]
    assert not (folder / "mistake" / "config.json").exists()


def test_a_disk_that_is_full_for_one_process_stops_all(folder: pathlib.Path) -> None:
    """In its thread that writes, while both go on with the next steps."""
    arguments = training(folder, "full", "--config.checkpoint.every=2")
    with Processes(2, *arguments, KPJAX_TEST_FULL="1") as processes:
        first, second = processes.wait(180)  # Orbax alone would wait 20 minutes
    assert first.code == second.code == 2, (first, second)
    checkpoints, reason = folder / "full" / "checkpoints", os.strerror(errno.EFBIG)
    said = f"{checkpoints} cannot be written: {reason}; earlier checkpoints are intact"
    assert second.err == [f"error: process 1 of 2: {said}"]
    assert first.err == [f"error: process 0 of 2: stops because process 1 did: {said}"]


def test_a_bad_step_names_the_images_of_all(folder: pathlib.Path) -> None:
    # Each step makes every weight some thousand times as large.
    arguments = training(folder, "bad", "--config.optim.lr=1e3", "--config.optim.weight_decay=1.0")
    with Processes(2, *arguments) as processes:
        ended = processes.wait()
    texts = [process.err[-1] for process in ended]
    assert [process.code for process in ended] == [2, 2]
    said = [text.split(": ", 2)[2].removeprefix("stops because process ") for text in texts]
    found = re.search(r"step (\d+) was not finite \(loss .*; image ids \[(.*)\];", said[0])
    assert found and found[0] in said[1]
    from kpjax.config import DataConfig
    from kpjax.data.coco import CocoFolder
    from kpjax.data.memory import memory_batches

    source = CocoFolder(str(folder / "train"), str(folder / "annotations" / "instances_train.json"))
    data = DataConfig(canvas=64, max_boxes=8)
    batch = next(memory_batches(source, data, batch=8, seed=0, start_step=int(found[1]) - 1))
    assert [int(i) for i in found[2].split(",")] == source.image_ids[batch["index"]].tolist()
    assert all(int(p.name) < int(found[1]) for p in (folder / "bad" / "checkpoints").iterdir())


def test_processes_that_do_not_find_each_other(folder: pathlib.Path) -> None:
    """The second one never comes; and the port that process 0 was given is taken."""
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        place = ("--num-processes", "2", "--process-id", "0", "--coordinator")
        with (
            Processes(1, *training(folder, "alone", *place, f"127.0.0.1:{free_port()}"), KPJAX_TEST_START="3") as a,
            Processes(1, *training(folder, "alone", *place, f"127.0.0.1:{taken.getsockname()[1]}")) as b,
        ):
            (late,), (refused,) = a.wait(LIMIT), b.wait(LIMIT)
    assert late.code == 3 and late.err[-1].startswith("error: process 0 of 2: the 2 processes did not find each other")
    assert refused.code == 2 and "cannot listen on port" in refused.err[-1]
