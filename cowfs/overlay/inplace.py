"""Which files programs change in place while others have them open for reading.

A reader of a shared file keeps the bytes that it opened when another process writes the file: right
for weights, which are replaced as a whole, and wrong for a database, whose readers look for what
others have committed, or for a log that is followed.  Such files are known by their first bytes, or
by their names where the bytes say nothing, and are cloned before their first reader has them
(`backing.py`).

Pure: it knows bytes and names, and opens nothing.  A file that is missing here costs its readers
only news; one that is listed wrongly costs shared pages.  So HDF5 is not here, in which people keep
weights: users who write it beside readers (SWMR) name it in the option `inplace`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import Literal

CloneMode = Literal["auto", "write", "open"]
"""When a file of the template is cloned: what is known here when it is first opened and all others
before the first write, each before the first write, or each when it is first opened."""

# (program, offset in bytes, what stands there)
HEADERS: tuple[tuple[str, int, bytes], ...] = (
    ("SQLite", 0, b"SQLite format 3\0"),
    ("DuckDB", 8, b"DUCK"),
    ("LMDB", 16, b"\xde\xc0\xef\xbe"),
    ("bbolt", 16, b"\xed\xda\x0c\xed"),
    ("Berkeley DB, btree", 12, b"\x62\x31\x05\x00"),
    ("Berkeley DB, hash", 12, b"\x61\x15\x06\x00"),
    *(("GDBM", 0, bytes((kind, 0x9A, 0x57, 0x13))) for kind in (0xCD, 0xCE, 0xCF, 0xD0, 0xD1)),
    ("TDB", 0, b"TDB file\n"),
    ("systemd's journal", 0, b"LPKSHHRH"),
)
HEAD_SIZE = max(offset + len(magic) for _program, offset, magic in HEADERS)
"""Bytes from the beginning of a file that `is_known` looks at."""

# Logs, write-ahead logs and journals, and databases whose pages are encrypted.
NAMES: tuple[str, ...] = (
    *("*.log", "*.out", "*.err", "*.tfevents.*"),
    *("*-wal", "*-journal", "*-shm", "*.wal", "*.aof", "MANIFEST-*"),
    *("*.db", "*.db3", "*.sqlite", "*.sqlite3", "*.duckdb", "*.mdb"),
)


class InPlace:
    """The files of one mount: those of the lists above, and those that an option names.

    *patterns*: shell patterns of file names, as in fnmatch(3).
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        every = "|".join(translate(pattern) for pattern in (*NAMES, *patterns))
        self._names = re.compile(every)

    def is_known(self, name: bytes, head: bytes) -> bool:
        """Whether it is such a file: its name, and its first `HEAD_SIZE` bytes, or fewer."""
        if self._names.match(name.decode("utf-8", "surrogateescape")):
            return True
        return any(head.startswith(magic, offset) for _program, offset, magic in HEADERS)
