"""What is settled before JAX starts."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from kpjax.errors import ConfigError
from kpjax.parallel import compiling, startup
from kpjax.training import signals
from tests.tiny import tiny_config


def cache_in_use() -> str | None:
    return jax.config.values["jax_compilation_cache_dir"]


@pytest.fixture
def cache_folder() -> Iterator[None]:
    before = cache_in_use()
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_unlike_processors_do_not_share_compiled_programs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cache_folder: None
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling.keep_compiled()
    folder = cache_in_use()
    assert folder is not None and re.fullmatch(r"compiled-[0-9a-f]{8}", os.path.basename(folder))
    assert os.path.isdir(folder) and os.path.dirname(folder) == str(tmp_path / "kpjax")
    compiling.keep_compiled()
    assert cache_in_use() == folder
    monkeypatch.setattr("platform.machine", lambda: "another")
    compiling.keep_compiled()
    assert cache_in_use() != folder


def test_deterministic_runs_ask_xla_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(steps=1)
    monkeypatch.setattr(startup, "devices_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    startup.make_deterministic(config)
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    config.deterministic = True
    for _ in range(2):
        startup.make_deterministic(config)
        assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    with pytest.raises(ConfigError, match="XLA_FLAGS"):
        startup.make_deterministic(config)


def test_determinism_that_comes_too_late_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX reads XLA_FLAGS once, when it starts its devices."""
    config = tiny_config(steps=1)
    config.deterministic = True
    assert jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    startup.make_deterministic(config)  # CPUs need no flag
    assert os.environ["XLA_FLAGS"] == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match="has started its GPUs without it; start Python with XLA_FLAGS=") as caught:
        startup.make_deterministic(config)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    startup.make_deterministic(config)


def test_sums_on_gpus_are_atomic_with_every_jaxlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A jaxlib before 0.11 has to be asked for it, where there may be a GPU, once."""
    flag = "--xla_backend_extra_options=-nvptx-allow-ftz-atomics=true"

    def flags(version: tuple[int, ...], started: bool, plugins: list[str], before: str = "") -> str:
        monkeypatch.setattr(jax, "__version_info__", version)
        monkeypatch.setattr(startup, "devices_started", lambda: started)
        monkeypatch.setattr(startup, "_jax_plugins", lambda: plugins)
        monkeypatch.setenv("XLA_FLAGS", before)
        startup.use_atomic_sums()
        return os.environ["XLA_FLAGS"]

    monkeypatch.delenv("PJRT_NAMES_AND_LIBRARY_PATHS", raising=False)
    cuda = ["jax_plugins.xla_cuda12"]
    assert flags((0, 10, 2), False, cuda) == flag
    assert flags((0, 10, 2), False, cuda, "--xla_dump_to=x") == f"--xla_dump_to=x {flag}"
    assert flags((0, 10, 2), False, cuda, flag) == flag
    assert flags((0, 11, 0), False, cuda) == flags((0, 10, 2), True, cuda) == flags((0, 10, 2), False, []) == ""


def test_a_cpu_knows_the_flag_for_gpus() -> None:
    program = "import jax.numpy as jnp; print(jnp.ones(3).sum())"
    flag = "--xla_backend_extra_options=-nvptx-allow-ftz-atomics=true"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "3.0\n", done.stderr


def test_sigterm_is_somebodys_from_the_start_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between start-up, where it leaves at once, and the run, where it saves, it never has the handler of before."""
    before, given = signal.getsignal(signal.SIGTERM), []
    real = signal.signal

    def record(number: int, handler: Any) -> Any:
        if number == signal.SIGTERM:
            given.append(handler)
        return real(number, handler)

    monkeypatch.setattr(signal, "signal", record)
    with signals.StopSignal() as stop:
        with signals.leaving_on_sigterm(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert before not in given
        stop.begun = True
        for number in (signal.SIGTERM, signal.SIGINT):
            stop.asked = False
            signal.raise_signal(number)
            assert stop.reached() and stop.name == number.name
    assert signal.getsignal(signal.SIGTERM) == before and len(given) == 4


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, with what `conftest` sets about devices taken away."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS", "TPU_LIBRARY_PATH")}
    kept["PYTHONPATH"] = os.pathsep.join([environment.pop("path", ""), str(pathlib.Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, "-c", program], env={**kept, **environment}, capture_output=True, text=True, check=False
    )


LOOK = """
import jax
from kpjax.parallel import compiling, startup
from kpjax.training import signals
startup._may_have_tpu = lambda: {tpu}
startup._jax_plugins = lambda: {plugins}
startup.skip_absent_tpu()
print(jax.config.jax_platforms)
if {start}: print(jax.devices()[0].platform)
"""


@pytest.fixture
def installed(tmp_path: pathlib.Path) -> str:
    """A folder for PYTHONPATH with a libtpu of which nobody gets to know more than the path."""
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text(
        f"def get_library_path(): return {str(tmp_path / 'libtpu.so')!r}\n"
    )
    return str(tmp_path)


def test_an_installed_libtpu_is_not_asked_where_there_is_no_tpu(installed: str) -> None:
    done = python(LOOK.format(tpu=False, plugins=[], start=True), path=installed)
    assert (done.stdout.split(), done.stderr) == (["cpu", "cpu"], "")


@pytest.mark.parametrize(
    "tpu, plugins, environment",
    [
        (True, [], {}),
        (False, ["jax_plugins.other"], {}),
        (False, [], {"JAX_PLATFORMS": "cpu,tpu"}),
    ],
)
def test_devices_are_left_alone_where_there_may_be_others(
    installed: str, tpu: bool, plugins: list[str], environment: dict[str, str]
) -> None:
    done = python(LOOK.format(tpu=tpu, plugins=plugins, start=False), path=installed, **environment)
    assert done.stdout.strip() == environment.get("JAX_PLATFORMS", "None"), done.stderr


def test_without_libtpu_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    assert python(LOOK.format(tpu=False, plugins=[], start=False)).stdout.strip() == "None"


def test_what_may_be_a_tpu_host(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Google's devices but for its network cards and disks, which every machine of its cloud has."""
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    device = tmp_path / "0000:00:04.0"
    device.mkdir()
    found = {"/sys/bus/pci/devices/*": [str(device)]}
    monkeypatch.setattr("glob.glob", lambda pattern: found.get(pattern, []))
    for vendor, kind, expected in (
        ("0x1ae0", "0x020000", False),
        ("0x1ae0", "0x010802", False),
        ("0x1ae0", "0xff0000", True),
        ("0x1af4", "0xff0000", False),
    ):
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
        assert startup._may_have_tpu() is expected, (vendor, kind)
    found["/dev/accel[0-9]*"] = ["/dev/accel0"]
    assert startup._may_have_tpu()
    found.clear()
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    assert startup._may_have_tpu()
