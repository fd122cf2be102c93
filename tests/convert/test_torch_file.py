"""Reading .pth files: what they hold arrives, and what is wrong with them is one line."""

from __future__ import annotations

import builtins
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from kpjax.convert import TorchFileError, read_torch_file


def one_line(error: pytest.ExceptionInfo[TorchFileError], path: pathlib.Path) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    return text


def test_missing_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "nothing.pth"
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    assert "no such file" in one_line(error, path)


def test_without_pytorch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")
    real = builtins.__import__

    def no_torch(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    assert "pip install kpjax[torch]" in one_line(error, path)


@pytest.mark.parametrize("zipped", (True, False))
@pytest.mark.parametrize("wrapper", ("", "state_dict", "model"))
def test_arrays_arrive(tmp_path: pathlib.Path, wrapper: str, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {
        "module.a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "module.a.half": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
        "module.a.num_batches_tracked": torch.tensor(7),
    }
    path = tmp_path / "weights.pth"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert set(found) == {"a.weight", "a.half", "a.num_batches_tracked"}
    np.testing.assert_array_equal(found["a.weight"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(found["a.half"], np.array([0.5, -2.0], np.float32))
    assert found["a.half"].dtype == np.float32
    assert found["a.num_batches_tracked"] == 7


@pytest.mark.parametrize("keep", (0, 10, 200, 0.5, 0.99))
def test_truncated_file(tmp_path: pathlib.Path, keep: float) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    one_line(error, path)


def test_another_format(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    for content in (b"\xff\xd8\xff\xe0 a picture", b"{}", pickle.dumps([1, 2, 3])):
        path.write_bytes(content)
        with pytest.raises(TorchFileError) as error:
            read_torch_file(path)
        one_line(error, path)


class Trap:
    """Unpickling this calls `pathlib.Path.touch` on a file of its choice."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("how", ("torch", "pickle"))
def test_code_in_a_file_does_not_run(tmp_path: pathlib.Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "weights.pth", tmp_path / "was_here"
    content = {"state_dict": {"a": Trap(trace)}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    assert "more than tensors and plain containers" in one_line(error, path)
    assert not trace.exists()
