"""`convert` and `train.py --config.init_from` refuse what is no checkpoint: one line, exit code 2, nothing written."""

from __future__ import annotations

import os
import pathlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import kpjax
from kpjax import convert
from kpjax.__main__ import main
from kpjax.errors import ConfigError
from kpjax.training.initial_weights import _from_torch
from tests.convert import hostile, released
from tests.convert import torch_bytes as tb
from tests.programs import config_file, run_program, shapes_set

MODEL = "centernet_r18"
SMALL = released.SMALL[MODEL]
OPTIONS = [word for key in SMALL for word in ("--option", f"{key}={str(SMALL[key]).strip('() ')}")]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return released.arrays(MODEL, 3, **SMALL)


@pytest.fixture
def refused(tmp_path: pathlib.Path, capsys: Any) -> Iterator[Refused]:
    """Gives a file to both programs and returns the line that `convert` ends in."""
    detector = kpjax.build(MODEL, 3, **SMALL)
    shapes = jax.eval_shape(lambda: detector.net.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32)))
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)

    def both(path: pathlib.Path, train: bool = True) -> str:
        before = sorted(p.name for p in tmp_path.iterdir())
        code = main(["convert", str(path), "--model", MODEL, "--out", str(tmp_path / "out"), *OPTIONS])
        said = capsys.readouterr()
        assert code == 2 and not said.out
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 800 + len(str(path))
        assert str(path) in said.err
        if train:
            with pytest.raises(ConfigError, match=r"^config\.init_from: ") as error:
                _from_torch(str(path), detector, start)
            assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        return said.err

    yield both


def test_programs_do_not_run(tmp_path: pathlib.Path, refused: Refused) -> None:
    trace, file = tmp_path / "was_here", tmp_path / "weights.pth"
    count = 0
    for name, content in hostile.running(str(trace)):
        file.write_bytes(content)
        text = refused(file)
        assert not trace.exists(), name
        assert any(word in text for word in ("refuse", "call", "refers to", "damaged", "not numbers", "kind")), name
        count += 1
    assert count == 9 * len(hostile.programs("x")) > 200


def test_damaged_files(tmp_path: pathlib.Path, refused: Refused, state: dict[str, np.ndarray]) -> None:
    """Nor do they take more memory or time than their size warrants."""
    file, started = tmp_path / "weights.pth", time.perf_counter()
    tracemalloc.start()
    for name, content in hostile.damaged(state):
        file.write_bytes(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        refused(file)
        assert tracemalloc.get_traced_memory()[1] - before < 200e6, name
    tracemalloc.stop()
    assert time.perf_counter() - started < 120


def test_contents_that_do_not_fit(
    tmp_path: pathlib.Path, refused: Refused, state: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    # What a file looks like instead is compared with every model; test_convert.py does that.
    monkeypatch.setattr(convert, "resembles", lambda *_: ("", 0.0))
    monkeypatch.setattr(convert, "nearest", lambda *_: convert.Nearest("", 0, 0))
    for name, wrong in hostile.unfitting(state):
        tb.save(file, wrong)
        text = refused(file, train=name in ("half the keys", "a channel less"))
        assert "does not fit centernet_r18" in text, name


def test_what_is_no_file(tmp_path: pathlib.Path, refused: Refused) -> None:
    assert "no such file" in refused(tmp_path / "missing.pth")
    assert "no such file" in refused(tmp_path / ("long" * 100 + ".pth"))
    (tmp_path / "folder.pth").mkdir()
    assert "not a file" in refused(tmp_path / "folder.pth")
    os.mkfifo(tmp_path / "pipe.pth")  # reading it would wait for ever
    assert "not a file" in refused(tmp_path / "pipe.pth")


def test_train_program_refuses_before_it_writes(tmp_path: pathlib.Path) -> None:
    config = str(config_file(tmp_path, shapes_set(tmp_path / "data", train=4, val=2), 2))
    trace, file, work = tmp_path / "was_here", tmp_path / "weights.pth", tmp_path / "work"
    file.write_bytes(b"\x80\x02" + hostile.programs(str(trace))["GLOBAL, REDUCE"] + b".")
    done = run_program("train.py", "--config", config, "--workdir", str(work), f"--config.init_from={file}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: config.init_from: ") and done.stderr.count("\n") == 1
    assert "would call os.system" in done.stderr and not trace.exists() and not work.exists()
