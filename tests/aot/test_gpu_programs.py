"""The programs of five models, compiled whole for a GPU: nothing in them is of a form that is known to run badly.

For machines with XLA's compiler for CUDA, which KPJAX_CUDA_LIBRARY names (README.md, GPUs and TPUs).
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from kpjax.aot import gpu
from kpjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ("coco_r18", "coco_dla34_1x", "centernet_hg104", "cornernet_hg104", "triplet_hg104")


@pytest.fixture(scope="module")
def library() -> str:
    try:
        return gpu.find_cuda_library()
    except UserError as error:
        pytest.skip(str(error))


def plan(library: str, out: pathlib.Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kpjax", "plan", "--topology", "h100:1", "--json", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KPJAX_CUDA_LIBRARY": library}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return json.loads(out.read_text())


def bad_forms(odd: list[dict[str, Any]]) -> list[str]:
    """Convolutions with reversal or a window above 11, and sorts of more than a million rows."""
    found = []
    for one in odd:
        sides = [int(side) for side in re.findall(r"\d+", (re.search(r"size=([\dx]+)", one["what"]) or [""])[0])]
        convolution = one["kind"].startswith("convolution") and (
            "reversal" in one["what"] or max(sides, default=0) > 11
        )
        if convolution or one["kind"].startswith("sort"):
            found.append(f"{one['kind']}: {one['what']} in {one['scope']}")
    return found


def test_bad_forms_are_told_from_others() -> None:
    kinds = {
        "convolution in a form that cuDNN does not serve well": (
            *("convForward f32[4,4,9,9], window size=64x64 pad=1_1x1_1 rhs_dilate=2x2", True),
            *("convForward f32[4,4,9,9], window size=3x3 rhs_reversal=1x1", True),
            *("convForward f32[4,4,9,9], window size=2x2 rhs_dilate=2x2", False),
        ),
        "sort of more than a million rows": ("16,777,216 rows, f32[16777216]", True),
        "large transpose": ("f32[16,80,128,128], 80 MiB", False),
    }
    for kind, cases in kinds.items():
        for what, bad in zip(cases[::2], cases[1::2], strict=True):
            assert bool(bad_forms([{"kind": kind, "what": what, "scope": ""}])) == bad, what


@pytest.mark.slow
@pytest.mark.parametrize("step", ["training", "test"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_no_program_has_a_form_that_runs_badly(recipe: str, step: str, library: str, tmp_path: pathlib.Path) -> None:
    options = ["--eval"] if step == "test" else []
    found = plan(library, tmp_path / "plan.json", "--config", f"configs/{recipe}.py", *options)
    assert not bad_forms(found["odd"])


@pytest.mark.slow
def test_launches_and_memory_stay_within_their_bounds(library: str, tmp_path: pathlib.Path) -> None:
    """DLA-34 at batch 16, and CornerNet's test of 8 images with their mirror images at 767x767."""
    dla = ("--config", "configs/coco_dla34_1x.py", "--batch", "16")
    training = plan(library, tmp_path / "training.json", *dla)
    assert training["launches"]["step"] <= 2500 and training["memory"]["total"] <= 12 * 2**30
    assert plan(library, tmp_path / "test.json", *dla, "--eval")["launches"]["step"] <= 600
    corners = ("--config", "configs/cornernet_hg104.py", "--batch", "8", "--canvas", "767", "767", "--eval")
    found = plan(library, tmp_path / "corners.json", *corners, "--config.model.bn_groups=1")
    assert found["launches"]["step"] <= 4500
