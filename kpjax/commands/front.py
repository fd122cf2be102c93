"""Which commands does `kpjax` have, and what does a command line ask of them?"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from kpjax.commands.arguments import Parser
from kpjax.commands.interrupt import getting_through
from kpjax.errors import ConfigError, UserError, did_you_mean, origins
from kpjax.parallel.startup import escape_unprintable, quiet_tensorflow, skip_absent_tpu


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    title: of the group that it stands in.
    module: has add_arguments(parser) and run(args) -> exit code, and two EXAMPLES; train and eval, which configurations
        are for, have define(values) and main(values) -> exit code instead (kpjax.commands.flags).
    what: it does, as --help says.
    """

    title: str
    module: str
    what: str


# A module is imported only when its command is called.
COMMANDS: dict[str, Command] = {
    "train": Command("train and use", "kpjax.commands.train", "train a detector by a recipe, or on a folder (--data)"),
    "eval": Command("train and use", "kpjax.commands.evaluate", "measure a detector: AP, pictures, curves"),
    "detect": Command("train and use", "kpjax.commands.detect", "find objects in images and videos"),
    "report": Command(
        "train and use", "kpjax.commands.report", "write a page about a run: curves, errors, what to try"
    ),
    "recipes": Command("train and use", "kpjax.commands.recipes", "list the recipes, or show one"),
    "check-data": Command("data", "kpjax.commands.check_data", "read a data set as training would, report oddities"),
    "download": Command("data", "kpjax.commands.download", "fetch COCO, or list the released checkpoints"),
    "records": Command("data", "kpjax.commands.records", "write a COCO folder as sharded records"),
    "shapes": Command("data", "kpjax.commands.shapes", "write a data set of drawn shapes or figures"),
    "voc": Command("data", "kpjax.commands.voc", "convert Pascal VOC annotations to COCO JSON"),
    "yolo": Command("data", "kpjax.commands.yolo", "convert YOLO labels to COCO JSON"),
    "convert": Command("models", "kpjax.commands.convert", "turn a released PyTorch checkpoint into one of kpjax"),
    "export": Command("models", "kpjax.commands.export", "write a detector as StableHLO, ONNX or for TensorFlow"),
    "plan": Command("models", "kpjax.commands.plan", "memory and time of a step on TPUs or GPUs that are not here"),
}
FOLDER = "kpjax.commands.train_folder"  # `kpjax train --data FOLDER`
EXAMPLES = (
    "kpjax train coco_r18 --workdir runs/coco",
    "kpjax detect --checkpoint runs/coco --out found photo.jpg",
)


def overview() -> str:
    """What `kpjax --help` prints."""
    lines = ["usage: kpjax COMMAND ...", "", "Keypoint object detection in JAX."]
    for title in dict.fromkeys(command.title for command in COMMANDS.values()):
        lines += ["", f"{title}:"]
        lines += [f"  {name:11s} {command.what}" for name, command in COMMANDS.items() if command.title == title]
    lines += [
        "",
        "`kpjax COMMAND --help` lists a command's options, `kpjax --version` says the version.",
        "",
        "examples:",
    ]
    return "\n".join([*lines, *(f"  {example}" for example in EXAMPLES)])


def read(argv: Sequence[str], version: str) -> Callable[[], int]:
    """The program that the command line asks for, with its arguments, imported but not begun.

    Raises SystemExit: 0 after help or the version, 2 after one line about a mistake.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if name == "--version":
        print(f"kpjax {version}")
        sys.exit(0)
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        near = did_you_mean(name, ("--help", "--version") if what == "option" else COMMANDS)
        _refuse(f"there is no {what} {name}{near or '; `kpjax --help` lists the commands'}")
    escape_unprintable()
    quiet_tensorflow()
    skip_absent_tpu()
    words = list(argv[1:])
    module = COMMANDS[name].module
    if name == "train" and any(word == "--data" or word.startswith("--data=") for word in words):
        module = FOLDER
    try:
        chosen = program(name, importlib.import_module(module), words)
        if module == FOLDER:  # which trains: a device's full memory, for one, is said as `kpjax train` says it
            from kpjax.commands.flags import guarded

            return functools.partial(guarded, chosen)
        return chosen
    except UserError as error:
        _refuse(str(error))


def program(name: str, module: ModuleType, words: list[str]) -> Callable[[], int]:
    """The program of a command's module, with the arguments that the words are.  Raises UserError or SystemExit."""
    if hasattr(module, "define"):
        from kpjax.commands import flags

        if {"-h", "--help"} & set(words):
            print(help_of_flags(module), end="")
            sys.exit(0)
        argv = flags.recipe_as_option([f"kpjax {name}", *words], module.define)
        return functools.partial(flags.call, module.main, module.define, argv)
    parser = Parser(prog=f"kpjax {name}", examples=getattr(module, "EXAMPLES", ()))
    module.add_arguments(parser)
    args, rest = parser.parse_known_args(words)
    # Settings of a configuration belong to the command; anything else unknown is a mistake.
    if rest and not (hasattr(args, "config") and all_settings(rest)):
        raise ConfigError(f"unexpected argument {next(word for word in rest if not all_settings([word]))!r}")
    args.settings = rest
    return functools.partial(module.run, args)


def all_settings(arguments: Sequence[str]) -> bool:
    """Whether each is --config.key=value, or --config.key followed by its value."""
    waiting = False
    for argument in arguments:
        if argument.startswith("--config."):
            waiting = "=" not in argument
        elif waiting:
            waiting = False
        else:
            return False
    return True


def help_of_flags(module: ModuleType) -> str:
    """--help of a command with settings, from its flags."""
    from absl import flags as absl_flags

    from kpjax.commands import flags

    values = absl_flags.FlagValues()
    module.define(values)
    flags.define_processes(values)
    parser = Parser(usage=module.USAGE, description=module.DESCRIPTION, examples=module.EXAMPLES, add_help=False)
    for title, options in module.HELP.items():
        group = parser.add_argument_group(title)
        for option in options:
            name, _, value = option.partition(" ")
            flag = values[name]
            kinds = getattr(flag.parser, "enum_values", ())
            text = flag.help.removeprefix(f"<{'|'.join(kinds)}>: ").removeprefix(f"{title}: ")
            if flag.boolean and flag.default:
                group.add_argument(f"--no{name}", action="store_true", help=f"do not {text}")
            elif flag.boolean:
                group.add_argument(f"--{name}", action="store_true", help=text)
            else:
                group.add_argument(f"--{name}", metavar=value or "{" + ",".join(kinds) + "}", help=text)
        if "config RECIPE" in options:
            group.add_argument("--config.KEY=VALUE", metavar="", help="change any field of kpjax/config.py")
    return parser.format_help()


def call(program: Callable[[], int]) -> int:
    """Run it; returns its exit code, or 2 after one line about what the user can fix."""
    try:
        with getting_through():
            code = program()
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it flushes
        return 1
    except (UserError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            # a write to a full disk fails without a name
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            place = error.filename or (_output_of(program) if full else None)
            text = f"{place}: {error.strerror}" if place else text
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    except BaseException as error:
        if any(isinstance(one, KeyboardInterrupt) for one in origins(error)):
            print("stopped", file=sys.stderr)
            return 130
        raise


def _output_of(program: Callable[[], int]) -> str | None:
    """What a command's --out says."""
    arguments = getattr(program, "args", ())
    return getattr(arguments[0], "out", None) if arguments else None


def _refuse(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
