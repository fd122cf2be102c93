"""`kpjax COMMAND`, and `python -m kpjax COMMAND` alike; kpjax.commands.front has the table of commands."""

from __future__ import annotations

import sys

from kpjax import __version__
from kpjax.commands.interrupt import leaving_at_once

# Nothing else is imported here: until `main` looks after Ctrl-C, it ends in a traceback.


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 after a line of explanation, or what the command says."""
    try:
        with leaving_at_once():
            from kpjax.commands import front

            program = front.read(sys.argv[1:] if argv is None else list(argv), __version__)
        return front.call(program)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
