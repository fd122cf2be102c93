"""The wheel works away from the checkout, on a machine without TensorFlow: as a library, and as the command `kpjax`."""

from __future__ import annotations

import email
import json
import pathlib
import subprocess
import sys
import zipfile

import pytest

from tests.programs import environment

ROOT = pathlib.Path(__file__).parents[1]

# What a user's own program does with the installed package; None in sys.modules makes an import fail.
PROGRAM = """
import json, os, sys
for name in ("tensorflow", "tensorflow_datasets", "torch"):
    sys.modules[name] = None
import jax, numpy as np
import kpjax

detector = kpjax.build("centernet_r18", num_classes=3, width=8, deconv=(8,), head_channels=8)
variables = jax.jit(detector.net.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
predictor = kpjax.Predictor(detector, variables, names=("a", "b", "c"))
found = predictor(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))
assert found.boxes.shape == (len(found), 4) and np.isfinite(found.boxes).all()
print(json.dumps({
    "file": kpjax.__file__,
    "models": kpjax.list_models(),
    "found": len(found),
    "labels": sorted(set(found.labels.tolist())),
    "names": found.names,
    "loaded": sorted(name for name in ("tensorflow", "torch", "pycocotools") if sys.modules.get(name)),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("kpjax-*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which the wheel is installed, with its console script in bin."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder


def run_in(site: pathlib.Path, folder: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
    own = {**environment(), "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=300)


def test_it_holds_the_package_and_its_licences_alone(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        header = email.message_from_bytes(archive.read(metadata))
    info = metadata.removesuffix("METADATA")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "kpjax").rglob("*.py")}
    recipes = {f"kpjax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert recipes == {n for n in names if n.startswith("kpjax/configs/")} and len(recipes) > 25
    assert modules and modules <= names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "kpjax/show/templates").iterdir()}
    assert len(templates) == 3 and templates <= names
    assert {n for n in names if not n.startswith(("kpjax/", info))} == set()
    assert {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= names
    assert header["Name"] == "kpjax" and header["License-Expression"] == "Apache-2.0"
    extras = {"cuda", "cuda12", "cuda13", "onnx", "plan", "tpu", "torch", "test"}
    assert set(header.get_all("Provides-Extra") or ()) == extras


def test_it_lists_builds_and_predicts_without_tensorflow(site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = run_in(site, tmp_path, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert pathlib.Path(result["file"]).is_relative_to(site)  # not the checkout
    assert "centernet_r18" in result["models"]
    assert 0 < result["found"] <= 100
    assert set(result["labels"]) <= {0, 1, 2} and result["names"] == ["a", "b", "c"]
    assert result["loaded"] == []


@pytest.mark.parametrize("module", [False, True], ids=["console script", "python -m kpjax"])
def test_the_command(module: bool, site: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Recipes by name, one that starts from another among them; help, the version and exit codes."""
    kpjax = (sys.executable, "-m", "kpjax") if module else (str(site / "bin" / "kpjax"),)
    helped = run_in(site, tmp_path, *kpjax, "--help")
    assert (helped.returncode, helped.stderr) == (0, "") and helped.stdout.startswith("usage: kpjax COMMAND")
    assert run_in(site, tmp_path, *kpjax, "--version").stdout == "kpjax 0.1.0\n"
    listed = run_in(site, tmp_path, *kpjax, "recipes")
    assert listed.returncode == 0 and "coco_dla34_2x" in listed.stdout, listed.stderr
    shown = run_in(site, tmp_path, *kpjax, "recipes", "coco_dla34_2x")
    (path,) = (pathlib.Path(line.rsplit(": ", 1)[1]) for line in shown.stdout.splitlines() if "to copy" in line)
    assert path == site / "kpjax" / "configs" / "coco_dla34_2x.py" and path.is_file()
    # it reads the recipe, and finds no COCO here
    train = run_in(site, tmp_path, *kpjax, "train", "coco_dla34_2x", "--workdir", "w")
    assert (train.returncode, train.stdout) == (2, "") and train.stderr.count("\n") == 1
    assert train.stderr.startswith("error: data/coco/annotations/instances_train2017.json: cannot be read")
    wrong = run_in(site, tmp_path, *kpjax, "eval", "--config", "coco_dla43_2x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: --config coco_dla43_2x: no such file or recipe; did you mean coco_dla34_2x?\n"
    assert list(tmp_path.iterdir()) == []
