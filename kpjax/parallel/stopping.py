"""All processes stop at the same call: what one of them was asked for, all of them do together.

JAX has the same as its preemption service (`multihost_utils.reached_preemption_sync_point`), but Orbax asks that one
too, by other numbers and from another thread, and all who ask have to count alike.
"""

from __future__ import annotations

import itertools
import threading

import jax

from kpjax.parallel.jax_internals import coordination_client

_numbers = itertools.count()
_WAIT_MS = 500


class StopTogether(threading.Thread):
    """Between `start` and `close`, `reached` becomes true at the same call on every process once any called `ask`.

    All processes make one, in the same order, and call `reached` equally often.
    """

    def __init__(self) -> None:
        super().__init__(name="kpjax-stop", daemon=True)
        self._key = f"kpjax/stop/{next(_numbers)}/"
        self._asked = False
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._calls, self._last = 0, -1  # the call that stops; -1 while there is none

    def ask(self) -> None:
        """Ask all processes to stop.  Safe in a signal handler."""
        self._asked = True

    def reached(self) -> bool:
        """Whether to stop here."""
        with self._lock:
            self._calls += 1
            return 0 <= self._last <= self._calls

    def close(self) -> None:
        """End the thread, which must not be inside JAX when Python ends."""
        self._done.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Wait until a process has asked, then agree on a call that none of them has made yet."""
        client, passed_on = coordination_client(), False
        while not self._done.is_set():
            if self._asked and not passed_on:
                client.key_value_set(f"{self._key}asked", "1", True)
                passed_on = True
            if self._read("asked"):
                break
        else:
            return
        with self._lock:  # no call of `reached` returns until all have counted theirs
            client.key_value_set(f"{self._key}calls/{jax.process_index()}", str(self._calls))
            calls = [self._read(f"calls/{i}", wait=True) for i in range(jax.process_count())]
            if all(calls):
                self._last = max(map(int, calls)) + 1

    def _read(self, name: str, wait: bool = False) -> str:
        """The value of a key once it is there; "" where it is not (wait: not before `close`)."""
        while True:
            try:
                return coordination_client().blocking_key_value_get(f"{self._key}{name}", _WAIT_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._done.set()  # the service is gone; kpjax.parallel.distributed says so
            if not wait or self._done.is_set():
                return ""
