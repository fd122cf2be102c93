"""Whole training runs: interrupted ones, ones that go wrong, and what they leave behind."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

import kpjax.training.loop
import kpjax.training.run
from kpjax.checkpoint.orbax import CheckpointError
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import load_inference, save_inference
from kpjax.config import Config
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.errors import ConfigError, DataError
from kpjax.inference.evaluate import Evaluation
from kpjax.training.checkpoints import Checkpoints
from kpjax.training.run import BadStep, Result, run
from kpjax.training.workdir import write_config
from tests.programs import config_file, run_program, same_arrays, same_weights, shapes_set, stop_at, stored
from tests.tiny import tiny_config, two_layer_detector

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return shapes_set(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def config(data: pathlib.Path) -> Config:
    config = tiny_config(steps=6)
    config.data.max_boxes = 8
    for split, name in ((config.data.train, "train"), (config.data.val, "val")):
        split.images, split.annotations = str(data / name), str(data / "annotations" / f"instances_{name}.json")
    config.eval.resolution = "fixed"
    config.checkpoint.every = 2
    return config


@pytest.fixture(autouse=True)
def quick_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process train two layers; programs of their own train CenterNet."""
    monkeypatch.setattr(kpjax.training.run, "from_config", lambda config, classes, points=None: _five_classes())


def _five_classes():
    import dataclasses

    import kpjax

    net = two_layer_detector().net
    full = kpjax.build("centernet_r18", num_classes=3)
    return dataclasses.replace(full, net=net, options={})


def train(config: Config, workdir: pathlib.Path) -> Result:
    """A run on the shapes, their labels taken modulo three, without TensorFlow."""
    import dataclasses

    source = open_source(config.data, "train")
    objects = tuple(one.replace(labels=one.labels % 3) for one in source.objects)
    source = dataclasses.replace(source, classes=source.classes[:3], objects=objects)
    config.data.val.annotations = ""
    feed = lambda start: memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=start)  # noqa: E731
    return run(config, str(workdir), train_source=source, batches=feed)


def test_killed_and_stopped_runs_end_as_the_whole_one(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = str(config_file(tmp_path, data, STEPS))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    saving = "--config.checkpoint.every=4"
    done = run_program("train.py", "--config", file, "--workdir", str(whole), saving)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    arguments = ("--config", file, "--workdir", str(parts), saving)
    reached = 0
    for number, at in ((signal.SIGKILL, 5), (signal.SIGTERM, 8)):
        code, lines, errors = stop_at(number, 0.02, *arguments, pattern=rf"^step {at}/")
        assert errors == ""
        resumed = [line for line in lines if line.startswith("resuming at step")]
        assert resumed or not reached, lines  # the first kill may come before any checkpoint is complete
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 0
            assert f"stopped by {number.name}" in lines[-1]
            reached = at
            assert max(int(p.name) for p in (parts / "checkpoints").iterdir()) >= at
    done = run_program("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert same_weights(whole, parts)
    for workdir in (whole, parts):
        logged = [line for line in read_metrics(str(workdir)) if line["kind"] == "train"]
        assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
        assert events(workdir, "train/loss") == {x["step"]: pytest.approx(x["loss"], rel=1e-6) for x in logged}


def events(workdir: pathlib.Path, tag: str) -> dict[int, float]:
    """What TensorBoard shows of a work directory: each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(workdir))
    reader.Reload()
    scalars = reader.Scalars(tag)
    assert len({s.step for s in scalars}) == len(scalars)
    return {s.step: s.value for s in scalars}


def test_mistakes_are_one_line(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = str(config_file(tmp_path, data, STEPS))
    workdir = ("--workdir", str(tmp_path / "new"))
    (tmp_path / "of_another" / "checkpoints" / "2").mkdir(parents=True)
    (tmp_path / "of_another" / "config.json").write_text('{"batch": 4, "steps": 7}')
    gone = data.parent / "gone"
    gone.mkdir(exist_ok=True)
    cases = [
        (("--config", str(tmp_path / "no.py"), *workdir), "no such file"),
        (("--config", file, *workdir, "--config.optim.lrr=1"), "did you mean config.optim.lr?"),
        (("--config", file, "--workdir", str(tmp_path / "of_another")), "another configuration: config."),
        (("--config", file, "--workdir", str(tmp_path / "of_another")), f"init_from={tmp_path / 'of_another'}"),
        (("--config", file, *workdir, f"--config.data.train.images={gone}"), "image not found"),
    ]
    for arguments, text in cases:
        ended = run_program("train.py", *arguments)
        assert ended.returncode == 2, (arguments, ended.stderr)
        assert text in ended.stderr and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "new" / "config.json").exists()  # a mistake claims no work directory


def test_a_run_leaves_checkpoints_logs_and_weights(
    config: Config, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path / "run").finished
    said = capsys.readouterr().out
    assert "parameters" in said and "boxes dropped" in said and "MiB a device" in said
    assert "step 6/6 loss " in said
    losses = [line["loss"] for line in read_metrics(str(tmp_path / "run"))]
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "6"]
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 6
    assert train(config, tmp_path / "run").finished
    assert "this run has finished; nothing to do" in capsys.readouterr().out


def test_a_slow_disk_is_told_once(
    config: Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kpjax.training.loop, "LONG_WAIT", -1.0)
    monkeypatch.setattr("orbax.checkpoint.checkpoint_manager._WAIT_FOR_PREV_SAVE_WARNING_THRESHOLD_SECS", -1.0)
    assert train(config, tmp_path / "run").finished
    said = capsys.readouterr().out
    assert len(re.findall(r"^step 2: waited .* a larger config\.checkpoint\.every", said, re.MULTILINE)) == 1
    assert said.count("waited") == 1 and "previous save" not in caplog.text


def test_a_lost_export_is_made_again(config: Config, tmp_path: pathlib.Path) -> None:
    train(config, tmp_path)
    file = tmp_path / "model" / "config.json"
    before = file.read_text()
    shutil.rmtree(tmp_path / "model")  # killed between the last checkpoint and the end
    assert train(config, tmp_path).finished
    assert json.loads(file.read_text()) == json.loads(before)


def test_a_bad_step_ends_the_run(config: Config, tmp_path: pathlib.Path) -> None:
    config.optim.name, config.optim.lr, config.steps = "sgd", 1e3, 40
    config.optim.momentum = 1.0
    with pytest.raises(BadStep) as caught:
        train(config, tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "loss " in text and "heatmap " in text
    step = int(text.split()[1])
    source = open_source(config.data, "train")
    batch = next(memory_batches(source, config.data, batch=config.batch, seed=config.seed, start_step=step - 1))
    assert f"image ids {source.image_ids[batch['index']].tolist()};" in text
    assert "another --workdir" in text and f"--config.init_from={tmp_path}" in text
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert all(s < step for s in saved)
    logged = [line["step"] for line in read_metrics(str(tmp_path))]
    assert logged == list(range(1, step))


def test_a_bad_image_keeps_the_steps_before_it(config: Config, tmp_path: pathlib.Path) -> None:
    config.steps, config.checkpoint.every = 6, 100
    good = kpjax.training.run.run

    def feed_until(start: int):
        source = open_source(config.data, "train")
        for i, batch in enumerate(memory_batches(source, config.data, batch=8, seed=0, start_step=start)):
            if start + i == 3:
                raise DataError("x.jpg: cut short")
            yield batch | {"objects": batch["objects"].replace(labels=batch["objects"].labels % 3)}

    source = open_source(config.data, "train")
    import dataclasses

    source = dataclasses.replace(source, classes=source.classes[:3])
    config.data.val.annotations = ""
    with pytest.raises(DataError, match="cut short"):
        good(config, str(tmp_path), train_source=source, batches=feed_until)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_a_resumed_run_combines_the_same_images_at_the_same_sizes(
    config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mosaics until half of the run, inputs of two sizes: as if it had never been stopped."""
    config.augment.mosaic, config.augment.mosaic_until = 0.7, 0.5
    config.augment.sizes, config.data.max_boxes = (32, 64), 4
    assert train(config, tmp_path / "whole").finished
    said = capsys.readouterr().out
    assert "inputs are 64, 32 pixels wide" in said and "4 images have up to about" in said

    good = memory_batches

    def until_step_2(*args, start_step: int, **kwargs):
        for step, batch in enumerate(good(*args, start_step=start_step, **kwargs), start_step):
            if step == 2:
                raise DataError("x.jpg: cut short")
            yield batch

    monkeypatch.setitem(globals(), "memory_batches", until_step_2)
    with pytest.raises(DataError, match="cut short"):
        train(config, tmp_path / "stopped")
    monkeypatch.setitem(globals(), "memory_batches", good)
    assert train(config, tmp_path / "stopped").finished
    assert same_arrays(stored(tmp_path / "whole"), stored(tmp_path / "stopped"))


def test_the_work_directory_of_another_run_is_refused(config: Config, tmp_path: pathlib.Path) -> None:
    train(config, tmp_path)
    config.log_every, config.data.bad_images = 3, "skip"  # changes nothing that is learnt
    train(config, tmp_path)
    config.optim.lr *= 2
    with pytest.raises(ConfigError, match=r"config\.optim\.lr: 0\.001 -> 0\.002"):
        train(config, tmp_path)


def test_a_try_without_a_checkpoint_claims_no_work_directory(config: Config, tmp_path: pathlib.Path) -> None:
    config.batch = 16
    write_config(epath.Path(tmp_path), config)  # and then, say, the memory was too small
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-1").mkdir(parents=True)
    config.batch = 8
    assert train(config, tmp_path).finished
    assert json.loads((tmp_path / "config.json").read_text())["batch"] == 8
    shutil.rmtree(tmp_path / "checkpoints")  # to save room: the weights in model/ are still this run's
    config.batch = 16
    with pytest.raises(ConfigError, match=r"config\.batch: 8 -> 16"):
        train(config, tmp_path)


def test_an_evaluation_made_up_on_resuming_counts_for_the_best(
    config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C during the evaluation at step 2; then the whole run, AP falling."""
    aps = iter([-1.0, 0.5, 0.4, 0.3])

    def evaluate(*_: object, **__: object) -> Evaluation:
        ap = next(aps)
        if ap < 0:
            signal.raise_signal(signal.SIGINT)
        return Evaluation({"AP": ap, "AP50": ap}, "", {}, [], images=4, skipped=0, seconds=1.0)

    monkeypatch.setattr(kpjax.training.run, "make_evaluator", lambda *_: evaluate)
    monkeypatch.setattr(kpjax.training.run, "_validation", lambda config, source: source)
    config.eval.every, config.checkpoint.keep = 2, 1
    first = train(config, tmp_path)
    assert not first.finished and first.step == 2
    said = capsys.readouterr().out
    assert "eval     1 canvas, a program each to compile\n" in said
    assert said.index("eval     ") < said.index("step 2/6")
    assert train(config, tmp_path).finished
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "6"]
    assert Checkpoints(str(tmp_path), 1, {}).best() == (2, 0.5)


def test_a_checkpoint_of_another_model_is_refused(config: Config, tmp_path: pathlib.Path) -> None:
    train(config, tmp_path)
    (tmp_path / "config.json").unlink()
    info = _five_classes()
    stored = Checkpoints(str(tmp_path), 2, {}).metadata(6)
    from kpjax.training.checkpoints import check_same_model

    check_same_model(stored, info, "here")
    with pytest.raises(CheckpointError, match=r"here is a checkpoint of another model: its model .*init_from=here$"):
        check_same_model(stored | {"model": "other"}, info, "here")


@pytest.mark.parametrize("batch, text", [(12, "use 8 or 16"), (3, "use 8")])
def test_a_batch_that_the_devices_do_not_divide(config: Config, tmp_path: pathlib.Path, batch: int, text: str) -> None:
    assert jax.device_count() == 8
    config.batch = batch
    with pytest.raises(ConfigError, match=text):
        train(config, tmp_path)


def test_a_full_disk_ends_the_run_in_one_line(
    config: Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a small disk")
    try:
        config.steps, config.checkpoint.every, config.checkpoint.keep = 40, 2, 100
        with pytest.raises(CheckpointError) as caught:
            train(config, disk)
        assert os.strerror(errno.ENOSPC) in str(caught.value) and "\n" not in str(caught.value)
        from kpjax.training.step import init_state

        like = jax.eval_shape(lambda: init_state(_five_classes(), config, 40, jax.random.key(0)))
        mesh = kpjax.training.run.make_mesh()
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=kpjax.parallel.sharding.replicated(mesh)), like
        )
        checkpoints = Checkpoints(str(disk), 100, {})
        state = checkpoints.restore(checkpoints.latest(), like)
        assert int(state.step) == checkpoints.latest() >= 2
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_weights_of_another_model_are_no_start(tmp_path: pathlib.Path) -> None:
    import kpjax

    wide = kpjax.build("centernet_r18", num_classes=3, width=4, deconv=(4, 4, 4), head_channels=4)
    shapes = jax.eval_shape(lambda: wide.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    save_inference(str(tmp_path / "wide"), wide, zeros, ("a", "b", "c"))
    assert load_inference(str(tmp_path / "wide")).detector.options["width"] == 4
    from kpjax.training.initial_weights import init_from
    from kpjax.training.step import TrainState

    net = _five_classes().net
    new = net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    state = TrainState(0, new["params"], new["batch_stats"], None, None, -1)
    with pytest.raises(ConfigError, match=r"config\.init_from: .*another model"):
        init_from(str(tmp_path / "wide"), _five_classes(), state, state)
    with pytest.raises(ConfigError, match=r"config\.init_from: .*no\.pth"):
        init_from(str(tmp_path / "no.pth"), wide, state, state)


def test_fine_tuning_starts_the_class_heads_anew(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a released detector's file of 3 classes to one of 5: everything but the heatmap's last layer is taken."""
    import kpjax
    from kpjax.training.initial_weights import _from_torch
    from tests.convert import torch_bytes
    from tests.convert.test_rules import SMALL, checkpoint

    torch_bytes.save(tmp_path / "ctdet.pth", checkpoint("centernet_r18", classes=3), wrapper="state_dict")
    five = kpjax.build("centernet_r18", 5, **SMALL)
    shapes = jax.eval_shape(lambda: five.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    new = jax.tree.map(lambda s: np.full(s.shape, -1, s.dtype), shapes)
    variables, lines = _from_torch(str(tmp_path / "ctdet.pth"), five, new)
    assert lines == [
        "  initialised anew: ['params']['heads']['heatmap_out']['bias'] (5,)",
        "  initialised anew: ['params']['heads']['heatmap_out']['kernel'] (1, 1, 8, 5)",
    ]
    released = kpjax.import_torch(kpjax.build("centernet_r18", 3, **SMALL), checkpoint("centernet_r18", classes=3))
    for head in ("wh_out", "heatmap_conv"):
        np.testing.assert_array_equal(
            variables["params"]["heads"][head]["kernel"], released["params"]["heads"][head]["kernel"]
        )
    assert (variables["params"]["heads"]["heatmap_out"]["bias"] == -np.ones(5)).all()


def test_pose_starts_from_the_boxes_of_the_same_network(tmp_path: pathlib.Path) -> None:
    """As the released recipes do: the heads that boxes lack, and those of other classes, start anew."""
    import kpjax
    from kpjax.training.initial_weights import _from_torch
    from tests.convert import released, torch_bytes

    small = released.SMALL["centernet_dla34"]
    torch_bytes.save(tmp_path / "ctdet.pth", released.arrays("centernet_dla34", 3, **small), wrapper="state_dict")
    points = {"names": ["left", "right"]}
    pose = kpjax.build("centernet_dla34_pose", 1, points=points, keypoint_weight=2.0, **small)
    shapes = jax.eval_shape(lambda: pose.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    new = jax.tree.map(lambda s: np.full(s.shape, -1, s.dtype), shapes)
    variables, lines = _from_torch(str(tmp_path / "ctdet.pth"), pose, new)
    anew = {line.split("['heads']['")[1].split("'")[0] for line in lines}
    heads = ("keypoint_offset", "joint_heatmap", "joint_offset")
    assert anew == {"heatmap_out", *(f"{head}_{layer}" for head in heads for layer in ("conv", "out"))}
    for leaf in jax.tree.leaves({**variables["params"]["backbone"], "wh": variables["params"]["heads"]["wh_out"]}):
        assert not (np.asarray(leaf) == -1).all()
    # From released pose to other points: the heads' last layers alone have other shapes.
    arrays = released.arrays("centernet_dla34_pose", 1, **small)
    torch_bytes.save(tmp_path / "multi_pose.pth", arrays, wrapper="state_dict")
    _, lines = _from_torch(str(tmp_path / "multi_pose.pth"), pose, new)
    assert {line.split("['heads']['")[1].split("'")[0] for line in lines} == {
        "keypoint_offset_out",
        "joint_heatmap_out",
    }
