"""Commands on a terminal of 80 columns, and what they show there, kept as text files.

A screen is `screens/NAME.txt` beside the test. COWFS_TEST_SCREENS=write writes them anew.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import NamedTuple

WRITE = "COWFS_TEST_SCREENS"


class Shown(NamedTuple):
    """What a command has written to its terminal, and its exit code."""

    text: str
    returncode: int


def on_terminal(
    *args: str | os.PathLike[str], columns: int = 80, answer: str = "", timeout: float = 60
) -> Shown:
    """Run a program whose stdin, stdout and stderr are a terminal, where *answer* was typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = termios.tcgetattr(theirs)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    environment = {key: value for key, value in os.environ.items() if key not in _OF_ANOTHER}
    process = subprocess.Popen(
        [os.fspath(arg) for arg in args],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
    )
    os.close(theirs)
    try:
        os.write(ours, answer.encode())
        text = _read_all(ours, timeout)
        return Shown(text, process.wait(timeout))
    finally:
        process.kill()
        process.wait()
        os.close(ours)


_OF_ANOTHER = ("COLUMNS", "LINES")


def _read_all(fd: int, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    shown = b""
    while select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            piece = os.read(fd, 65536)
        except OSError:  # EIO: nobody has it any more
            break
        shown += piece
    else:
        raise AssertionError(f"it does not end, and shows: {shown.decode(errors='replace')}")
    return shown.decode().replace("\r\n", "\n")


def compare(test: str, name: str, text: str) -> None:
    """Fail unless the screen of this name, beside the file *test*, is this text."""
    path = Path(test).parent / "screens" / f"{name}.txt"
    if os.environ.get(WRITE) == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
