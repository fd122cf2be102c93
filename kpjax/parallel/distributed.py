"""Several processes as one run: connecting, heartbeats and their timeout, and how all end when one does.

`jax.distributed` connects them.  Added to it here: a watch that makes the first error of any process the end of all
of them within seconds (JAX alone leaves the others waiting in a collective), and values that all have to agree on.

A process ends with `LOST` where it is another one that is gone.  It learns of that before JAX does: JAX's connection
to process 0 goes through a relay (kpjax.parallel.relay), and the watch is more impatient than JAX's own.  Where JAX
finds out first all the same, it aborts the process with SIGABRT and a report of its own, which nothing here touches.

With one process nothing is started, and every function here is a plain answer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from kpjax.errors import ConfigError, one_line, origins
from kpjax.parallel.cluster import START_SECONDS, Cluster
from kpjax.parallel.jax_internals import coordination_client
from kpjax.parallel.relay import LOOKS, Relay

LOST = 3  # exit code where another process is gone: the same command on all of them goes on
SILENCE_SECONDS = 100  # after which a process that says nothing counts as gone

_FAILED, _LEFT, _BEAT, _END = "kpjax/failed", "kpjax/left/", "kpjax/beat/", "kpjax/end"
_DAY_MS = 24 * 3600 * 1000  # waits are ended by the watch, not by a clock
# What a collective or the coordination service says when the other side is gone.
_OF_COLLECTIVES = ("Gloo ", "NCCL")
_OF_PEERS = (*_OF_COLLECTIVES, "UNAVAILABLE", "CANCELLED", "coordination", "DEADLINE_EXCEEDED", "Connection")


# The run of this process among the others, once it has started.
_cluster: Cluster | None = None
_watch: _Watch | None = None
_relay: Relay | None = None
_before_end: list[Callable[[], None]] = []
_ending = threading.Lock()  # held by the thread that ends the process
_numbers = itertools.count()


def start(cluster: Cluster, silence: int = SILENCE_SECONDS) -> None:
    """Connect to the other processes.  Has to come before JAX looks for devices.

    silence: seconds after which a process that says nothing is taken for gone.
    Raises ConfigError where process 0 cannot listen.  Where the others do not come within START_SECONDS, the process
    ends with LOST and a line that says so.
    """
    global _cluster, _watch, _relay
    import jax

    _cluster = cluster
    address = cluster.coordinator
    if cluster.process != 0:
        _relay = Relay(address, silence, _lost_coordinator)
        address = _relay.address
    elif "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(int(address.rpartition(":")[2]))
    # Signals are kpjax.training.signals' to handle, and Orbax asks for nothing then (see kpjax.parallel.stopping).
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's client crashes where it is asked before it is connected.
    late = threading.Timer(START_SECONDS, _end, (_NOT_ALL_CAME.format(me=_me(), cluster=cluster), LOST, True))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address,
            cluster.processes,
            cluster.process,
            None if cluster.local_devices is None else list(cluster.local_devices),
            cluster_detection_method="deactivate",
            # JAX aborts where its times are up: ours end first.
            initialization_timeout=START_SECONDS + 30,
            heartbeat_timeout_seconds=silence + 30,
        )
    except RuntimeError as error:
        print(f"error: {_me()}: cannot start at {cluster.coordinator} ({one_line(error)})", file=sys.stderr, flush=True)
        os._exit(2)  # leaving Python in the ordinary way, JAX takes down what was never there, and may crash
    late.cancel()
    if _relay is not None:
        _relay.watch()
    _watch = _Watch(silence)
    _watch.start()


def _check_port(port: int) -> None:
    """Raise ConfigError where the port is taken.  JAX finds out too, but may crash then."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ConfigError(
            f"{_me()}: cannot listen on port {port} ({os.strerror(error.errno or 0)}); give another --coordinator port"
        ) from error


def active() -> bool:
    """Whether this process is one of several that `start` connected."""
    return _watch is not None


def connected() -> bool:
    """Whether this process is one of several, connected by `start` or by the caller's own jax.distributed."""
    import jax

    return jax.distributed.is_initialized()


def first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    if _cluster is not None or not connected():
        return _cluster is None or _cluster.process == 0
    import jax

    return jax.process_index() == 0


def _me() -> str:
    assert _cluster is not None
    return f"process {_cluster.process} of {_cluster.processes}"


def gather(values: Any) -> list[Any]:
    """Every process's `values` (plain JSON), in the order of the processes.  All have to call it, equally often."""
    client = coordination_client()
    if client is None:
        return [values]
    import jax

    key = f"kpjax/gather/{next(_numbers)}/"
    client.key_value_set(f"{key}{jax.process_index()}", json.dumps(values))
    return [json.loads(client.blocking_key_value_get(f"{key}{i}", _DAY_MS)) for i in range(jax.process_count())]


def agree(values: dict[str, Any]) -> None:
    """Raise ConfigError unless every process has the same `values` (plain JSON) as process 0, naming the first other.

    Processes that went on from different settings would wait for each other for ever.
    """
    theirs = gather(values)
    for number, other in enumerate(theirs):
        for key in [*theirs[0], *other]:
            one, two = theirs[0].get(key), other.get(key)
            if one != two:
                raise ConfigError(
                    f"{key} is {one!r} in process 0 and {two!r} in process {number}; start all processes with "
                    "the same command, and let all of them see the same files"
                )


def finish() -> None:
    """Wait until all processes have come here, then disconnect from them."""
    global _watch, _relay
    if _watch is None:
        return
    import jax

    coordination_client().wait_at_barrier(_END, _DAY_MS)
    _watch.done.set()
    _watch.join()  # a thread that is inside JAX when Python ends takes the process down
    _watch = None
    if _relay is None:
        jax.distributed.shutdown()
    else:
        _relay.close(leave=jax.distributed.shutdown)
        _relay = None


@contextlib.contextmanager
def before_end(action: Callable[[], None]) -> Iterator[None]:
    """A block in which `action` is called where an error or another process ends this one, without a way out of it."""
    _before_end.append(action)
    try:
        yield
    finally:
        _before_end.remove(action)


def fail(text: str, code: int) -> NoReturn:
    """Say why this process cannot go on, here and to the others, and exit with `code`."""
    assert _cluster is not None
    _announce(text, code)
    _end(f"error: {_me()}: {text}", code)


def fail_with(error: BaseException) -> NoReturn:
    """`fail` for an exception that is no user's mistake: another process's end, or a bug with its traceback."""
    time.sleep(3)  # the process that failed first has said why: then the watch ends this one
    if of_peers(error):
        fail(f"another process is gone ({one_line(error)}); the same command on all of them goes on", LOST)
    traceback.print_exception(error)
    fail(f"{type(error).__name__}: {one_line(error)}", 1)


def of_peers(error: BaseException) -> bool:
    """Whether it comes from a collective or the coordination service, where the other side is gone."""
    import jax

    for one in origins(error):
        # A program that fails as it is started raises ValueError; UNAVAILABLE would be a storage's there.
        parts = _OF_PEERS if isinstance(one, jax.errors.JaxRuntimeError) else _OF_COLLECTIVES
        if any(part in str(one) for part in parts):
            return True
    return False


def _announce(text: str, code: int) -> None:
    """Leave the reason where the others' watches look.  The first one counts."""
    assert _cluster is not None
    with contextlib.suppress(Exception):  # said by another before, or the service is gone
        reason = {"process": _cluster.process, "text": text, "code": code}
        coordination_client().key_value_set(_FAILED, json.dumps(reason))


def _end(line: str, code: int, alone: bool = False) -> NoReturn:
    """Print the line and leave at once: Python's way out would wait for the others in JAX's shutdown.

    alone: there is no coordination service to say it to.
    """
    assert _cluster is not None
    if not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is at it
    with contextlib.suppress(OSError, ValueError):  # the launcher may be gone, and its pipes with it
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    client: Any = None if alone else coordination_client()
    with contextlib.suppress(Exception):  # it is gone
        client.key_value_set(f"{_LEFT}{_cluster.process}", "1", True)
        # The service lives in process 0: it stays until the others have read the reason.
        waited = time.monotonic() + 5 * (_cluster.process == 0)
        while time.monotonic() < waited and len(client.key_value_dir_get(_LEFT)) < _cluster.processes:
            time.sleep(0.1)
    for action in reversed(_before_end):
        with contextlib.suppress(Exception):
            action()
    os._exit(code)


class _Watch(threading.Thread):
    """Says that this process lives, looks for the first error of any process, and in process 0 for silent ones."""

    def __init__(self, silence: float):
        super().__init__(name="kpjax-watch", daemon=True)
        self.done = threading.Event()
        self._silence = silence
        self._pause = min(0.5, silence / LOOKS)

    def run(self) -> None:
        client = coordination_client()
        assert _cluster is not None
        beats = itertools.count()
        due = 0.0
        heard = {str(i): ("", 0) for i in range(1, _cluster.processes)}
        while not self.done.is_set():
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + self._silence / LOOKS
                    client.key_value_set(f"{_BEAT}{_cluster.process}", str(next(beats)), True)
                    if _cluster.process == 0:
                        self._look(heard, client.key_value_dir_get(_BEAT))
                self._read(client.blocking_key_value_get(_FAILED, int(1000 * self._pause)))
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error) or self.done.is_set():
                    continue  # nothing was said
                _end(f"error: {_me()}: process 0 or the network to it is gone; {_AGAIN}", LOST)

    def _look(self, heard: dict[str, tuple[str, int]], beats: list[tuple[str, str]]) -> None:
        """heard: each process's last beat, and for how many looks it has been the same.

        Looks are counted, not seconds: a machine that stood still, this one or all, has missed none.
        """
        now = {key.rpartition("/")[2]: beat for key, beat in beats}
        for process, (beat, looks) in heard.items():
            latest = now.get(process, "")
            heard[process] = (latest, looks + 1 if latest == beat else 0)
        silent = [process for process, (_, looks) in heard.items() if looks > LOOKS]
        if silent:
            text = f"process {', '.join(silent)} has been silent for {self._silence:g} s and counts as gone; {_AGAIN}"
            _announce(text, LOST)

    def _read(self, said: str) -> None:
        assert _cluster is not None
        reason = json.loads(said)
        plain = reason["code"] == LOST or reason["process"] == _cluster.process
        by = "" if plain else f"stops because process {reason['process']} did: "
        _end(f"error: {_me()}: {by}{reason['text']}", reason["code"])


def _lost_coordinator(how: str) -> None:
    """The relay's `lost`."""
    why = "is gone" if how == "closed" else "is silent and counts as gone"
    _end(f"error: {_me()}: process 0 or the network to it {why}; {_AGAIN}", LOST, alone=True)


_AGAIN = "the same command on all of them goes on"
_NOT_ALL_CAME = (
    "error: {me}: the {cluster.processes} processes did not find each other at {cluster.coordinator} within the time; "
    "start all, each with its own number, and see that this address is process 0's and can be reached from here"
)
