"""The hidden directory beside a destination in which a tree is made until it is whole.

For `/data/model` it is `/data/.model.cowfs-clone` or `/data/.model.cowfs-import`: on the same
volume, so that one rename(2) publishes what was made, and only its owner's. It is locked (flock)
as long as somebody works in it; without a lock it is what a crash or an interruption has left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator

from cowfs.store.names import NAME_MAX
from cowfs.system import directories, mountinfo, ondisk, remedy, syscalls
from cowfs.system.errors import CowfsError, UsageError
from cowfs.trees import removal

TREE = "tree"  # what is published

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_RENAME_FLAGS = (errno.EINVAL, errno.ENOSYS)


class Staging:
    """The hidden directory, made or found, and locked. Owns `fd` and the parent's descriptor."""

    def __init__(self, destination: str, doing: str, source: str) -> None:
        """`doing` is "clone" or "import"; `source` is the canonical path of what is copied.

        CowfsError: the destination is there already, or cannot be made where it is to be.
        """
        self.destination = _canonical(destination)
        parent, self._name = os.path.split(self.destination)
        if not self._name:
            raise UsageError(f"{destination} cannot be made: name a path that is not there yet")
        if mountinfo.is_within(self.destination, source) and self.destination != source:
            raise UsageError(
                f"destination {destination} is inside the source {source}: name a path outside it"
            )
        self._parent = parent
        self._parent_fd = _open_parent(parent)
        self.fd = -1
        self._hidden = _hidden(self._name, doing)
        try:
            self._check_absent()
            self.found = not self._make()
            self.fd = self._open(doing)
            if not self.found:
                self._make_plain()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return os.path.join(self._parent, self._hidden)

    @property
    def device(self) -> int:
        """st_dev of the volume."""
        return os.fstat(self.fd).st_dev

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; what is in it stays."""
        for fd in (self.fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent_fd = -1

    def empty(self) -> None:
        """Remove everything in it, for good. OSError."""
        while names := directories.names(self.fd):
            for name in names:
                removal.remove(self.fd, name)

    def discard(self) -> None:
        """Remove it and all that is in it. OSError."""
        self.empty()
        os.rmdir(self._hidden, dir_fd=self._parent_fd)

    def publish(self, name: str = TREE) -> None:
        """Give what was made its name, in one step. CowfsError when that is taken; OSError."""
        old, new = os.fsencode(name), os.fsencode(self._name)
        place = (self.fd, old, self._parent_fd, new, syscalls.RENAME_NOREPLACE)
        try:
            try:
                syscalls.renameat2(*place)
            except PermissionError:
                if name != TREE:
                    raise
                # rename(2) of a directory is for who may write in it: an ordinary user may not
                # when the source's mode says so.
                with _writable(name, self.fd):
                    syscalls.renameat2(*place)
        except FileExistsError:
            raise self._exists() from None
        except OSError as error:
            if error.errno not in _NO_RENAME_FLAGS:
                raise
            raise CowfsError(
                f"the filesystem that holds {self._parent} cannot rename without replacing "
                "(RENAME_NOREPLACE): name a destination on XFS"
            ) from None

    def sync_parent(self) -> None:
        """Bring the name of what was published to the disk. OSError."""
        os.fsync(self._parent_fd)

    def _check_absent(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.stat(self._name, dir_fd=self._parent_fd, follow_symlinks=False)
            raise self._exists()

    def _exists(self) -> CowfsError:
        return UsageError(
            f"destination {self.destination} exists, and nothing is written into or over it: name "
            "a path that is not there yet, or remove it first"
        )

    def _make(self) -> bool:
        try:
            os.mkdir(self._hidden, 0o700, dir_fd=self._parent_fd)
        except FileExistsError:
            return False
        except OSError as error:
            raise _unusable(self._parent, error) from None
        return True

    def _make_plain(self) -> None:
        # What is made in it would inherit a default ACL and the group of a setgid directory.
        for acl in set(ondisk.ACLS).intersection(ondisk.list_xattrs(self.fd)):
            ondisk.remove_xattr(self.fd, acl)
        os.fchown(self.fd, -1, os.getegid())
        os.fchmod(self.fd, 0o700)

    def _open(self, doing: str) -> int:
        try:
            fd = os.open(self._hidden, _DIRECTORY, dir_fd=self._parent_fd)
        except OSError as error:
            raise CowfsError(
                f"{self.path} cannot be used ({error.strerror}): look at what it is, and remove it"
            ) from None
        try:
            st = os.fstat(fd)
            if st.st_uid != os.geteuid() or stat.S_IMODE(st.st_mode) & 0o077:
                raise CowfsError(
                    f"{self.path} was not made by this user's {doing}: look at what it is, "
                    "and remove it"
                )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CowfsError(
                    f"another {doing} to {self.destination} is at work: wait for it"
                ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd


@contextlib.contextmanager
def _writable(name: str, dir_fd: int) -> Iterator[None]:
    """Let its owner write in a directory for as long as the context lasts. OSError."""
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.fchmod(fd, mode | stat.S_IWUSR)
        try:
            yield
        finally:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _canonical(path: str) -> str:
    """The path without links, but for its last name, which need not be there."""
    parent, name = os.path.split(os.path.normpath(os.path.join(os.getcwd(), path)))
    return os.path.join(os.path.realpath(parent), name)


def _hidden(name: str, doing: str) -> str:
    hidden = f".{name}.cowfs-{doing}"
    if len(os.fsencode(hidden)) <= NAME_MAX:
        return hidden
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.cowfs-{doing}"


def _open_parent(parent: str) -> int:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.open_below(root, os.fsencode(parent).strip(b"/"), _DIRECTORY)
    except OSError as error:
        raise _unusable(parent, error) from None
    finally:
        os.close(root)


def _unusable(parent: str, error: OSError) -> CowfsError:
    if error.errno == errno.ENOENT:
        make = remedy.command("mkdir -p", parent)
        return UsageError(f"there is no directory {parent}: make it with: {make}")
    if error.errno == errno.ENOTDIR:
        return UsageError(f"{parent} is not a directory: name a destination in one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"no permission to write in {parent}: run cowfs as root")
    if error.errno == errno.EROFS:
        volume = mountinfo.holding(os.path.realpath(parent)).mountpoint
        change = remedy.command("mount -o remount,rw", volume)
        return CowfsError(f"{volume} is read-only: make it writable with: {change}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CowfsError(f"the volume that holds {parent} is full: free some space on it")
    return CowfsError(f"nothing can be made in {parent}: {error.strerror}")
