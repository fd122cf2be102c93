"""What a file is that holds no weights that are read here: told by its contents, whatever its name says."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from typing import BinaryIO

LOOKED_AT = 1024  # bytes of the beginning
_SHOWN = 60  # letters of a text
_FEW = 3  # entries of an archive
_AGAIN = "download the file itself again"
_UNPACK = "unpack it first"
_OTHER = "give a file of PyTorch or safetensors"

# (place, bytes that stand there, what it is, what to do)
_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _OTHER),
    (4, b"TFL3", "a TFLite model", _OTHER),
    (0, b"GGUF", "a GGUF model", _OTHER),
    (0, b"\x93NUMPY", "a single NumPy array (.npy)", _OTHER),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _AGAIN),
    (0, b"\x89PNG\r\n\x1a\n", "a picture (PNG)", _AGAIN),
    (0, b"GIF8", "a picture (GIF)", _AGAIN),
    (0, b"RIFF", "a WebP picture, a sound or a video (RIFF)", _AGAIN),
    (4, b"ftyp", "a video (MP4)", _AGAIN),
    (0, b"%PDF", "a PDF document", _AGAIN),
    (0, b"\x7fELF", "a program (ELF)", _AGAIN),
    (0, b"SQLite format 3\x00", "an SQLite database", _AGAIN),
)


def kind_of(start: bytes) -> str:
    """What a file is that begins with `start`, and what to do, e.g. "a web page; download ..."; "" if unknown.

    start: the first LOOKED_AT bytes.
    """
    for place, magic, name, todo in _MAGIC:
        if start[place:].startswith(magic):
            return f"{name}; {todo}"
    if not start.strip(b"\x00"):
        return f"zeros alone, so its download or copy failed; {_AGAIN}"
    text = _text(start)
    if text:
        return _kind_of_text(text)
    # Protocol buffers have no magic: the fields in the order in which these programs write them.
    if re.match(rb"\x08[\x03-\x1f](\x12[\x01-\x40][ -~]+|[\x1a\x22\x28\x32\x3a\x42])", start):
        return f"an ONNX model; {_OTHER}"
    if re.match(rb"\x08[\x01-\x1f]\x12", start):
        return f"a model of {'TensorFlow (SavedModel)' if start[1] == 1 else 'Core ML'}; {_OTHER}"
    if start[:1] == b"\x0a" and re.match(rb"\n[\x02-\xff]{1,4}?\n.[\w/.:-]+\x12.[A-Z]\w+", start, re.DOTALL):
        return f"a TensorFlow graph; {_OTHER}"
    if len(start) > 2 and 0x81 <= start[0] <= 0x8F and 0xA1 <= start[1] <= 0xBF and start[2:5].isalnum():
        return f"a msgpack file, as Flax writes; {_OTHER}"
    return ""


def _text(start: bytes) -> str:
    """The beginning as text; "" where it is none."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return start.decode("utf-16", errors="replace")
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # but the last letter may be cut
            return ""
        text = start[: error.start].decode("utf-8-sig")
    return text if all(letter.isprintable() or letter in "\t\n\r\f" for letter in text) else ""


def _kind_of_text(text: str) -> str:
    lower = text.lstrip().lower()
    if lower.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,20})$", text, re.MULTILINE)
        of = f" of {size[1]} bytes" if size else ""
        return f"a git LFS pointer to a file{of}; fetch that with: git lfs pull"
    if "annex/objects/" in lower[:200]:
        return "a git-annex pointer; fetch the file itself with: git annex get"
    if lower.startswith(("<!doctype html", "<html", "<head", "<!--")) or "<html" in lower:
        title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        named = f" ({_quoted(title[1])})" if title and title[1].strip() else ""
        return f"a web page{named}, saved in the file's place; {_AGAIN}, with its direct link"
    if lower.startswith(("<?xml", "<error", "<net")):
        return f"XML, {_quoted(text)}; {_AGAIN}"
    if '"weight_map"' in text:
        return "an index (JSON) of weights in several files; give a file that holds all of them"
    if lower.startswith(("{", "[")):
        return f"JSON, {_quoted(text)}; {_AGAIN}"
    return f"a text file, {_quoted(text)}; {_AGAIN}"


def _quoted(text: str) -> str:
    """The beginning of a text, on one line."""
    short = " ".join(text[: 4 * _SHOWN].split())
    return repr(short[:_SHOWN] + ("..." if len(short) > _SHOWN else ""))


def kind_of_zip(names: Iterable[str]) -> str:
    """What a zip archive is that PyTorch did not write, by the names in it."""
    known = list(names)
    ends = {name.rpartition("/")[2] for name in known}
    if known and all(name.endswith(".npy") for name in known):
        return "NumPy arrays (.npz); " + _OTHER
    if "model.weights.h5" in ends:
        return "a Keras model; " + _OTHER
    if "saved_model.pb" in ends:
        return "a TensorFlow SavedModel; " + _OTHER
    if "META-INF/MANIFEST.MF" in known or "[Content_Types].xml" in known:
        return "a zip archive of a program or a document; " + _AGAIN
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return "a program of torch.export; save the model's state_dict() instead"
    if "data.pkl" in ends:
        return "PyTorch's file unpacked and packed again; give the file as it was downloaded"
    return f"a zip archive {_of(known)}; {_UNPACK}"


def kind_of_tar(file: BinaryIO) -> str:
    """What a tar archive is, by its first names."""
    file.seek(0)
    names: list[str] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while len(names) <= _FEW and (member := archive.next()):
                names.append(member.name)
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        return f"a tar archive, cut off or damaged; {_AGAIN}"
    if {"pickle", "storages"} & set(names):
        return "a file of PyTorch before 0.2; load it with PyTorch and save it again"
    return f"a tar archive {_of(names)}; {_UNPACK}"


def is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _of(names: list[str]) -> str:
    """Of file names, the first ones."""
    some = ", ".join(_quoted(name) for name in names[:_FEW])
    return f"of {some}{', ...' if len(names) > _FEW else ''}" if names else "with nothing in it"


def cut_zip(size: int) -> str:
    """What a zip archive without its directory is, which stands at its end."""
    return f"cut off or damaged: it begins as a zip archive, and the end is missing ({size} bytes are here); {_AGAIN}"
