"""`python -m kpjax plan`: its mistakes, its report, and real plans where libtpu is installed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pytest

from kpjax.__main__ import main
from kpjax.aot import gpu, tpu
from kpjax.aot.gpu import find_cuda_library
from kpjax.aot.plan import Plan
from kpjax.aot.topology import Topology
from kpjax.aot.tpu import find_libtpu
from kpjax.commands import plan as command
from kpjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from kpjax.config import Config

def get_config():
    config = Config(batch=8, steps=10)
    config.model.options = {"width": 4, "deconv": (4,), "head_channels": 4}
    config.data.canvas = 64
    config.data.max_boxes = 2
    config.augment.kind = "none"
    config.augment.flip = config.augment.color = config.augment.lighting = 0.0
    config.augment.height = config.augment.width = 32
    config.eval.resolution = "fixed"
    return config
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> str:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return str(tmp_path / "tiny.py")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile for the eight devices of the tests, without libtpu and a library for CUDA."""
    monkeypatch.setattr(gpu, "prepare", lambda library: None)
    monkeypatch.setattr(gpu, "find_cuda_library", lambda given: "")
    monkeypatch.setattr(tpu, "prepare", lambda library: None)
    monkeypatch.setattr(tpu, "find_libtpu", lambda given: "")
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("--topology", "v5e:3x3"), "v5e comes as v5e:1x1, v5e:2x2, v5e:2x4"),
        (("--topology", "gpu:8"), "write KIND:SHAPE, e.g. v5e:16x16; v5e, v6e come as 1x1"),
        (("--topology", "gpu:8"), "GPUs (h100, h200, a100, a100-40) as their number"),
        (("--topology", "v5e:2x2", "--batch", "-1"), "--batch is -1"),
        (("--topology", "v5e:2x2", "--config.batsh=8"), "did you mean config.batch?"),
        (("--topology", "v5e:2x2", "--canvas", "64", "64"), "--canvas is for --eval"),
        (("--topology", "v5e:2x4", "--batch", "12"), "use 8 or 16"),
        (("--topology", "v5e:2x4", "--eval", "--canvas", "60", "64"), "--canvas HEIGHT is 60"),
        (("--topology", "v5e:2x4", "--eval", "--config.eval.preset", "best"), "config.eval.preset is 'best'"),
        (("--topology", "v5e:2x4", "--libtpu", "nowhere"), "no libtpu.so in nowhere"),
        (("--topology", "h100:2x9"), "KIND:HOSTSxGPUS, e.g. h100:2x8"),
        (("--topology", "h100:8", "--batch", "12"), "use 8 or 16"),
        (("--topology", "h100:8", "--cuda-library", "nowhere"), "no xla_cuda_plugin.so in nowhere; to fetch it"),
    ],
)
def test_a_mistake_is_one_line(
    file: str, arguments: tuple[str, ...], text: str, here: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if "--libtpu" in arguments:
        monkeypatch.setattr(tpu, "find_libtpu", find_libtpu)
    if "--cuda-library" in arguments:
        monkeypatch.setattr(gpu, "find_cuda_library", find_cuda_library)
    assert main(["plan", "--config", file, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and text in said


def test_settings_of_no_configuration_are_refused(file: str, capsys: Any) -> None:
    for stray in (["--bogus"], ["--config.batch=8", "stray"]):
        with pytest.raises(SystemExit) as end:
            main(["plan", "--config", file, "--topology", "v5e:2x2", *stray])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith("error: un") and said.count("\n") == 1 and stray[-1] in said


def test_without_libtpu_it_says_how_to_get_it(file: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("KPJAX_LIBTPU", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["plan", "--config", file, "--topology", "v5e:2x2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'kpjax[plan]'" in said


def test_the_report_and_the_json(file: str, here: None, tmp_path: pathlib.Path, capsys: Any) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--topology", "v6e:2x4", "--batch", "16", "--config.model.bn_groups", "4", "--json", str(out)]
    assert main(["plan", "--config", file, *arguments]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if not line.startswith(" ")}
    assert "the training step of batch 16 for v6e:2x4" in lines["compiling"]
    assert "bn_groups 4" in lines["model"] and "2 images a chip" in lines["slice"] and "fits" in lines["memory"]
    for word in ("TFLOP", "gradients", "BatchNorm", "over 2 chips", "roofline", "images/s"):
        assert word in printed
    assert "config.model.bn_groups=8" in lines["hint"]
    stored = json.loads(out.read_text())
    assert (stored["config"], stored["chips"], stored["batch"], stored["fits"]) == ("tiny", 8, 16, True)
    memory = stored["memory"]
    assert memory["total"] == sum(memory[part] for part in ("arguments", "temporaries", "outputs", "code"))
    assert stored["roofline_s"]["step"] == max(stored["roofline_s"].values()) > 0
    assert {one["group"] for one in stored["collectives"]["BatchNorm"]} == {2}


def test_of_mixed_sizes_the_largest_is_compiled(file: str, here: None, tmp_path: pathlib.Path, capsys: Any) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--topology", "v6e:2x4", "--config.augment.sizes=(32,96,64)", "--json", str(out)]
    assert main(["plan", "--config", file, *arguments]) == 0
    assert "96x96: training step" in (said := capsys.readouterr().out) and "; the largest of 3 sizes" in said
    assert json.loads(out.read_text())["canvas"] == [96, 96]


def test_the_report_of_gpus(file: str, here: None, tmp_path: pathlib.Path, capsys: Any) -> None:
    out = tmp_path / "plan.json"
    arguments = ["--topology", "h100:8", "--batch", "16", "--json", str(out)]
    assert main(["plan", "--config", file, *arguments]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if not line.startswith(" ")}
    assert "2 images a GPU" in lines["cards"] and "GiB a GPU of 55.33: fits" in lines["memory"]
    assert "of the card's 79.1 GiB: 75%" in printed and "over 8 GPUs" in printed
    assert "chip" not in printed and "slice" not in printed
    stored = json.loads(out.read_text())
    # compiled for CPUs, where convolutions are no calls of cuDNN
    odd = [one for one in stored["odd"] if one["kind"].startswith("convolution")]
    assert odd and f"odd      {len(odd)} x convolution in a form that cuDNN does not serve well" in printed
    assert f"{stored['launches']['step']:,} a step, {stored['launches']['in_loops']:,}" in lines["launches"]
    assert 0 < stored["flops"] == stored["flops_float32"] and stored["bytes_moved"] > 0
    low = stored["roofline_s"]
    assert low["compute"] == pytest.approx(stored["flops"] / 495e12)
    assert low["memory"] == pytest.approx(stored["bytes_moved"] / 3.35e12)


def test_what_gpus_hold_is_judged_by_the_plan(
    file: str, here: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """XLA compiles for CUDA whatever a program takes."""
    original = command.make_plan

    def large(*arguments: Any) -> Plan:
        plan = original(*arguments)
        return dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, temporaries=56 * 2**30))

    monkeypatch.setattr(command, "make_plan", large)
    assert main(["plan", "--config", file, "--topology", "h100:8", "--eval"]) == 1
    printed = capsys.readouterr().out
    assert "56.00 GiB a GPU of 55.33: does not fit: 0.67 over" in printed and "roofline" in printed


def test_a_program_that_the_compiler_refuses(
    file: str, here: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    refusal = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (27.50G) exceeds available HBM (15.75G)"
    )

    def refuse(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError(refusal)

    monkeypatch.setattr("jax.stages.Lowered.compile", refuse)
    assert main(["plan", "--config", file, "--topology", "v5e:2x4"]) == 1
    printed = capsys.readouterr().out
    assert "27.50 GiB a chip of 15.75: does not fit: 11.75 over" in printed and "refused" in printed


def test_the_largest_batch(file: str, here: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made: list[Plan] = []

    def planned(topology: Any, config: Any, *rest: Any) -> Plan:
        made.append(made[0] if made else original(topology, config, *rest))  # compiled once: only memory differs
        memory = dataclasses.replace(made[0].memory, arguments=2**30, temporaries=config.batch * 2**27, code=0)
        return dataclasses.replace(made[0], batch=config.batch, memory=memory)

    original = command.make_plan
    monkeypatch.setattr(command, "make_plan", planned)
    assert main(["plan", "--config", file, "--topology", "v5e:2x4", "--largest"]) == 0
    # 14.75 GiB at an eighth of one an image, in steps of 8 images
    assert "largest  batch 112, of multiples of 8" in capsys.readouterr().out
    assert len(made) <= 4


def libtpu() -> str:
    try:
        return find_libtpu()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "topology, options",
    [
        ("v5e:2x2", ()),
        ("v4:2x2x1", ("--eval",)),
        ("v5p:2x2x1", ("--eval",)),
        ("v6e:2x2", ("--eval",)),
        ("v5e:2x2", ("--eval", "--batch", "4096", "--canvas", "1024", "1024")),
    ],
)
def test_a_slice_that_nobody_owns(file: str, tmp_path: pathlib.Path, topology: str, options: tuple[str, ...]) -> None:
    """The real compiler: gradients in one all-reduce, nothing of images sent, nothing said but the plan."""
    out = tmp_path / "plan.json"
    program = [sys.executable, "-m", "kpjax", "plan", "--config", file, "--topology", topology, *options]
    # libtpu ends a process that gives it the tests' flags for a CPU.
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    environment = kept | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, "--libtpu", libtpu(), "--json", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    fits = "4096" not in options
    assert (done.returncode, done.stderr) == (0 if fits else 1, ""), done.stdout + done.stderr
    stored = json.loads(out.read_text())
    assert stored["chips"] == 4 and stored["fits"] == fits
    if not fits:
        assert stored["memory"]["total"] > stored["memory"]["available"]
        return
    found = {purpose: ones for purpose, ones in stored["collectives"].items() if ones}
    if options:
        assert set(found) == {"detections"}
    else:
        assert len(found["gradients"]) == 1 and found["BatchNorm"] and "other" not in found
    assert stored["flops"] > 0 and 0 < stored["roofline_s"]["step"] < 1


@pytest.mark.parametrize(
    "topology, options", [("h100:1", ()), ("h100:8", ()), ("h100:1", ("--eval",)), ("a100:2x4", ("--eval",))]
)
def test_gpus_that_nobody_owns(file: str, tmp_path: pathlib.Path, topology: str, options: tuple[str, ...]) -> None:
    """The real compiler: convolutions in cuDNN's own forms, nothing odd, nothing said but the plan."""
    if not os.environ.get("KPJAX_CUDA_LIBRARY"):
        pytest.skip("KPJAX_CUDA_LIBRARY does not name XLA's plugin for CUDA")
    out = tmp_path / "plan.json"
    program = [sys.executable, "-m", "kpjax", "plan", "--config", file, "--topology", topology, *options]
    # Of the smallest maps XLA leaves a transposed convolution's gradient in another form.
    side = [f"--config.{key}=256" for key in ("data.canvas", "augment.height", "augment.width")]
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [*program, *side, "--json", str(out)],
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    stored = json.loads(out.read_text())
    assert stored["fits"] and stored["memory"]["arguments"] > 0 and stored["memory"]["temporaries"] > 0
    assert 20 < stored["launches"]["step"] < 1000 and not stored["odd"]
    assert 0 < stored["flops_float32"] == stored["flops"] and 0 < stored["roofline_s"]["step"] < 1
    found = {purpose for purpose, ones in stored["collectives"].items() if ones}
    assert "other" not in found and bool(found) == (topology != "h100:1")
    if found:
        assert "detections" in found if options else {"gradients", "BatchNorm"} <= found
