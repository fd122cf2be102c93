"""The README's program runs as it is printed, and the files it names are there."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import kpjax
from kpjax.__main__ import main
from kpjax.checkpoint.weights import save_inference
from tests.convert import released
from tests.convert import torch_bytes as tb

REPOSITORY = pathlib.Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def test_the_parts_from_other_jax_code() -> None:
    block = README.split("## The parts, from other JAX code")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
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
    snippets = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import orbax" in b or "v1" in b]
    assert len(snippets) == 2 and "v1 as ocp" in snippets[0] and "import orbax.checkpoint as ocp" in snippets[1]
    for number, snippet in enumerate(snippets):
        (tmp_path / f"snippet{number}.py").write_text(snippet)
    imported, state = tmp_path / "runs" / "imported", released.arrays("centernet_r18", 3, **SMALL)
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


def test_models_are_listed() -> None:
    table = README.split("## Models")[1]
    written = set(re.findall(r"`((?:centernet|cornernet|triplet)_\w+)`|`(_r\d+)`", table))
    named = {full or f"centernet{short}" for full, short in written}
    assert set(kpjax.list_models()) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configs_exist(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    # the code that a page names, too
    missing += [name for name in re.findall(r"configs/\w+\.py", text) if not (REPOSITORY / name).exists()]
    missing += [
        name
        for name in re.findall(r"`((?:kpjax|tests|benchmarks)/[\w/]+\.py)`", text)
        if not (REPOSITORY / name).exists()
    ]
    assert not missing
