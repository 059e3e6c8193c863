"""The store as a directory: where it is, who may own it, and its parts.

    <store>/templates/   finished templates
    <store>/lowers/      the same trees once more, for overlayfs (lowers.py)
    <store>/copies/      copies
    <store>/partial/     what is being made; each entry is locked (flock) by whoever makes it
    <store>/trash/       what is to be removed

Things appear in `templates`, `lowers` and `copies`, and leave them, by one rename each. So whatever
lies in `trash`, and what lies in `partial` without a lock, is rubbish. A mount moves what it finds
or has left into the trash, and empties it never: see emptying.py.

The store lies on a volume where users may have rights, so it is trusted only when it is root's and
closed to everybody else, and everything in it is reached from descriptors that were opened once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from cowfs.store import emptying
from cowfs.system import directories, mountinfo, remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.trees import removal

STORE_NAME = ".cowfs"
OWNER = 0  # root

# What may have FICLONE; a store is looked for on these alone.
_CLONING_FILESYSTEMS = frozenset({"xfs", "btrfs", "bcachefs"})

PARTS = ("templates", "copies", "partial", "trash")
LOWERS = "lowers"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What FICLONE and O_TMPFILE give where the filesystem has no such thing.
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EISDIR, errno.EINVAL)


class StoreDirectory:
    """An open store. Owns the descriptors of the store and of its parts; `close` ends it."""

    def __init__(self, path: str, fd: int) -> None:
        """Use `open_store`. Takes over `fd`."""
        self.path = path
        self.fd = fd
        self._parts = dict(zip(PARTS, map(self._part, PARTS), strict=True))
        self.templates_fd = self._parts["templates"]
        self.copies_fd = self._parts["copies"]
        self.partial_fd = self._parts["partial"]
        self.trash_fd = self._parts["trash"]
        st = os.fstat(fd)
        self.identity = (st.st_dev, st.st_ino)

    @property
    def lowers_fd(self) -> int:
        """Made with the first tree for overlayfs: a full volume has no room for it. OSError."""
        if LOWERS not in self._parts:
            self._parts[LOWERS] = self._part(LOWERS)
        return self._parts[LOWERS]

    def has_lowers(self) -> bool:
        """Whether there may be any. OSError."""
        try:
            os.stat(LOWERS, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors. Copies that were acquired keep their locks."""
        for fd in (self.fd, *self._parts.values()):
            os.close(fd)

    def contains(self, path: str) -> bool:
        """Whether a canonical path is the store or lies in it."""
        return mountinfo.is_within(path, os.path.realpath(self.path))

    def _part(self, name: str) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.fd)
        return os.open(name, _DIRECTORY, dir_fd=self.fd)

    @contextlib.contextmanager
    def partial(self, name: str) -> Iterator[int]:
        """A locked directory in `partial`, open; waits while another process has its lock.

        Empty, or with what a crash has left. What still has this name at the end is removed.
        """
        fd: int | None = None
        try:
            fd = self._lock_partial(name)
            yield fd
        finally:
            if fd is None:  # interrupted by a signal, perhaps when it was made already
                with contextlib.suppress(OSError):
                    fd = lock_directory(self.partial_fd, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fd is not None:
                self._end_partial(fd, name)

    def _end_partial(self, fd: int, name: str) -> None:
        try:
            if _same(fd, self.partial_fd, name):
                rubbish = removal.trash(self.partial_fd, name, self.trash_fd)
                removal.remove(self.trash_fd, rubbish)
        finally:
            os.close(fd)

    def _lock_partial(self, name: str) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.partial_fd)
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=self.partial_fd)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Whoever had the lock may have finished or removed what it was the lock of.
                if _same(fd, self.partial_fd, name):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def trash(self, dir_fd: int, name: str) -> str:
        """Move an entry of a part into the trash; returns its name there."""
        return removal.trash(dir_fd, name, self.trash_fd)

    def remove_rubbish(self) -> None:
        """Remove what crashes have left, and empty the trash. OSError."""
        self.trash_leftovers()
        emptying.empty(self.trash_fd)

    def trash_leftovers(self) -> None:
        """Move what crashes have left half made into the trash. OSError."""
        for name, fd in self._leftovers():
            try:
                self.trash(self.partial_fd, name)
            finally:
                os.close(fd)

    def leftovers(self) -> list[str]:
        """The names of what crashes have left half made. OSError."""
        found = []
        for name, fd in self._leftovers():
            os.close(fd)
            found.append(name)
        return found

    def _leftovers(self) -> Iterator[tuple[str, int]]:
        """Each with its lock, for the caller to close."""
        for name in directories.names(self.partial_fd):
            try:
                fd = lock_directory(self.partial_fd, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except NotADirectoryError:
                continue  # not made by us
            if fd is not None:
                yield name, fd


def lock_directory(dir_fd: int, name: str, operation: int) -> int | None:
    """Open and flock(2) a directory; None when it is gone, or its lock is taken (LOCK_NB)."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, operation)
        if _same(fd, dir_fd, name):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _same(fd: int, dir_fd: int, name: str) -> bool:
    """Whether an entry of a directory is still what was opened."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def of_volumes() -> list[str]:
    """Where the stores of all mounted volumes are, if there are any; each path once.

    Not of one over which another filesystem is mounted: its server may not answer.
    """
    mounts = mountinfo.read()
    return list(
        dict.fromkeys(
            os.path.join(mount.mountpoint, STORE_NAME)
            for mount in mounts
            if mount.fstype in _CLONING_FILESYSTEMS
            and mountinfo.reached(mount.mountpoint, mounts) == mount
        )
    )


def volume_of(path: str) -> str:
    """The mountpoint of the filesystem that holds a path, or would hold it if it existed."""
    path = os.path.realpath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    mount_id = _mount_id(path)
    while (parent := os.path.dirname(path)) != path and _mount_id(parent) == mount_id:
        path = parent
    return path


def _mount_id(path: str) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return syscalls.statx_mount_id(fd)
    finally:
        os.close(fd)


class NoStore(UsageError):  # noqa: N818 -- not an error of ours, but what there is
    """There is no store at this path."""


def open_directory(path: str, *, create: bool, known: bool = False) -> tuple[int, bool]:
    """The descriptor of a trusted store directory, and whether it was made just now. CowfsError.

    known: it has been a store, and is one if there is nothing in it: its removal was cut short.
    """
    parent, name = os.path.split(os.path.normpath(os.path.join(os.getcwd(), path)))
    created = False
    try:
        parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=parent_fd)
                    created = True
            fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        finally:
            os.close(parent_fd)
    except FileNotFoundError as error:
        raise (_unusable(path, error) if create else _no_store(path)) from None
    except OSError as error:
        raise _unusable(path, error) from None
    st = os.fstat(fd)
    problem = None
    if st.st_uid != OWNER:
        problem = (
            f"is owned by uid {st.st_uid}, not by root: look at what it is, then remove it, or "
            "name another with -o store=DIR"
        )
    elif stat.S_IMODE(st.st_mode) & 0o077:
        mode = stat.S_IMODE(st.st_mode)
        problem = (
            f"is open to other users (mode {mode:04o}): name another with -o store=DIR, or, if "
            f"that is a mistake, close it with: {remedy.command('chmod 700', path)}"
        )
    is_other = not create and name != STORE_NAME and not is_store(fd)
    if known and is_other:
        is_other = directories.names(fd) != []
    if is_other and (problem is None or os.path.isdir(os.path.join(path, STORE_NAME))):
        os.close(fd)
        raise _no_store(path)
    if problem is not None:
        os.close(fd)
        raise MountFailure(f"the store {path} {problem}")
    return fd, created


def is_store(fd: int) -> bool:
    """Whether a directory is a store, also one in the making, and not any other one, in which
    nothing is to be made."""
    found = set(directories.names(fd))
    return found >= set(PARTS) or (bool(found) and found <= {*PARTS, LOWERS})


def _no_store(path: str) -> NoStore:
    inside = os.path.join(path, STORE_NAME)
    if os.path.isdir(inside):
        return NoStore(f"{path} is no store, but {inside} is one: name that")
    problem = "is none" if os.path.lexists(path) else "does not exist"
    return NoStore(
        f"the store {path} {problem}: name a directory {STORE_NAME}, or leave --store out"
    )


def probe_clone(fd: int, path: str, wanted: str) -> None:
    """Clone a small unnamed file in the store. CowfsError unless its volume can do that.

    `wanted` is what a copy is to be made of; the message says how to bring it to another volume.
    """
    try:
        source = syscalls.open_tmpfile(fd, 0o600)
        try:
            target = syscalls.open_tmpfile(fd, 0o600)
            try:
                os.write(source, bytes(4096))
                syscalls.ficlone(target, source)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise _unusable(path, error) from None
        mounts = mountinfo.read()
        mount = mountinfo.holding(os.path.realpath(path), mounts)
        others = (other.mountpoint for other in mounts if other.fstype == "xfs")
        volume = next((path for path in others if path != mount.mountpoint), "/xfs/volume")
        place = os.path.join(volume, os.path.basename(wanted) or "source")
        command = remedy.command("cowfs import", wanted, place)
        raise MountFailure(
            f"the volume {mount.mountpoint} ({mount.fstype}) cannot clone files (FICLONE): bring "
            "the source to XFS made with mkfs.xfs -m reflink=1, to btrfs or to bcachefs, for "
            f"instance with: {command}; and mount that"
        ) from None


def _unusable(path: str, error: OSError) -> CowfsError:
    code = error.errno
    if code in (errno.EACCES, errno.EPERM):
        return UsageError(f"no permission to use the store {path}: run cowfs as root")
    if code == errno.ENOENT:
        return MountFailure(
            f"the store {path} does not exist, nor does the directory for it: name another with "
            f"-o store=DIR, or make it with: {remedy.command('mkdir -p', os.path.dirname(path))}"
        )
    if code in (errno.ENOTDIR, errno.ELOOP):
        return MountFailure(
            f"the store {path} is not a directory (or is a symlink, which is not followed): remove "
            "it, or name another with -o store=DIR"
        )
    if code == errno.EROFS:
        return MountFailure(
            f"the store {path} cannot be made, its volume is read-only: make it writable with: "
            f"{remedy.command('mount -o remount,rw', volume_of(path))}"
        )
    if code in (errno.ENOSPC, errno.EDQUOT):
        return MountFailure(
            f"the store {path} cannot be made, its volume is full: free some space on it"
        )
    return MountFailure(f"the store {path} cannot be used: {error.strerror}")
