"""The wheel works away from the checkout, on a machine without TensorFlow."""

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


def test_it_holds_the_package_and_its_licences_alone(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        header = email.message_from_bytes(archive.read(metadata))
    info = metadata.removesuffix("METADATA")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "kpjax").rglob("*.py")}
    assert modules and modules <= names
    assert {n for n in names if not n.startswith(("kpjax/", info))} == set()
    assert {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= names
    assert header["Name"] == "kpjax" and header["License-Expression"] == "Apache-2.0"
    assert set(header.get_all("Provides-Extra") or ()) == {"cuda", "onnx", "plan", "tpu", "torch", "test"}


def test_it_lists_builds_and_predicts_without_tensorflow(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    own = {**environment(), "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert pathlib.Path(result["file"]).is_relative_to(site)  # not the checkout
    assert "centernet_r18" in result["models"]
    assert 0 < result["found"] <= 100
    assert set(result["labels"]) <= {0, 1, 2} and result["names"] == ["a", "b", "c"]
    assert result["loaded"] == []
