"""Checkpoint files as PyTorch writes them, byte by byte and without PyTorch."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long"}
STORAGES |= {"int32": "Int", "uint8": "Byte", "bool": "Bool"}
bfloat16 = ml_dtypes.bfloat16


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def data(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def storage(key: str, array: np.ndarray, numel: int | None = None) -> bytes:
    kind = f"ctorch\n{STORAGES[array.dtype.name]}Storage\n".encode()
    count = number(array.size if numel is None else numel)
    return b"(" + text("storage") + kind + text(key) + text("cpu") + count + b"tQ"


def tensor(key: str, array: np.ndarray, *, numel: int | None = None, strides: tuple[int, ...] | None = None) -> bytes:
    steps = tuple(s // array.itemsize for s in array.strides) if strides is None else strides
    return call(
        "torch._utils._rebuild_tensor_v2",
        storage(key, array, numel),
        number(0),
        numbers(array.shape),
        numbers(steps),
        b"\x89",
        call("collections.OrderedDict"),
    )


def dictionary(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def described(state: Mapping[str, np.ndarray], wrapper: str = "", beside: Mapping[str, bytes] | None = None) -> bytes:
    """The pickle of a state dict, perhaps in a dictionary under `wrapper`."""
    inner = dictionary({key: tensor(str(i), array) for i, (key, array) in enumerate(state.items())})
    body = dictionary({wrapper: inner, **(beside or {})}) if wrapper else inner
    return b"\x80\x02" + body + b"."


def zip_file(pickle: bytes, arrays: list[np.ndarray], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", array.tobytes(order="A"))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy_file(pickle: bytes, arrays: list[np.ndarray]) -> bytes:
    magic = 0x1950A86A20F9469CFC6C.to_bytes(11, "little")
    head = b"\x80\x02\x8a\x0b" + magic + b"." + b"\x80\x02" + number(1001) + b"."
    system = b"\x80\x02" + dictionary({"little_endian": b"\x88"}) + b"."
    keys = b"\x80\x02](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e."
    data = b"".join(struct.pack("<q", array.size) + array.tobytes(order="A") for array in arrays)
    return head + system + pickle + keys + data


def save(path: Any, state: Mapping[str, np.ndarray], *, zipped: bool = True, **options: Any) -> None:
    write = zip_file if zipped else legacy_file
    path.write_bytes(write(described(state, **options), list(state.values())))
