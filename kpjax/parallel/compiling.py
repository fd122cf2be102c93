"""How programs are compiled: options by platform, the cache of compiled programs, and the memory that one takes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import platform
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

# YNNPACK's reductions are faster than XLA's own, its convolutions slower; its products take the same time.  And as
# XLA loads a program, it looks through all operations for each that it leaves to YNNPACK.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"


_REDUCTIONS = "LIBRARY_FUSION_TYPE_REDUCE"


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for a program on the devices of `mesh`: none but on a CPU."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return dict(_options()) if on_cpu and _LIBRARY not in os.environ.get("XLA_FLAGS", "") else {}


@functools.cache
def _options() -> dict[str, str]:
    options = {_LIBRARY: _REDUCTIONS}
    here = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    try:
        jax.jit(jnp.negative, out_shardings=here, compiler_options=options).lower(jnp.float32(0)).compile()
    except Exception:  # whatever a JAX says that does not know the option
        return {}
    return options


def keep_compiled() -> None:
    """Keep compiled programs between runs, so that a resumed run starts at once.

    In ~/.cache/kpjax/compiled-PROCESSOR (it may be deleted at any time), or where JAX_COMPILATION_CACHE_DIR
    says; JAX_ENABLE_COMPILATION_CACHE=false turns it off.  All of them, however quickly they were compiled (JAX leaves
    out what took less than a second): a second run compiles nothing.
    """
    import jax

    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kpjax")
    # A home shared by unlike machines: a program compiled for one may use instructions that another has not.
    cache = os.path.join(cache, f"compiled-{_processor()}")
    try:
        os.makedirs(cache, exist_ok=True)
    except OSError:  # no home directory to write to: compile each time
        return
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", cache)


def _processor() -> str:
    """Eight hex digits that differ where the processor's instructions do."""
    features = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            features = next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        pass
    text = f"{platform.machine()} {features or platform.processor()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device.  outputs: those that lie in no argument's memory.  code: the program itself."""

    arguments: int
    temporaries: int
    outputs: int = 0
    code: int = 0

    @property
    def total(self) -> int:
        """All of it at once: the peak."""
        return self.arguments + self.temporaries + self.outputs + self.code


def sorts_of(compiled: Any) -> int:
    """How many sorts a compiled program has; each is counted once, also in a loop."""
    return len(re.findall(r" sort\(|custom_call_target=\"__cub\$DeviceRadixSort", compiled.as_text()))


def memory_of(compiled: Any) -> Memory:
    """A compiled program's memory a device, by the compiler's account; nothing but zeros where it gives none."""
    stats = compiled.memory_analysis()
    if stats is None:
        return Memory(0, 0)
    return Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0),
        stats.generated_code_size_in_bytes,
    )
