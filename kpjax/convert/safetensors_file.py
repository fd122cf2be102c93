"""Reading a safetensors file: a JSON header that says where each array's numbers lie.

    8 bytes     the header's length, little-endian
    header      JSON: {name: {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}}
    numbers     of one array after another, little-endian, without gaps

The package of that name would do it too; these few lines need nothing that is not installed already.
"""

from __future__ import annotations

import functools
import json
import math
import os
from typing import Any, BinaryIO

import numpy as np

from kpjax.convert.inert_values import PickleRefused, Storage, Tensor

_LONGEST_HEADER = 8 << 20  # bytes; the largest model here takes 200,000
_MOST_AXES = 64


@functools.cache
def _dtypes() -> dict[str, np.dtype]:
    import ml_dtypes  # JAX brings it

    names = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"}
    names |= {"U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?", "C64": "V8"}
    others = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
    found = {name: np.dtype(code).newbyteorder("<") for name, code in names.items()}
    return found | {name: np.dtype(kind) for name, kind in others.items()}


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so can be nothing else: a header's length and its first brace."""
    return start[8:9] == b"{" and start[9:10] in (b'"', b"}", b" ") and int.from_bytes(start[:8], "little") < 1 << 40


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Each array's description, and where its storage begins in the file (by the storage's key).

    size: of the file in bytes.  Raises PickleRefused, with one line, on whatever does not add up.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise PickleRefused(f"refused: its safetensors header claims {length} bytes, and {_LONGEST_HEADER} are allowed")
    if 8 + length > size:
        raise PickleRefused(f"it is cut off: its safetensors header has {length} bytes, the file {size}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        raise PickleRefused("its safetensors header is damaged: brackets without end") from None
    except UnicodeDecodeError:
        raise PickleRefused("its safetensors header is damaged: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise PickleRefused(f"its safetensors header is damaged: no JSON at letter {error.pos}") from None
    if not isinstance(header, dict):
        raise PickleRefused("its safetensors header is damaged: no object")
    header.pop("__metadata__", None)
    found = {name: _entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (begin, after, _) in sorted(found.items(), key=lambda item: item[1][:2]):
        if begin != end:
            raise PickleRefused(
                f"its safetensors header is damaged: the numbers of {name:.60} begin at {begin}, not {end}"
            )
        end = after
    if 8 + length + end != size:
        what = "it is cut off" if 8 + length + end > size else "it has bytes of nothing at its end"
        raise PickleRefused(f"{what}: its safetensors header describes {8 + length + end} bytes, the file has {size}")
    places = {name: 8 + length + begin for name, (begin, _, _) in found.items()}
    return {name: tensor for name, (_, _, tensor) in found.items()}, places


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PickleRefused("its safetensors header is damaged: a name is in it twice")
    return found


def _entry(name: str, entry: Any) -> tuple[int, int, Tensor]:
    """Begin and end of an array's numbers, and its description."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    kind, shape, places = fields.get("dtype"), fields.get("shape", ()), fields.get("data_offsets", ())
    dtype = _dtypes().get(kind) if isinstance(kind, str) else None
    if dtype is None:
        named = f"{kind:.20}" if isinstance(kind, str) else "without a name"
        raise PickleRefused(f"the numbers of {name:.60} are of a kind that is not read here ({named})")
    if not (_counts(shape) and len(shape) <= _MOST_AXES and _counts(places) and len(places) == 2):
        raise PickleRefused(f"its safetensors header is damaged: shape or data_offsets of {name:.60}")
    count, (begin, end) = math.prod(shape), places
    if end - begin != count * dtype.itemsize:
        raise PickleRefused(
            f"its safetensors header is damaged: {name:.60} is of {count * dtype.itemsize:.6g} bytes, "
            f"and {end - begin} are given to it"
        )
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    unread = str(kind) if dtype.kind == "V" and dtype.itemsize == 8 else ""
    return begin, end, Tensor(Storage(name, dtype, count, unread), 0, tuple(shape), strides)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def read_numbers(file: BinaryIO, place: int, storage: Storage) -> bytes:
    """The bytes of an array."""
    file.seek(place, os.SEEK_SET)
    return file.read(storage.numel * storage.dtype.itemsize)
