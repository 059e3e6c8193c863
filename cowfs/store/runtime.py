"""Records of running mounts: one JSON file for each in /run/cowfs.

    /run/cowfs/<major>:<minor>.json   mode 0600, named after the mount's device
    /run/cowfs/<major>:<minor>.overlay   the same, where overlayfs serves it
    /run/cowfs/<major>:<minor>.sock   the keeper listens there for an upgrade
    /run/cowfs/<major>:<minor>.log    what a mount in the background has to say

A daemon writes its record when its mount answers and removes it at the end. A killed one leaves it
behind: a reader of the records drops those that are not true any more. Nothing here touches a
mount itself, which may hang; what is mounted is read from the mount table.

A record is of a filesystem, and the device number names that: each of its mounts (mount --bind,
another namespace) has the same, and the same record. The unique id of a mount (statx(2)) would name
one of them, which may be gone while the others are served on; so a record has none.

A device number is free as soon as its filesystem is gone, and the next one may write its record
before the last one's daemon, or a reader, removes the old one: so both look again under a lock
(flock of the directory). A new mount takes the number for itself before it answers (`claim`):
nothing that is found by the number later is of the mount before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from cowfs.system import directories, jsonfile, mountinfo, processes
from cowfs.system.mountinfo import Mount
from cowfs.system.processes import Place

RUN_DIR = "/run/cowfs"

# By the engine: a version that knows no other than FUSE takes a record for untrue, and drops it.
_SUFFIXES = {"fuse": ".json", "overlay": ".overlay"}
_SOCKET = ".sock"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Record:
    """One running mount.

    device: "major:minor" of the mount, as in the mount table. started: seconds since the epoch.
    options: as they were given, one value of -o. version: of the cowfs that serves. replaceable:
    whether another daemon could go on with the mount. engine: what serves it, "fuse" or "overlay";
    in the second case both pids are the attendant's. passthrough: whether the kernel reads and
    writes private files by itself, so that the mount has no pages of its own; None: not known.
    """

    device: str
    mountpoint: str
    source: str
    store: str
    copy: str
    template: str
    daemon_pid: int
    keeper_pid: int
    started: float
    options: str
    persistent: bool
    version: str = ""
    replaceable: bool = True
    engine: str = "fuse"
    passthrough: bool | None = None

    @classmethod
    def from_fields(cls, value: dict[str, Any]) -> Record:
        """From what asdict() gave, in this version or another. TypeError, KeyError."""
        return cls(**{field: value[field] for field in _FIELDS if field in value})

    @property
    def file_name(self) -> str:
        """What its file is called. KeyError: an engine of a later version."""
        return self.device + _SUFFIXES[self.engine]


_FIELDS = tuple(field.name for field in fields(Record))


def write(record: Record) -> None:
    """Write the record of a mount that answers. OSError."""
    with _open_directory(create=True) as directory:
        fcntl.flock(directory, fcntl.LOCK_EX)
        jsonfile.write(directory, record.file_name, asdict(record))


def remove(device: str) -> None:
    """Remove this process's record of a mount that has ended; no error when there is none."""
    with contextlib.suppress(FileNotFoundError), _open_directory(create=False) as directory:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for suffix in _SUFFIXES.values():
            with contextlib.suppress(FileNotFoundError):
                record = _parse(directory, device + suffix)
                if record is not None and record.daemon_pid == os.getpid():
                    os.unlink(device + suffix, dir_fd=directory)
                    os.unlink(device + _SOCKET, dir_fd=directory)


def open_log(device: str) -> int:
    """A descriptor that appends to the log of a mount, /run/cowfs/<major>:<minor>.log; begins anew.

    A device number is used again, so there are never more logs than there were mounts at once.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with _open_directory(create=True) as directory:
        return os.open(device + ".log", flags, 0o600, dir_fd=directory)


def claim(device: str) -> None:
    """A mount that was just made has this device: remove the record and socket of an earlier mount,
    so that its daemon, which is just ending, does not remove ours. OSError."""
    with _open_directory(create=True) as directory:
        fcntl.flock(directory, fcntl.LOCK_EX)
        for suffix in (*_SUFFIXES.values(), _SOCKET):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(device + suffix, dir_fd=directory)


def control_socket(device: str) -> socket.socket:
    """A socket for requests to the keeper of a mount; only root may connect.  OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _open_directory(create=True) as directory:
        # A bound socket's path is short: of a directory of ours, which only root may enter.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(device + _SOCKET, dir_fd=directory)
        listener.bind(f"/proc/self/fd/{directory}/{device}{_SOCKET}")
    listener.listen(1)
    return listener


def control_path(device: str) -> str:
    """Where the keeper of a mount listens."""
    return os.path.join(RUN_DIR, device + _SOCKET)


def of(mount: Mount) -> Record | None:
    """The record of a mount in the table."""
    return next((record for record in all() if record.device == mount.device), None)


def living(pid: int) -> int | None:
    """The pid, if a daemon, keeper or attendant has it; else None: between two daemons nobody has
    it, or another process by now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            ours = any(word.startswith(b"cowfs.") for word in words.read().split(b"\0"))
    except OSError:
        return None
    return pid if ours else None


def all() -> list[Record]:  # noqa: A001 -- read as runtime.all()
    """The records of all running mounts. Those of mounts that are gone are deleted."""
    return [record for record in _every() if _is_running(record)]


def place(record: Record) -> Place | None:
    """Where the copy is mounted: at the place where it was, if it still is there, or at another one
    of this namespace (mount --bind), or in another one. None: nowhere that we see."""
    here = [mount for mount in mountinfo.read() if _is_of(mount, record)]
    for mount in sorted(here, key=lambda mount: mount.mountpoint != record.mountpoint):
        return Place("", mount, None)
    others = processes.places(record.device)
    return next((other for other in others if _is_of(other.mount, record)), None)


def elsewhere() -> list[Record]:
    """The records of copies that are served on, and that are mounted here no more: another
    namespace has them, or a process a file of them, or they are just being put away."""
    return [record for record in _every() if not _is_running(record)]


def _every() -> list[Record]:
    found = []
    try:
        with _open_directory(create=False) as directory:
            for name in sorted(directories.names(directory)):
                if name.endswith(tuple(_SUFFIXES.values())) and not name.startswith("."):
                    record = _read(directory, name)
                    if record is not None:
                        found.append(record)
    except (
        FileNotFoundError,
        PermissionError,
    ):  # no mount yet; or none of ours, only root may look
        return []
    return found


def directory() -> str:
    """The directory of the records, which is root's, made if need be. OSError."""
    with _open_directory(create=True):
        return RUN_DIR


def log_path(device: str) -> str:
    """Where the daemon of a mount writes what it has to say; its directory is made."""
    with _open_directory(create=True):
        return os.path.join(RUN_DIR, device + ".log")


def _read(directory: int, name: str) -> Record | None:
    """A record that is true; None for another, which is deleted."""
    try:
        record = _parse(directory, name)
        if not _is_true(record, name):
            fcntl.flock(directory, fcntl.LOCK_EX)
            try:
                record = _parse(directory, name)
                if not _is_true(record, name):
                    os.unlink(name, dir_fd=directory)
                    return None
            finally:
                fcntl.flock(directory, fcntl.LOCK_UN)
    except OSError:  # its mount has just ended; or what is there is no file
        return None
    return record


def _parse(directory: int, name: str) -> Record | None:
    """What a record says; None for one that is not ours. OSError.

    Versions live side by side while mounts move from one to the next: one that knows more writes
    fields that we do not know, and one that knows less leaves some out.
    """
    try:
        return Record.from_fields(jsonfile.read(directory, name))
    except (ValueError, TypeError):
        return None


def _is_true(record: Record | None, name: str) -> bool:
    return (
        record is not None
        and name == record.file_name
        and (
            _is_running(record)
            or any(map(living, (record.daemon_pid, record.keeper_pid)))
            or _is_shown_elsewhere(record)
        )
    )


def _is_shown_elsewhere(record: Record) -> bool:
    """Whether another mount namespace has it: what the kernel serves needs no process of ours, and
    whoever reads records in a container does not see the mounts of the others."""
    if record.engine == "fuse":
        return False
    return _shows((place.mount for place in processes.places(record.device)), record)


def _is_running(record: Record) -> bool:
    # The mount is looked for where its daemon lives: it may not be in our mount namespace.
    places = [str(record.daemon_pid), str(record.keeper_pid)]
    if record.engine != "fuse":
        places.append("self")  # the kernel serves it also when the attendant was killed
    for place in places:
        with contextlib.suppress(OSError):
            if _shows(mountinfo.read(f"/proc/{place}/mountinfo"), record):
                return True
    return False


def _shows(mounts: Iterable[Mount], record: Record) -> bool:
    return any(_is_of(mount, record) for mount in mounts)


def _is_of(mount: Mount, record: Record) -> bool:
    # The device number of one overlayfs may be that of the next: its template tells.
    template = "" if record.engine == "fuse" else record.template
    return mount.is_cowfs and mount.device == record.device and mount.template == template


@contextlib.contextmanager
def _open_directory(*, create: bool) -> Iterator[int]:
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(RUN_DIR, 0o700)
    fd = os.open(RUN_DIR, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
