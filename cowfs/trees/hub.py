"""The cache of huggingface_hub as it lies on disk, and the file behind a link in it.

    CACHE/models--x--y/snapshots/REV/a/b    a link to ../../../blobs/ETAG
    CACHE/models--x--y/blobs/ETAG           the file, or a link to ../../blobs/HH/HASH
    CACHE/blobs/HH/HASH                     a file that several repositories share

Only links of exactly this form are known here. What they lead to is opened below the two `blobs`,
and no link is followed on the way: whoever may write in the cache can make a link lead to another
file of the cache, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from cowfs.system import syscalls

_KINDS = ("models--", "datasets--", "spaces--", "kernels--")
_SHARED = re.compile(r"\.\./\.\./blobs/([0-9a-f]{2}/[0-9a-f]{64})")

_LOOK = os.O_PATH | os.O_NOFOLLOW
# Nothing, a link on the way, another mount, not for this caller, or no name that anything can have.
_NOT_THERE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EACCES),
    errno.ENAMETOOLONG,
)


def below_repository(path: str) -> tuple[str, int] | None:
    """The directory of the model that a canonical path is at or below, and how deep it lies there.

    None: the path is in no cache, or in no place that has links out of it.
    """
    parts = path.split("/")
    for index in range(1, len(parts)):
        if parts[index].startswith(_KINDS):
            below = parts[index + 1 :]
            if not below or below[0] in ("snapshots", "blobs"):
                return "/".join(parts[: index + 1]), len(below)
    return None


class Repository:
    """A model's directory, with a source at or below it. Owns descriptors of the two `blobs`."""

    def __init__(self, path: str, depth: int) -> None:
        """`path` and `depth` are from `below_repository`. OSError when it is not there."""
        self._depth = depth
        self._blobs = self._shared = -1
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A source that is the model's directory holds its blobs: links to them stay inside.
            if depth:
                self._blobs = _blobs_in(root, path)
            self._shared = _blobs_in(root, os.path.dirname(path))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(root)

    def close(self) -> None:
        """Close both."""
        for fd in (self._blobs, self._shared):
            if fd >= 0:
                os.close(fd)
        self._blobs = self._shared = -1

    def open(self, text: str, depth: int) -> int | None:
        """A descriptor (O_PATH) of the file that a link leads to; None: it is none of the cache's.

        `text` is what the link says, `depth` how many directories it is below the source. OSError.
        """
        depth += self._depth
        if depth == 1 and (shared := _SHARED.fullmatch(text)):
            return _regular(_look(self._shared, shared[1]))
        up = "../" * depth + "blobs/"
        if not depth or not text.startswith(up):
            return None
        name = text[len(up) :]
        if "/" in name or name in ("", ".", ".."):
            return None
        found = _look(self._blobs, name)
        if found is None or not stat.S_ISLNK(os.fstat(found).st_mode):
            return _regular(found)
        try:
            shared = _SHARED.fullmatch(os.readlink("", dir_fd=found))
        finally:
            os.close(found)
        return _regular(_look(self._shared, shared[1])) if shared else None


def _blobs_in(root: int, path: str) -> int:
    """The directory `blobs` in another one; -1 where there is none."""
    directory = _opened(root, path.strip("/"), os.O_DIRECTORY, syscalls.RESOLVE_BENEATH)
    if directory is None:
        return -1
    try:
        blobs = _opened(directory, "blobs", os.O_DIRECTORY)
        return -1 if blobs is None else blobs
    finally:
        os.close(directory)


def _look(dir_fd: int, path: str) -> int | None:
    """A descriptor of an entry below one of the `blobs`, a link included; None: none."""
    return _opened(dir_fd, path) if dir_fd >= 0 else None


def _opened(
    dir_fd: int, path: str, flags: int = 0, resolve: int = syscalls.RESOLVE_NO_XDEV
) -> int | None:
    try:
        return syscalls.open_below(dir_fd, os.fsencode(path), _LOOK | flags, resolve)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return None


def _regular(fd: int | None) -> int | None:
    if fd is None or stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None
