"""What a run writes down."""

from __future__ import annotations

import json
import pathlib
import time

import pytest

from kpjax.checkpoint.orbax import CheckpointError
from kpjax.checkpoint.scores import read_metrics
from kpjax.training.log import RunLog, StepClock, in_order

RATES = {"images_per_s": 12.0, "data_wait": 0.25}


def test_a_resumed_log_has_each_step_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(str(tmp_path), 0, 10)
    for step in range(1, 6):
        log.numbers("train", step, {"loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 6, "lo')  # cut off by a kill
    log = RunLog(str(tmp_path), 3, 10)
    log.numbers("train", 4, {"loss": 4.0})
    log.progress(4, {"loss": 4.0} | RATES)
    log.close()
    assert [(x["step"], x["loss"]) for x in read_metrics(str(tmp_path))] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 4.0)]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert "step 4/10 loss 4.000 | 12.0 img/s, data wait 25%, ETA " in capsys.readouterr().out


def test_a_full_disk_is_named(tmp_path: pathlib.Path) -> None:
    log = RunLog(str(tmp_path), 0, 10)
    usual, log._file = log._file, open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be written: No space"):
        log.numbers("train", 1, {"loss": 0.1})
    with pytest.raises(OSError, match="No space"):
        log._file.close()
    log._file = usual
    log.close()


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_tensorboard_reads_the_same_numbers_whatever_the_clock_does(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(str(tmp_path), 0, 10)
    for step in range(1, 6):
        log.numbers("train", step, {"loss": step / 10})
    # Not closed: what a killed run leaves.  Event files are ordered by the second in their names.
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + ahead * 10**9)
    resumed = RunLog(str(tmp_path), 3, 10)
    resumed.numbers("train", 4, {"loss": 4.0})
    resumed.numbers("eval", 4, {"AP": 0.5})
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    found = [(s.step, s.value) for s in reader.Scalars("train/loss")]
    assert found == [(s, pytest.approx(v)) for s, v in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 4.0))]
    assert [s.value for s in reader.Scalars("eval/AP")] == [0.5]
    log.close()
    resumed.close()


def test_a_silent_log_leaves_nothing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(str(tmp_path), 0, 10, silent=True)
    log.numbers("train", 1, {"loss": 1.0})
    log.progress(1, {"loss": 1.0} | RATES)
    log.say("hello")
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_the_loss_comes_first() -> None:
    sorted_by_jit = {k: 0.0 for k in ("grad_norm", "heatmap", "loss", "lr", "offset", "other", "wh")}
    assert in_order(sorted_by_jit) == ["loss", "heatmap", "wh", "offset", "other", "grad_norm", "lr"]


def test_the_clock_leaves_evaluation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("kpjax.training.log.time.monotonic", lambda: now[0])
    clock = StepClock(8)
    clock.begin(1)
    now[0] += 3
    with clock.waiting():
        now[0] += 1
    with clock.aside():
        now[0] += 50
    assert clock.lap(11) == {"images_per_s": 20.0, "data_wait": 0.25}
    now[0] += 2
    assert clock.lap(12) == {"images_per_s": 4.0, "data_wait": 0.0}
