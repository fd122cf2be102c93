"""Command lines: what is wrong is said in one line."""

from __future__ import annotations

import pathlib
import sys
from unittest import mock

import pytest
from jax.errors import JaxRuntimeError

from kpjax.commands import flags
from kpjax.config import Config
from kpjax.errors import ConfigError

FILE = str(pathlib.Path(__file__).parents[2] / "configs" / "shapes_r18.py")


def read(*arguments: str) -> Config:
    argv = ["train.py", *arguments]
    with mock.patch.object(sys, "argv", argv):  # ml_collections looks there for the keys to define
        return flags.read_config(flags.parse(argv, flags.define_config))


def test_values_on_the_command_line_replace_those_of_the_file() -> None:
    plain = read("--config", FILE)
    changed = read(f"--config={FILE}", "--config.optim.lr=0.5", "--config.batch", "24", "--config.data.train.images=x")
    assert (changed.optim.lr, changed.batch, changed.data.train.images) == (0.5, 24, "x")
    assert plain.optim.lr != 0.5 and changed.steps == plain.steps


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((), "no --config given"),
        (("--config.batch=8",), "no --config FILE is given"),
        (("--config", "configs/none.py"), "configs/none.py: no such file"),
        (("--config", FILE, "--config.batsh=8"), "did you mean config.batch?"),
        (("--config", FILE, "--config.optim.lrr=8"), "config.optim has no key 'lrr'; did you mean config.optim.lr?"),
        (("--config", FILE, "--config.batch=abc"), "batch"),
        (("--config", FILE, "--config.optim.lr=fast"), "lr"),
        (("--config", FILE, "--config.epochs=3"), "set exactly one"),
        (("--config", FILE, "--config.steps=0"), "set exactly one"),
        (("--config", FILE, "--config.model.dtype=float16"), "choose one of 'float32', 'bfloat16'"),
        (("--config", FILE, "--confg.batch=3"), "confg"),
        (("--config", FILE, "stray"), "unexpected argument 'stray'"),
        (
            ("--config", FILE, "--config.model.options.widht=8"),
            "config.model.options has no 'widht' in the --config file",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert text in str(caught.value) and "\n" not in str(caught.value)


GET = "from kpjax.config import Config, recipe\ndef get_config():\n    c = Config(steps=1)\n"


@pytest.mark.parametrize(
    "content, line, text",
    [
        ("def get_config():\n    return {'a': 1}\n", None, "returns a dict, not a kpjax.config.Config"),
        ("def get_config(:\n", 1, "SyntaxError: "),
        (GET, None, "its get_config() returns nothing; end it with `return config`"),
        ("def config():\n    return 1\n", None, "no function get_config()"),
        (GET + "    c.optim.learning_rate = 1\n    return c\n", 4, "did you mean config.optim.lr?"),
        (GET + "    c.optimizer.lr = 1\n    return c\n", 4, "did you mean config.optim?"),
        (GET + "    c.optim = dict(lr=1)\n    return c\n", 4, "config.optim is a dict"),
        (GET + "    return 1 / 0\n", 4, "ZeroDivisionError: division by zero"),
        (GET + "    assert c.batch == 3, 'a batch\\nof 3'\n", 4, "AssertionError: a batch of 3"),
        (GET + "    open('no such file')\n", 4, "FileNotFoundError: [Errno 2]"),
        ("import no_such_module\n", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("open('no such file')\n", 1, "FileNotFoundError: [Errno 2]"),
        (GET + "    return recipe('none_such')\n", 4, "no recipe 'none_such'"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
        (GET + "    raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'why')\n", 4, "UnicodeDecodeError: "),
    ],
)
@pytest.mark.parametrize("more", [(), ("--config.batch=8",)])
def test_a_mistake_in_a_file_is_one_line_with_its_place(
    content: str, line: int | None, text: str, more: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read("--config", str(tmp_path / "mine.py"), *more)
    said, where = str(caught.value), f"the --config file {tmp_path / 'mine.py'}{f', line {line}' if line else ''}: "
    assert said.startswith(where) and text in said and "\n" not in said


def test_a_file_that_is_no_python_is_told_what_it_has_to_be(tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.json").write_text('{"batch": 4, "deterministic": false}')
    with pytest.raises(ConfigError, match=r"config\.json, line 1: NameError: .*; it has to be a Python file"):
        read("--config", str(tmp_path / "config.json"))


def test_a_file_is_run_once_and_takes_an_argument(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = "from kpjax.config import Config\nprint('run')\ndef get_config(n):\n    return Config(steps=int(n))\n"
    (tmp_path / "mine.py").write_text(content)
    config = read(f"--config={tmp_path / 'mine.py'}:7", "--config.batch=8")
    assert (config.steps, config.batch) == (7, 8) and capsys.readouterr().out == "run\n"


@pytest.mark.parametrize(
    "error, text",
    [
        (OSError(28, "No space left on device", "out.json"), "error: out.json: No space left on device"),
        (IsADirectoryError(21, "Is a directory", "out.json"), "error: out.json: Is a directory"),
        (ConfigError("config.batch is 0"), "error: config.batch is 0"),
        (ConfigError("a\nb.jpg: image not found"), "error: a\\nb.jpg: image not found"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more"), "RESOURCE_EXHAUSTED: Out of memory); lower"),
    ],
)
def test_a_program_ends_in_one_line(error: Exception, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        raise error

    assert flags.guarded(program) == 2
    said = capsys.readouterr().err
    assert text in said and said.startswith("error: ") and said.count("\n") == 1
    assert flags.guarded(lambda: None) == 0 and flags.guarded(lambda: 3) == 3


@pytest.mark.parametrize("error", [JaxRuntimeError("INTERNAL: a bug"), RuntimeError("a bug"), OSError(2, "a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def program() -> int:
        raise error

    with pytest.raises(type(error), match="a bug"):
        flags.guarded(program)
