"""Who reads and writes which file of the copies, in intervals.

Two sources, which do not overlap. The kernel's tracepoints tell what is passed through, what
overlayfs serves, and all faults (`kernelsums.py`). What a daemon serves it tells itself
(`served.py`): its own reads and writes at the tracepoints are somebody else's.

What FUSE answers out of pages of its own, nobody counts: it is no I/O.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cowfs.observe import sample
from cowfs.observe.files import Files
from cowfs.observe.kernelsums import KernelSums, Sums, Who, device_of
from cowfs.observe.served import Counts, Served, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.observe.files import File
    from cowfs.store.runtime import Record

# A daemon counts for this much longer than until the next look: the machine may be busy.
_LONGER = 10.0
# Rows in the kernel that nothing is added to are forgotten after so many rounds.
_QUIET = 10


@dataclass
class Row:
    """What a thread has done with a file in one interval.

    mountpoints: the copies that the file may have been read through; more than one for a file of a
    template that several of them share. served: by a daemon, else by the kernel alone.
    """

    pid: int
    tid: int
    name: str
    path: str
    mountpoints: tuple[str, ...]
    served: bool
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written: int = 0
    faults: int = 0
    cgroup: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "tid": self.tid,
            "comm": self.name,
            "cgroup": self.cgroup or None,
            "file": self.path,
            "mountpoint": self.mountpoints[0] if len(self.mountpoints) == 1 else None,
            "mountpoints": list(self.mountpoints),
            "served_by": "daemon" if self.served else "kernel",
            "reads": self.reads,
            "read_bytes": self.read_bytes,
            "writes": self.writes,
            "written_bytes": self.written,
            "faults": self.faults,
        }


class Activity:
    """Of one mount, or of all of them, from now on."""

    def __init__(self, mountpoint: str | None) -> None:
        """CowfsError. `missing` says what cannot be seen here."""
        records = sample.records(mountpoint)
        self._wanted = None if mountpoint is None else {sample.key(record) for record in records}
        self.missing: list[str] = []
        self.lost = 0
        self._tables: dict[int, Table] = {}
        self._served: dict[int, tuple[int, dict[Served, Counts]]] = {}
        self._daemons: set[int] = set()
        self._sums: dict[Who, Sums] = {}
        self._quiet: dict[Who, int] = {}
        self._cgroups: dict[int, str] = {}
        self._kernel: KernelSums | None = None
        try:
            self._kernel = KernelSums()
            self.missing += self._kernel.missing
        except (OSError, ValueError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            self.missing.append(f"what is passed through, and faults (no BPF: {reason})")
        self._files = Files(self._kernel.note_size if self._kernel else lambda *_: None)
        self.records: list[Record] = []

    def close(self) -> None:
        self._files.close()
        if self._kernel is not None:
            self._kernel.close()
        for table in self._tables.values():
            table.close()

    def start(self, interval: float) -> None:
        """Count from now on; others may have watched before."""
        self._begin(interval)
        for pid, table in self._tables.items():
            with contextlib.suppress(OSError):
                found = table.read()
                self._served[pid] = table.session, found

    def _begin(self, interval: float) -> None:
        """Look at what is mounted now, and see that all of it is counted for the next interval."""
        mounted = sample.records(None)
        self._daemons |= {one.daemon_pid for one in mounted if one.engine == "fuse"}
        self.records = [
            one for one in mounted if self._wanted is None or sample.key(one) in self._wanted
        ]
        self._files.begin(self.records, mounted)
        if self._kernel is not None:
            of_mounts = {_device(record) for record in self.records}
            self._kernel.watch(self._files.devices() | of_mounts)
        for record in self.records:
            if record.engine == "fuse" and record.daemon_pid not in self._tables:
                table = Table.of(record)
                if table is not None:
                    self._tables[record.daemon_pid] = table
        gone = set(self._tables) - {record.daemon_pid for record in self.records}
        for pid in gone:
            self._tables.pop(pid).close()
            self._served.pop(pid, None)
        for table in self._tables.values():
            with contextlib.suppress(OSError):
                table.watch(interval + _LONGER)

    def step(self, interval: float) -> list[Row]:
        """What has been done since the last step; then goes on for the next interval."""
        rows: dict[tuple[Any, ...], Row] = {}
        self.lost = 0
        for row in (*self._from_kernel(), *self._from_daemons()):
            key = (row.tid, row.pid, row.path, row.mountpoints, row.served)
            known = rows.setdefault(key, row)
            if known is not row:
                for field in ("reads", "read_bytes", "writes", "written", "faults"):
                    setattr(known, field, getattr(known, field) + getattr(row, field))
        for row in rows.values():
            row.cgroup = self._cgroup(row.pid)
        self._begin(interval)
        return list(rows.values())

    # ---------------------------------------------------------------- the two sources

    def _from_kernel(self) -> Iterator[Row]:
        if self._kernel is None:
            return
        fuse = {_device(record): record for record in self.records if record.engine == "fuse"}
        before, self._sums = self._sums, self._kernel.read()
        for who, now in self._sums.items():
            past = before.get(who)
            if now == past:
                self._quiet[who] = self._quiet.get(who, 0) + 1
                if self._quiet[who] >= _QUIET:
                    self._kernel.forget(who)
                continue
            self._quiet.pop(who, None)
            if who.pid in self._daemons:
                continue
            if who.device in fuse:
                file = self._files.of_node(fuse[who.device], who.inode)
            else:
                file = self._files.find(who.device, who.inode)
            if file is None:
                continue
            # One that was forgotten, and came again, begins at 0.
            old = past if past is not None and past.reads <= now.reads else None
            yield Row(
                who.pid,
                who.tid,
                os.fsdecode(now.name),
                *_shown(file),
                who.device in fuse,
                *_since(now, old),
            )
        self._quiet = {who: count for who, count in self._quiet.items() if who in self._sums}
        self.lost += self._kernel.lost()

    def _from_daemons(self) -> Iterator[Row]:
        for record in self.records:
            table = self._tables.get(record.daemon_pid)
            if table is None:
                continue
            try:
                found = table.read()
            except OSError:
                continue
            session, before = self._served.get(table.pid, (0, {}))
            if session != table.session:
                before = {}
            self._served[table.pid] = table.session, found
            self.lost += table.lost
            for who, now in found.items():
                past = before.get(who)
                if past == now:
                    continue
                file = self._files.of_node(record, who.nodeid)
                path = os.fsdecode(file.path) if file else f"(node {who.nodeid}, removed)"
                old = past or Counts(b"", 0, 0, 0, 0)
                yield Row(
                    who.pid,
                    who.tid,
                    os.fsdecode(now.name),
                    path,
                    (record.mountpoint,),
                    True,
                    now.reads - old.reads,
                    now.read_bytes - old.read_bytes,
                    now.writes - old.writes,
                    now.written - old.written,
                )

    def _cgroup(self, pid: int) -> str:
        """That of a process, which for a container has its id; "" when it has ended."""
        if pid not in self._cgroups:
            text = ""
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", "rb") as lines:
                text = os.fsdecode(lines.read())
            paths = [line.split(":", 2)[2] for line in text.splitlines()]
            self._cgroups[pid] = paths[-1] if paths else ""  # the last line is that of version 2
        return self._cgroups[pid]


def _since(now: Sums, old: Sums | None) -> tuple[int, int, int, int, int]:
    """The numbers of a Row, in its order."""
    if old is None:
        return now.reads, now.read_bytes, now.writes, now.written, now.faults
    return (
        now.reads - old.reads,
        now.read_bytes - old.read_bytes,
        now.writes - old.writes,
        now.written - old.written,
        now.faults - old.faults,
    )


def _shown(file: File) -> tuple[str, tuple[str, ...]]:
    return os.fsdecode(file.path), tuple(sorted(one.mountpoint for one in file.mounts))


def _device(record: Record) -> int:
    major, _, minor = record.device.partition(":")
    return device_of(os.makedev(int(major), int(minor)))
