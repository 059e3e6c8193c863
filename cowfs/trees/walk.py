"""Walking a tree of any depth, of which users made the names.

Nothing is followed, only one directory is open at a time, and no path is longer than the system
takes: a path is walked down again from the top in pieces (`syscalls.open_below`).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from cowfs.system import directories, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Found(NamedTuple):
    """One entry, while the walk stands at it."""

    directory: bytes  # the path of its directory below the root, b"" for the root itself
    directory_fd: int  # open for reading until the next step
    entry: os.DirEntry[str]

    @property
    def name(self) -> bytes:
        return os.fsencode(self.entry.name)

    @property
    def path(self) -> bytes:
        """Its own path below the root."""
        return self.directory + b"/" + self.name if self.directory else self.name


def walk(
    root_fd: int,
    *,
    one_mount: bool = False,
    failed: Callable[[bytes, OSError], None] | None = None,
) -> Iterator[Found]:
    """Everything below a directory, in no order but that a directory comes before what is in it.

    What goes away meanwhile is left out; with *one_mount* what is in other mounts, too.  OSError of
    open(2) and readdir(2); with *failed* that is called with the directory's path, and the rest
    goes on.
    """
    resolve = syscalls.RESOLVE_NO_XDEV if one_mount else 0
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            fd = syscalls.open_below(root_fd, path, os.O_RDONLY | os.O_DIRECTORY, resolve)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) and path:
                continue
            if error.errno == errno.EXDEV and one_mount:
                continue
            if failed is None:
                raise
            failed(path, error)
            continue
        try:
            with directories.entries(fd) as entries:
                for entry in entries:
                    found = Found(path, fd, entry)
                    yield found
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(found.path)
        finally:
            os.close(fd)
