"""`python -m kpjax download` from a server on this machine that breaks connections."""

from __future__ import annotations

import hashlib
import http.server
import io
import pathlib
import re
import threading
import zipfile
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

import kpjax.commands.download as download
from kpjax.__main__ import main
from kpjax.commands.released import RELEASED


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


VAL = zipped({"val2017/": b"", "val2017/1.jpg": b"\x01" * 50_000, "val2017/2.jpg": b"\x02" * 50_000})
ANNOTATIONS = zipped({"annotations/instances_val2017.json": b"{}"})


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; breaks off after `most` bytes; resumes unless `resumes` is false."""

    files: ClassVar[dict[str, bytes]] = {}
    most = 1 << 30
    resumes = True
    asked: ClassVar[list[str]] = []
    busy: ClassVar[list[int]] = []  # so many requests get a 503 first

    def do_GET(self) -> None:
        content, start = self.files.get(self.path), 0
        self.asked.append(self.headers.get("Range", ""))
        if content is None:
            self.send_error(404)
            return
        if self.busy:
            self.busy.pop()
            self.send_error(503)
            return
        if self.resumes and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(match[1])
        if start > len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.most])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    class Mine(Server):
        files = {"/zips/val2017.zip": VAL, "/annotations/a.zip": ANNOTATIONS}  # noqa: RUF012
        asked: list[str] = []  # noqa: RUF012
        busy: list[int] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        archives = tuple(
            download.Archive(path, len(data), hashlib.md5(data).hexdigest(), 2 * len(data), makes)
            for path, data, makes in (
                ("annotations/a.zip", ANNOTATIONS, "annotations"),
                ("zips/val2017.zip", VAL, "val2017"),
            )
        )
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(download, "_PAUSE", 0.001)
        monkeypatch.setitem(download.DATA_SETS, "coco2017", download.DataSet(address, archives))
        yield Mine
        running.shutdown()


def fetch(folder: pathlib.Path, *more: str) -> int:
    return main(["download", "coco2017", "--dir", str(folder), *more])


def one_error(capsys: Any) -> str:
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_fetched_checked_unpacked_and_known_afterwards(
    server: type[Server], tmp_path: pathlib.Path, capsys: Any
) -> None:
    assert fetch(tmp_path / "coco") == 0
    said = capsys.readouterr().out
    assert said.index("to fetch") < said.index("annotations: unpacked"), "what it takes is said first"
    assert (tmp_path / "coco" / "val2017" / "1.jpg").read_bytes() == b"\x01" * 50_000
    assert (tmp_path / "coco" / "annotations" / "instances_val2017.json").read_bytes() == b"{}"
    assert not list((tmp_path / "coco").glob("[!.]*.zip*"))
    asked = len(server.asked)
    assert fetch(tmp_path / "coco") == 0
    assert "there already" in capsys.readouterr().out and len(server.asked) == asked


def test_a_connection_that_breaks_is_resumed(server: type[Server], tmp_path: pathlib.Path) -> None:
    server.most = 30_000
    assert fetch(tmp_path, "--only", "val2017", "--keep") == 0
    assert server.asked == [f"bytes={n}-" for n in range(0, len(VAL), 30_000)]
    assert (tmp_path / "val2017.zip").read_bytes() == VAL and not (tmp_path / "annotations").exists()


def test_a_busy_server_is_asked_again(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    server.busy += [1] * 3
    assert fetch(tmp_path, "--only", "val2017") == 0 and len(server.asked) == 4
    server.busy += [1] * 10
    assert fetch(tmp_path, "--only", "annotations") == 2
    assert "answers 503" in one_error(capsys)


def test_a_later_call_goes_on(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    server.most = 0
    (tmp_path / "val2017.zip.part").write_bytes(VAL[:40_000])
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert "the same command goes on" in one_error(capsys)
    assert (tmp_path / "val2017.zip.part").read_bytes() == VAL[:40_000]
    server.most = 1 << 30
    server.asked.clear()
    assert fetch(tmp_path, "--only", "val2017") == 0
    assert server.asked == ["bytes=40000-"] and (tmp_path / "val2017" / "2.jpg").stat().st_size == 50_000


def test_a_server_that_cannot_resume_sends_all_of_it(server: type[Server], tmp_path: pathlib.Path) -> None:
    server.resumes = False
    (tmp_path / "val2017.zip.part").write_bytes(b"\xff" * 40_000)
    assert fetch(tmp_path, "--only", "val2017") == 0
    assert (tmp_path / "val2017" / "1.jpg").read_bytes() == b"\x01" * 50_000


def test_wrong_files_are_refused(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    server.files["/zips/val2017.zip"] = VAL[:-1] + b"\x00"
    (tmp_path / "val2017.zip.part").write_bytes(b"\xff" * 10)
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert "MD5" in one_error(capsys) and not (tmp_path / "val2017.zip.part").exists()
    server.files["/zips/val2017.zip"] = VAL + b"\x00"
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert f"{len(VAL) + 1} bytes" in one_error(capsys)
    del server.files["/zips/val2017.zip"]
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert "404" in one_error(capsys)
    (tmp_path / "val2017.zip.part").write_bytes(bytes(40_000))
    server.files["/zips/val2017.zip"] = VAL[:30_000]
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert "shorter than the 40000 bytes" in one_error(capsys)
    assert not (tmp_path / "val2017").exists()


def test_no_network_is_one_line(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    assert fetch(tmp_path, "--server", "http://127.0.0.1:1") == 2
    assert "no connection" in one_error(capsys)
    assert fetch(tmp_path, "--server", "http://nowhere.invalid") == 2
    assert "no connection" in one_error(capsys)
    assert fetch(tmp_path, "--only", "test2017") == 2
    assert "has annotations, val2017" in one_error(capsys)


def test_too_small_a_disk_is_told_before_it_starts(
    server: type[Server], tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert fetch(tmp_path) == 2
    assert "choose another --dir" in one_error(capsys) and not server.asked


def test_members_stay_inside_the_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "evil.zip").write_bytes(zipped({"../outside.txt": b"x"}))
    with pytest.raises(download.UserError, match="outside"):
        download.unpack(str(tmp_path / "evil.zip"), str(tmp_path / "in"), 1000)
    assert not (tmp_path / "outside.txt").exists()
    (tmp_path / "evil.zip").write_bytes(zipped({"a/file.txt": b"x"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(tmp_path)
    with pytest.raises(download.UserError, match="outside"):
        download.unpack(str(tmp_path / "evil.zip"), str(tmp_path / "in"), 1000)
    assert not (tmp_path / "file.txt").exists()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    download.unpack(str(tmp_path / "evil.zip"), str(tmp_path / "link"), 1000)  # the folder itself may be one
    assert (tmp_path / "real" / "a" / "file.txt").read_bytes() == b"x"


def test_an_archive_that_unpacks_to_too_much(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(name, bytes(600))
    with pytest.raises(download.UserError, match="unpack to 1200 bytes"):
        download.unpack(str(tmp_path / "bomb.zip"), str(tmp_path / "in"), 1000)
    assert not (tmp_path / "in").exists()


def test_a_damaged_member_is_one_line(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(range(256)) * 20)
        start = archive.getinfo("x").header_offset + 30 + len("x")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[start] = 0xFF  # a kind of block that deflate does not have: zlib.error
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(download.UserError, match="damaged"):
        download.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10_000)


def test_a_zip_of_the_right_size_is_checked_too(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    (tmp_path / "val2017.zip").write_bytes(VAL[:-1] + b"\xff")
    assert fetch(tmp_path, "--only", "val2017", "--keep") == 0
    assert "fetched again" in capsys.readouterr().out and (tmp_path / "val2017.zip").read_bytes() == VAL
    for path in tmp_path.glob(".*unpacked"):
        path.unlink()
    server.asked.clear()
    assert fetch(tmp_path, "--only", "val2017") == 0 and not server.asked, "a right one is not fetched twice"


def test_a_server_that_never_gets_further(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    """It can neither resume nor send all: each try starts anew and ends where the one before did."""
    server.resumes, server.most = False, 30_000
    assert fetch(tmp_path, "--only", "val2017") == 2
    assert "the connection" in one_error(capsys) and len(server.asked) <= 2 * download._TRIES


def test_addresses_that_are_none(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    for address in ("127.0.0.1/files", "ftp://127.0.0.1", "http://127.0.0.1:port", "http://[1", "http://a b"):
        assert fetch(tmp_path, "--server", address) == 2
        assert address in one_error(capsys)
    assert not server.asked


def test_the_end_of_the_input_is_no(
    server: type[Server], tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", terminal := io.StringIO(""))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert fetch(tmp_path) == 0
    assert "nothing was fetched" in capsys.readouterr().out and not server.asked


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_there_needs_no_more_disk(
    keep: bool, server: type[Server], tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--only", "val2017", *(["--keep"] if keep else [])]
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "1.jpg").write_bytes(b"\x01" * 50_000)
    (tmp_path / "val2017.zip.part").write_bytes(VAL[:-100])
    need = 100 + 2 * len(VAL) - 50_000
    for free, code in ((need - 1, 2), (need, 0)):
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free})())
        assert fetch(tmp_path, *options) == code
    capsys.readouterr()


def test_a_foreign_file_is_not_called_there(server: type[Server], tmp_path: pathlib.Path, capsys: Any) -> None:
    (tmp_path / "val2017.zip").write_bytes(b"half of something")
    assert fetch(tmp_path, "--only", "val2017") == 0
    assert "of it are there" not in capsys.readouterr().out


def test_the_list_calls_its_figures_published(capsys: Any) -> None:
    assert main(["download", "--list"]) == 0
    said = capsys.readouterr().out
    assert "published AP" in said and "none was measured here" in said
    assert all(entry.model in said and entry.source in said for entry in RELEASED)
    assert main(["download", "coco2017"]) == 2
    assert "--dir" in one_error(capsys)
