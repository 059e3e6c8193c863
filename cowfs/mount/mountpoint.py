"""The place of one mount in the tree, which stays the same whatever users do to the path.

A path that leads through directories of users may lead elsewhere a moment later.  So the directory
that holds the mountpoint is opened once, without following a symlink, and everything is done below
it: the kernel refuses to rename or remove a name that something is mounted on.  And what is
unmounted there is our own mount, known by its id, never one that somebody has put on top of it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from cowfs.system import ondisk, syscalls
from cowfs.system.mountinfo import Mount

_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def spellings(path: str) -> Iterator[str]:
    """What a mount at this path may be called in the mount table, one after the other.

    First with the last component as it is written: resolving it asks the mount itself, whose daemon
    may hang.
    """
    if not path:
        return  # a variable that was not set is not the present directory
    try:
        absolute = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    except FileNotFoundError:  # it is gone
        return
    parent, name = os.path.split(os.path.normpath(absolute))
    yield os.path.join(os.path.realpath(parent), name)
    yield os.path.realpath(path)


class Mountpoint:
    """Where a mount is made, is, and is taken away.  Belongs to the thread that made it."""

    def __init__(self, path: str) -> None:
        """*path* is absolute and canonical.  OSError: ELOOP when a symlink is in it by now."""
        parent, name = os.path.split(path)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._parent_fd = syscalls.open_below(
                root, os.fsencode(parent).lstrip(b"/"), os.O_PATH | os.O_DIRECTORY
            )
        finally:
            os.close(root)
        self._name = os.fsencode(name)
        self._mount_id = -1

    @classmethod
    def of(cls, mount: Mount) -> Mountpoint:
        """That of a mount in the table.  OSError: EINVAL when something else is there by now."""
        place = cls(mount.mountpoint)
        fd = place._open()
        try:
            if syscalls.statx_mount_id(fd) != mount.mount_id:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            place._mount_id = syscalls.statx_unique_mount_id(fd)
        finally:
            os.close(fd)
        return place

    @property
    def path(self) -> bytes:
        """A path for mount(2) and umount(2), valid in this process."""
        return ondisk.proc_path(self._parent_fd, self._name)

    @property
    def mount_id(self) -> int:
        """Of our mount, and of no later one (`statx_unique_mount_id`); -1 before there is one."""
        return self._mount_id

    def mounted(self) -> str:
        """Something was mounted there just now, and is ours; its device, "major:minor".

        OSError: ESTALE when it is not there any more.
        """
        fd = self._open()
        try:
            mount_id = syscalls.statx_unique_mount_id(fd)
            if mount_id == syscalls.statx_unique_mount_id(self._parent_fd):
                raise OSError(errno.ESTALE, "the mount vanished as it was made")
            self._mount_id = mount_id
            return syscalls.statx_identity(ondisk.proc_path(fd))[0]
        finally:
            os.close(fd)

    def found(self, mount_id: int) -> None:
        """This mount is ours, made by another process."""
        self._mount_id = mount_id

    def unmount(self, flags: int) -> None:
        """umount2(2) of our own mount.  OSError: EINVAL when it is not there any more, EBUSY."""
        if not self._is_on_top():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        syscalls.umount2(self.path, flags | syscalls.UMOUNT_NOFOLLOW)

    def _is_on_top(self) -> bool:
        try:
            return self._top() == self._mount_id
        except FileNotFoundError:
            return False

    def _top(self) -> int:
        fd = self._open()
        try:
            return syscalls.statx_unique_mount_id(fd)
        finally:
            os.close(fd)

    def _open(self) -> int:
        # Opening with O_PATH, and statx for ids and device alone, ask nothing of a FUSE server.
        return os.open(self._name, _ENTRY, dir_fd=self._parent_fd)
