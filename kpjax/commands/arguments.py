"""Command lines that argparse reads: a mistake is one line that names the nearest option, help ends with examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from kpjax.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's parser, with other errors and help.

    examples: command lines that --help ends with.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = tuple(examples)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a misspelt option is named before an option that is missing, perhaps because of it."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        if {"-h", "--help"} & set(options):  # `--help` may stand where a value is missing
            self.print_help()
            self.exit()
        for word in options:
            name = word.partition("=")[0]
            setting = name.startswith("--config.") and "--config" in self._option_string_actions
            if (
                name.startswith("--")
                and not setting
                and not any(o.startswith(name) for o in self._option_string_actions)
            ):
                self.error(unknown_option(name, self._option_string_actions))
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        self.exit(2, f"error: {' '.join(message.split())}\n")

    def format_help(self) -> str:
        """argparse's text and the examples."""
        if not self.examples:
            return super().format_help()
        return super().format_help() + "\nexamples:\n" + "".join(f"  {line}\n" for line in self.examples)


def unknown_option(name: str, options: Iterable[str]) -> str:
    """What is wrong with an option `--name` that is not among `options`, with the nearest of them."""
    name, dot, key = name.partition(".")  # --confg.batch: --config.batch
    near = did_you_mean(name[2:], [option[2:] for option in options if option.startswith("--")])
    near = near.replace("mean ", "mean --").replace("?", f"{dot}{key}?")
    return f"unknown option {name}{dot}{key}{near or '; --help lists all'}"
