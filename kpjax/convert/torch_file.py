"""Reading a PyTorch checkpoint without PyTorch, and without running anything that it holds.

    zip      PyTorch 1.6 and newer: NAME/data.pkl, and the numbers of each storage in NAME/data/KEY
    legacy   before, and .pkl / .pth.tar of that time: five pickles, then the storages one after another
    pickle   a dictionary of NumPy arrays

The pickles are read by kpjax.convert.inert_pickle.  Numbers are read only for what is asked for, so an
optimizer's state costs nothing, and never more than the file holds.
"""

from __future__ import annotations

import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from kpjax.convert import inert_pickle
from kpjax.convert.inert_pickle import PickleRefused, Storage, Tensor
from kpjax.convert.rules import ImportMismatch, unwrap
from kpjax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_MAX_PICKLE = 1 << 28  # bytes of data.pkl, which describes tensors and does not hold them
_SHARED, _SLACK = 2, 1 << 20  # tensors may take twice the file's bytes (shared weights), and 1 MiB
ReadStorage = Callable[[Storage], bytes]


class TorchFileError(UserError):
    """A .pth file that cannot be read.  Its text is one line that names the file."""


def read_torch_file(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a .pth file as {key: NumPy array}, floating-point arrays as float32.

    A dictionary under "state_dict" or "model" is unwrapped and a `module.` prefix removed.
    Raises TorchFileError where the file is missing, truncated, not PyTorch's, or holds anything but
    tensors and plain containers.
    """
    return read_torch_checkpoint(path)[0]


def read_torch_checkpoint(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`read_torch_file`, and the names of what lies beside the state dict (optimizer, epoch, ...) and was left out."""
    path = pathlib.Path(path)
    if not os.path.isfile(path):
        raise TorchFileError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    try:
        with path.open("rb") as file:
            content, read_storage = _open(file)
            if not isinstance(content, dict):
                raise PickleRefused(f"it holds a {type(content).__name__}, not a state dict")
            state_dict = unwrap(content)
            left_out = tuple(str(key) for key in content) if not _holds(content, state_dict) else ()
            wrapped = {"state_dict", "model"}
            return (
                _arrays(state_dict, read_storage, os.fstat(file.fileno()).st_size),
                tuple(key for key in left_out if key not in wrapped),
            )
    except (PickleRefused, ImportMismatch) as error:
        raise TorchFileError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    except Exception as error:  # the kinds differ with the damage: struct.error, BadZipFile, KeyError, IndexError, ...
        text = " ".join(str(error).split())[:120]
        raise TorchFileError(f"{path}: damaged, or no PyTorch file ({type(error).__name__}: {text})") from None


def _holds(content: dict[Any, Any], state_dict: dict[str, Any]) -> bool:
    """Whether the file's dictionary is the state dict itself."""
    first = next(iter(state_dict.values()))
    return any(value is first for value in content.values())


def _open(file: BinaryIO) -> tuple[Any, ReadStorage]:
    start = file.read(6)
    file.seek(0)
    if not start:
        raise PickleRefused("the file is empty")
    if start.startswith(b"PK"):
        return _open_zip(file)
    if start[:1] != b"\x80":
        raise PickleRefused("not a PyTorch file: neither a zip archive nor a pickle")
    first = inert_pickle.read(file)
    return _open_legacy(file) if first == _MAGIC else (first, _no_storage)


def _open_zip(file: BinaryIO) -> tuple[Any, ReadStorage]:
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleRefused("a zip archive, but not one of PyTorch: it has no data.pkl (or several)")
    if "constants.pkl" in {name.split("/", 1)[-1] for name in entries}:
        raise PickleRefused("it holds a TorchScript program; save the model's state_dict() instead")
    folder = pickles[0].split("/")[0]

    def content(name: str, most: int) -> bytes:
        entry = entries.get(f"{folder}/{name}")
        if entry is None:
            raise PickleRefused(f"{name} is missing in it")
        # PyTorch never compresses, and what is not compressed cannot be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise PickleRefused(f"{name} in it is compressed, which PyTorch's files never are")
        if entry.file_size > most:
            raise PickleRefused(f"{name} in it has {entry.file_size} bytes where at most {most} make sense")
        return archive.read(entry)

    swapped = f"{folder}/byteorder" in entries and content("byteorder", 16).strip() == b"big"
    described = inert_pickle.read(io.BytesIO(content("data.pkl", _MAX_PICKLE)))
    # `archive` stays open with `file`.
    return described, lambda storage: _in_order(content(f"data/{storage.key}", _size(storage)), storage, swapped)


def _open_legacy(file: BinaryIO) -> tuple[Any, ReadStorage]:
    known: dict[str, Storage] = {}
    protocol, system = inert_pickle.read(file), inert_pickle.read(file)
    described = inert_pickle.read(file, known)
    if protocol != 1001 or not isinstance(system, dict):
        # Never print a container: if each level holds the next one twice, its text grows exponentially.
        named = f"{protocol:.3g}" if isinstance(protocol, int) else type(protocol).__name__
        raise PickleRefused(f"its format is {named}, and only PyTorch's 1001 is read")
    keys = inert_pickle.read(file)
    places: dict[str, tuple[int, int]] = {}
    end = os.fstat(file.fileno()).st_size
    for key in keys if isinstance(keys, list) else []:
        (numel,) = struct.unpack("<q", file.read(8))
        storage = known.get(key) if isinstance(key, str) else None
        if storage is None or numel != storage.numel or file.tell() + _size(storage) > end:
            raise PickleRefused("it is cut off, or its list of storages is damaged")
        places[key] = (file.tell(), _size(storage))
        file.seek(_size(storage), os.SEEK_CUR)

    def read(storage: Storage) -> bytes:
        start, size = places[storage.key]
        file.seek(start)
        return _in_order(file.read(size), storage, system.get("little_endian") is False)

    return described, read


def _size(storage: Storage) -> int:
    return storage.numel * storage.dtype.itemsize


def _in_order(data: bytes, storage: Storage, swapped: bool) -> bytes:
    if len(data) != _size(storage):
        raise PickleRefused(f"a storage has {len(data)} bytes where {_size(storage)} were announced")
    return np.frombuffer(data, f"u{storage.dtype.itemsize}").byteswap().tobytes() if swapped else data


def _no_storage(storage: Storage) -> bytes:
    raise PickleRefused("it refers to tensors that it does not hold")


def _arrays(state_dict: dict[str, Any], read_storage: ReadStorage, file_size: int) -> dict[str, np.ndarray]:
    """The numbers of each entry: every storage is read once, one at a time, within the limit of _SHARED."""
    of_storage: dict[Storage | None, list[str]] = {}
    for key, value in state_dict.items():
        of_storage.setdefault(value.storage if isinstance(value, Tensor) else None, []).append(key)
    read = sum(_size(storage) for storage in of_storage if storage)
    held = sum(_bytes(value) for value in state_dict.values())
    if max(read, held) > _SHARED * file_size + _SLACK:
        raise PickleRefused(f"refused: its tensors would take {max(read, held)} bytes, the file has {file_size}")
    arrays: dict[str, np.ndarray] = {}
    for storage, keys in of_storage.items():
        used = storage and any(_bytes(state_dict[key]) for key in keys)
        flat = np.frombuffer(read_storage(storage), storage.dtype) if storage and used else None
        arrays |= {key: _array(state_dict[key], flat) for key in keys}
    return {key: arrays[key] for key in state_dict}


def _bytes(value: Any) -> int:
    return math.prod(value.shape) * (value.storage.dtype.itemsize if isinstance(value, Tensor) else value.itemsize)


def _array(value: Any, flat: np.ndarray | None) -> np.ndarray:
    """An array of its own.  flat: the numbers of the tensor's storage; None where there are none."""
    if isinstance(value, Tensor):
        if flat is None or 0 in value.shape:
            return np.zeros(value.shape, np.float32)
        step = flat.itemsize
        value = np.lib.stride_tricks.as_strided(flat[value.offset :], value.shape, [s * step for s in value.strides])
    array = np.array(value, order="C")
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if floating else array
