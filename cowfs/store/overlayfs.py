"""The kernel's overlayfs serving a copy: how it is mounted, and what only the kernel can tell.

Its layers are named relative to the copy's directory, which is the working directory of the process
that mounts: no path that a user could exchange leads to them, and nothing needs escaping.

    lowerdir   a tree of clones beside the template's (lowers.py)
    upperdir   the copy's upper/, the format that cowfs itself reads and writes
    workdir    the copy's work/

redirect_dir=on: directories of the template can be renamed. metacopy=off: no file without its
bytes, which cowfs could not read. index=off: an index would lie in work/, which is emptied at each
mount, and files would lose names with it. nfs_export=off: it needs an index. Nothing is said about
xino: the layers are on one filesystem, whose inode numbers are shown. Not userxattr: the marks are
root's, as cowfs writes them. Never volatile: fsync(2) counts.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowfs.store import runtime
from cowfs.system import directories, mountinfo, ondisk, syscalls
from cowfs.trees import removal
from cowfs.trees.walk import walk

if TYPE_CHECKING:
    from cowfs.store.directory import StoreDirectory

# What it makes in its workdir, and leaves there.
WORK, INDEX = "work", "index"

_OPTIONS = "redirect_dir=on,metacopy=off,index=off,nfs_export=off"
_FILESYSTEMS = "/proc/filesystems"
_MARK = b"trusted.cowfs."

# Between two looks at a filesystem that is about to end: seconds.
_PAUSE = 0.01


def mount(copy_fd: int, template_id: str, source: bytes, target: bytes, flags: int) -> None:
    """mount(2) the copy whose directory is open. OSError; the kernel's log says more about it.

    Stands in that directory meanwhile, and afterwards in the root directory.
    """
    data = f"{mountinfo.LAYERS.format(template_id)},{_OPTIONS}".encode()
    os.fchdir(copy_fd)
    try:
        syscalls.mount(source, target, mountinfo.OVERLAY.encode(), flags, data)
    finally:
        os.chdir("/")


def in_use(store: StoreDirectory, copy_fd: int) -> bool:
    """Whether an overlayfs has the copy's upper/, wherever it is mounted, or not any more.

    The kernel alone knows of one that was detached, or is in another namespace. It is asked by
    another overlayfs that is mounted nowhere, with that upper/ as its lower layer: with index=on
    the kernel refuses what another one writes to (EBUSY). OSError: nobody can tell; EPERM where the
    kernel goes on without its index, and would say so to nobody (without CAP_DAC_READ_SEARCH).
    """
    return _is_known() and is_taken(store, copy_fd)


def is_taken(store: StoreDirectory, copy_fd: int) -> bool:
    """The same, where overlayfs is about to be used."""
    try:
        # A full volume has no room for the directories that the question takes.
        with _scratch() as path:
            return _is_refused(path, copy_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # /run is on an overlayfs itself, in a container
            raise
    with store.partial(f"probe-{os.urandom(8).hex()}") as scratch:
        return _is_refused(ondisk.proc_path(scratch, b"."), copy_fd)


@contextmanager
def _scratch() -> Iterator[bytes]:
    """A directory beside the records of mounts, in memory and root's."""
    beside = os.open(runtime.directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = f"probe-{os.urandom(8).hex()}"
        os.mkdir(name, 0o700, dir_fd=beside)
        try:
            yield ondisk.proc_path(beside, os.fsencode(name))
        finally:
            removal.remove(beside, name)
    finally:
        os.close(beside)


def _is_refused(scratch: bytes, copy_fd: int) -> bool:
    upper, work = os.path.join(scratch, b"upper"), os.path.join(scratch, b"work")
    for path in (upper, work):
        os.mkdir(path, 0o700)
    parameters = {
        b"index": b"on",
        b"lowerdir": ondisk.proc_path(copy_fd, b"upper"),
        b"upperdir": upper,
        b"workdir": work,
    }
    try:
        os.close(syscalls.create_filesystem(mountinfo.OVERLAY.encode(), parameters))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    if not os.path.isdir(os.path.join(work, b"index")):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return False


def indexed(work_fd: int) -> int:
    """How many files of several names its index has that lie in work/; see above. OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        index = os.open(INDEX, flags, dir_fd=work_fd)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    try:
        found = [
            os.stat(name, dir_fd=index, follow_symlinks=False) for name in directories.names(index)
        ]
    finally:
        os.close(index)
    return sum(not stat.S_ISDIR(st.st_mode) and not ondisk.is_whiteout(st) for st in found)


def wait_for_end(store: StoreDirectory, copy_fd: int, patience: float) -> bool:
    """Wait until it is not in use; False: it still is, after *patience* seconds. OSError."""
    deadline = time.monotonic() + patience
    while in_use(store, copy_fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _is_known() -> bool:
    """Whether the kernel has overlayfs at this moment; asking for it would load the module."""
    with open(_FILESYSTEMS) as lines:
        return any(line.split()[-1] == mountinfo.OVERLAY for line in lines)


def drop_marks(upper_fd: int) -> None:
    """Take cowfs's own marks away from all of an upper layer, before overlayfs has it. OSError.

    Users would see them there, and copy them to other files with all other attributes; and a file
    that is written, and gets its old mtime back, would still be taken for one with the template's
    data. Without them each file shows its own inode number and birth time.
    """
    _drop_marks(upper_fd)
    for found in walk(upper_fd):
        _drop_marks(ondisk.proc_path(found.directory_fd, found.name))


def _drop_marks(where: int | bytes) -> None:
    for name in ondisk.list_xattrs(where):
        if name.startswith(_MARK):
            ondisk.remove_xattr(where, name)
