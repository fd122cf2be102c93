"""Reading a file of weights without PyTorch, and without running anything that it holds.

    zip          PyTorch 1.6 and newer: NAME/data.pkl, and the numbers of each storage in NAME/data/KEY
    legacy       before, and .pkl / .pth.tar of that time: five pickles, then the storages one after another
    pickle       a dictionary of NumPy arrays, or of tensors
    safetensors  a header and numbers

The contents tell which it is; the file's name is never looked at.  The pickles are read by
kpjax.convert.inert_pickle.  Numbers are read only for what is asked for, so an optimizer's state costs nothing, and
never more than the file holds.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from kpjax.convert import file_kinds, inert_pickle, safetensors_file
from kpjax.convert.inert_values import PickleRefused, Shell, Storage, Tensor
from kpjax.convert.rules import ImportMismatch
from kpjax.convert.state_dict import Weights, find_weights
from kpjax.convert.tables import is_known
from kpjax.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_MAX_PICKLE = 1 << 28  # bytes of data.pkl, which describes tensors and does not hold them
_SHARED, _SLACK = 2, 1 << 20  # tensors may take twice the file's bytes (shared weights), and 1 MiB
ReadStorage = Callable[[Storage], bytes]


class TorchFileError(UserError):
    """A file of weights that cannot be read.  Its text is one line that names the file."""


def read_torch_file(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a file of PyTorch or safetensors as {key: NumPy array}, floating-point arrays as float32.

    Dictionaries around the state dict are unwrapped and prefixes of wrappers, as `module.`, removed.
    Raises TorchFileError where the file is missing, truncated, of another kind, or would call functions.
    """
    return read_torch_weights(path).state_dict


def read_torch_checkpoint(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`read_torch_file`, and the names of what lies beside the state dict (optimizer, epoch, ...) and was left out."""
    weights = read_torch_weights(path)
    return weights.state_dict, weights.left_out


def read_torch_weights(path: str | pathlib.Path) -> Weights:
    """`read_torch_file`, with where the state dict was and what lies beside it.

    Of several sets of weights the network's own is taken, an average of them only where it is alone.
    """
    path = pathlib.Path(path)
    if not os.path.isfile(path):
        raise TorchFileError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    try:
        with path.open("rb") as file:
            content, read_storage = _open(file)
            if isinstance(content, Shell):
                raise PickleRefused(
                    f"it holds a whole object ({content.name:.80}), not a state dict; save its state_dict() instead"
                )
            if not isinstance(content, dict):
                raise PickleRefused(f"it holds a {type(content).__name__}, not a state dict")
            weights = _readable(find_weights(content))
            arrays = _arrays(weights.state_dict, read_storage, os.fstat(file.fileno()).st_size)
            return dataclasses.replace(weights, state_dict=arrays)
    except (PickleRefused, ImportMismatch) as error:
        raise TorchFileError(f"{path}: {_line(error)[:300]}") from None
    except Exception as error:  # the kinds differ with the damage: struct.error, BadZipFile, KeyError, IndexError, ...
        what = f"{type(error).__name__}: {_line(error)[:120]}"
        raise TorchFileError(f"{path}: cut off or damaged, or no PyTorch file ({what}); download it again") from None


def _line(error: Exception) -> str:
    """An error's text on one line, without what a file's author could send to a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(error)).split())


def _readable(weights: Weights) -> Weights:
    """The weights without tensors of numbers that are not read here, of which the network needs none."""
    unread = {key: v.storage.unread for key, v in weights.state_dict.items() if isinstance(v, Tensor)}
    unread = {key: kind for key, kind in unread.items() if kind}
    needed = next((key for key in unread if is_known(key) or len(unread) == len(weights.state_dict)), None)
    if needed is not None:
        raise PickleRefused(f"the numbers of {needed:.60} are of a kind that is not read here ({unread[needed]:.60})")
    kept = {key: value for key, value in weights.state_dict.items() if key not in unread}
    return dataclasses.replace(weights, state_dict=kept, left_out=(*weights.left_out, *unread))


def _open(file: BinaryIO) -> tuple[Any, ReadStorage]:
    """The file's dictionary, and what gives the numbers of a storage."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(file_kinds.LOOKED_AT)
    file.seek(0)
    if not start:
        raise PickleRefused("the file is empty; download it again")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _open_zip(file, size)
    if safetensors_file.is_safetensors(start):
        tensors, places = safetensors_file.read_header(file, size)
        return dict(tensors), lambda storage: _held(
            safetensors_file.read_numbers(file, places[storage.key], storage), storage, False
        )
    if file_kinds.is_tar(start):
        raise PickleRefused(f"not a PyTorch file but {file_kinds.kind_of_tar(file)}")
    # Protocols 0 and 1 have no beginning of their own: that of a dictionary, an OrderedDict or a tensor.
    if start[:1] != b"\x80" and not start.startswith((b"(dp", b"(dq", b"}q", b"ccollections\nOrderedDict\n")):
        kind = file_kinds.kind_of(start)
        raise PickleRefused(
            f"not a PyTorch file but {kind}"
            if kind
            else "not a PyTorch file: neither a zip archive nor a pickle, nor safetensors; download it again"
        )
    first = inert_pickle.read(file, nested=_nested())
    return _open_legacy(file) if first == _MAGIC else (first, _no_storage)


def _nested() -> Callable[[bytes], Storage]:
    """Reads storages that lie in a pickle as files of their own: so Python's pickle writes tensors."""
    numbers = itertools.count()

    def read(content: bytes) -> Storage:
        file = io.BytesIO(content)
        storage, read_storage = _open_legacy(file) if inert_pickle.read(file) == _MAGIC else (None, _no_storage)
        if not isinstance(storage, Storage):
            raise PickleRefused("a tensor in it is damaged")
        return dataclasses.replace(storage, key=f"nested {next(numbers)}", held=read_storage(storage))

    return read


def _open_zip(file: BinaryIO, size: int) -> tuple[Any, ReadStorage]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise PickleRefused(file_kinds.cut_zip(size)) from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleRefused(f"not a PyTorch file (no data.pkl, or several) but {file_kinds.kind_of_zip(entries)}")
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
    return described, lambda storage: _held(content(f"data/{storage.key}", _size(storage)), storage, swapped)


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
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
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
        return _held(file.read(size), storage, system.get("little_endian") is False)

    return described, read


def _size(storage: Storage) -> int:
    return storage.numel * storage.dtype.itemsize


def _held(data: bytes, storage: Storage, swapped: bool) -> bytes:
    if len(data) != _size(storage):
        raise PickleRefused(f"a storage has {len(data)} bytes where {_size(storage)} were announced")
    return np.frombuffer(data, f"u{storage.dtype.itemsize}").byteswap().tobytes() if swapped else data


def _no_storage(storage: Storage) -> bytes:
    if storage.held is not None:
        return storage.held
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
        if flat.dtype.name.startswith("float8"):  # of which NumPy makes no views
            flat = flat.astype(np.float32)
        step = flat.itemsize
        value = np.lib.stride_tricks.as_strided(flat[value.offset :], value.shape, [s * step for s in value.strides])
    array = np.array(value, order="C")
    floating = array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat16", "float8"))
    return array.astype(np.float32) if floating else array
