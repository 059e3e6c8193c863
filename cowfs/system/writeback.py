"""Bringing to a file what a mount keeps of it in pages of its own.

These are what mappings have changed, where FUSE does not pass the file through: write(2) does not
leave anything there. A file that is passed through has no pages in FUSE.
"""

from __future__ import annotations

import errno
import os
import stat

from cowfs.system import ondisk, syscalls

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# There is nothing under this name, or something else by now; or nobody serves the mount any more.
_NOTHING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EXDEV, errno.ENXIO),
        *(errno.ENOTCONN, errno.ECONNABORTED),
    }
)


def write_out(place: int) -> None:
    """Of the regular file that this descriptor (O_PATH) is of. OSError."""
    fd = os.open(ondisk.proc_path(place), _READ)
    try:
        size = os.fstat(fd).st_size
        if size and syscalls.pages_in_memory(fd, 0, size):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_out_below(root: int, path: bytes) -> None:
    """Of a regular file below the root of a mount, if there is one under this path. OSError."""
    try:
        place = syscalls.open_below(root, path, os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno in _NOTHING:
            return
        raise
    try:
        if stat.S_ISREG(os.fstat(place).st_mode):
            write_out(place)
    except OSError as error:
        if error.errno not in _NOTHING:
            raise
    finally:
        os.close(place)
