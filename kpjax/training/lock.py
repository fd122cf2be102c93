"""One run at a time in a work directory: WORKDIR/run.lock, who holds it, and when a holder counts as gone.

A run that still lives is never disturbed: on its own host its process is looked up, from another host the file's time
has to stand still, which the holder moves every BEAT seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from kpjax.errors import ConfigError, UserError
from kpjax.parallel import distributed

LOCK = "run.lock"
BEAT = 20.0  # seconds between two signs of life
SETTLE = 2.0  # seconds after which the last of several writers is certain, where a file system cannot lock
STALE = 70.0  # seconds without one after which a holder on another host counts as gone

# File systems that cannot make hard links say one of these.
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class WorkdirInUse(UserError):
    """Another run holds the work directory, or has taken it over."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as run.lock has it.

    started: its start in the kernel's clock ticks, for process numbers are used again.  boot, namespace: the host's
    start and the processes that its number counts; both "" where there is no /proc.  since: for people.
    token: another for each run.  beats: signs of life, counted where a file's time cannot be set (buckets).
    """

    host: str
    process: int
    started: str
    boot: str
    namespace: str
    since: str
    token: str
    beats: int = 0

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


def this_process() -> Holder:
    """This process as a holder, with a token of its own."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    pid = os.getpid()
    return Holder(socket.gethostname(), pid, _start_of(pid), boot, namespace, since, uuid.uuid4().hex)


def _start_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]  # field 22; the name before may hold anything
    except (OSError, IndexError):
        return ""


def _lives(holder: Holder) -> bool:
    """Whether a process of this host is still there."""
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return _start_of(holder.process) == holder.started


class WorkdirLock:
    """Holds a work directory within a `with` block; with several processes process 0 does, for all of them.

    Raises WorkdirInUse where another run holds it, and ConfigError where the directory cannot be written.  force:
    take it from whoever holds it.  say: called with a line where it is not clear at once whether a holder lives.
    """

    def __init__(self, workdir: str, force: bool = False, say: Callable[[str], None] = print):
        self._workdir, self._force, self._say = workdir, force, say
        self._file = epath.Path(workdir) / LOCK
        self._local = "://" not in workdir
        self._me: Holder | None = None  # while it is held
        self._made: list[epath.Path] = []  # folders that were not there before
        self._now = 0.0  # by the clock of the file system
        self._done = threading.Event()
        self._beating = threading.Lock()

    def __enter__(self) -> WorkdirLock:
        refused: UserError | None = None
        if distributed.first():
            try:
                self.acquire()
            except UserError as error:
                refused = error
        answer = distributed.gather("" if refused is None else str(refused))[0]
        if answer:
            raise refused or WorkdirInUse(answer)
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock."""
        me, root = this_process(), self._file.parent
        if root.exists() and not root.is_dir():
            raise ConfigError(f"--workdir {self._workdir} is a file; name a folder")
        try:
            self._made = [folder for folder in (root, *root.parents) if self._local and not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            while not self._put(me):
                holder = self._read()
                if holder is None:
                    continue  # it was released in the meantime
                if not self._force:
                    self._refuse_living(holder, me)
                if self._take_over(holder, me):
                    break
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(f"--workdir {self._workdir} cannot be written: {reason}") from error
        self._me = me
        threading.Thread(target=self._beat, args=(me,), name="kpjax-lock", daemon=True).start()

    def check(self) -> None:
        """Raise WorkdirInUse where another run has taken the directory over.  To be called before a checkpoint."""
        holder = self._read() if self._me is not None else None
        if holder is not None and self._me is not None and holder.token != self._me.token:
            raise WorkdirInUse(f"{self._workdir} was taken over by {holder}; this run stops without another checkpoint")

    def release(self) -> None:
        """Give it back, if it is held; remove the folders made for it that are empty.  Safe in any thread and again."""
        self._done.set()
        with contextlib.suppress(OSError), self._beating:  # a second caller waits until the first one is through
            me, self._me = self._me, None
            if me is None:
                return
            holder = self._read()
            if holder is not None and holder.token == me.token:
                self._file.unlink()
            for folder in self._made:
                os.rmdir(folder)  # where a mistake ended the run before it wrote anything

    def _put(self, me: Holder) -> bool:
        """Make the lock file, whole, where there is none."""
        if not self._local:  # a bucket knows no such step: the last of several writers wins, and the others see it
            if self._file.exists():
                return False
            self._file.write_text(_text(me))
            time.sleep(SETTLE)
            holder = self._read()
            return holder is not None and holder.token == me.token
        part = self._file.parent / f"{LOCK}.{me.token}"
        try:
            part.write_text(_text(me))
            self._now = os.stat(part).st_mtime
            os.link(part, self._file)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with open(self._file, "x", encoding="utf-8") as file:
                    file.write(_text(me))
            except FileExistsError:
                return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def _read(self) -> Holder | None:
        try:
            text = self._file.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _parsed(text)

    def _refuse_living(self, holder: Holder, me: Holder) -> None:
        """Return where the holder is gone, else raise WorkdirInUse."""
        if (holder.host, holder.boot, holder.namespace) == (me.host, me.boot, me.namespace):
            if _lives(holder):
                raise self._in_use(holder)
            return
        before, age = self._sign(), 0.0
        if self._local and before is not None:
            age = self._now - before[1]
        if age < STALE:
            wait = STALE - max(age, 0.0)
            self._say(
                f"{self._workdir} is held by {holder}, whose last sign of life is {age:.0f} s old; "
                f"waiting {wait:.0f} s for another"
            )
            until = time.monotonic() + wait
            while time.monotonic() < until:
                time.sleep(0.5)
                now = self._sign()
                if now is None:
                    return
                if now != before:
                    raise self._in_use(holder)
        self._say(f"{self._workdir}: nothing was heard of {holder} for {STALE:.0f} s; taking over")

    def _sign(self) -> tuple[Holder, float] | None:
        """What changes with each sign of life; None where the lock is gone."""
        holder = self._read()
        if holder is None:
            return None
        try:
            return holder, os.stat(self._file).st_mtime if self._local else 0.0
        except FileNotFoundError:
            return None

    def _in_use(self, holder: Holder) -> WorkdirInUse:
        return WorkdirInUse(
            f"{self._workdir} is in use by {holder}; wait until it ends, or name another --workdir "
            "(--force takes it over, and that run stops at its next checkpoint)"
        )

    def _take_over(self, holder: Holder, me: Holder) -> bool:
        """Put a lock of our own in the place of this holder's.  False where another run has been quicker."""
        with self._alone() as alone:
            now = self._read()
            if now is None or now.token != holder.token:
                return False
            self._file.unlink(missing_ok=True)
            taken = self._put(me)
        if taken and not alone:  # the last of several stays, and the others see it
            time.sleep(SETTLE)
            now = self._read()
            taken = now is not None and now.token == me.token
        return taken

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """A block that one process at a time is in; yields whether the file system can see to that."""
        with contextlib.ExitStack() as stack:
            try:
                if not self._local:
                    raise OSError
                folder = os.open(self._file.parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
                alone = True
            except OSError:
                alone = False
            yield alone

    def _beat(self, me: Holder) -> None:
        beats = 0
        while not self._done.wait(BEAT):
            beats += 1
            with contextlib.suppress(OSError), self._beating:  # a disk that fails: the run finds out by itself
                holder = self._read()
                if self._done.is_set() or holder is None or holder.token != me.token:
                    continue
                if self._local:
                    os.utime(self._file)
                else:
                    self._file.write_text(_text(dataclasses.replace(me, beats=beats)))


def _parsed(text: str) -> Holder:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):  # not whole yet, or not ours: its text identifies it
        return Holder("another host", 0, "", "", "", "an unknown time", text)


def _text(holder: Holder) -> str:
    return json.dumps(dataclasses.asdict(holder)) + "\n"
