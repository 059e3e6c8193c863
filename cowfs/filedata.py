"""The bytes of a file, brought into another one by the best way that the kernel has for the two.

The ways, best first: a clone (FICLONE), copy_file_range(2), reads and writes through io_uring, and
pread(2) and pwrite(2). A way that the kernel refuses for these two filesystems is not tried again.
Holes stay holes (lseek(2), SEEK_DATA). Nothing here knows names.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs import syscalls

if TYPE_CHECKING:
    from cowfs.copying import Ring

#: Set to "off", nothing is copied through io_uring. For tests, and kernels with a fault in it.
IO_URING_VARIABLE = "COWFS_IO_URING"

BLOCK = 1 << 20  # bytes of one read or write
DEPTH = 16  # reads and writes at once, of one process

# The filesystems cannot do it, together or at all: for every other pair of their files as well.
_NEVER = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV)
# Not with these two files.
_NOT_NOW = (*_NEVER, errno.EINVAL, errno.ETXTBSY, errno.EPERM)
_SECTOR = 512  # bytes, the unit of st_blocks


class Part(NamedTuple):
    """A part of a file to copy: descriptors, and the first and last byte (exclusive)."""

    target: int
    source: int
    start: int
    end: int
    sparse: bool  # there may be holes


class Failed(OSError):  # noqa: N818 -- an OSError that says where
    """An error, with the index of the part at which it came."""

    def __init__(self, error: OSError, part: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.part = part


class Mover:
    """Moves data; for one process. It remembers which ways there are."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth = depth
        self._clones = self._ranges = True
        self._uring = os.environ.get(IO_URING_VARIABLE) != "off"
        self._ring: Ring | None = None
        self._buffer: bytearray | None = None

    def copy(self, target: int, source: int, st: os.stat_result) -> None:
        """Give an empty file all data of another one, whose state is `st`. OSError.

        ENODATA when the source turns out to be shorter.
        """
        if not self.clone(target, source):
            self.move([whole(target, source, st)])
            if is_sparse(st):
                os.ftruncate(target, st.st_size)

    def clone(self, target: int, source: int) -> bool:
        """Whether the whole file could be cloned. OSError: ENOSPC and the like."""
        if self._clones:
            try:
                syscalls.ficlone(target, source)
                return True
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise
                self._clones = error.errno not in _NEVER
        return False

    def move(self, parts: list[Part]) -> None:
        """Copy the data of many parts at once. Failed: ENODATA as in `copy`, and all others."""
        rest: list[tuple[int, int, int, int]] = []
        owners: list[int] = []
        for index, part in enumerate(parts):
            try:
                for start, end in data_of(part):
                    start += self._by_range(part, start, end)
                    if start < end:
                        rest.append((part.source, part.target, start, end - start))
                        owners.append(index)
            except OSError as error:
                raise Failed(error, index) from None
        if rest:
            self._read_and_write(rest, owners)

    def _by_range(self, part: Part, start: int, end: int) -> int:
        """How many bytes copy_file_range(2) has copied: none where it cannot."""
        at = start
        while self._ranges and at < end:
            try:
                done = os.copy_file_range(part.source, part.target, end - at, at, at)
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise
                self._ranges = error.errno not in _NEVER
                break
            if not done:  # the end, or a filesystem that does not know better: read(2) tells
                break
            at += done
        return at - start

    def _read_and_write(self, segments: list[tuple[int, int, int, int]], owners: list[int]) -> None:
        ring = self._opened()
        if ring is not None:
            try:
                ring.copy(segments)
            except OSError as error:
                raise Failed(error, owners[max(ring.failed, 0)]) from None
            return
        for segment, owner in zip(segments, owners, strict=True):
            try:
                self._plainly(*segment)
            except OSError as error:
                raise Failed(error, owner) from None

    def _opened(self) -> Ring | None:
        if self._uring and self._ring is None:
            from cowfs.copying import Ring

            try:
                self._ring = Ring(self._depth, BLOCK)
            except (OSError, MemoryError):  # switched off, or too little memory: pread(2) does
                self._uring = False
        return self._ring

    def _plainly(self, source: int, target: int, start: int, length: int) -> None:
        if self._buffer is None:
            self._buffer = bytearray(BLOCK)
        end = start + length
        with memoryview(self._buffer) as view:
            while start < end:
                got = os.preadv(source, [view[: min(BLOCK, end - start)]], start)
                if not got:
                    raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
                put = 0
                while put < got:
                    put += os.pwrite(target, view[put:got], start + put)
                start += got


def is_sparse(st: os.stat_result) -> bool:
    """Whether a file may have holes."""
    return st.st_blocks * _SECTOR < st.st_size


def whole(target: int, source: int, st: os.stat_result) -> Part:
    """All of a file."""
    return Part(target, source, 0, st.st_size, is_sparse(st))


def data_of(part: Part) -> Iterator[tuple[int, int]]:
    """First and last byte (exclusive) of each run of data in a part. OSError."""
    at = part.start
    if not part.sparse:
        yield at, part.end
        return
    while at < part.end:
        try:
            start = os.lseek(part.source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        if start >= part.end:
            return
        end = min(os.lseek(part.source, start, os.SEEK_HOLE), part.end)
        yield start, end
        at = end
