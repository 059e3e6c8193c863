"""A terminal of 80 columns: what a person sees of a command. Knows nothing about cowfs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

COLUMNS = 80

#: What moves no cursor: colours, and whether the cursor is shown.
_INVISIBLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]")


def open_terminal() -> tuple[int, int]:
    """The side of the person and that of the program."""
    person, program = pty.openpty()
    size = struct.pack("HHHH", 24, COLUMNS, 0, 0)
    fcntl.ioctl(program, termios.TIOCSWINSZ, size)
    return person, program


def seen(command: Sequence[str | os.PathLike[str]]) -> str:
    """What a command shows, stdout and stderr, with nobody at the keyboard."""
    person, program = open_terminal()
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=program,
        stderr=program,
        env=environment,
        start_new_session=True,
    ):
        os.close(program)
        return read_all(person)


def read_all(person: int) -> str:
    """All that comes until no program has the terminal any more."""
    said = b""
    with os.fdopen(person, "rb", buffering=0) as file:
        while True:
            try:
                piece = file.read(65536)
            except OSError:  # EIO: the last one has closed it
                piece = b""
            if not piece:
                return said.decode().replace("\r\n", "\n")
            said += piece


def last_line(text: str) -> str:
    """What stands in the line that a progress bar has drawn again and again."""
    return _INVISIBLE.sub("", text).rpartition("\r")[2].replace("\x1b[2K", "").rstrip()


def compare(screen: Path, text: str) -> None:
    """The screen must be what the file has; COWFS_WRITE_SCREENS=1 writes it anew.

    No line is wider than the terminal, unless it is one word or one command to be pasted, which
    the terminal itself breaks.
    """
    wide = [line for line in text.splitlines() if len(line) > COLUMNS]
    assert not [line for line in wide if not _is_whole(line)], wide
    if "COWFS_WRITE_SCREENS" in os.environ:
        screen.parent.mkdir(exist_ok=True)
        screen.write_text(text)
    assert text == screen.read_text(), f"not as {screen}; COWFS_WRITE_SCREENS=1 writes it anew"


def _is_whole(line: str) -> bool:
    return bool(re.fullmatch(r" +(\S+|(cowfs|mount|umount|mkdir|chown) .*)", line))
