"""Reading a .pth file without running anything that it holds.

A .pth file is a pickle, and a pickle can name any function to call.  PyTorch's restricted
reader (`weights_only=True`) knows tensors and plain containers only and refuses the rest.
"""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any

import numpy as np

from kpjax.convert.rules import ImportMismatch, unwrap
from kpjax.errors import UserError


class TorchFileError(UserError):
    """A .pth file that cannot be read.  Its text is one line that names the file."""


def read_torch_file(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a .pth file as {key: NumPy array}, floating-point arrays as float32.

    A dictionary under "state_dict" or "model" is unwrapped and a `module.` prefix removed.
    Raises TorchFileError where the file is missing, truncated, not PyTorch's, holds anything but
    tensors and plain containers, or where PyTorch is not installed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise TorchFileError(f"{path}: no such file")
    try:
        import torch
    except ImportError:
        raise TorchFileError(f"{path}: reading it needs PyTorch; run: pip install kpjax[torch]") from None
    # mmap leaves a large checkpoint on disk until a tensor is used; only zip files (PyTorch >= 1.6) allow it.
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": zipfile.is_zipfile(path)}
    try:
        checkpoint = torch.load(str(path), **options)
    except (
        Exception
    ) as error:  # the kinds differ with the damage: EOFError, RuntimeError, UnpicklingError, KeyError, ...
        raise TorchFileError(f"{path}: {_reason(error)}") from None
    if not isinstance(checkpoint, dict):
        raise TorchFileError(f"{path}: it holds a {type(checkpoint).__name__}, not a state dict")
    try:
        state_dict = unwrap(checkpoint)
    except ImportMismatch as error:
        raise TorchFileError(f"{path}: {error}") from None
    return {key: _array(value) for key, value in state_dict.items()}


def _array(tensor: Any) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights only" in text.lower() or "weights_only" in text or "unsupported global" in text.lower():
        return "refused, since it is damaged or holds more than tensors and plain containers"
    return f"not a readable PyTorch file ({type(error).__name__}: {text[:120]})"
