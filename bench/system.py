"""The machine under the benchmark: running commands, memory, caches, and what to print about it.

Knows nothing of peers or workloads.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class BenchError(Exception):
    """A measurement that could not be made, in one line."""


def run(command: Sequence[str | Path], *, timeout: float = 600) -> str:
    """Run a command to its end and return its standard output.

    BenchError carries the last line that a failing command wrote to standard error.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise BenchError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(words[:4])} did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        raise BenchError(f"{' '.join(words[:4])}: exit status {done.returncode}: {said[-1]}")
    return done.stdout


def memory_info() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number, *unit = rest.split()
        values[name] = int(number) * (1024 if unit else 1)
    return values


class CacheDrops:
    """Drops the caches of the machine, and notices when somebody else does.

    What others drop while a workload runs makes its warm measurements cold ones.
    """

    def __init__(self) -> None:
        self._own = 0

    def drop(self) -> None:
        """Write back, then drop clean pages, names and inodes."""
        os.sync()
        before = _drops()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        self._own += _drops() - before

    def foreign(self) -> int:
        """How often the machine's caches were dropped by others since it was started."""
        return _drops() - self._own


def _drops() -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    counted = ("drop_pagecache", "drop_slab")
    return sum(int(line.split()[1]) for line in lines if line.startswith(counted))


def process_memory(pid: int) -> tuple[int, int]:
    """Resident and proportional bytes (VmRSS, Pss) of a process."""
    folder = Path("/proc") / str(pid)
    try:
        resident = re.search(r"^VmRSS:\s+(\d+) kB", (folder / "status").read_text(), re.M)
        shared = re.search(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.M)
    except OSError as error:
        raise BenchError(f"memory of process {pid}: {error.strerror}") from error
    if resident is None or shared is None:
        raise BenchError(f"memory of process {pid}: not told by the kernel")
    return int(resident[1]) * 1024, int(shared[1]) * 1024


def process_seconds(pids: list[int]) -> float:
    """CPU seconds that processes have used so far, with those of their threads that have ended."""
    used = 0
    for pid in pids:
        try:
            stat = (Path("/proc") / str(pid) / "stat").read_text()
        except OSError as error:
            raise BenchError(f"CPU time of process {pid}: {error.strerror}") from error
        user, system = stat.rpartition(")")[2].split()[11:13]
        used += int(user) + int(system)
    return used / os.sysconf("SC_CLK_TCK")


def is_mountpoint(path: Path) -> bool:
    """True if something is mounted exactly there; does not touch the filesystem mounted there."""
    escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % ord(found[0]), os.fsencode(path))
    # bytes: mounts of other people may have any name
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return any(line.split(b" ", 5)[4] == escaped for line in lines)


def unmount(path: Path) -> None:
    """Unmount what is there, and detach it if it is busy. Nothing mounted is no error."""
    if is_mountpoint(path):
        try:
            run(["umount", path], timeout=60)
        except BenchError:
            run(["umount", "--lazy", path], timeout=60)


@contextmanager
def patient_teardown() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM while cleaning up: an interrupted clean-up leaves mounts behind."""
    held = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into the exception that Ctrl-C raises, so that contexts unwind."""
    for number in _ENDING:
        signal.signal(number, signal.default_int_handler)


def describe() -> dict[str, object]:
    """The machine, for the head of a report."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_info()["MemTotal"],
        "kernel": platform.release(),
        "distribution": _distribution(),
        "load_at_start": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """First line of what each tool says about its version; a missing tool is left out."""
    said = {"python": platform.python_version()}
    for name, command in {
        "fio": ["fio", "--version"],
        "mkfs.xfs": ["mkfs.xfs", "-V"],
        "fuse-overlayfs": ["fuse-overlayfs", "--version"],
    }.items():
        if shutil.which(command[0]):
            lines = [
                line for line in run(command).splitlines() if line.startswith(name.split(".")[0])
            ]
            said[name] = re.sub(r"^[^0-9]*", "", lines[0]) if lines else "?"
    return said


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"
