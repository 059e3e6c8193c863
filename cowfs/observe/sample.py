"""What one mount has done until now: its counters, and what it has cost.

The counters are in the channel's ledger, memory that the keeper holds too (`channel/ledger.h`): it
is opened through /proc and read, so nobody who serves has a part in it, and a daemon that takes
over goes on counting. Where the kernel's overlayfs serves the copy nobody counts.

What was passed through, nobody here can know: the kernel reads and writes the files by itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cowfs.channel import read_counts
from cowfs.mount import upgrade
from cowfs.store import runtime
from cowfs.system import processes
from cowfs.system.errors import MountFailure, UsageError

if TYPE_CHECKING:
    from cowfs.channel import Counts
    from cowfs.store.runtime import Record

# As /proc shows a memory file; `ledger_new` of channel/ledger.c gives it the name.
LEDGER = "/memfd:cowfs-ledger (deleted)"

_BYTES = ("read_shared", "read_private", "written", "copied")

# What the channel counts, as JSON has it.
_COUNTED = (
    *("passthrough", "takeovers", "requests", "bytes", "copy_ups", "clones", "opens", "nodes"),
    *("open_files", "handles", "handles_passed_through"),
)

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Cost:
    """What those have used who serve a mount.

    cpu: seconds, of the keeper, the daemon and the daemons before it. The others are bytes in
    memory, those shared with other processes too; 0: there is none just now.
    """

    cpu: float
    daemon_memory: int
    keeper_memory: int


@dataclass(frozen=True)
class Sample:
    """One mount at one moment. counts: None where the kernel's overlayfs serves it."""

    record: Record
    time: float
    clock: float
    counts: Counts | None
    cost: Cost

    @property
    def key(self) -> tuple[str, str, str]:
        """What samples of the same mount have in common."""
        return key(self.record)

    def total(self, field: str) -> int:
        """A field of all requests together."""
        return sum(request[field] for request in self.requests.values())

    def request(self, name: str, field: str) -> int:
        """A field of one kind of request."""
        return self.requests.get(name, {}).get(field, 0)

    def tally(self, word: str) -> int:
        """A word of channel/tally.h."""
        return 0 if self.counts is None else self.counts["tally"].get(word, 0)

    @property
    def takeovers(self) -> int:
        return 0 if self.counts is None else self.counts["lives"] - 1

    @property
    def requests(self) -> dict[str, dict[str, int]]:
        return {} if self.counts is None else self.counts["requests"]

    def as_json(self) -> dict[str, Any]:
        """All of it; what nobody counts, or sees, is None."""
        record, cost = self.record, self.cost
        return {
            "time": self.time,
            "mountpoint": record.mountpoint,
            "copy": record.copy,
            "store": record.store,
            "source": record.source,
            "engine": record.engine,
            "version": record.version,
            **(dict.fromkeys(_COUNTED) if self.counts is None else self._counted(self.counts)),
            "cpu_seconds": cost.cpu,
            "daemon_pid": runtime.living(record.daemon_pid),
            "daemon_memory": cost.daemon_memory,
            "keeper_pid": runtime.living(record.keeper_pid),
            "keeper_memory": cost.keeper_memory,
        }

    def _counted(self, counts: Counts) -> dict[str, Any]:
        requests = {
            name: {
                "count": one["count"],
                "failed": one["errors"],
                "answered_by_channel": one["answered_here"],
                "seconds": one["total_ns"] / 1e9,
                "max_seconds": one["max_ns"] / 1e9,
            }
            for name, one in sorted(self.requests.items())
        }
        values = (
            counts["passthrough"],
            self.takeovers,
            requests,
            {
                **{word: self.tally(word) for word in _BYTES},
                "passed_through": None if counts["passthrough"] else 0,
            },
            self.tally("copy_ups"),
            {
                "count": self.tally("clones"),
                "seconds": self.tally("clone_ns") / 1e9,
                "max_seconds": self.tally("clone_max_ns") / 1e9,
            },
            {
                "count": self.request("OPEN", "count"),
                "answered_by_channel": self.request("OPEN", "answered_here"),
            },
            self.tally("nodes"),
            counts["files"],
            counts["handles"],
            counts["passed"],
        )
        return dict(zip(_COUNTED, values, strict=True))


def key(record: Record) -> tuple[str, str, str]:
    """What a mount keeps from daemon to daemon."""
    return record.device, record.mountpoint, record.copy


def records(mountpoint: str | None) -> list[Record]:
    """The mounts that are meant: one, or all. UsageError: there is none, or no permission."""
    if os.geteuid() != 0:
        what = "mounts" if mountpoint is None else mountpoint
        raise UsageError(f"no permission to read the counters of {what}: run cowfs as root")
    return upgrade.records(mountpoint)


def take(record: Record) -> Sample | None:
    """A sample of a mount; None: it has just ended. MountFailure: it cannot be read."""
    counts = None
    if record.engine == "fuse":
        fd = _open_ledger(record)
        if fd is None:
            return None
        try:
            counts = read_counts(fd)
        except ValueError as error:
            raise MountFailure(
                f"the counters of {record.mountpoint} cannot be read by this version: {error}; "
                f"cowfs {record.version} serves it"
            ) from None
        finally:
            os.close(fd)
    return Sample(record, time.time(), time.monotonic(), counts, _cost(record))


def _open_ledger(record: Record) -> int | None:
    """The keeper has it, and where a mount ends with its daemon, that one alone."""
    for pid in (record.keeper_pid, record.daemon_pid):
        fd = open_memory(pid, LEDGER, os.O_RDONLY)
        if fd is not None:
            return fd
    return None


def open_memory(pid: int, name: str, flags: int) -> int | None:
    """A memory file of one of our processes, opened anew; None: there is none, or no process."""
    return None if runtime.living(pid) is None else processes.open_memory(pid, name, flags)


def _cost(record: Record) -> Cost:
    keeper, daemon = record.keeper_pid, record.daemon_pid
    if daemon == keeper:
        return Cost(sum(_cpu(keeper)), 0, _memory(keeper))
    while True:
        own, ended = _cpu(keeper)
        of_daemon = _cpu(daemon, keeper)[0]
        # A daemon that has ended meanwhile would be counted twice, or not at all.
        if _cpu(keeper)[1] == ended:
            break
    return Cost(own + ended + of_daemon, _memory(daemon), _memory(keeper))


def _cpu(pid: int, parent: int = 0) -> tuple[float, float]:
    """Seconds of a process of ours, and of its children that have ended: proc_pid_stat(5).

    parent: whose child is ours in any case: of one that has just ended /proc has no words any more.
    """
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if len(fields) < 15 or not (int(fields[1]) == parent or runtime.living(pid)):
        return 0.0, 0.0
    user, system, of_children, in_system = map(int, fields[11:15])
    return (user + system) / _TICKS, (of_children + in_system) / _TICKS


def _memory(pid: int) -> int:
    """What is resident. (Pss, which tells shared pages apart, would have the process wait.)"""
    fields = _read(pid, "statm").split() if runtime.living(pid) else []
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def _read(pid: int, name: str) -> bytes:
    """A file of /proc about a process; nothing if it has ended."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""
