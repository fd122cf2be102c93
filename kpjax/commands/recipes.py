"""`kpjax recipes`: list the recipes with their data, hardware and published AP, or show one."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import pathlib
import re

from kpjax import recipes
from kpjax.config import Config, recipe

EXAMPLES = ("kpjax recipes", "kpjax recipes coco_r18")
OWN = "on data of your own, which --config.data.train.images and its like name"


@dataclasses.dataclass(frozen=True)
class Row:
    """What the list says of a recipe, from its configuration and the text of its file.

    data: title of the group.  hardware: that its authors, or we, trained on; "" where the text names none.
    published: the AP of the paper or the model zoo, with its split; "" where there is none.  what: a sentence on it.
    """

    data: str
    name: str
    model: str
    size: str
    batch: str
    schedule: str
    hardware: str
    published: str
    what: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "List the recipes that `kpjax train NAME` trains by; with NAME, show what its file says."
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this recipe, with its whole description")


def run(args: argparse.Namespace) -> int:
    """Print the list or the description.  Raises ConfigError on a name that is none."""
    if args.name:
        path = recipes.named(args.name)
        print(f"{as_commands(description(path), args.name)}\n\nThe file, to copy and to change: {path}")
        return 0
    rows = [row(name) for name in recipes.names()]
    cells = {one: [cell or "-" for cell in dataclasses.astuple(one)] for one in rows}
    named = {"hardware": "trained on", "published": "published AP", "what": "what it is"}
    titles = [named.get(field.name, field.name) for field in dataclasses.fields(Row)]
    widths = [max(map(len, column)) for column in zip(titles, *cells.values(), strict=True)]
    for data in dict.fromkeys(one.data for one in sorted(rows, key=lambda one: one.data == OWN)):
        group = [one for one in rows if one.data == data]
        last = titles.index("published AP" if any(one.published for one in group) else "what it is")
        print(f"{data}:")
        for line in (titles, *(cells[one] for one in group)):
            print("  " + "  ".join(map(str.ljust, line[1:7], widths[1:])) + f"  {line[last]}")
        print()
    print("`kpjax recipes NAME` says more, `kpjax train NAME --workdir DIR` trains; any setting can be changed.")
    return 0


def row(name: str) -> Row:
    """What the list says of a recipe."""
    config, text = recipe(name).check(), " ".join(description(recipes.named(name)).split())
    hardware = re.search(r"\d+ GPUs(?: of \d+ GB)?|(?:one|two) CPU cores?", text, re.IGNORECASE)
    return Row(
        data_of(config),
        name,
        config.model.name,
        f"{config.augment.height}x{config.augment.width}",
        str(config.batch),
        f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs",
        hardware[0].lower().replace("gpu", "GPU").replace("cpu", "CPU").replace("gb", "GB") if hardware else "",
        published(text),
        text.split(". ")[0].removesuffix("."),
    )


def data_of(config: Config) -> str:
    """What the recipe trains on."""
    if config.data.source == "kitti":
        return f"on KITTI in {config.data.kitti_dir}"
    if not config.data.train.annotations:
        return OWN
    people = "people's keypoints of " if "person_keypoints" in config.data.train.annotations else ""
    return f"on {people}COCO 2017 in {pathlib.Path(config.data.train.images).parent}"


def published(text: str) -> str:
    """The first figures of a sentence "Published on SPLIT: AP ...", as "AP ... (SPLIT)"; "" where there is none."""
    found = re.search(r"Published (?:on |for )([^:]*): ([^;]*?)(?:;|\. |\.$)", text)
    if found is None:
        return ""
    split, figures = (re.sub(r" [(][^)]*[)]", "", part) for part in found.groups())
    return f"{figures.removeprefix('AP ')} ({split})"


def description(path: pathlib.Path) -> str:
    """The text at the beginning of a recipe's file."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def as_commands(text: str, name: str) -> str:
    """The text with the commands that an installed kpjax has in place of a checkout's programs."""
    text = text.replace(f"python train.py --config configs/{name}.py", f"kpjax train {name}")
    return text.replace("python -m kpjax", "kpjax")
