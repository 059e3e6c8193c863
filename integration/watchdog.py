"""Frees a test that hangs on a mount: a process that aborts the session's FUSE connections.

pytest-timeout alone is not enough. A thread that waits for a FUSE request leaves the kernel neither
for SIGALRM nor, once the daemon has read the request, for SIGKILL; and one that waits in a page
fault of a mapping holds Python's lock meanwhile, so that no other thread of the process can help.
This process can: it is told a deadline before each test, and when it passes, it aborts the
connections. The test then fails with the timeout that was pending, and the run goes on.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from integration import kernel


class Watchdog:
    """The pytest side: `arm` before a test, `disarm` after it, `close` at the end."""

    def __init__(self) -> None:
        root = Path(__file__).parent.parent
        code = "from integration.watchdog import watch; watch()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            cwd=root,  # -c puts the working directory in front of the path
            start_new_session=True,  # a Ctrl-C that ends the run must not end its guard first
        )

    def arm(self, seconds: float) -> None:
        """Abort the session's connections unless another call comes within `seconds`."""
        self._tell(f"{seconds:g}\n")

    def disarm(self) -> None:
        """Wait without a deadline."""
        self._tell("0\n")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), line.encode())


def watch() -> None:
    """The process: read deadlines from standard input until it ends."""
    timeout: float | None = None
    while True:
        readable, _, _ = select.select([0], [], [], timeout)
        if readable:
            lines = os.read(0, 4096)
            if not lines:
                return
            timeout = float(lines.split()[-1]) or None
            continue
        aborted = ", ".join(kernel.abort_connections()) or "nothing"
        print(f"watchdog: the test hangs, aborted {aborted}", file=sys.stderr)
        timeout = 10  # again, should its teardown hang on another mount
