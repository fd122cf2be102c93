"""Pieces of files: what stays open, and what cannot be read."""

from __future__ import annotations

import errno
import os
import pathlib

import pytest

from kpjax.data import files
from kpjax.data.files import Pieces


def _open_below(folder: pathlib.Path) -> int:
    return sum(
        os.path.realpath(entry.path).startswith(str(folder))
        for entry in os.scandir("/proc/self/fd")
        if entry.is_symlink()
    )


@pytest.mark.parametrize("most_open", [3, 2])
def test_pieces_are_those_of_their_file_however_many_stay_open(tmp_path, monkeypatch, most_open):
    monkeypatch.setattr(Pieces, "most_open", most_open)
    contents = [bytes(range(n, n + 50)) for n in (0, 50, 100)]
    for n, content in enumerate(contents):
        (tmp_path / str(n)).write_bytes(content)
    pieces = Pieces([str(tmp_path / str(n)) for n in range(3)])
    for offset, length in ((0, 50), (7, 5), (49, 1)):
        for n in (2, 0, 1, 2):
            assert pieces.read(n, offset, length) == contents[n][offset : offset + length]
    assert pieces.read(0, 45, 10) == contents[0][45:], "as much as there is"
    if os.path.isdir("/proc/self/fd"):
        assert _open_below(tmp_path) == (3 if most_open == 3 else 0)
        del pieces
        assert _open_below(tmp_path) == 0


def test_a_file_that_could_not_be_read_is_opened_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"xyz")
    pieces = Pieces([str(tmp_path / "a")])
    assert pieces.read(0, 0, 1) == b"x"
    with monkeypatch.context() as lost:
        lost.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
        with pytest.raises(OSError, match="Stale"):
            pieces.read(0, 1, 1)
    os.replace(tmp_path / "a", tmp_path / "old")
    (tmp_path / "a").write_bytes(b"abc")
    assert pieces.read(0, 1, 1) == b"b"


def test_a_file_that_is_not_there_is_an_os_error_each_time(tmp_path):
    pieces = Pieces([str(tmp_path / "a")])
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            pieces.read(0, 0, 1)
    (tmp_path / "a").write_bytes(b"xyz")
    assert pieces.read(0, 1, 2) == b"yz"


def test_what_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    for failures, number, tries in ((2, errno.EIO, 3), (1, errno.ESTALE, 2)):
        calls = []

        def read(failures=failures, number=number, calls=calls):
            calls.append(1)
            if len(calls) <= failures:
                raise OSError(number, os.strerror(number))
            return b"data"

        assert files.with_retries(read) == b"data" and len(calls) == tries

    def gone(calls=calls):
        calls.append(1)
        raise OSError(errno.EIO, "gone")

    def missing(calls=calls):
        calls.append(1)
        raise FileNotFoundError(errno.ENOENT, "no such file")

    for read, tries in ((gone, 3), (missing, 1)):
        calls.clear()
        with pytest.raises(OSError):
            files.with_retries(read)
        assert len(calls) == tries
