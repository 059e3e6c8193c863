"""Reads and writes that a daemon has served by itself, by thread and node, while somebody watches.

The table is in memory of the daemon's (`channel/served.h`), opened through /proc. It counts as long
as somebody says that he watches, so a watcher who is killed is forgotten by itself; several may
watch at once.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from cowfs.observe.sample import open_memory

if TYPE_CHECKING:
    from cowfs.store.runtime import Record

_MEMORY = "/memfd:cowfs-served (deleted)"
_HEAD = struct.Struct("=8sIIQQQ24x")
_MAGIC, _LAYOUT = b"cowfssrv", 1
_UNTIL = struct.Struct("=Q")
_UNTIL_AT = 16
_ROW = struct.Struct("=QII16s4Q")


class Served(NamedTuple):
    """A thread and a node; pid 0: it cannot be told, as the kernel wrote for it, or it is gone."""

    nodeid: int
    pid: int
    tid: int


class Counts(NamedTuple):
    """What was served to it since `session` of the table began."""

    name: bytes
    reads: int
    read_bytes: int
    writes: int
    written: int


class Table:
    """That of one daemon."""

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self.pid = pid
        self.session = 0
        self.lost = 0

    @classmethod
    def of(cls, record: Record) -> Table | None:
        """None: the daemon is of a version that has none, or there is none just now."""
        fd = open_memory(record.daemon_pid, _MEMORY, os.O_RDWR)
        return None if fd is None else cls(fd, record.daemon_pid)

    def close(self) -> None:
        os.close(self._fd)

    def watch(self, seconds: float) -> None:
        """Have it count for so long from now on, at least."""
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9)
        (before,) = _UNTIL.unpack(os.pread(self._fd, _UNTIL.size, _UNTIL_AT))
        if before < until:
            os.pwrite(self._fd, _UNTIL.pack(until), _UNTIL_AT)

    def read(self) -> dict[Served, Counts]:
        """All rows of the present session; none if it is of another layout. OSError."""
        head = os.pread(self._fd, _HEAD.size, 0)
        magic, layout, used, _, self.lost, self.session = _HEAD.unpack(head)
        if magic != _MAGIC or layout != _LAYOUT:
            return {}
        rows = os.pread(self._fd, used * _ROW.size, _HEAD.size)
        found = {}
        for nodeid, tid, pid, name, *numbers in _ROW.iter_unpack(rows[: used * _ROW.size]):
            found[Served(nodeid, pid, tid)] = Counts(name.rstrip(b"\0"), *numbers)
        return found
