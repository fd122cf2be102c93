"""Where are the recipes, the files of configs/, and which of them does a name mean?"""

from __future__ import annotations

import os
import pathlib

from kpjax.errors import ConfigError, did_you_mean


def folder() -> pathlib.Path:
    """The folder of the recipes: kpjax/configs of an installed wheel, configs of a checkout."""
    here = pathlib.Path(__file__).parent
    installed = here / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


def names() -> list[str]:
    """The names of all recipes, sorted: "coco_r18" is configs/coco_r18.py."""
    return sorted(path.stem for path in folder().glob("*.py"))


def named(name: str) -> pathlib.Path:
    """The file of the recipe of this name.  Raises ConfigError where there is none, with the nearest name."""
    if name not in names():
        raise ConfigError(f"there is no recipe {name!r}{_near(name)}")
    return folder() / f"{name}.py"


def find(given: str) -> str:
    """The file that `--config` names: a path, as it was given, or else a recipe's name.  Raises ConfigError."""
    if os.path.isfile(given):
        return given
    if given in names():
        return str(named(given))
    raise ConfigError(f"--config {given}: no such file or recipe{_near(pathlib.Path(given).stem)}")


def _near(name: str) -> str:
    return did_you_mean(name, names()) or "; `kpjax recipes` lists the recipes"
