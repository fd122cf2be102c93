"""How does a configuration become a file that a person can read, edit and train with?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kpjax.config import Config


def config_text(config: Config, about: str, reasons: Mapping[str, str]) -> str:
    """The text of a Python file whose get_config() returns `config`.

    about: the file's docstring.  reasons: "optim.lr" -> a comment for its line.  Settings that are Config's own stay
    out, unless there is a reason for them.
    """
    lines: list[str] = []
    _settings(config, Config(), "", reasons, lines)
    about = about.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    begin = (
        f'"""{about}"""\n\nfrom kpjax.config import Config\n\n\ndef get_config() -> Config:\n    config = Config()\n'
    )
    return begin + "".join(f"    {line}\n" for line in [*lines, "return config"])


def _settings(group: Any, usual: Any, path: str, reasons: Mapping[str, str], lines: list[str]) -> None:
    for field in dataclasses.fields(group):
        value, key = getattr(group, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            _settings(value, getattr(usual, field.name), f"{key}.", reasons, lines)
        elif value != getattr(usual, field.name) or key in reasons:
            reason = f"  # {reasons[key]}" if key in reasons else ""
            lines.append(f"config.{key} = {value!r}{reason}")
