"""A relay between JAX and the coordination service of process 0: a process of its own that outlives the service.

JAX aborts (SIGABRT, with a stack trace) as soon as its connection to the coordination service breaks, which happens
wherever process 0 is killed; no setting of `jax.distributed.initialize` changes that.  Behind the relay the connection
stays open, and the process learns of the loss by a line, so that it can end in an orderly way:

    python -I relay.py HOST PORT SILENCE

prints the port on which it listens (of the loopback address), then passes bytes in both directions.  Standard input:
"connected": report a loss from now on; "leaving": do not.  Where it ends, the relay ends.
Standard output: "closed" where a connection was closed from the other side, "silent" where nothing came for SILENCE
seconds.  A process and not a thread: waiting for the coordination service, JAX might hold Python's lock.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

LOOKS = 10  # within the time of silence


class Relay:
    """A running relay to HOST:PORT.  address: what to connect to instead.

    lost: called with "closed" or "silent", in a thread, when the service is gone.
    """

    def __init__(self, target: str, silence: float, lost: Callable[[str], None]):
        host, _, port = target.rpartition(":")
        self._process = subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), host.strip("[]"), port, str(silence)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C goes to all processes of a terminal's session
        )
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"
        self._lost, self._watching = lost, False
        self._reader = threading.Thread(target=self._listen, name="kpjax-relay", daemon=True)
        self._reader.start()

    def watch(self) -> None:
        """Report a loss from now on."""
        self._watching = True
        self._say("connected")

    def close(self, leave: Callable[[], None]) -> None:
        """Call `leave`, which ends JAX's connection, then end the relay."""
        self._watching = False
        self._say("leaving")
        leave()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._watching:
                self._lost(line.strip())


def relay(host: str, port: int, silence: float) -> None:
    """Pass bytes until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    other: dict[socket.socket, socket.socket] = {}
    outer: set[socket.socket] = set()  # those to the service
    watching, quiet, heard, due = False, 0, False, 0.0

    def close(one: socket.socket) -> None:
        for end in (one, other[one]):
            with contextlib.suppress(KeyError):  # reported as closed, and left out since
                selector.unregister(end)
            end.close()
            del other[end]
            outer.discard(end)

    while True:
        for key, _ in selector.select(silence / LOOKS):
            if key.fd == 0:
                words = os.read(0, 4096).decode().split()
                if not words:
                    return
                watching = words[-1] == "connected"
            elif key.fileobj is listener:
                inner, _ = listener.accept()
                try:
                    service = socket.create_connection((host, port), timeout=10)
                except OSError:
                    inner.close()  # not there yet: JAX tries again
                    continue
                service.settimeout(None)
                for one, two in ((inner, service), (service, inner)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    other[one] = two
                    selector.register(one, selectors.EVENT_READ)
                outer.add(service)
            elif (end := key.fileobj) in other:
                assert isinstance(end, socket.socket)
                try:
                    data = end.recv(1 << 16)
                    heard |= end in outer
                    other[end].sendall(data)
                except OSError:
                    data = b""
                if data:
                    continue
                if watching and end in outer:
                    print("closed", flush=True)
                    selector.unregister(end)  # JAX's side stays open
                else:
                    close(end)
        # Looks are counted, not seconds: a machine that stood still has lost nothing.
        if time.monotonic() >= due:
            due = time.monotonic() + silence / LOOKS
            quiet, heard = (0, False) if heard or not watching else (quiet + 1, False)
            if quiet == LOOKS + 1:
                print("silent", flush=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a launcher sends them to all; the relay ends after its process
    relay(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
