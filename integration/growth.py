"""Ways to make a file larger, and ways to map it: what `test_growing.py` combines.

Whoever touches a page behind the size that the kernel knows dies of SIGBUS; so every combination is
for a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from integration.conformance.calls import fallocate

PAGE = mmap.PAGESIZE
KEEP_SIZE, ZERO_RANGE = 1, 16
READ, WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
SHARED, PRIVATE, POPULATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE, 0x8000

_MREMAP_MAYMOVE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p

#: Makes the file *path*, open as *fd* for reading and writing, *new* bytes long, from *old*.
Grow = Callable[[Path, int, int, int], None]


# --- growing --------------------------------------------------------------------------------------


def ftruncate(_path: Path, fd: int, _old: int, new: int) -> None:
    os.ftruncate(fd, new)


def truncate(path: Path, _fd: int, _old: int, new: int) -> None:
    os.truncate(path, new)


def write(_path: Path, fd: int, old: int, new: int) -> None:
    os.lseek(fd, old, os.SEEK_SET)
    assert os.write(fd, b"g" * (new - old)) == new - old


def writev(_path: Path, fd: int, old: int, new: int) -> None:
    os.lseek(fd, old, os.SEEK_SET)
    half = (new - old) // 2
    assert os.writev(fd, [b"g" * half, b"G" * (new - old - half)]) == new - old


def pwrite_of_the_last_byte(_path: Path, fd: int, _old: int, new: int) -> None:
    os.pwrite(fd, b"g", new - 1)


def two_writes(_path: Path, fd: int, _old: int, new: int) -> None:
    """Between them the kernel has no attributes of the file."""
    os.pwrite(fd, b"G", 0)
    os.pwrite(fd, b"g", new - 1)


def write_and_ftruncate(_path: Path, fd: int, _old: int, new: int) -> None:
    os.pwrite(fd, b"G", 0)
    os.ftruncate(fd, new)


def read_and_ftruncate(_path: Path, fd: int, _old: int, new: int) -> None:
    os.pread(fd, 1, 0)
    os.ftruncate(fd, new)


def append(path: Path, _fd: int, old: int, new: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for at in range(old, new, PAGE):
        os.write(fd, b"g" * min(PAGE, new - at))
    os.close(fd)


def o_direct(path: Path, fd: int, old: int, new: int) -> None:
    start, end = old // PAGE * PAGE, -(-new // PAGE) * PAGE
    direct = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, end - start) as aligned:
        aligned[:] = os.pread(fd, old - start, start).ljust(end - start, b"g")
        assert os.pwritev(direct, [aligned], start) == end - start
    os.close(direct)
    os.ftruncate(fd, new)


def fallocate_what_is_new(_path: Path, fd: int, old: int, new: int) -> None:
    fallocate(fd, 0, old, new - old)


def fallocate_from_the_start(_path: Path, fd: int, _old: int, new: int) -> None:
    fallocate(fd, 0, 0, new)


def write_and_fallocate(_path: Path, fd: int, _old: int, new: int) -> None:
    os.pwrite(fd, b"G", 0)
    fallocate(fd, 0, 0, new)


def zero_range(_path: Path, fd: int, old: int, new: int) -> None:
    fallocate(fd, ZERO_RANGE, old, new - old)


def keep_size_and_ftruncate(_path: Path, fd: int, old: int, new: int) -> None:
    fallocate(fd, KEEP_SIZE, old, new - old)
    os.ftruncate(fd, new)


def copy_file_range(path: Path, fd: int, old: int, new: int) -> None:
    with _beside(path, new - old) as source:
        while old < new:
            old += os.copy_file_range(source, fd, new - old, None, old)


def sendfile(path: Path, fd: int, old: int, new: int) -> None:
    os.lseek(fd, old, os.SEEK_SET)
    with _beside(path, new - old) as source:
        while old < new:
            old += os.sendfile(fd, source, None, new - old)


def splice(_path: Path, fd: int, old: int, new: int) -> None:
    reading, writing = os.pipe()
    while old < new:
        piece = os.write(writing, b"g" * min(PAGE, new - old))
        assert os.splice(reading, fd, piece, offset_dst=old) == piece
        old += piece
    os.close(reading)
    os.close(writing)


def store(_path: Path, fd: int, old: int, new: int) -> None:
    os.ftruncate(fd, new)
    with mmap.mmap(fd, new) as mapped:
        mapped[old:] = b"g" * (new - old)


def o_trunc_and_write(path: Path, _fd: int, _old: int, new: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"g" * new)
    os.close(fd)


def o_trunc_and_ftruncate(path: Path, _fd: int, _old: int, new: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.ftruncate(fd, new)
    os.close(fd)


WAYS: tuple[Grow, ...] = (
    ftruncate, truncate, write, writev, pwrite_of_the_last_byte, two_writes, write_and_ftruncate,
    read_and_ftruncate, append, o_direct, fallocate_what_is_new, fallocate_from_the_start,
    write_and_fallocate, zero_range, keep_size_and_ftruncate, copy_file_range, sendfile, splice,
    store, o_trunc_and_write, o_trunc_and_ftruncate,
)  # fmt: skip


@contextlib.contextmanager
def _beside(path: Path, size: int) -> Iterator[int]:
    """A file of that many bytes in the same directory."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(b"g" * size)
    fd = os.open(beside, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
        beside.unlink()


# --- mapping --------------------------------------------------------------------------------------


class Mapping:
    """mmap(2) as it is: Python's own asks for the size, and refuses to map more than that."""

    def __init__(self, fd: int, length: int, access: int = WRITE, flags: int = SHARED) -> None:
        self._length = -(-length // PAGE) * PAGE
        size = ctypes.c_size_t(self._length)
        self.address = _address(_libc.mmap(None, size, access, flags, fd, ctypes.c_long(0)))
        self.stores_show = access == WRITE and flags & SHARED

    def enlarge(self, length: int) -> None:
        length = -(-length // PAGE) * PAGE
        sizes = ctypes.c_size_t(self._length), ctypes.c_size_t(length)
        address = ctypes.c_void_p(self.address)
        self.address = _address(_libc.mremap(address, *sizes, _MREMAP_MAYMOVE))
        self._length = length

    def load(self, size: int) -> bytes:
        return ctypes.string_at(self.address, size)

    def store(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.address + at, data, len(data))

    def close(self) -> None:
        _libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self._length))


def _address(result: int | None) -> int:
    if result in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    assert result is not None
    return result


#: Maps the file once *grow* is called: (path, a descriptor, old size, new size, grow).
View = Callable[[Path, int, int, int, Callable[[], None]], Mapping]


def after(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    return Mapping(fd, new)


def after_fstat(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    assert os.fstat(fd).st_size == new
    return Mapping(fd, new)


def after_stat(path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    assert path.stat().st_size == new
    return Mapping(fd, new)


def private(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    return Mapping(fd, new, flags=PRIVATE)


def populated(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    return Mapping(fd, new, flags=SHARED | POPULATE)


def by_a_reader(path: Path, _fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    grow()
    return _opened(path, os.O_RDONLY, new)


def by_another_writer(
    path: Path, _fd: int, _old: int, new: int, grow: Callable[[], None]
) -> Mapping:
    grow()
    return _opened(path, os.O_RDWR, new)


def before(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    mapping = Mapping(fd, new)
    grow()
    return mapping


def before_and_touched(
    _path: Path, fd: int, old: int, new: int, grow: Callable[[], None]
) -> Mapping:
    mapping = Mapping(fd, new)
    mapping.load(old)
    grow()
    return mapping


def before_to_read(_path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]) -> Mapping:
    mapping = Mapping(fd, new, access=READ)
    grow()
    return mapping


def before_and_private(
    _path: Path, fd: int, _old: int, new: int, grow: Callable[[], None]
) -> Mapping:
    mapping = Mapping(fd, new, flags=PRIVATE)
    grow()
    return mapping


def enlarged(_path: Path, fd: int, old: int, new: int, grow: Callable[[], None]) -> Mapping:
    mapping = Mapping(fd, old)
    mapping.load(old)
    grow()
    mapping.enlarge(new)
    return mapping


VIEWS: tuple[View, ...] = (
    after, after_fstat, after_stat, private, populated, by_a_reader, by_another_writer, before,
    before_and_touched, before_to_read, before_and_private, enlarged,
)  # fmt: skip


def _opened(path: Path, access: int, length: int) -> Mapping:
    fd = os.open(path, access)
    try:
        return Mapping(fd, length, READ if access == os.O_RDONLY else WRITE)
    finally:
        os.close(fd)
