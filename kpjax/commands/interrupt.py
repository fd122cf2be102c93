"""What does Ctrl-C do to a program: end it at once while it imports, which takes seconds, and get through afterwards.

with leaving_at_once():
    from kpjax.commands.train import main
with getting_through():
    main()
"""

from __future__ import annotations

import os  # and nothing that is not there when Python starts: until the first block begins, Ctrl-C ends in a traceback


class leaving_at_once:
    """A block of imports in which Ctrl-C prints "stopped" and ends the process with 130, without unwinding anything.

    A KeyboardInterrupt there would end in a traceback: extension modules turn it into an ImportError, for example.
    Nothing changes where another handler than Python's own stands (SIGINT ignored under nohup), or in another thread
    than the main one.
    """

    def __enter__(self) -> None:
        self._ours = False
        try:
            import signal  # takes milliseconds itself

            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, leave)
                self._ours = True
        except KeyboardInterrupt:
            leave()
        except ValueError:  # not in the main thread
            pass

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import signal

            signal.signal(signal.SIGINT, signal.default_int_handler)


class getting_through:
    """A block in which a KeyboardInterrupt that Python would drop is raised again.

    It drops, with a traceback, what is raised in callbacks of the garbage collector and of weak references, in which
    a process that uses JAX often is; the program would go on.
    """

    def __enter__(self) -> None:
        import sys
        import threading

        reader, self._writer = os.pipe()
        threading.Thread(target=_raise_again, args=(reader,), daemon=True).start()
        self._before, sys.unraisablehook = sys.unraisablehook, self._dropped

    def __exit__(self, *_: object) -> None:
        import sys

        sys.unraisablehook = self._before
        os.close(self._writer)

    def _dropped(self, what: object) -> None:
        kind = getattr(what, "exc_type", None)
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self._before(what)  # type: ignore[arg-type]
        else:  # one call and no more: what comes up in this function is dropped, too
            os.write(self._writer, b"i")


def _raise_again(reader: int) -> None:
    """Send this process SIGINT for each byte, a moment after it; return when the other end is closed."""
    import signal
    import time

    while os.read(reader, 1):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    os.close(reader)


def leave(*_: object) -> None:
    """Print "stopped", end the process with 130."""
    os.write(2, b"stopped\n")
    os._exit(130)
