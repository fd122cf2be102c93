"""What bitwise repetition of a run depends on: devices and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """What bitwise repetition depends on (docs/architecture.md, Resuming)."""
    import flax
    import jaxlib

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        # Those of the input pipeline and the optimizer: looked up, not imported.
        "optax": _version("optax"),
        "tensorflow": _version("tensorflow", "tensorflow-cpu"),
        "opencv": _version("opencv-python-headless", "opencv-python"),
        "pillow": _version("pillow"),
    }


def _version(*distributions: str) -> str:
    """The version of the first of them that is installed, or "none"."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"
