"""Who else has a mount: namespaces that show it, and processes that have something of it open.

All of it is read from /proc, and no filesystem is asked: the one that is meant may not answer. Who
may not look into a process does not see it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowfs.system import mountinfo, syscalls
from cowfs.system.mountinfo import Mount


class Process(NamedTuple):
    """A process that has something of a mount."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class Place(NamedTuple):
    """A mount in some namespace. process: the first one of that, None in our own."""

    namespace: str
    mount: Mount
    process: Process | None

    @property
    def key(self) -> tuple[str, int]:
        """What no other place has, as long as the mount is there."""
        return self.namespace, self.mount.mount_id

    def __str__(self) -> str:
        where = f"at {self.mount.mountpoint}"
        if self.process is None:
            return where
        return f"{where} in the mount namespace of {self.process}"


def places(device: str, proc: str = "/proc") -> list[Place]:
    """Where a filesystem is mounted, in each namespace that a process is in; ours first.

    A container has a mount of its own of all that was there when it was started.
    """
    found = []
    seen = set()
    for entry in ("self", *sorted(filter(str.isdecimal, os.listdir(proc)), key=int)):
        directory = os.path.join(proc, entry)
        try:
            namespace = os.readlink(os.path.join(directory, "ns/mnt"))
            if namespace in seen:
                continue
            mounts = mountinfo.read(os.path.join(directory, "mountinfo"))
            process = None if entry == "self" else _process(directory)
        except (OSError, ValueError):
            continue  # it has ended, or is none of our business
        seen.add(namespace)
        found += [Place(namespace, mount, process) for mount in mounts if mount.device == device]
    return found


def users(device: str, proc: str = "/proc") -> Iterator[Process]:
    """Processes with a file, directory or mapping of a filesystem, mounted or not any more."""

    return _having(lambda identity: identity[0] == device, proc)


def openers(path: str, proc: str = "/proc") -> Iterator[Process]:
    """Processes that have this file open."""
    wanted = syscalls.statx_identity(os.fsencode(path))
    return _having(lambda identity: identity == wanted, proc)


def open_memory(pid: int, name: str, flags: int, proc: str = "/proc") -> int | None:
    """A memory file that a process has open, by the name that /proc shows, opened anew; None: there
    is none, or no permission. proc_pid_fd(5)."""
    where = os.path.join(proc, str(pid), "fd")
    try:
        for fd in os.listdir(where):
            path = os.path.join(where, fd)
            if os.readlink(path) == name:
                return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        pass  # it has ended, or closed it
    return None


def _having(is_it: Callable[[tuple[str, int]], bool], proc: str) -> Iterator[Process]:
    own = os.getpid()
    for entry in os.listdir(proc):
        if not entry.isdecimal() or int(entry) == own:
            continue
        directory = os.path.join(proc, entry)
        try:
            if any(map(is_it, _files(directory))):
                yield _process(directory)
        except OSError:
            continue  # it has ended, or is none of our business


def _files(directory: str) -> Iterator[tuple[str, int]]:
    """What a process has open or mapped, by device and inode number."""
    links = ["cwd", "root", "exe"]
    for kind in ("fd", "map_files"):
        links += [os.path.join(kind, name) for name in os.listdir(os.path.join(directory, kind))]
    for link in links:
        try:
            yield syscalls.statx_identity(os.fsencode(os.path.join(directory, link)))
        except FileNotFoundError:
            continue  # closed meanwhile; a kernel thread has no exe


def _process(directory: str) -> Process:
    with open(os.path.join(directory, "comm"), "rb") as comm:
        return Process(int(os.path.basename(directory)), os.fsdecode(comm.read().rstrip(b"\n")))
