"""The program `cowfs`: a plain mount at once, all else by `cli.py`."""

from __future__ import annotations

import atexit
import gc
import sys

from cowfs.commands import messages, mounting

PROGRAM = "cowfs"


def main() -> int:
    """The exit code. Every failure is one line on stderr."""
    call = mounting.plain(sys.argv[1:])
    if call is None:
        from cowfs.commands import cli

        return cli.main()
    atexit.register(gc.freeze)  # as in cli.py
    return messages.told(PROGRAM, lambda: mounting.mount(PROGRAM, call))
