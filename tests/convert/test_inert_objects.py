"""Objects beside the weights: whatever their class, the weights are read and nothing of the object runs."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import ipaddress
import pathlib
import pickle
import random
import re
import types
import uuid
from typing import Any

import numpy as np
import pytest

from kpjax.convert import TorchFileError, read_torch_checkpoint
from kpjax.convert.inert_objects import is_harmless
from tests.convert import torch_bytes as tb

RAN: list[str] = []


class Mode(enum.Enum):
    TRAIN = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        RAN.append("an enum's lookup")


class Flags(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Settings:
    """Says so if any of its code runs."""

    path: pathlib.Path = pathlib.Path("weights")

    def __new__(cls, *_: Any) -> Settings:
        RAN.append("__new__")
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        RAN.append("__setstate__")


class History:
    """As mmengine's HistoryBuffer: its state names its methods, which Python pickles as calls of getattr."""

    def mean(self) -> None: ...

    def __getstate__(self) -> Any:
        return {"log": np.zeros(0), "methods": {"mean": History.mean, "bound": self.mean}, "most": 10}

    def __setstate__(self, state: Any) -> None:
        RAN.append("__setstate__")


class OwnDict(dict[str, Any]):
    pass


OBJECTS: dict[str, Any] = {
    "path": pathlib.PurePosixPath("/a/b"),
    "file": pathlib.Path("x"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "span": datetime.timedelta(hours=1),
    "enum": Mode.TRAIN,
    "flags": Flags.A | Flags.B,
    "settings": Settings(),
    "history": {"train/loss": History()},
    "namespace": argparse.Namespace(lr=1, out=pathlib.PurePosixPath("x")),
    "simple": types.SimpleNamespace(a=1),
    "deque": collections.deque([1.0, 2.0], maxlen=3),
    "default": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter([3, 4]),
    "set": {1, 2},
    "own dictionary": OwnDict(lr=0.1),
    "complex": 1 + 2j,
    "range": range(3),
    "decimal": decimal.Decimal("0.1"),
    "uuid": uuid.UUID(int=1),
    "address": ipaddress.ip_address("127.0.0.1"),
    "pattern": re.compile("x+"),
    "error": ValueError("x"),
    "partial": functools.partial(Settings, "x"),
    "class": Settings,
    "function": read_torch_checkpoint,
    "tuple as a key": {(1, 2): 3},
    "class as a key": {Settings: 1},
    "numbers": random.Random(1),
    "generator": np.random.default_rng(1),
    "texts": np.array(["a", "b"]),
    "mixed": np.array(["a", None], dtype=object),
    "structured": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
    "day": np.datetime64("2026-01-01"),
    "text": np.str_("x"),
    "empty": np.zeros(0),
    "bytes": b"",
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights(name: str, protocol: int, tmp_path: pathlib.Path) -> None:
    path, array = tmp_path / "epoch_1.pth", np.arange(3, dtype=np.float32)
    program = pickle.dumps(OBJECTS[name], protocol)[2:-1]
    body = tb.described({"a": array}, "state_dict", {"beside": program, "epoch": tb.number(3)})
    body = b"\x80" + bytes([protocol]) + body[2:]
    RAN.clear()
    for content in (tb.zip_file(body, [array]), tb.legacy_file(body, [array])):
        path.write_bytes(content)
        found, left_out = read_torch_checkpoint(path)
        assert left_out == ("beside", "epoch") and list(found) == ["a"]
        np.testing.assert_array_equal(found["a"], array)
    assert not RAN
    path.write_bytes(pickle.dumps({"a": array, "beside": OBJECTS[name]}, protocol))  # in the state dict itself
    assert read_torch_checkpoint(path)[1] == (() if name == "empty" else ("beside",))  # that one is an array
    assert not RAN


def test_the_objects_would_run_otherwise() -> None:
    """Else the test above proves nothing."""
    RAN.clear()
    pickle.loads(pickle.dumps([Settings(), History()]))
    assert {"__new__", "__setstate__"} <= set(RAN)


def test_a_state_dict_of_a_class_of_its_own(tmp_path: pathlib.Path) -> None:
    path, array = tmp_path / "weights.pth", np.arange(3, dtype=np.float32)
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"state_dict": OwnDict(a=array), "epoch": 1}, protocol))
        found, left_out = read_torch_checkpoint(path)
        np.testing.assert_array_equal(found["a"], array)
        assert left_out == ("epoch",)


def test_a_whole_object_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Settings(), 2))
    with pytest.raises(TorchFileError, match=r"a whole object \(.*Settings\).*state_dict"):
        read_torch_checkpoint(path)
    path.write_bytes(pickle.dumps({"model": Settings(), "epoch": 1}, 2))
    with pytest.raises(TorchFileError, match=r"'model' is a .*Settings.*state_dict"):
        read_torch_checkpoint(path)


def test_what_is_taken_for_a_harmless_object() -> None:
    for name in ("pathlib.PosixPath", "project.config.Mode", "__main__.Settings", "torch.nn.modules.linear.Linear"):
        assert is_harmless(name), name
    for name in ("builtins.ValueError", "pandas._libs.tslibs.timestamps._unpickle_timestamp", "datetime.date"):
        assert is_harmless(name), name
    for name in ("os.system", "subprocess.Popen", "builtins.eval", "builtins.getattr", "numpy.load", "torch.load"):
        assert not is_harmless(name), name
    for name in ("pathlib.Path.touch", "__main__.main", "project.Settings.load", "Popen", "", "ctypes.CDLL", "a."):
        assert not is_harmless(name), name


KINDS = {"uint16": "H", "uint64": "Q"}


@pytest.mark.parametrize("kind", [*KINDS, "complex", "quantised", "unknown", "float8"])
def test_tensors_of_other_kinds(kind: str, tmp_path: pathlib.Path) -> None:
    """Newer kinds of numbers, which lie in untyped storages, and those that are only read over."""
    path, array = tmp_path / "weights.pth", np.arange(4, dtype=np.float32)
    numbers = np.array([1, 2, 3], KINDS.get(kind, "B")).view(np.uint8)
    dtype = {"unknown": b"ctorch\nint3\n", "float8": b"ctorch\nfloat8_e5m2\n"}.get(kind, f"ctorch\n{kind}\n".encode())
    storage = b"(" + tb.text("storage") + b"ctorch.storage\nUntypedStorage\n" + tb.text("1") + tb.text("cpu")
    storage += tb.number(numbers.size) + b"tQ"
    described = (storage, tb.number(0), tb.numbers((3,)), tb.numbers((1,)), b"\x89", b"N", dtype)
    tensor = tb.call("torch._utils._rebuild_tensor_v3", *described)
    if kind == "complex":
        numbers = np.zeros(4, np.uint8)
        tensor = tb.tensor("1", numbers, numel=4).replace(b"ByteStorage", b"ComplexFloatStorage")
        numbers = np.zeros(32, np.uint8)
    elif kind == "quantised":
        tensor = tb.call("torch._utils._rebuild_qtensor", *described[:-1])
    state = tb.dictionary({"a": tb.tensor("0", array), "b": tensor})
    for body in (tb.dictionary({"state_dict": state}), tb.dictionary({"net": state, "buffer": tensor})):
        path.write_bytes(tb.zip_file(b"\x80\x02" + body + b".", [array, numbers]))
        found, left_out = read_torch_checkpoint(path)
        np.testing.assert_array_equal(found["a"], array)
        if kind in KINDS:
            np.testing.assert_array_equal(found["b"], [1, 2, 3])
        elif kind == "float8":
            assert found["b"].dtype == np.float32 and found["b"].shape == (3,)
        else:
            assert list(found) == ["a"] and "b" in {name.rpartition(".")[2] for name in left_out}
    alone = tb.dictionary({"conv1.weight": tensor})
    path.write_bytes(tb.zip_file(b"\x80\x02" + alone + b".", [array, numbers]))
    if kind not in (*KINDS, "float8"):
        with pytest.raises(TorchFileError, match=r"kind that is not read|qtensor"):
            read_torch_checkpoint(path)


def test_tensors_that_pythons_pickle_wrote(tmp_path: pathlib.Path) -> None:
    """Each storage is a file of PyTorch within the pickle; what else could be in one is refused."""
    path, array = tmp_path / "weights.pkl", np.arange(6, dtype=np.float32).reshape(2, 3)

    def nested(described: bytes) -> bytes:
        content = tb.legacy_file(b"\x80\x02" + described + b".", [array])
        return tb.call("torch.storage._load_from_bytes", tb.data(content))

    storage = tb.storage("0", array)
    rest = (tb.number(0), tb.numbers((2, 3)), tb.numbers((3, 1)), b"\x89", b"N")
    tensor = tb.call("torch._utils._rebuild_tensor_v2", nested(storage), *rest)
    path.write_bytes(b"\x80\x02" + tb.dictionary({"a": tensor, "b": tensor}) + b".")
    found, _ = read_torch_checkpoint(path)
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"], array)
    for wrong in (b"K\x01", tb.dictionary({"a": storage}), nested(storage), tb.call("os.system", tb.text("true"))):
        path.write_bytes(b"\x80\x02" + tb.dictionary({"a": nested(wrong)}) + b".")
        with pytest.raises(TorchFileError, match=r"damaged|refused"):
            read_torch_checkpoint(path)
