"""How the tests run: on the CPU, with eight virtual devices, compiled in a hurry, the programs kept between runs."""

from __future__ import annotations

import os
import pathlib

# All of this has to be in the environment before JAX is imported; programs started by tests inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Level 1 is LLVM's: XLA's own passes are all run.  It takes two thirds of level 3's time on tiny networks, and what is
# slower is running large ones: `make soak` and `make golden-full` ask for level 3.
for flag, value in (("--xla_force_host_platform_device_count", 8), ("--xla_backend_optimization_level", 1)):
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
