"""Kinds of GPU, how hosts of them are written, and where the library is that compiles for them."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jaxlib
import pytest

from kpjax.aot import gpu
from kpjax.errors import ConfigError, UserError

WAYS = f"pip install --no-deps --target DIR jax-cuda12-pjrt=={jaxlib.__version__}", "pip download --no-deps jax-cuda12"


@pytest.mark.parametrize(
    "text, kind, shape, size, egress",
    [
        ("h100:8", "h100", (8,), 8, 450e9),
        ("h100:1", "h100", (1,), 1, 450e9),
        ("h200:2x8", "h200", (2, 8), 16, 400e9),
        ("h100:2x1", "h100", (2, 1), 2, 50e9),
        ("a100-40:4", "a100-40", (4,), 4, 300e9),
        ("a100:16x8", "a100", (16, 8), 128, 200e9),
    ],
)
def test_hosts_of_gpus(text: str, kind: str, shape: tuple[int, ...], size: int, egress: float) -> None:
    topology = gpu.parse_topology(text)
    assert (topology.kind, topology.shape, topology.size, topology.name) == (kind, shape, size, text)
    assert (topology.platform, topology.unit, topology.egress) == ("cuda", "GPU", egress)
    assert topology.options


@pytest.mark.parametrize("text", ["h100", "h100:", "h100:0", "h100:9", "h100:2x9", "h100:1x2x8", "h100:08", "b200:8"])
def test_what_is_no_host_of_gpus_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gpu.parse_topology(text)
    said = str(caught.value)
    assert "\n" not in said and repr(text) in said and all(kind in said for kind in gpu.CARDS)


def test_a_card_has_less_for_programs_than_its_memory_and_says_so() -> None:
    for kind, gib in {"h100": 80, "h200": 141, "a100": 80, "a100-40": 40}.items():
        card = gpu.CARDS[kind]
        assert 0.97 * gib <= card.memory / 2**30 <= gib
        assert card.chip.memory == int(0.75 * card.memory) - 4 * 2**30
        assert f"{card.memory / 2**30:.1f} GiB" in card.chip.kept
        # float32 products run in TF32, at half the rate of bfloat16
        assert card.chip.seconds(card.flops) == pytest.approx(1.0)
        assert card.chip.seconds(card.flops, card.flops) == pytest.approx(2.0, rel=0.01)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a plugin of JAX's, and with nothing set."""
    monkeypatch.delenv("KPJAX_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_no_library_or_none_there_names_two_ways_to_get_it(tmp_path: pathlib.Path, alone: None) -> None:
    (tmp_path / "xla_cuda_plugin.so").write_bytes(b"no library")
    (tmp_path / "libtpu.so").write_bytes(b"of another platform")
    for given in ("", *(str(tmp_path / name) for name in ("nowhere", ".", "libtpu.so"))):
        with pytest.raises(UserError) as caught:
            gpu.find_cuda_library(given)
        said = str(caught.value)
        assert "\n" not in said and all(way in said for way in WAYS) and given in said


@pytest.fixture
def wheel(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder as a wheel is unpacked, whose library has the entry point of JAX's plugins and nothing else."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    folder = tmp_path / "unpacked"
    plugin = folder / "jax_plugins" / "xla_cuda12"
    plugin.mkdir(parents=True)
    (tmp_path / "plugin.c").write_text("void *GetPjrtApi(void) { return 0; }\n")
    library = plugin / "xla_cuda_plugin.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "plugin.c")], check=True)
    return folder


def test_where_the_library_is(wheel: pathlib.Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    library = wheel / "jax_plugins" / "xla_cuda12" / "xla_cuda_plugin.so"
    for place in (wheel, wheel / "jax_plugins", library.parent, library):
        assert gpu.find_cuda_library(str(place)) == str(library)
    monkeypatch.setenv("KPJAX_CUDA_LIBRARY", str(wheel))
    assert gpu.find_cuda_library() == str(library)
    (wheel / f"jax_cuda12_pjrt-{jaxlib.__version__}.dist-info").mkdir()
    assert gpu.find_cuda_library() == str(library)


def test_a_library_of_another_version(wheel: pathlib.Path, alone: None) -> None:
    (wheel / "jax_cuda12_pjrt-0.4.38.dist-info").mkdir()
    with pytest.raises(UserError, match=rf"is of version 0\.4\.38, jaxlib of {jaxlib.__version__}; to fetch it"):
        gpu.find_cuda_library(str(wheel))


def test_a_path_that_jax_cannot_read(wheel: pathlib.Path, alone: None) -> None:
    odd = wheel.rename(wheel.parent / "a,b")
    with pytest.raises(UserError, match="must not contain"):
        gpu.find_cuda_library(str(odd))


def test_an_installed_plugin_is_taken_and_no_other(wheel: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KPJAX_CUDA_LIBRARY", raising=False)
    monkeypatch.syspath_prepend(wheel)
    with pytest.raises(UserError, match="was not named"):  # the library alone is no package
        gpu.find_cuda_library()
    (wheel / "jax_plugins" / "xla_cuda12" / "__init__.py").write_text("")
    assert gpu.find_cuda_library() == ""
    with pytest.raises(UserError, match=r"has jax_plugins\.xla_cuda12.*leave out --cuda-library"):
        gpu.find_cuda_library(str(wheel))


def test_preparing_starts_no_gpu_and_keeps_other_plugins() -> None:
    program = (
        "import os, jax\nfrom kpjax.aot import gpu\ngpu.prepare('/x.so')\n"
        "print(os.environ['PJRT_NAMES_AND_LIBRARY_PATHS'], jax.config.jax_platforms)"
    )
    environment = os.environ | {"PJRT_NAMES_AND_LIBRARY_PATHS": "mine:/a.so,cuda:/b.so", "JAX_PLATFORMS": "cuda"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine:/a.so,cuda:/x.so", "cpu"]


def test_without_the_library_jax_has_no_such_platform() -> None:
    jax.devices()
    with pytest.raises(UserError, match=r"cannot be used for h100: .*; to fetch it"):
        gpu.parse_topology("h100:8").devices()
