"""How the tests run: on the CPU, with eight virtual devices, compiled in a hurry, the programs kept between runs."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import sys

import pytest

# All of this has to be in the environment before JAX is imported; programs started by tests inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = ["--xla_force_host_platform_device_count=8"]
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    if any(word.startswith("-m") for word in sys.argv):
        # Large networks or long runs are asked for, as by `make golden-full`: compiled as users do.
        flags.append("--xla_backend_optimization_level=3")
    else:
        # A quarter of the time on tiny networks: LLVM optimises nothing, and XLA's older code for fusions is shorter.
        # XLA's own passes are all run.
        flags.append("--xla_backend_optimization_level=0")
        if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
            flags.append("--xla_cpu_use_fusion_emitters=false")
for flag in flags:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Files of minutes, which would keep one core busy when nothing is left for the other.
FIRST = (
    "distributed/test_processes.py",
    "test_run.py",
    "test_lock.py",
    "test_evaluate.py",
    "training/test_step.py",
    "test_convert.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""

    def place(item: pytest.Item) -> int:
        return next((k for k, name in enumerate(FIRST) if item.path.as_posix().endswith(f"/{name}")), len(FIRST))

    items.sort(key=place)


from tests.folders import folder  # noqa: E402, F401 (a fixture; it imports JAX, for which the environment is now set)
