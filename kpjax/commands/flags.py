"""Command lines of training and evaluation, with their settings: parsed once, every mistake one line.

def main(values): ...
if __name__ == "__main__":
    flags.run(main, define)  # define(values) declares the flags
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from absl import flags as absl_flags
from ml_collections import config_flags

from kpjax import recipes
from kpjax.commands.arguments import unknown_option
from kpjax.commands.interrupt import getting_through, leaving_at_once
from kpjax.config import Config, unknown_key
from kpjax.errors import ConfigError, UserError, one_line, origins
from kpjax.parallel import distributed
from kpjax.parallel.cluster import find
from kpjax.parallel.compiling import keep_compiled
from kpjax.parallel.startup import escape_unprintable, quiet_tensorflow, skip_absent_tpu

_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
)

_ABSL = ("flagfile", "undefok")  # options that absl adds
# For help by title: options, each with what stands for its value.
PROCESSES_HELP = {"several processes": ("coordinator HOST:PORT", "num-processes N", "process-id N", "peer-timeout N")}


class _ConfigFile(absl_flags.ArgumentParser):  # type: ignore[type-arg]
    """Runs a configuration file.  ml_collections' own parser puts off some errors and loses the line of others."""

    def parse(self, argument: str) -> Config:
        """A recipe's name or file, or FILE:ARGUMENT of get_config -> its configuration.

        Raises ConfigError with file and line.
        """
        path, *given = argument.split(":", 1)
        path = recipes.find(path)
        try:
            get_config = runpy.run_path(path).get("get_config")
            if get_config is None:
                raise ConfigError("it has no function get_config(); define one that returns a kpjax.config.Config")
            config = get_config(*given)
            if config is None:
                raise ConfigError("its get_config() returns nothing; end it with `return config`")
            if not isinstance(config, Config):
                raise ConfigError(f"its get_config() returns a {type(config).__name__}, not a kpjax.config.Config")
        except (Exception, SystemExit) as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            if isinstance(error, SyntaxError) and error.filename == path:
                lines, text = [error.lineno], f"{type(error).__name__}: {error.msg}"
            else:
                text = one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
            where = f"{path}, line {lines[-1]}" if lines else path
            more = "" if path.endswith(".py") else "; it has to be a Python file, as those in configs/"
            raise ConfigError(f"the --config file {where}: {text}{more}") from error
        return config


def define_config(values: absl_flags.FlagValues) -> None:
    """Add `--config FILE` and `--config.key=value`."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "a recipe's name (`kpjax recipes` lists them) or a file, e.g. coco_r18 or mine.py",
        flag_values=values,
    )
    values["config"].parser = _ConfigFile()


def define_processes(values: absl_flags.FlagValues) -> None:
    """Add --coordinator, --num-processes, --process-id and --peer-timeout."""
    absl_flags.DEFINE_string(
        "coordinator",
        None,
        "several processes: HOST:PORT on which process 0 listens (found by itself on TPU pods, Slurm, torchrun)",
        flag_values=values,
    )
    absl_flags.DEFINE_integer("num-processes", None, "several processes: how many", flag_values=values)
    absl_flags.DEFINE_integer("process-id", None, "several processes: this one's number, from 0", flag_values=values)
    absl_flags.DEFINE_integer(
        "peer-timeout",
        distributed.SILENCE_SECONDS,
        "several processes: seconds after which one that says nothing counts as gone",
        10,
        flag_values=values,
    )


def _join(argv: list[str]) -> None:
    """Connect to the other processes, if there are any, before the rest of the command line is parsed.

    An error in one process's configuration then ends the others too, which would otherwise wait for it.
    """
    values = absl_flags.FlagValues()
    values.set_gnu_getopt()  # the values of flags unknown here look like arguments: go on after them
    define_processes(values)
    try:
        values(argv, known_only=True)
    except absl_flags.Error as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    given = values.flag_values_dict()
    found = find(given["coordinator"], given["num-processes"], given["process-id"])
    if found is not None:
        distributed.start(found, given["peer-timeout"])


def read_config(values: absl_flags.FlagValues) -> Config:
    """The checked configuration that --config names.  Raises ConfigError."""
    config = values["config"].value
    if config is None:
        raise ConfigError(
            "no --config given; name a recipe (`kpjax recipes` lists them) or a file, e.g. --config shapes_r18"
        )
    return cast(Config, config).check()


def config_of(path: str, settings: Sequence[str] = ()) -> Config:
    """The checked configuration of a file, for programs that parse with argparse.  Raises ConfigError.

    settings: "--config.key=value", or the two words "--config.key" and "value".
    """
    return read_config(parse([sys.argv[0], f"--config={path}", *settings], define_config))


def recipe_as_option(argv: Sequence[str], define: Callable[[absl_flags.FlagValues], None]) -> list[str]:
    """["kpjax train", ..., "coco_r18", ...] -> ["kpjax train", "--config=coco_r18", ..., ...].

    The recipe, with --config or without, may stand anywhere, and there may be none.  Raises ConfigError where two are
    named, and for an option that does not exist, whose value would look like a recipe.
    """
    values = absl_flags.FlagValues()
    define(values)
    define_processes(values)
    found: list[str] = []
    rest: list[str] = []
    words = iter(argv[1:])
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            found.append(word)
            continue
        setting, own = name.startswith("config."), name in values
        if not (setting or own or name.removeprefix("no") in values or name in _ABSL):
            raise ConfigError(_unknown(name, values))
        followed = not equals and (setting or (own and not values[name].boolean))
        after = list(itertools.islice(words, 1)) if followed else []
        if name == "config":
            found += after or [value]
        else:
            rest += [word, *after]
    if len(found) > 1:
        raise ConfigError(
            f"unexpected argument {found[1]!r}; one recipe is named, and options are written --name value"
        )
    return [argv[0], *(f"--config={recipe}" for recipe in found), *rest]


def _unknown(name: str, values: absl_flags.FlagValues) -> str:
    return unknown_option(f"--{name}", [f"--{known}" for known in values])


def _check_config_arguments(argv: list[str]) -> None:
    # ml_collections reports a missing file or an unknown key late and in its own words: check first.
    fields = [a for a in argv if a.startswith("--config.")]
    if fields and not any(a == "--config" or a.startswith("--config=") for a in argv):
        raise ConfigError(f"{fields[0]} changes a configuration, but no --config FILE is given")
    for i, argument in enumerate(argv):
        name, _, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--"):
            continue
        if name == "config":
            path = (value or (argv[i + 1] if i + 1 < len(argv) else "")).split(":")[0]
            if path:
                recipes.find(path)
        elif name.startswith("config."):
            node: Any = Config()
            parts = name.split(".")[1:]
            for depth, part in enumerate(parts):
                if isinstance(node, dict):
                    break
                keys = [k for k in vars(node)] if hasattr(node, "__dict__") else []
                if part not in keys:
                    here = ".".join(["config", *parts[:depth]])
                    raise ConfigError(f"--{name}: {unknown_key(part, here)}")
                node = getattr(node, part)
            if dataclasses.is_dataclass(node) or (isinstance(node, dict) and len(parts) < 3):
                raise ConfigError(f"--{name} is a group of settings; give one of them, as --{name}.KEY=VALUE")


def parse(argv: list[str], define: Callable[[absl_flags.FlagValues], None]) -> absl_flags.FlagValues:
    """Parse argv[1:] with the flags that `define` adds.  Raises ConfigError with one line."""
    before, sys.argv = sys.argv, argv  # ml_collections looks there for the keys to define
    try:
        return _parse(argv, define)
    finally:
        sys.argv = before


def _parse(argv: list[str], define: Callable[[absl_flags.FlagValues], None]) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    define(values)
    define_processes(values)
    absl_flags.DEFINE_boolean("help", False, "show the flags and exit", flag_values=values, short_name="h")
    _check_config_arguments(argv[1:])
    try:
        rest = values(argv)
    except absl_flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown(error.flagname, values)) from error
    except absl_flags.Error as error:
        ours = [one for one in origins(error) if isinstance(one, ConfigError)]  # absl puts its own words before it
        raise (ours[0] if ours else ConfigError(str(error).splitlines()[0])) from error
    except KeyError as error:
        raise ConfigError(f"config.model.options has no {error} in the --config file; set it there first") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"a --config.key=value cannot be used: {one_line(error)}") from error
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags are written --name value")
    return values


def run(
    main: Callable[[absl_flags.FlagValues], int | None],
    define: Callable[[absl_flags.FlagValues], None],
) -> None:
    """Parse the command line, call main, exit.  A user's mistake prints one line and exits with 2."""
    sys.exit(call(main, define, sys.argv))


def call(
    main: Callable[[absl_flags.FlagValues], int | None],
    define: Callable[[absl_flags.FlagValues], None],
    argv: list[str],
) -> int:
    """Parse argv[1:] and call main; returns the exit code, 2 after one line about a user's mistake."""

    def parsed() -> int | None:
        if not {"--help", "-h"} & set(argv):
            _join(argv)
        values = parse(argv, define)
        if values["help"].value:
            print((sys.modules["__main__"].__doc__ or "").strip() + "\n\nflags:")
            print(values.get_help(include_special_flags=False))
            return 0
        return main(values)

    return guarded(parsed)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block of imports of seconds in a program that has begun: Ctrl-C ends it at once, see `leaving_at_once`.

    Nothing changes where other processes have to be told.
    """
    with contextlib.nullcontext() if distributed.active() else leaving_at_once():
        yield


def guarded(program: Callable[[], int | None]) -> int:
    """Call the program and return its exit code.  An error that the user can fix prints one line and gives 2.

    One of several processes (kpjax.parallel.distributed) ends the others with it, and does not return.
    """
    code = 2
    try:
        escape_unprintable()
        quiet_tensorflow()
        skip_absent_tpu()
        keep_compiled()
        with getting_through():
            ended = program() or 0
        distributed.finish()
        return ended
    except KeyboardInterrupt:
        text, code = "stopped", 130
    except Exception as error:
        found = _mistake(error)
        if is_interrupt(error):
            text, code = "stopped", 130
        elif found is None:
            if distributed.active():
                distributed.fail_with(error)
            raise
        else:
            text = found
    text = on_one_line(text)
    if distributed.active():
        distributed.fail(text, code)
    print("stopped" if code == 130 else f"error: {text}", file=sys.stderr)
    return code


def on_one_line(text: str) -> str:
    """A message with its ends of lines escaped: a file's name may hold them."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C was the reason of an error, as of the ImportError of an extension module that imports others."""
    return any(isinstance(one, KeyboardInterrupt) for one in origins(error))


def _mistake(error: Exception) -> str | None:
    """An error that the user can fix, as one line; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        # A full disk, a file without permission, a folder of its name: the user can fix these.  Others are bugs.
        return f"{error.filename or 'writing'}: {os.strerror(error.errno)}"
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):  # JAX's JaxRuntimeError is one
        return (
            f"the device's memory is too small ({str(error).splitlines()[0][:200]}); lower config.batch "
            "(in evaluation: --batch), raise config.optim.accumulate, or set config.model.remat=true"
        )
    return None
