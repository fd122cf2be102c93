"""Reading checkpoints of PyTorch: what they hold arrives, nothing in them runs, and what is wrong is one line."""

from __future__ import annotations

import os
import pathlib
import pickle
import resource
import struct
import time
import zipfile
from typing import Any

import numpy as np
import pytest

from kpjax.convert import TorchFileError, read_torch_checkpoint, read_torch_file
from tests.convert import torch_bytes as tb

STATE = {
    "module.a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "module.a.turned": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "module.a.half": np.array([0.5, -2.0], tb.bfloat16),
    "module.a.num_batches_tracked": np.array(7, np.int64),
    "module.a.empty": np.zeros((0, 3), np.float32),
}


def refused(path: pathlib.Path, content: bytes | None = None) -> str:
    """The one line that reading `content` ends in."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    text = str(error.value)
    assert len(text.splitlines()) == 1 and len(text) < 400 + len(str(path))
    assert str(path) in text
    return text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_arrays_arrive(tmp_path: pathlib.Path, wrapper: str, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    beside = {"epoch": tb.number(3), "optimizer": tb.dictionary({"lr": tb.number(1)})} if wrapper else None
    tb.save(path, STATE, zipped=zipped, wrapper=wrapper, beside=beside)
    found, left_out = read_torch_checkpoint(path)
    assert left_out == (("epoch", "optimizer") if wrapper else ())
    assert set(found) == {key.removeprefix("module.") for key in STATE}
    for key, array in STATE.items():
        ours = found[key.removeprefix("module.")]
        np.testing.assert_array_equal(ours, array.astype(np.float32))
        assert ours.dtype == (np.int64 if array.dtype == np.int64 else np.float32) and ours.flags.c_contiguous


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_pytorch_wrote(tmp_path: pathlib.Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = net.state_dict() | {"t": torch.arange(6).reshape(2, 3).t(), "b": torch.ones(3).bfloat16()}
    path = tmp_path / "weights.pth"
    content = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": np.float64(2), "p": net[0].weight}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found, left_out = read_torch_checkpoint(path)
    assert left_out == ("optimizer", "epoch", "p") and set(found) == set(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(found[key], tensor.float().numpy())


def test_a_dictionary_of_numpy_arrays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model_final.pkl"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.ones((2, 3)))}
    for protocol in (2, 4, 5):
        content = pickle.dumps({"model": arrays, "__author__": "x", "n": np.float32(3)}, protocol)
        if protocol == 5:  # arrays as buffers, an instruction that is not read here
            assert "BYTEARRAY8" in refused(path, content)
            continue
        path.write_bytes(content)
        found, left_out = read_torch_checkpoint(path)
        assert left_out == ("__author__", "n")
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array)


def test_only_what_is_asked_for_is_read(tmp_path: pathlib.Path) -> None:
    """The optimizer's storages may be missing: nobody reads them."""
    path = tmp_path / "weights.pth"
    array = np.ones(3, np.float32)
    state = tb.dictionary({"a": tb.tensor("0", array)})
    body = tb.dictionary({"state_dict": state, "optimizer": tb.tensor("9", np.ones(1000, np.float32))})
    path.write_bytes(tb.zip_file(b"\x80\x02" + body + b".", [array]))
    np.testing.assert_array_equal(read_torch_file(path)["a"], array)


def test_what_is_no_checkpoint(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pth"
    assert "no such file" in refused(path)
    assert "empty" in refused(path, b"")
    assert "not a PyTorch file" in refused(path, b"just a text\n" * 10)
    assert "not a PyTorch file" in refused(path, b"\xff\xd8\xff\xe0 a picture")
    assert "holds a list" in refused(path, pickle.dumps([1, 2, 3]))
    assert "no state dict" in refused(path, pickle.dumps({}))
    assert "is a int" in refused(path, pickle.dumps({"epoch": 3}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "x")
    assert "no data.pkl" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere(tmp_path: pathlib.Path, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    tb.save(path, STATE, zipped=zipped, wrapper="state_dict")
    whole = path.read_bytes()
    for keep in [*range(1, 40), *range(40, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        refused(path, whole[:keep])


class Trap:
    """Unpickling this calls a function of its choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_file_does_not_run(tmp_path: pathlib.Path, protocol: int) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "was_here"
    for trap in (Trap(os.system, f"touch {trace}"), Trap(eval, f"open({str(trace)!r}, 'w')"), Trap(trace.touch)):
        content = pickle.dumps({"state_dict": {"a": trap}}, protocol)
        refused(path, content)
        refused(path, tb.zip_file(content, []))
        refused(path, tb.legacy_file(content, []))
    assert not trace.exists()
    if protocol:
        assert "would call" in refused(path, pickle.dumps({"a": Trap(eval, "1")}, protocol))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "numpy.load", "builtins.getattr"])
def test_every_way_to_call_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    path, (module, attribute) = tmp_path / "weights.pth", name.rsplit(".", 1)
    argument = tb.text("true")
    for program in (
        tb.call(name, argument),
        f"c{module}\n{attribute}\n".encode() + argument + b"\x85\x81",  # NEWOBJ
        b"(" + argument + f"i{module}\n{attribute}\n".encode(),  # INST
        b"(" + f"c{module}\n{attribute}\n".encode() + argument + b"o",  # OBJ
        tb.text(module) + tb.text(attribute) + b"\x93" + argument + b"\x85R",  # STACK_GLOBAL
        b"\x82\x01",  # EXT1: whatever copyreg registered
    ):
        assert "refused" in refused(path, b"\x80\x04" + program + b".")


# Each tuple holds the one before twice: 2^60 elements to whoever looks into it, as a key or a text of it does.
DOUBLING = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))


def test_claims_larger_than_the_file(tmp_path: pathlib.Path) -> None:
    """Memory and time stay small, whatever the file says about itself."""
    path, small = tmp_path / "weights.pth", np.ones(4, np.float32)
    huge = 1 << 40
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    wide = np.lib.stride_tricks.as_strided(small, (huge,), (0,))

    def pickled(value: bytes) -> bytes:
        return b"\x80\x02" + tb.dictionary({"a": value}) + b"."

    claims = [
        tb.tensor("0", wide, numel=4, strides=(0,)),  # one number, repeated
        tb.tensor("0", wide, numel=huge, strides=(1,)),
        tb.tensor("0", small, strides=(1 << 30,)),
        tb.tensor("7", small),
    ]
    for write in (tb.zip_file, tb.legacy_file):
        for claim in claims:
            refused(path, write(pickled(claim), [small]))
    for program in (
        b"\x8e" + struct.pack("<Q", huge),  # BINBYTES8 of a terabyte
        b"T" + struct.pack("<i", (1 << 31) - 1),
        b"]r\xff\xff\xff\x7fN",  # memo index 2^31
        b"\x95" + struct.pack("<Q", huge),
    ):
        refused(path, b"\x80\x04" + program + b".")
    refused(path, b"\x80\x02}" + DOUBLING + b"Ns.")
    refused(path, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    refused(path, tb.zip_file(described := tb.described({"a": small}), [small], zipfile.ZIP_DEFLATED))
    assert described and time.perf_counter() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_wrong_kinds_of_numbers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pth"
    content = tb.described({"a": np.ones(2, np.float32)}).replace(b"FloatStorage", b"ComplexFloatStorage")
    assert "ComplexFloatStorage" in refused(path, tb.zip_file(content, [np.ones(2, np.float32)]))
    assert "not numbers" in refused(path, pickle.dumps({"a": np.array([None, 1])}, 2))


def test_text_without_end(tmp_path: pathlib.Path) -> None:
    """No message and no name is made of a container that holds itself twice, sixty times over."""
    path = tmp_path / "weights.pth"
    for named in (DOUBLING + tb.text("x"), tb.text("torch") + DOUBLING):
        assert "no text" in refused(path, b"\x80\x04" + named + b"\x93.")
    storage = b"(" + tb.text("storage") + DOUBLING + tb.text("0") + tb.text("cpu") + tb.number(1) + b"tQ"
    assert "tuple" in refused(path, b"\x80\x02" + storage + b".")
    whole = tb.legacy_file(b"\x80\x02}.", [np.ones(1, np.float32)])
    version = tb.number(1001) + b"."
    assert version in whole
    assert "format is tuple" in refused(path, whole.replace(version, DOUBLING + b".", 1))
    refused(path, whole.replace(tb.text("0"), DOUBLING, 1))  # the list of storages
    array = tb.call("numpy.core.multiarray._reconstruct") + b"(K\x01" + DOUBLING + b"NNNtb"
    assert "description is damaged" in refused(path, b"\x80\x02" + array + b".")
    long = tb.text("x" * 900)
    assert "too long" in refused(path, b"\x80\x04" + long + long + b"\x93.")


def test_what_the_memo_holds_is_copied_once(tmp_path: pathlib.Path) -> None:
    path, keys = tmp_path / "weights.pth", [tb.text(str(i)) for i in range(20_000)]
    inner = b"}q\x00(" + b"".join(key + b"N" for key in keys) + b"u"
    outer = b"}(" + tb.text("first") + inner + b"".join(key + b"h\x00" for key in keys) + b"u"
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert "not a state dict" in refused(path, b"\x80\x02" + outer + b".")
    million = tb.text("x" * 1_000_000) + b"q\x00"
    pairs = b"](" + b"".join(b"(" + key + b"Nt" for key in keys) + b"eq\x00"
    for held, function in ((million, "_codecs.encode"), (pairs, "collections.OrderedDict"), (pairs, "torch.Size")):
        module, name = function.rsplit(".", 1)
        calls = f"c{module}\n{name}\nq\x01".encode() + b"h\x01h\x00\x85R" * 10_000
        assert "copy" in refused(path, b"\x80\x02](" + held + calls + b"e.")
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_storage_under_many_keys(tmp_path: pathlib.Path) -> None:
    path, array = tmp_path / "weights.pth", np.arange(1 << 18, dtype=np.float32)

    def many(count: int, part: np.ndarray) -> bytes:
        return (
            b"\x80\x02" + tb.dictionary({str(i): tb.tensor("0", part, numel=array.size) for i in range(count)}) + b"."
        )

    for write in (tb.zip_file, tb.legacy_file):
        assert "tensors would take 1048576000 bytes" in refused(path, write(many(1000, array), [array]))
        path.write_bytes(write(many(2, array), [array]))  # shared weights
        assert all(np.array_equal(found, array) for found in read_torch_file(path).values())
        path.write_bytes(write(many(1000, array[:2]), [array]))  # views of one storage, which is read once
        started = time.perf_counter()
        found = read_torch_file(path)
        assert len(found) == 1000 and list(found) == [str(i) for i in range(1000)]
        assert all(np.array_equal(view, [0, 1]) for view in found.values()) and time.perf_counter() - started < 5


def test_numbers_without_end(tmp_path: pathlib.Path) -> None:
    path, one = tmp_path / "weights.pth", np.ones(1, np.float32)
    started = time.perf_counter()
    deep = tb.tensor("0", one).replace(tb.numbers((1,)), tb.numbers((1 << 62,) * 100_000))
    assert "description is damaged" in refused(path, b"\x80\x02" + deep + b".")
    prime = (1 << 61) - 1  # the hash of n * prime is 0, whatever n
    longs = b"".join(b"\x8a\x0c" + (n * prime).to_bytes(12, "little") + b"N" for n in range(50_000))
    assert "64 bits" in refused(path, b"\x80\x02}(" + longs + b"u.")
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_read_over(tmp_path: pathlib.Path, zipped: bool) -> None:
    """A scheduler's Counter of milestones, and an object that holds a tensor of its own."""
    path, array = tmp_path / "weights.pth", np.arange(3, dtype=np.float32)
    beside = {
        "scheduler": tb.dictionary({"milestones": tb.call("collections.Counter", b"}K\x08K\x01s")}),
        "args": tb.call("argparse.Namespace") + tb.dictionary({"anchors": tb.tensor("1", array)}) + b"b",
    }
    content = tb.described({"a": array}, "state_dict", beside)
    path.write_bytes((tb.zip_file if zipped else tb.legacy_file)(content, [array, array]))
    found, left_out = read_torch_checkpoint(path)
    assert left_out == ("scheduler", "args")
    np.testing.assert_array_equal(found["a"], array)
