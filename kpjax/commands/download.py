"""`kpjax download`: fetch COCO 2017 (resumable), and list where the released checkpoints are."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

from kpjax.commands import released
from kpjax.errors import ConfigError, UserError

EXAMPLES = (
    "kpjax download coco2017 --dir data/coco",
    "kpjax download --list",
)
_CHUNK = 1 << 20
_TRIES = 5  # connections that may break without a single new byte in between
_TIMEOUT = 60  # seconds without a byte
_PAUSE = 1.0  # seconds before the next try after a failure, doubled with each
_UNPACKED = 2  # an archive may unpack to this many times its stated size


@dataclasses.dataclass(frozen=True)
class Archive:
    """One zip file of a data set.

    path: on the server; its last part is the file's name.  size: bytes.  md5: hex digits.
    unpacked: about how many bytes its files take.  makes: the folder that it unpacks to.
    """

    path: str
    size: int
    md5: str
    unpacked: int
    makes: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set: a server, and its archives."""

    server: str
    archives: tuple[Archive, ...]


DATA_SETS = {
    "coco2017": DataSet(
        "http://images.cocodataset.org",
        (
            Archive(
                "annotations/annotations_trainval2017.zip",
                252_907_541,
                "f4bbac642086de4f52a3fdda2de5fa2c",
                806_000_000,
                "annotations",
            ),
            Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 821_000_000, "val2017"),
            Archive(
                "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_400_000_000, "train2017"
            ),
        ),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Fetch a data set; the same command goes on where an interrupted one stopped."
    parser.add_argument("what", nargs="?", choices=sorted(DATA_SETS), help="the data set")
    parser.add_argument("--dir", help="folder to put it in, e.g. data/coco")
    parser.add_argument("--only", action="append", metavar="PART", help="only this part, e.g. val2017 (repeatable)")
    parser.add_argument("--keep", action="store_true", help="keep the zip files after they are unpacked")
    parser.add_argument("--server", help="another server with the same files")
    parser.add_argument("--yes", action="store_true", help="do not ask before it starts")
    parser.add_argument("--list", action="store_true", help="list the released checkpoints, their sources and APs")


def run(args: argparse.Namespace) -> int:
    """Fetch, check, unpack.  Raises UserError, one line, where that fails."""
    if args.list:
        print(released.table())
        return 0
    if not args.what or not args.dir:
        raise ConfigError("say what and where, e.g. download coco2017 --dir data/coco; --list shows the checkpoints")
    data_set = DATA_SETS[args.what]
    server = args.server or data_set.server
    if not _is_address(server):
        raise ConfigError(f"--server {server}: give the whole address, as {data_set.server} is one")
    parts = [archive.makes for archive in data_set.archives]
    for part in args.only or ():
        if part not in parts:
            raise ConfigError(f"--only {part}: {args.what} has {', '.join(parts)}")
    wanted = [a for a in data_set.archives if (not args.only or a.makes in args.only) and not _done(args.dir, a)]
    if not wanted:
        print(f"{os.path.abspath(args.dir)}: {', '.join(args.only or parts)} are there already")
        return 0
    os.makedirs(args.dir, exist_ok=True)
    _announce(args.dir, wanted, args.keep)
    if not args.yes and sys.stdin.isatty() and not _agreed():
        print("nothing was fetched")
        return 0
    for archive in wanted:
        url = f"{server.rstrip('/')}/{archive.path}"
        path = os.path.join(args.dir, archive.name)
        fetch(url, path, archive)
        unpack(path, args.dir, most=_UNPACKED * archive.unpacked)
        with open(_mark(args.dir, archive), "w", encoding="utf-8") as file:
            file.write(f"{archive.md5}  {archive.name}\n")
        if not args.keep:
            os.remove(path)
        print(f"{archive.makes}: unpacked")
    return 0


def _is_address(server: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(server)
        whole = server.split() == [server]
        return whole and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half an IPv6 address
        return False


def _agreed() -> bool:
    try:
        return input("go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


def _mark(folder: str, archive: Archive) -> str:
    return os.path.join(folder, f".{archive.name}.unpacked")


def _done(folder: str, archive: Archive) -> bool:
    return os.path.exists(_mark(folder, archive)) and os.path.isdir(os.path.join(folder, archive.makes))


def _announce(folder: str, wanted: list[Archive], keep: bool) -> None:
    """Print what will be fetched; raise UserError where the disk is too small."""
    missing, zips, in_all = 0, [], 0
    for archive in wanted:
        there = _there(folder, archive)
        missing += archive.size - there
        zips.append(archive.size - there)
        in_all += max(0, archive.unpacked - _size_within(os.path.join(folder, archive.makes)))
        resumed = f", {there / 1e6:,.0f} MB of it are there" if there else ""
        unpacked = f"about {archive.unpacked / 1e6:,.0f} MB unpacked"
        print(f"{archive.name:32s} {archive.size / 1e6:10,.0f} MB{resumed}; {unpacked}")
    # The bytes still to fetch.  A zip file stays until it is unpacked; without --keep only one is fetched at a time.
    need = in_all + (missing if keep else max(zips))
    free = shutil.disk_usage(folder).free
    print(
        f"{'to fetch':32s} {missing / 1e6:10,.0f} MB, and {need / 1e6:,.0f} MB of disk at most "
        f"({free / 1e6:,.0f} MB are free in {os.path.abspath(folder)})"
    )
    if need > free:
        raise UserError(
            f"{folder}: {need / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB free; choose another --dir"
        )


def _there(folder: str, archive: Archive) -> int:
    """How many bytes of the zip file `fetch` will not ask for, as far as sizes tell."""
    path = os.path.join(folder, archive.name)
    if _size(path) == archive.size:
        return archive.size
    part = _size(f"{path}.part")
    return part if part <= archive.size else 0


def _size_within(folder: str) -> int:
    return sum(_size(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names)


def fetch(url: str, path: str, archive: Archive) -> None:
    """Download `url` to `path`, resuming from PATH.part; the file appears once its size and checksum are right."""
    if os.path.exists(path):
        if _size(path) == archive.size and _md5(path) == archive.md5:
            return
        print(f"{path} is another file, or damaged: it is fetched again")
    part, failures = f"{path}.part", 0
    most = _size(part)  # progress is what goes beyond it: a server that cannot resume starts over each time
    while (have := _size(part)) < archive.size:
        reason = _receive(url, part, have, archive)
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if reason and failures >= _TRIES:
            got = f"{_size(part) / 1e6:,.0f} of {archive.size / 1e6:,.0f} MB are there"
            raise UserError(f"{url}: {reason}; {got}, the same command goes on from there")
        if reason and failures:
            time.sleep(_PAUSE * 2 ** (failures - 1))
    if _size(part) != archive.size:
        os.remove(part)
        raise UserError(f"{url}: the file is longer than {archive.size} bytes, so it is another one; it was removed")
    found = _md5(part)
    if found != archive.md5:
        os.remove(part)
        raise UserError(
            f"{url}: damaged on the way, or another file by now (MD5 {found}, expected {archive.md5}); it was removed, "
            "try again"
        )
    os.replace(part, path)


def _receive(url: str, part: str, have: int, archive: Archive) -> str:
    """Append to `part` what one connection delivers.  Returns why it ended early, or "" ."""
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "User-Agent": "kpjax"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if have and answer.status != 206:  # a server that cannot resume sends all of it
                have = 0
            _check_length(answer, url, have, archive)
            with (
                open(part, "r+b" if have else "wb") as file,
                tqdm(
                    total=archive.size, initial=have, unit="B", unit_scale=True, desc=archive.name, disable=None
                ) as bar,
            ):
                file.seek(have)
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        return "" if _size(part) >= archive.size else "the connection ended early"
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:  # perhaps transient
            return f"the server answers {error.code} {error.reason}"
        if error.code == 416:
            raise UserError(f"{url}: the server's file is shorter than the {have} bytes that are there") from None
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; see whether --server names it"
        ) from None
    except urllib.error.URLError as error:
        raise UserError(f"{url}: no connection ({error.reason}); the same command goes on when there is one") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return f"the connection broke ({type(error).__name__})"


def _check_length(answer: http.client.HTTPResponse, url: str, have: int, archive: Archive) -> None:
    if answer.length is not None and have + answer.length != archive.size:
        raise UserError(
            f"{url}: the server's file has {have + answer.length} bytes, not the {archive.size} of {archive.name}"
        )


def unpack(path: str, folder: str, most: int) -> None:
    """Unpack a zip file; files that exist in full size are kept.

    most: bytes that all its files may have together.  Raises UserError for a damaged one, a larger one, and one
    whose files would lie outside `folder`, also by way of an existing link.
    """
    from tqdm import tqdm

    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            # zipfile gives no file more bytes than are announced here.
            if (size := sum(m.file_size for m in members)) > most:
                raise UserError(f"{path}: it would unpack to {size} bytes, where at most {most} make sense")
            inside = os.path.join(os.path.realpath(folder), "")
            for member in tqdm(members, unit="file", desc=f"unpacking {os.path.basename(path)}", disable=None):
                goal = os.path.join(folder, member.filename)
                if not os.path.realpath(goal).startswith(inside):
                    raise UserError(f"{path}: {member.filename} would be written outside {folder}; nothing like it is")
                if _size(goal) == member.file_size and os.path.exists(goal):
                    continue
                os.makedirs(os.path.dirname(goal), exist_ok=True)
                if os.path.islink(f"{goal}.part"):  # writing would follow it
                    os.remove(f"{goal}.part")
                with archive.open(member) as source, open(f"{goal}.part", "wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
                os.replace(f"{goal}.part", goal)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and try again") from None


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def _md5(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
