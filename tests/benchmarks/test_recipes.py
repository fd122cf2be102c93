"""benchmarks/recipes.py: which runs it makes, with what, and what it says of them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from kpjax.commands.flags import config_of
from kpjax.config import DataConfig, to_json
from kpjax.errors import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import recipe_settings
import recipes

ROOT = pathlib.Path(__file__).parents[2]

TABLE = """
def settings(steps):
    base = "--config=configs/shapes_r18.py"
    return {"plain": [base], "warm": [base, f"--config.optim.warmup_steps={steps // 2}", "--config.batch=4"]}
"""


class Runs:
    """Stands for `recipes.train`: writes what train.py would; 20 images a second, AP 0.5 + seed / 10."""

    def __init__(self) -> None:
        self.made: list[tuple[str, list[str]]] = []
        self.fails: dict[str, BaseException] = {}

    def __call__(self, workdir: pathlib.Path, arguments: Sequence[str]) -> None:
        self.made.append((workdir.name, list(arguments)))
        (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        if workdir.name in self.fails:
            raise self.fails[workdir.name]
        base, *changes = arguments
        config = config_of(base.removeprefix("--config="), changes)
        (workdir / "config.json").write_text(to_json(config))
        ap = {"AP": 0.5 + config.seed / 10, "AP50": 0.8, "APs": -1.0, "APm": 0.4, "APl": 0.6}
        lines = [{"kind": "train", "step": n, "loss": 1.0, "images_per_s": 20.0} for n in (1, 2)]
        lines += [{"kind": "eval", "step": config.steps, **ap}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def command(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: Callable[..., DataConfig],
) -> tuple[Runs, Callable[..., int]]:
    """The stand-in for training, and the command on seven small images."""
    runs, split = Runs(), folder().train
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recipes, "train", runs)
    monkeypatch.setattr(recipes.signal, "signal", lambda *_: None)
    (tmp_path / "table.py").write_text(TABLE)

    def run(*options: str) -> int:
        data = [word for name in ("--train", "--val") for word in (name, split.images, split.annotations)]
        whole = ["--settings", str(tmp_path / "table.py"), "--out", str(tmp_path / "out"), *options]
        return recipes.main([*data, *whole])

    return runs, run


def test_every_run_is_made_once_and_what_was_stopped_goes_on(command, capsys) -> None:
    runs, run = command
    runs.fails = {"warm-0": UserError("train.py left with 1: loss"), "plain-1": KeyboardInterrupt()}
    assert run("--steps", "10") == 130
    assert [name for name, _ in runs.made] == ["plain-0", "warm-0", "plain-1"]
    assert "warm, seed 0: train.py left with 1: loss" in capsys.readouterr().err
    runs.made, runs.fails = [], {}
    assert run("--steps", "10") == 0
    assert [name for name, _ in runs.made] == ["warm-0", "plain-1", "warm-1"]
    said = capsys.readouterr().out.splitlines()
    assert said[-4:] == [
        "| setting | seeds | AP | AP50 | APs | APm | APl | images/s | steps | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| plain | 2 | 0.550 (0.500-0.600) | 0.800 | - | 0.400 | 0.600 | 20.0 | 10 | 0.1 |",
        "| warm | 2 | 0.550 (0.500-0.600) | 0.800 | - | 0.400 | 0.600 | 20.0 | 10 | 0.0 |",
    ]
    runs.made = []
    assert run("--steps", "10") == 0 and not runs.made


def test_minutes_are_as_many_steps_as_each_setting_makes_in_them(command, tmp_path) -> None:
    runs, run = command
    assert run("--minutes", "0.5", "--seeds", "1") == 0
    steps = {name: next(a for a in words if a.startswith("--config.steps=")) for name, words in runs.made}
    tried = f"--config.steps={recipes.TRIED}"
    # 20 images/s: of a batch of 8, and of 4 in the other
    assert steps == {
        **{"try-plain": tried, "plain-0": "--config.steps=75"},
        **{"try-warm": tried, "warm-0": "--config.steps=150"},
    }
    warm = dict(runs.made)["warm-0"]
    assert "--config.optim.warmup_steps=75" in warm and not (tmp_path / "out" / "try-warm").exists()
    runs.made = []
    assert run("--minutes", "0.5", "--seeds", "2", "--only", "warm") == 0
    assert [name for name, _ in runs.made] == ["warm-1"], "the speed is known"


def test_one_thing_is_compared_with_one_other(command, tmp_path, capsys) -> None:
    """Other data, time or arguments under the name of what has run are refused."""
    _, run = command
    assert run("--steps", "10", "--seeds", "1") == 0
    assert run("--steps", "20") == 2 and "use another --out" in capsys.readouterr().err
    assert run("--steps", "10", "--size", "64") == 2 and "use another --out" in capsys.readouterr().err
    (tmp_path / "table.py").write_text(TABLE.replace("steps // 2", "3"))
    assert run("--steps", "10", "--seeds", "1") == 2 and "another name" in capsys.readouterr().err
    assert run("--steps", "10", "--only", "cold") == 2 and "plain, warm" in capsys.readouterr().err
    (tmp_path / "table.py").write_text("def settings(steps): return {'a': ['--config.batch=4']}")
    assert run("--steps", "10") == 2 and "--config=BASE" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [2, 3000])
def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.chdir(ROOT)
    table = {name: tuple(words) for name, words in recipe_settings.settings(steps).items()}
    assert len(set(table.values())) == len(table)
    for base, *changes in table.values():
        config_of(base.removeprefix("--config="), changes)


@pytest.mark.slow
def test_on_shapes(tmp_path: pathlib.Path) -> None:
    options = [
        "--shapes",
        "--shapes-train",
        "16",
        "--shapes-val",
        "4",
        "--size",
        "64",
        "--seeds",
        "1",
        "--only",
        "small",
    ]
    words = [sys.executable, "benchmarks/recipes.py", *options, "--steps", "2", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| small | 1 | 0.")
    (run,) = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert run["steps"] == 2 and run["images_per_s"] > 0 and (tmp_path / "small-0" / "model").is_dir()
