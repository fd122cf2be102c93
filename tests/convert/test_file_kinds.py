"""Files that are no checkpoint are named for what they are, with what to do, whatever their names say."""

from __future__ import annotations

import gzip
import io
import lzma
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from kpjax.convert import TorchFileError, read_torch_file
from tests.convert import torch_bytes as tb

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 79163548\n"


def zip_of(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def tar_of(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


STATE = {"conv1.weight": np.ones((8, 3, 7, 7), np.float32)}
WHOLE = tb.zip_file(tb.described(STATE), list(STATE.values()))
# contents -> what the line says, and what to do
FILES: dict[str, tuple[bytes, str, str]] = {
    "web page": (
        b"<!DOCTYPE html><html><title>Google Drive - Virus\n scan</title>",
        "a web page ('Google Drive",
        "link",
    ),
    "web page, blanks first": (
        b"\xef\xbb\xbf\n\n <HTML lang='en'><head></head>" + b" " * 5000,
        "a web page",
        "download",
    ),
    "error page": (b"<html>\n<head><title>404 Not Found</title></head>", "a web page ('404 Not Found')", "download"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", 'XML, "<?xml', "download"),
    "LFS": (LFS, "a git LFS pointer to a file of 79163548 bytes", "git lfs pull"),
    "annex": (b"../.git/annex/objects/xx/yy/SHA256E-s3--aa.pth\n", "a git-annex pointer", "git annex get"),
    "JSON": (b'{"error": "Invalid username or password."}', 'JSON, \'{"error": "Invalid', "download"),
    "index": (
        b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        "an index (JSON)",
        "holds all",
    ),
    "text": (b"Entry not found\n", "a text file, 'Entry not found'", "download"),
    "text, not English": ("Datei nicht gefunden: Größe".encode() * 100, "a text file, 'Datei nicht", "download"),
    "text, UTF-16": ("no such file".encode("utf-16"), "a text file, 'no such file'", "download"),
    "zeros": (bytes(5000), "zeros alone", "download"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras writes", "PyTorch or safetensors"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\xb2\x01\n", "an ONNX model", "PyTorch or safetensors"),
    "ONNX without a producer": (b"\x08\x08:\x9a\x01\n\x0b\n\x01x\x12\x01y", "an ONNX model", "PyTorch or safetensors"),
    "TFLite": (b"\x1c\x00\x00\x00TFL3\x14\x00 \x00", "a TFLite model", "PyTorch or safetensors"),
    "SavedModel": (
        b"\x08\x01\x12\xb5\x8e\x01\x0a\x82\x8c\x01\x12",
        "TensorFlow (SavedModel)",
        "PyTorch or safetensors",
    ),
    "frozen graph": (b"\n\x1c\n\x05input\x12\x0bPlaceholder*\x0b\n\x05dtype", "a TensorFlow graph", "PyTorch"),
    "Flax": (b"\x82\xa6params\x82\xa8backbone\x81\xa5conv1", "a msgpack file, as Flax writes", "PyTorch"),
    "npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "a single NumPy array", "PyTorch"),
    "npz": (npz(), "NumPy arrays (.npz)", "PyTorch or safetensors"),
    "Keras": (zip_of("metadata.json", "config.json", "model.weights.h5"), "a Keras model", "PyTorch or safetensors"),
    "a zip of files": (zip_of("readme.txt", "weights/model.pth"), "a zip archive of 'readme.txt', 'weights", "unpack"),
    "a zip of many": (zip_of("a", "b", "c", "d"), "'a', 'b', 'c', ...", "unpack"),
    "a zip of nothing": (zip_of(), "with nothing in it", "unpack"),
    "unpacked and packed": (zip_of("x/model/data.pkl", "x/model/version"), "unpacked and packed again", "as it was"),
    "a jar": (zip_of("META-INF/MANIFEST.MF", "a.class"), "a program or a document", "download"),
    "torch.export": (zip_of("m/archive_format", "m/models/model.json"), "a program of torch.export", "state_dict()"),
    "a tar of files": (tar_of("model.pth", "readme.txt"), "a tar archive of 'model.pth', 'readme.txt'", "unpack"),
    "an old file of PyTorch": (tar_of("sys_info", "pickle", "storages"), "PyTorch before 0.2", "save it again"),
    "a tar, damaged": (tar_of("a")[:300] + b"x" * 300, "a tar archive, cut off", "download"),
    "gzip": (gzip.compress(WHOLE), "a gzip archive", "unpack"),
    "xz": (lzma.compress(WHOLE), "an xz archive", "unpack"),
    "a picture": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a picture (JPEG)", "download"),
    "a video": (b"\x00\x00\x00 ftypisom", "a video", "download"),
    "noise": (np.random.default_rng(0).bytes(3000), "neither a zip archive nor a pickle", "download"),
}
CUT = {
    "nothing": (b"", "the file is empty", "download"),
    "a zip, cut": (WHOLE[: len(WHOLE) // 2], "cut off or damaged: it begins as a zip archive", "download"),
    "legacy, cut": (tb.legacy_file(tb.described(STATE), list(STATE.values()))[:-9], "cut off", ""),
    "a pickle, cut": (pickle.dumps({"a": STATE}, 4)[:200], "cut off", "download"),
}


@pytest.mark.parametrize("kind", FILES | CUT)
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "model"])
def test_files_are_named(kind: str, name: str, tmp_path: pathlib.Path) -> None:
    content, what, todo = (FILES | CUT)[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TorchFileError) as error:
        read_torch_file(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and what in text and todo in text.partition(what)[2], text
    assert text.isprintable() and len(text) < 300 + len(str(path))
    assert ("not a PyTorch file" in text) == (kind in FILES)


@pytest.mark.parametrize(
    "name", ["a.pth", "a.pt", "a.bin", "a.pkl", "a.pth.tar", "a.safetensors", "a.ckpt", "a", "a.html"]
)
def test_names_decide_nothing(name: str, tmp_path: pathlib.Path) -> None:
    arrays = list(STATE.values())
    for content in (
        WHOLE,
        tb.legacy_file(tb.described(STATE), arrays),
        *(pickle.dumps(STATE, protocol) for protocol in (0, 1, 2, 3, 4)),
    ):
        (tmp_path / name).write_bytes(content)
        found = read_torch_file(tmp_path / name)
        np.testing.assert_array_equal(found["conv1.weight"], STATE["conv1.weight"])


def test_any_beginning_is_one_line(tmp_path: pathlib.Path) -> None:
    """Noise after each beginning that is told apart, cut anywhere."""
    rng, path = np.random.default_rng(1), tmp_path / "model.pth"
    beginnings = [content[:40] for content, _, _ in (FILES | CUT).values()] + [bytes([i]) for i in range(256)]
    for beginning in beginnings:
        for length in (0, 1, 700):
            path.write_bytes(beginning + rng.bytes(length))
            with pytest.raises(TorchFileError) as error:
                read_torch_file(path)
            assert str(error.value).isprintable()
