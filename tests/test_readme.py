"""The README's programs run as they are printed, its commands parse, and the files it names are there."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint.weights import save_inference
from kpjax.commands import detect, evaluate, flags, train
from kpjax.commands.front import COMMANDS, FOLDER, all_settings
from kpjax.commands.released import RELEASED
from kpjax.config import Config, flat
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.detectors import from_config
from kpjax.detectors.ttf_config import TTFConfig
from kpjax.errors import ConfigError
from tests.convert import released
from tests.convert import torch_bytes as tb
from tests.golden import cases

REPOSITORY = pathlib.Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MODELS = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```\n", text, re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str = "") -> list[str]:
    return [content for found, content in fences(text) if found == language]


def test_order_and_length() -> None:
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert titles == [
        "Two commands",
        "Detect with a released checkpoint",
        "Train on your own images",
        "Evaluate",
        "Train on COCO",
        "Hand a model over",
        "GPUs and TPUs",
        "Many hosts",
        "Parts for other JAX code",
        "Models",
    ]
    lines = README.splitlines()
    assert len(lines) <= 250 and max(map(len, lines)) <= 120
    assert len((REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()) <= 150


# ----------------------------------------------------------------------------------------------- commands


def fenced_commands(text: str) -> list[str]:
    """Every `python ...` or `kpjax ...` line of the blocks without a language, also where gcloud or Slurm starts it."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if inside := re.match(
                r"gcloud .*((?:python|kpjax) [^\"]*)\"$|srun .*?((?:python|kpjax) .*)$|((?:python|kpjax) .*)$", line
            ):
                found.append("".join(filter(None, inside.groups())).split("  #")[0].removesuffix(" &"))
    return [command for command in found if not command.startswith(("python - ", "python exported/"))]


class InSentence(argparse.ArgumentParser):
    """A parser that requires nothing: a sentence leaves out what it is not about."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        if names[0].startswith("-"):
            options.pop("required", None)
        else:
            options.setdefault("nargs", "?")
        return super().add_argument(*names, **options)


WITH_FLAGS = {"train.py": train, "eval.py": evaluate, "train": train, "eval": evaluate}


def parse(command: str, complete: bool) -> None:
    """Parse it with the program's own parser.  complete: what the program requires has to be there."""
    program, *argv = shlex.split(command)
    if argv[0].startswith("benchmarks/"):
        text = (REPOSITORY / argv[0]).read_text(encoding="utf-8")
        flags_used = [a.split("=")[0] for a in argv[1:] if a.startswith("--") and not a.startswith("--config.")]
        assert all(f'"{flag}"' in text for flag in flags_used), command
        return
    if program == "kpjax":
        assert argv and (argv[0] in (*COMMANDS, "COMMAND") or argv[0].startswith("--")), command
        if argv[0].startswith("--") or {"--help", "COMMAND"} & set(argv):
            return
        argv = ["-m", "kpjax", *argv]
    folder = argv[:3] == ["-m", "kpjax", "train"] and "--data" in argv
    if argv[:2] == ["-m", "kpjax"] and argv[2] in WITH_FLAGS and not folder:
        argv = flags.recipe_as_option(argv[2:], WITH_FLAGS[argv[2]].define)
    if argv[0] in WITH_FLAGS:
        values = flags.parse(argv, WITH_FLAGS[argv[0]].define)
        if values["config"].present:
            flags.read_config(values)
        return
    if argv[0] == "detect.py":
        detect.arguments(argv[1:])
        return
    if argv == ["plates.py"]:  # docs/data.md's own script, which test_points_of_ones_own runs
        return
    assert argv[:2] == ["-m", "kpjax"], command
    parser = argparse.ArgumentParser() if complete else InSentence()
    importlib.import_module(FOLDER if folder else COMMANDS[argv[2]].module).add_arguments(parser)
    args, rest = parser.parse_known_args(argv[3:])
    assert all_settings(rest), f"{command}: {rest}"
    if getattr(args, "config", None):
        batch = [f"--config.batch={args.batch}"] if getattr(args, "batch", 0) else []  # of plan
        flags.config_of(args.config, [*rest, *batch])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in blocks with all they need; those in a sentence may leave out what the sentence is not about."""
    text = page.read_text(encoding="utf-8")
    recipe = (REPOSITORY / "configs" / "bccd_r18.py").read_text(encoding="utf-8")
    lines = next(block for block in blocks(README, "python") if block.startswith("    config.data."))
    mine = tmp_path / "mine.py"  # as the README makes it
    mine.write_text(recipe.replace("    return config", lines + "    return config"))
    monkeypatch.chdir(REPOSITORY)
    in_blocks = fenced_commands(text)
    in_sentences = re.findall(
        r"`((?:python|kpjax) [^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    for command in (*in_blocks, *in_sentences):
        parse(" ".join(command.split()).replace("mine.py", str(mine)), command in in_blocks)
    assert in_blocks or page.name in ("architecture.md",)


def test_lines_of_the_command_are_found_and_read() -> None:
    text = (
        "```\nkpjax train coco_r18 --workdir w \\\n    --config.batch=8\nsrun -n 2 kpjax plan --topology v5e:2x2\n```\n"
    )
    found = [" ".join(command.split()) for command in fenced_commands(text)]
    assert found == ["kpjax train coco_r18 --workdir w --config.batch=8", "kpjax plan --topology v5e:2x2"]
    for command in (found[0], "kpjax eval --workdir w", "kpjax recipes", "kpjax COMMAND --help", "kpjax --version"):
        parse(command, complete=True)
    for wrong in ("kpjax train coco_r81 --workdir w", "kpjax eval --wokdir w", "kpjax detekt x", found[1]):
        with pytest.raises((ConfigError, AssertionError, SystemExit)):
            parse(wrong, complete=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    groups = "|".join(field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type))
    named = set(re.findall(r"--config\.([a-z_]\w*(?:\.\w+)*)", text))
    named |= set(re.findall(rf"`(?:config\.)?((?:{groups})\.[\w.]*\w)[`=]", text))
    known = {"key", "model.options", "data.train", "data.val"} | {key.removeprefix("config.") for key in flat(Config())}
    known |= {f"model.options.{field.name}" for field in dataclasses.fields(TTFConfig)}
    assert {name for name in named if not name.endswith((".py", ".yaml"))} <= known


def test_a_released_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is that of `download --list` for the model that is converted; the Python block runs."""
    section = README.split("## Detect with a released checkpoint")[1].split("\n## ")[0]
    block = blocks(section)[0]
    site, file = re.findall(r"^site=(.*)$", block, re.MULTILINE)[0], re.findall(r" \$site(/\S+)", block)[0]
    model = re.findall(r"--model (\S+)", block)[0]
    assert (model, site + file) in [(entry.model, entry.source) for entry in RELEASED]
    program = blocks(section, "python")[0]
    assert f'kpjax.build("{model}", num_classes=80)' in program
    monkeypatch.chdir(tmp_path)
    tb.save(tmp_path / "r18.pth", released.arrays(model, 80), wrapper="state_dict")
    Image.new("RGB", (64, 48), "gray").save("photo.jpg")
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    assert names["found"].boxes.shape == (len(names["found"]), 4) and os.path.isdir("runs/r18")


# ------------------------------------------------------------------------------------------------- programs


def test_the_parts_for_other_jax_code() -> None:
    block = README.split("## Parts for other JAX code")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 11
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["found"].boxes.shape == (1, 10, 4)
    assert float(names["loss"]) > 0 and set(names["parts"]) == {"heatmap", "wh", "offset"}


SMALL = released.SMALL["centernet_r18"]
READ = """
import sys, numpy
sys.modules["kpjax"] = None  # an import of it fails
try:
    import kpjax
except ImportError:
    pass
else:
    raise SystemExit("kpjax can be imported")
import jax
assert jax.device_count() == 1
for number in (0, 1):
    names = {}
    with open(f"snippet{number}.py") as file:
        exec(compile(file.read(), file.name, "exec"), names)
    leaves = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(names["variables"])}
    assert all(type(leaf) is numpy.ndarray for leaf in leaves.values())
    numpy.savez(f"read{number}.npz", **leaves)
    assert names["info"]["classes"] == ["cat", "dog", "cow"]
"""


@pytest.mark.parametrize("written", ["convert", "eight devices"])
def test_checkpoints_are_read_without_kpjax(
    written: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """The two snippets as they are printed, in a process in which kpjax cannot be imported."""
    snippets = [block for page in (README, MODELS) for block in blocks(page, "python") if "orbax" in block]
    assert len(snippets) == 2 and "v1 as ocp" in snippets[0] and "import orbax.checkpoint as ocp" in snippets[1]
    for number, snippet in enumerate(snippets):
        (tmp_path / f"snippet{number}.py").write_text(snippet)
    imported, state = tmp_path / "runs" / "mine" / "model", released.arrays("centernet_r18", 3, **SMALL)
    detector = kpjax.build("centernet_r18", 3, **SMALL)
    variables = kpjax.import_torch(detector, state)
    if written == "convert":
        tb.save(tmp_path / "file.pth", state, wrapper="state_dict")
        (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
        command = ["convert", str(tmp_path / "file.pth"), "--model", "centernet_r18", "--out", str(imported)]
        command += ["--names", str(tmp_path / "names.txt"), "--option", "width=8", "--option", "deconv=8,8,8"]
        assert main([*command, "--option", "head_channels=8"]) == 0, capsys.readouterr().err
    else:  # training on many devices, reading on one
        mesh = Mesh(np.array(jax.devices()), ("data",))
        assert mesh.size > 1
        divided = jax.tree.map(
            lambda x: NamedSharding(mesh, PartitionSpec("data" if x.shape[0] % mesh.size == 0 else None)), variables
        )
        save_inference(str(imported), detector, jax.device_put(variables, divided), ("cat", "dog", "cow"))
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(variables)}
    for number in (0, 1):
        with np.load(tmp_path / f"read{number}.npz") as found:
            assert set(found.files) == set(wanted)
            assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    given = json.loads((imported / "config.json").read_text())["input"]
    assert (given["order"], given["layout"], given["stride"], given["sides"]) == ("BGR", "NHWC", 4, "multiples of 32")
    assert given["mean"] == [0.40789654, 0.44719302, 0.47026115] and given["std"][0] == 0.28863828
    assert given["normalisation"].startswith("(pixel / 255 - mean) / std") and given["border"] == "black"
    assert given["canvas"].startswith("(side | 31) + 1 pixels") and given["centred"] is True


def test_points_of_ones_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/data.md's plates: what its script writes can be trained on as it is."""
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    (script,) = [block for block in blocks(page, "python") if "plates.json" in block]
    (command,) = [c for c in fenced_commands(page) if "plates.json" in c]
    monkeypatch.chdir(REPOSITORY)
    config = flags.read_config(flags.parse(shlex.split(command)[1:], train.define))
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "plates.py", "exec"), {})
    data = config.data
    source = open_source(data, "train", keypoints=True)
    assert from_config(config, len(source.classes), source.points).points == source.points
    assert source.points is not None and source.points.mirror == (1, 0, 3, 2)
    assert len(source) == 200 and not source.dropped
    for objects in source.objects:  # the corners touch all four sides of their box
        low, high = objects.points[0].min(0), objects.points[0].max(0)
        assert abs(objects.boxes[0] - [*low, *high]).max() < 1e-3
    batch = next(memory_batches(source, data, batch=2, seed=0))
    assert batch["objects"].points.shape == (2, data.max_boxes, 4, 2)


def test_models_are_listed() -> None:
    for text in (README.split("## Models")[1], MODELS):
        named = set(re.findall(r"`((?:centernet|cornernet|triplet|ttfnet|extremenet)_\w+)`", text))
        assert set(kpjax.list_models()) <= named


def test_golden_cases_that_models_name_are_tested() -> None:
    kinds = "|".join({kind.split("_")[0] for kind in cases.KINDS})
    named = set(re.findall(rf"`((?:{kinds})_[\w*]+)`", MODELS)) - set(kpjax.list_models())
    tested = [kind for kind, reason in cases.KINDS.items() if reason == cases.TESTED]
    assert len(named) > 30
    assert not {name for name in named if not fnmatch.filter(tested, name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configs_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    for target, title in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        other = (page.parent / target if target else page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)$", other, re.MULTILINE)
        missing += [title] * (title not in {re.sub(r"[^\w\- ]", "", t).lower().replace(" ", "-") for t in titles})
    # the code that a page names, too
    missing += [name for name in re.findall(r"configs/\w+\.py", text) if not (REPOSITORY / name).exists()]
    missing += [
        name
        for name in re.findall(r"`((?:kpjax|tests|benchmarks)/[\w/]+\.py)`", text)
        if not (REPOSITORY / name).exists()
    ]
    assert not missing
