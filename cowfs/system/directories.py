"""Listing a directory that is open: the one place where it is done.

The descriptor may be older than what is to be listed. btrfs fixes a directory's end when it is
opened (Linux 6.5): names that came later are never seen through that descriptor. Others may share
it, too, and with it the one place at which it is read. So the directory is opened anew for each
listing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def names(fd: int) -> list[str]:
    """The names in an open directory (O_PATH will do), in no order. OSError."""
    again = _open_again(fd, 0)
    try:
        return os.listdir(again)
    finally:
        os.close(again)


@contextmanager
def entries(fd: int, flags: int = 0) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of the same, which may be asked for their stat as long as the context lasts.

    `flags` of open(2), such as O_NOATIME. OSError.
    """
    again = _open_again(fd, flags)
    try:
        with os.scandir(again) as found:
            yield found
    finally:
        os.close(again)


def _open_again(fd: int, flags: int) -> int:
    try:
        return os.open(b".", _AGAIN | flags, dir_fd=fd)
    except OSError as error:
        # An ordinary user may be allowed to list it and nothing more, not even to name `.` in it.
        if error.errno != errno.EACCES or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
            raise
        return os.dup(fd)
