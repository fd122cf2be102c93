"""Files that are no checkpoint: programs in a pickle's clothes, damaged ones, and claims that nothing stands behind."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tests.convert import torch_bytes as tb

HUGE = 1 << 40


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def programs(trace: str) -> dict[str, bytes]:
    """Pickles, without their PROTO and STOP, that would make the file `trace`: one for each way there is to call."""
    command = tb.text(f"touch {trace}")
    one = b"(" + command + b"t"
    system = _named("os", "system")
    stacked = tb.text("os") + tb.text("system") + b"\x93"  # STACK_GLOBAL
    code = tb.text(f"open({trace!r}, 'w')")
    array = tb.tensor("0", np.ones(1, np.float32))
    path = _named("builtins", "getattr") + b"(" + tb.call("pathlib.PosixPath", tb.text(trace))
    stacked_path = tb.text("pathlib") + tb.text("Path.cwd") + b"\x93"
    inner = tb.legacy_file(b"\x80\x02" + system + one + b"R.", [])
    return {
        "GLOBAL, REDUCE": system + one + b"R",
        "STACK_GLOBAL, REDUCE": stacked + one + b"R",
        "STACK_GLOBAL of the memo": tb.text("os") + b"\x94" + tb.text("system") + b"\x94h\x00h\x01\x93" + one + b"R",
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "NEWOBJ": system + one + b"\x81",
        "NEWOBJ_EX": system + one + b"}\x92",
        "eval": _named("builtins", "eval") + b"(" + code + b"tR",
        "exec, Python 2's name": _named("__builtin__", "eval") + b"(" + code + b"tR",
        "an attribute's attribute": _named("builtins", "eval.__call__") + b"(" + code + b"tR",
        "getattr": _named("builtins", "getattr") + b"(" + system + tb.text("__call__") + b"tR",
        "a function of NumPy": _named("numpy.testing._private.utils", "runstring") + b"(" + code + b"}tR",
        "a function of PyTorch": _named("torch.serialization", "load") + b"(" + tb.text("x.pth") + b"tR",
        "an allowed function with another inside": tb.call("collections.OrderedDict", system + one + b"R"),
        "a name that only begins as an allowed one": _named("collections", "OrderedDict.__init__") + b")R",
        "BUILD of a named function": system + b"}" + tb.text("__setstate__") + system + b"sb",
        "BUILD of a tensor": array + b"}" + tb.text("__dict__") + tb.text("x") + b"sb",
        "EXT1": b"\x82\x01)R",
        "EXT2": b"\x83\x01\x00)R",
        "EXT4": b"\x84\x01\x00\x00\x00)R",
        "PERSID": b"Pos.system\n",
        "BINPERSID of a command": command + b"Q",
        "BINPERSID of a function": b"(" + tb.text("storage") + system + tb.text("0") + tb.text("cpu") + b"K\x01tQ",
        "NEXT_BUFFER": b"\x97",
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 3) + b"abc",
        "FROZENSET": b"(K\x01\x91",
        "a class that starts programs": _named("subprocess", "Popen") + one + b"R",
        "a library's function": _named("torch.hub", "load") + one + b"R",
        "a program's own function": _named("__main__", "main") + b")R",
        "a method of a path": path + b"X\x06\x00\x00\x00unlinktR)R",
        "a method by its name": stacked_path + b")R",
        "a rebuilt function": tb.call("copyreg._reconstructor", system, _named("builtins", "object"), b"N"),
        "a new function": b"ccopyreg\n__newobj__\n(" + system + command + b"tR",
        "a partial, called": _named("functools", "partial") + b"(" + system + command + b"tR)R",
        "a tensor of a function": tb.call("torch._tensor._rebuild_from_type_v2", system, b"N", one, b"N"),
        "a pickle in a pickle": tb.call("torch.storage._load_from_bytes", tb.data(inner)),
        "a settings object with a call inside": _named("project.settings", "Settings") + b"(" + system + one + b"RtR",
        "a key": b"}" + system + one + b"RK\x01s",
        "objects in an array": pickle.dumps(np.array([print], dtype=object), 2)[2:-1],
    }


def running(trace: str) -> Iterator[tuple[str, bytes]]:
    """(name, file) of each program: as the whole pickle, as a weight, beside the weights; bare, zipped, legacy."""
    array = np.ones(1, np.float32)
    for name, program in programs(trace).items():
        beside = {"state_dict": tb.dictionary({"a": tb.tensor("0", array)}), "optimizer": program}
        for place, body in (
            ("all", program),
            ("a weight", tb.dictionary({"state_dict": tb.dictionary({"a": program})})),
            ("beside", tb.dictionary(beside)),
        ):
            whole = b"\x80\x04" + body + b"."
            for kind, content in (
                ("pickle", whole),
                ("zip", tb.zip_file(whole, [array])),
                ("legacy", tb.legacy_file(whole, [array])),
            ):
                yield f"{name}, {place}, {kind}", content


def damaged(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """(name, file) made of a good checkpoint: cut off, changed, or with claims larger than it is."""
    arrays = list(state.values())
    described = tb.described(state, "state_dict")
    zipped, legacy = tb.zip_file(described, arrays), tb.legacy_file(described, arrays)
    for kind, whole in (("zip", zipped), ("legacy", legacy)):
        for share in (0.01, 0.5, 0.9, 0.999):
            yield f"{kind}, the first {share:.1%}", whole[: int(len(whole) * share)]
        yield f"{kind}, its beginning lost", whole[100:]
        yield f"{kind}, a hole in it", whole[:200] + bytes(200) + whole[400:]
    yield "nothing", b""
    yield "a text", b"epoch 140: loss 1.23\n" * 20
    yield "a text that begins as a zip", b"PK are two letters\n" * 20
    yield "JSON", b'{"state_dict": {}}'
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(100)
    yield "an HTML page, as download pages are saved", b"<!DOCTYPE html><html><body>Google Drive</body></html>"
    yield "no state dict", pickle.dumps([1, 2, 3], 2)
    yield "an empty dictionary", pickle.dumps({}, 2)
    yield "a dictionary of texts", pickle.dumps({"conv1.weight": "text"}, 2)
    yield "a zip of something else", _zip({"photo.txt": b"x"})
    yield "a TorchScript program", _zip({"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02}."})
    yield "a bomb: a deflated pickle", _zip({"archive/data.pkl": b"\x80\x02" + bytes(50_000_000) + b"."}, deflate=True)
    yield "a bomb: deflated numbers", tb.zip_file(described, arrays, zipfile.ZIP_DEFLATED)
    small = np.ones(4, np.float32)
    wide = np.lib.stride_tricks.as_strided(small, (HUGE,), (0,))
    for name, claim in (
        ("a terabyte of one number", tb.tensor("0", wide, numel=4, strides=(0,))),
        ("a terabyte that is not there", tb.tensor("0", wide, numel=HUGE, strides=(1,))),
        ("strides beyond the storage", tb.tensor("0", small, strides=(1 << 30,))),
        ("a storage that is not there", tb.tensor("7", small)),
    ):
        body = b"\x80\x02" + tb.dictionary({"a": claim}) + b"."
        yield f"{name}, zip", tb.zip_file(body, [small])
        yield f"{name}, legacy", tb.legacy_file(body, [small])
    yield "a terabyte of text", b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x."
    yield "a terabyte of bytes", b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"x."
    yield "four gigabytes in the zip's directory", _claiming(tb.zip_file(described, arrays), 0xFFFFFFF0)


def _zip(entries: dict[str, bytes], deflate: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _claiming(content: bytes, size: int) -> bytes:
    """The zip with another size of data.pkl in its central directory, compressed and not."""
    at = content.index(b"PK\x01\x02")
    while not content[at + 46 :].startswith(b"archive/data.pkl"):
        at = content.index(b"PK\x01\x02", at + 4)
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]


def unfitting(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, state dict) in the right format and with the wrong contents."""
    key = next(k for k, v in state.items() if v.ndim == 4)
    value = state[key]
    yield "half the keys", dict(list(state.items())[::2])
    yield "the first half", dict(list(state.items())[: len(state) // 2])
    yield "one key less", {k: v for k, v in state.items() if k != key}
    yield "one key more", {**state, "extra.weight": np.zeros((3, 3), np.float32)}
    yield "a channel less", {**state, key: value[:, :1].copy()}
    yield "a transposed kernel", {**state, key: np.ascontiguousarray(value.transpose(3, 2, 1, 0))}
    yield "a kernel laid flat", {**state, key: value.reshape(-1)}
    yield "a number for a kernel", {**state, key: np.float32(1).reshape(())}
    yield "an empty kernel", {**state, key: value[:0].copy()}
    yield "names of nothing", {f"layer{i}": v for i, v in enumerate(state.values())}
