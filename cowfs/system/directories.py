"""Listing a directory that is open: the one place where it is done.

The descriptor may be older than what is to be listed. btrfs fixes a directory's end when it is
opened (Linux 6.5): names that came later are never seen through that descriptor. Others may share
it, too, and with it the one place at which it is read. So the directory is opened anew for each
listing.

What cowfs lists is often shown in a mount, with its times: a listing moves no access time where
that is allowed (O_NOATIME, open(2): to the owner and with CAP_FOWNER).
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
    again = _open_again(fd)
    try:
        return os.listdir(again)
    finally:
        os.close(again)


@contextmanager
def entries(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of the same, which may be asked for their stat as long as the context lasts.

    OSError.
    """
    again = _open_again(fd)
    try:
        with os.scandir(again) as found:
            yield found
    finally:
        os.close(again)


def _open_again(fd: int) -> int:
    try:
        return os.open(b".", _AGAIN | os.O_NOATIME, dir_fd=fd)
    except PermissionError as error:
        if error.errno == errno.EPERM:  # somebody else's
            return os.open(b".", _AGAIN, dir_fd=fd)
        # An ordinary user may be allowed to list it and nothing more, not even to name `.` in it.
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
            raise
        return os.dup(fd)
