"""The bytes of a file, brought into another one by the best way that the kernel has for the two.

The ways, best first: a clone (FICLONE), copy_file_range(2), reads and writes through io_uring, and
pread(2) and pwrite(2). A way that the kernel refuses for these two filesystems is not tried again.
Holes stay holes (lseek(2), SEEK_DATA). Nothing here knows names.

Large files are written past the page cache (O_DIRECT): it saves a copy in memory and the pages
themselves, lets several processes write into one file of XFS at once, and leaves no dirty pages
for the final sync. A machine that serves models keeps those in memory that it serves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs.system import syscalls

if TYPE_CHECKING:
    from cowfs.copying import Ring

#: Set to "off", nothing is copied through io_uring. For tests, and kernels with a fault in it.
IO_URING_VARIABLE = "COWFS_IO_URING"

BLOCK = 1 << 20  # bytes of one read or write
DEPTH = 16  # reads and writes at once, of one process
LARGE = 1 << 20  # bytes from which on a part is written past the page cache

# The filesystems cannot do it, together or at all: for every other pair of their files as well.
_NEVER = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV)
# Not with these two files.
_NOT_NOW = (*_NEVER, errno.EINVAL, errno.ETXTBSY, errno.EPERM)
_SECTOR = 512  # bytes, the unit of st_blocks
_ALIGNED = 4096  # bytes, for O_DIRECT: enough for all common disks


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


class _Segments:
    """Runs of bytes to read and write, as a Ring takes them."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int, int]] = []  # source, target, offset, length
        self.owners: list[int] = []  # the index of the part of each

    def add(self, part: Part, owner: int, start: int, end: int) -> None:
        if start < end:
            self.runs.append((part.source, part.target, start, end - start))
            self.owners.append(owner)


class Mover:
    """Moves data; for one process. It remembers which ways there are."""

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth = depth
        self._clones = self._ranges = True
        self._uring = os.environ.get(IO_URING_VARIABLE) != "off"
        self._ring: Ring | None = None
        self._buffer: mmap.mmap | None = None

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
        direct, buffered = _Segments(), _Segments()
        for index, part in enumerate(parts):
            is_large = part.end - part.start >= LARGE
            try:
                for start, end in data_of(part):
                    start += self._by_range(part, start, end)
                    first, last = -(-start // _ALIGNED) * _ALIGNED, end // _ALIGNED * _ALIGNED
                    if not is_large or first >= last:
                        buffered.add(part, index, start, end)
                        continue
                    buffered.add(part, index, start, first)
                    direct.add(part, index, first, last)
                    buffered.add(part, index, last, end)
            except OSError as error:
                raise Failed(error, index) from None
        if direct.runs and not self._past_the_cache(direct, parts):
            self._read_and_write(direct)
        if buffered.runs:
            self._read_and_write(buffered)

    def _past_the_cache(self, segments: _Segments, parts: list[Part]) -> bool:
        """Copy aligned runs with O_DIRECT; False where the filesystem cannot: nothing is certain.

        A source of which nothing is in memory is read in the same way.
        """
        with contextlib.ExitStack() as stack:
            for part in (parts[index] for index in sorted(set(segments.owners))):
                if not _go_direct(part.target, stack):
                    return False
                if not _is_cached(part):
                    _go_direct(part.source, stack)
            try:
                self._read_and_write(segments)
            except Failed as error:
                # A disk with larger sectors; also a source that was cut short, which read(2) tells.
                if error.errno == errno.EINVAL:
                    return False
                raise
        return True

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

    def _read_and_write(self, segments: _Segments) -> None:
        ring = self._opened()
        if ring is not None:
            try:
                ring.copy(segments.runs)
            except OSError as error:
                raise Failed(error, segments.owners[max(ring.failed, 0)]) from None
            return
        for run, owner in zip(segments.runs, segments.owners, strict=True):
            try:
                self._plainly(*run)
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
            self._buffer = mmap.mmap(-1, BLOCK)  # aligned
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


def _go_direct(fd: int, stack: contextlib.ExitStack) -> bool:
    """Switch O_DIRECT on until the stack is left; whether the filesystem can."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:
        return False
    stack.callback(fcntl.fcntl, fd, fcntl.F_SETFL, flags)
    return True


def _is_cached(part: Part) -> bool:
    """Whether some of the source is in memory; True as well where the kernel does not tell."""
    try:
        return syscalls.pages_in_memory(part.source, part.start, part.end - part.start) > 0
    except OSError:
        return True
