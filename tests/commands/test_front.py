"""`kpjax`, the command: what it lists, how its words are read, and what Ctrl-C does before and while it runs."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from kpjax.__main__ import main
from kpjax.commands import flags, front, interrupt, train
from tests.programs import ROOT, config_file, environment, shapes_set

RECIPE = str(ROOT / "configs" / "shapes_r18.py")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line about a mistake on the command line."""
    try:
        code = main(list(words))
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert code == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed
    return printed.err[7:-1]


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_names_every_command_once(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) < 40 and max(map(len, lines)) < 90
    assert [line.split()[0] for line in lines if line.startswith("  ") and "kpjax " not in line] == list(front.COMMANDS)
    assert lines[-3:] == ["examples:", *(f"  {example}" for example in front.EXAMPLES)]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == "kpjax 0.1.0\n"
    assert 'version = "0.1.0"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "line, text",
    [
        ("conver r18.pth", "no command conver; did you mean convert?"),
        ("fly", "no command fly; `kpjax --help` lists the commands"),
        ("--versoin", "no option --versoin; did you mean --version?"),
        ("voc --rot x", "unknown option --rot; did you mean --root?"),  # and not that --root is missing
        ("voc --root x --out y stray", "unexpected argument 'stray'"),
        ("voc --root x --out y --config.batch=8", "unknown option --config.batch"),
        ("detect --chekpoint=x photo.jpg", "unknown option --chekpoint; did you mean --checkpoint?"),
        ("plan --config coco_r81 --topology v5e:2x2", "coco_r81: no such file or recipe; did you mean coco_r18?"),
        ("plan --confg.batch=8", "unknown option --confg.batch; did you mean --config.batch?"),
        (
            "check-data --config configs/coco_r81.py --out x",
            "configs/coco_r81.py: no such file or recipe; did you mean",
        ),
        ("records --config quux --out x", "quux: no such file or recipe; `kpjax recipes` lists the recipes"),
        ("train --wokdir x", "unknown option --wokdir; did you mean --workdir?"),
        ("train shapes_r18 --wokdir x", "unknown option --wokdir; did you mean --workdir?"),
        ("train shapes_r18 --noforec", "unknown option --noforec"),
        ("train shapes_r18 --bogus", "unknown option --bogus; --help lists all"),
        ("train shapes_r18", "no --workdir given"),
        ("train --workdir x", "no --config given"),
        ("train shapes_r81 --workdir x", "shapes_r81: no such file or recipe; did you mean shapes_r18?"),
        ("train shapes_r18 coco_r18 --workdir x", "unexpected argument 'coco_r18'; one recipe is named"),
        ("train shapes_r18 --config coco_r18 --workdir x", "unexpected argument 'coco_r18'; one recipe is named"),
        ("train shapes_r18 --workdir x --config.batsh=8", "did you mean config.batch?"),
        ("eval shapes_r18 --workdri x", "unknown option --workdri; did you mean --workdir?"),
        ("eval shapes_r18 --fast", "give one of --workdir and --checkpoint"),
        ("recipes coco_r81", "there is no recipe 'coco_r81'; did you mean coco_r18?"),
    ],
)
def test_a_mistake_is_one_line(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in said(capsys, *line.split())


@pytest.mark.parametrize("name", front.COMMANDS)
def test_examples_are_read_by_their_command(name: str) -> None:
    module = importlib.import_module(front.COMMANDS[name].module)
    assert len(module.EXAMPLES) == 2
    for example in module.EXAMPLES:
        words = shlex.split(example)
        assert words[:2] == ["kpjax", name] and len(example) <= 110
        assert callable(front.program(name, module, words[2:]))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_from_flags_names_each_once(name: str) -> None:
    module = importlib.import_module(front.COMMANDS[name].module)
    values = flags.absl_flags.FlagValues()
    module.define(values)
    flags.define_processes(values)
    listed = [option.split(" ")[0] for options in module.HELP.values() for option in options]
    assert sorted(listed) == sorted(values) and len(listed) == len(set(listed))
    text = front.help_of_flags(module)
    switched_on = {option for option in listed if values[option].boolean and values[option].default}
    assert all(f"\n  --{'no' if option in switched_on else ''}{option}" in text for option in listed)


# ------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "words",
    [("shapes_r18", "--workdir", "w"), ("--workdir", "w", RECIPE), ("--config", RECIPE), (f"--config={RECIPE}",)],
)
def test_a_recipe_may_stand_without_its_option(words: tuple[str, ...]) -> None:
    settings = ("--config.batch", "16", "--force", "--config.optim.lr=0.5")
    for argv in (["kpjax train", *words, *settings], ["kpjax train", *settings, *words]):
        values = flags.parse(flags.recipe_as_option(argv, train.define), train.define)
        config = flags.read_config(values)
        assert (config.batch, config.optim.lr, config.steps) == (16, 0.5, 1800) and values["force"].value
        assert values["workdir"].value == ("w" if "w" in words else None)


def test_names_and_paths_mean_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    read = [flags.config_of(given) for given in ("shapes_r18", "configs/shapes_r18.py", RECIPE)]
    assert read[0] == read[1] == read[2]
    monkeypatch.setattr(sys, "argv", before := ["another program"])
    flags.config_of("shapes_r18", ["--config.batch=4"])
    assert sys.argv is before


def test_a_file_here_is_meant_before_a_recipe(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco_r18").write_text("from kpjax.config import Config\nget_config = lambda: Config(steps=7)\n")
    monkeypatch.chdir(tmp_path)
    assert flags.config_of("coco_r18").steps == 7


# ------------------------------------------------------------------------------------------- train on a folder


@pytest.mark.parametrize("words", [("--data", "FOLDER"), ("--minutes", "5", "--data=FOLDER")])
def test_data_hands_training_to_its_own_module(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("a_module_of_another_command")

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", required=True)
        parser.add_argument("--minutes", type=float)

    module.add_arguments, module.run = add_arguments, lambda args: len(args.data)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setattr(front, "FOLDER", module.__name__)
    assert main(["train", *words]) == len("FOLDER")


# --------------------------------------------------------------------------------------------------- start-up


def test_help_needs_neither_jax_nor_tensorflow() -> None:
    program = (
        "import sys, time; begun = time.process_time()\n"
        "from kpjax.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({name for name in ('jax', 'numpy', 'tensorflow', 'absl') if name in sys.modules})\n"
        "print(time.process_time() - begun)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    *_, loaded, seconds = done.stdout.splitlines()
    assert loaded == "set()" and float(seconds) < 0.5, done


# Loaded by Python before the program: a real process that gets SIGINT at the moment when it imports this module.
AT = """
import os, signal, sys

class Moment:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["KPJAX_TEST_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off in the background
sys.meta_path.insert(0, Moment())
"""


def interrupted_at(
    folder: pathlib.Path, moment: str, *command: str, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(AT)
    path = os.pathsep.join([str(folder), str(ROOT)])
    own = environment() | {"PYTHONPATH": path, "KPJAX_TEST_AT": moment}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=own
    )


@pytest.mark.parametrize("moment", ["argparse", "absl", "numpy", "jax"])
@pytest.mark.parametrize(
    "command",
    [
        ("train.py", "--config", RECIPE, "--workdir", "w"),
        ("eval.py", "--workdir", "w"),
        ("detect.py", "--checkpoint", "w", "photo.jpg"),
        ("-m", "kpjax", "train", "shapes_r18", "--workdir", "w"),
        ("-c", "import sys; from kpjax.__main__ import main; sys.exit(main(['eval', '--workdir', 'w']))"),
    ],
    ids=lambda command: command[0] if command[0][0] != "-" else command[1].split(";")[0],
)
def test_ctrl_c_during_imports_is_one_line(command: tuple[str, ...], moment: str, tmp_path: pathlib.Path) -> None:
    done = interrupted_at(tmp_path, moment, *command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("moment", ["kpjax.training.run", "tensorflow"])
def test_ctrl_c_during_imports_of_a_program_that_has_begun(moment: str, tmp_path: pathlib.Path) -> None:
    config = str(config_file(tmp_path, shapes_set(tmp_path / "data", train=4, val=1), steps=1))
    way = ("--show-batch", str(tmp_path / "x.png")) if moment == "tensorflow" else ("--workdir", str(tmp_path / "w"))
    done = interrupted_at(tmp_path, moment, "train.py", "--config", config, *way)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


@pytest.fixture(autouse=True)
def python_looks_after_ctrl_c() -> Iterator[None]:
    """Also where the tests were started in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_a_command_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt_(args: argparse.Namespace) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr("kpjax.commands.yolo.run", interrupt_)
    assert main(["yolo", "--root", "x", "--out", "y"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("call", [flags.guarded, front.call])
def test_ctrl_c_is_not_lost_in_a_callback(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Python drops what callbacks of its garbage collector raise, with a traceback."""
    seen: list[str] = []

    def callback(phase: str, info: dict) -> None:
        if not seen:
            seen.append(phase)
            signal.raise_signal(signal.SIGINT)

    def program() -> int:
        gc.callbacks.append(callback)
        gc.collect()
        gc.callbacks.remove(callback)
        time.sleep(20)
        return 0

    begun = time.monotonic()
    try:
        assert call(program) == 130
    finally:
        if callback in gc.callbacks:
            gc.callbacks.remove(callback)
    assert seen and time.monotonic() - begun < 10 and capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("call", [flags.guarded, front.call])
def test_ctrl_c_as_an_extension_module_passes_it_on(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    assert call(program) == 130 and capsys.readouterr().err == "stopped\n"


def test_handlers_are_put_back() -> None:
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with interrupt.leaving_at_once():
        assert signal.getsignal(signal.SIGINT) is interrupt.leave
        with interrupt.leaving_at_once():
            pass
        assert signal.getsignal(signal.SIGINT) is interrupt.leave
    assert signal.getsignal(signal.SIGINT) is before
    with interrupt.getting_through():
        assert sys.unraisablehook != hook
    assert sys.unraisablehook == hook
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with interrupt.leaving_at_once():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_has_enough_ends_it_without_a_word() -> None:
    """As in `kpjax recipes | head -1`."""
    program = [sys.executable, "-m", "kpjax", "recipes"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 1 and process.stderr.read() == b""
