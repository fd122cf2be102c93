"""safetensors: arrays of every kind arrive, and a header that does not add up is one line."""

from __future__ import annotations

import json
import pathlib
import struct
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kpjax.convert import TorchFileError, read_torch_checkpoint, read_torch_file
from tests.convert import released

KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
KINDS |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
OTHERS = {"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def file_of(arrays: Mapping[str, tuple[str, np.ndarray]], **metadata: str) -> bytes:
    """As the library writes it: header, padding of blanks, numbers."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    numbers = b""
    for name, (kind, array) in arrays.items():
        data = array.tobytes()
        places = [len(numbers), len(numbers) + len(data)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": places}
        numbers += data
    return with_header(header, numbers)


def with_header(header: Any, numbers: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def refused(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    text = str(error.value)
    assert len(text.splitlines()) == 1 and text.startswith(f"{path}: ") and len(text) < 400 + len(str(path))
    return text


def test_arrays_arrive(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.bin"
    arrays = {kind: (kind, np.array([[0, 1, 2], [3, 1, 0]]).astype(code)) for kind, code in (KINDS | OTHERS).items()}
    arrays |= {"scalar": ("F32", np.array(2.5, np.float32)), "empty": ("F16", np.zeros((0, 3), np.float16))}
    path.write_bytes(file_of(arrays, format="pt"))
    found, left_out = read_torch_checkpoint(path)
    assert set(found) == set(arrays) and left_out == ()
    for name, (kind, array) in arrays.items():
        wanted = array.astype(np.float32) if kind.startswith(("F", "BF")) else array
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].dtype == wanted.dtype and found[name].flags.writeable


def test_a_model_with_wrappers(tmp_path: pathlib.Path) -> None:
    state = released.arrays("centernet_r18", 3, **released.SMALL["centernet_r18"])
    kinds = {"float32": "F32", "int64": "I64"}
    (tmp_path / "model.pth").write_bytes(
        file_of({f"model.module.{key}": (kinds[array.dtype.name], array) for key, array in state.items()})
    )
    found = read_torch_file(tmp_path / "model.pth")
    assert list(found) == list(state)
    for key, array in state.items():
        np.testing.assert_array_equal(found[key], array)


def test_headers_that_do_not_add_up(tmp_path: pathlib.Path) -> None:
    path, four = tmp_path / "model.safetensors", np.arange(4, dtype=np.float32)
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    whole = file_of({"a": ("F32", four), "b": ("F32", four)})

    def entry(**changed: Any) -> bytes:
        return with_header({"a": {**good, **changed}}, four.tobytes())

    assert not refused(path, entry(dtype="F32", shape=[5])).endswith("again")
    assert "is of 20 bytes, and 16" in refused(path, entry(shape=[5]))
    assert "cut off" in refused(path, entry(shape=[5], data_offsets=[0, 20]))
    assert "begin at 4, not 0" in refused(path, entry(shape=[3], data_offsets=[4, 16]))
    assert "bytes of nothing" in refused(path, entry(shape=[3], data_offsets=[0, 12]))
    assert "F4" in refused(path, entry(dtype="F4"))
    for wrong in (None, 7, ["F32"], "x" * 10_000):
        assert "kind that is not read" in refused(path, entry(dtype=wrong))
    for wrong in (None, 4, [-4], [4.0], [True, 4], [1 << 70], ["4"], [1] * 65, [[4]]):
        assert "shape or data_offsets" in refused(path, entry(shape=wrong))
    for wrong in (None, 16, [0], [0, 16, 16], [-16, 0], [0.0, 16.0], [0, 1 << 70], "01"):
        assert "shape or data_offsets" in refused(path, entry(data_offsets=wrong))
    assert "is of" in refused(path, entry(shape=[1 << 40, 1 << 40]))
    assert "is of" in refused(path, entry(data_offsets=[16, 0]))
    overlap = {"a": good, "b": {**good, "data_offsets": [8, 24]}}
    assert "begin at 8, not 16" in refused(path, with_header(overlap, bytes(24)))
    assert "begin at 0, not 16" in refused(path, with_header({"a": good, "b": good}, bytes(16)))
    assert "begin at 20, not 16" in refused(
        path, with_header({"a": good, "b": {**good, "data_offsets": [20, 36]}}, bytes(36))
    )
    assert "C64" in refused(path, file_of({"conv1.weight": ("C64", np.zeros(2, np.complex64))}))
    assert "no state dict" in refused(path, with_header({}, b""))
    assert "kind that is not read" in refused(path, with_header({"a": 3}, b""))
    for keep in [*range(1, 60), *range(60, len(whole), 7)]:
        refused(path, whole[:keep])
    assert "cut off" in refused(path, whole[:-1])
    assert "bytes of nothing" in refused(path, whole + b"x")


def test_hostile_headers(tmp_path: pathlib.Path) -> None:
    """None takes more memory or time than its size warrants, and none is read in part."""
    path, started = tmp_path / "model.safetensors", time.perf_counter()

    def raw(text: bytes, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if length is None else length) + text

    twice = b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    tracemalloc.start()
    for content, text in (
        (raw(b'{"a"', 1 << 39), "claims 549755813888 bytes"),
        (raw(b'{"a"', 1000), "cut off"),
        (raw(b'{"a": ' + b"[" * 100_000), "brackets without end"),
        (raw(b'{"a": ' + b'{"a":' * 100_000), "brackets without end"),
        (raw(b'{"a": "\xff"}'), "not UTF-8"),
        (raw(b'{"a": nothing}'), "no JSON at letter 6"),
        (raw(b'{"a": ' + b"9" * 100_000 + b"}"), ""),
        (raw(twice + b"    "), "twice"),
        (raw(b'{"' + b"x" * 2_000_000 + b'": 3}'), "kind that is not read"),
        (raw(b'{"\\u001b[31m\\n": 3}'), "kind that is not read"),
        (raw(b'{"a": {"dtype": "F32", "shape": [' + b"0," * 300_000 + b'0], "data_offsets": [0, 0]}}'), "shape"),
        (raw(b'{"a": 3' + b" " * (9 << 20) + b"}"), "are allowed"),
    ):
        said = refused(path, content)
        assert text in said and said.isprintable(), content[:80]
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert time.perf_counter() - started < 20
