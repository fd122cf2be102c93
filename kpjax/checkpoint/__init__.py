"""Checkpoints of weights, through Orbax: `load_inference` and `save_inference`."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["CheckpointError", "Loaded", "load_inference", "save_inference"]

# Imported at first use: Orbax is slow to import, and not all that imports this package reads weights.
_LATER = {
    "CheckpointError": "kpjax.checkpoint.orbax",
    "Loaded": "kpjax.checkpoint.weights",
    "load_inference": "kpjax.checkpoint.weights",
    "save_inference": "kpjax.checkpoint.weights",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'kpjax.checkpoint' has no attribute {name!r}")
