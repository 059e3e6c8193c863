"""One file, every way to change and to read its bytes, and the same bytes in memory.

What differs is told with the operations before it. effort.py takes more and other steps.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections import deque
from pathlib import Path

import pytest

from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.pair import Origin, drop_caches
from integration.randomops import LARGE

STEPS = 1000 * EFFORT

MOST = 8 * LARGE  # bytes that the file may grow to
PAGE = mmap.PAGESIZE
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

_libc = ctypes.CDLL(None, use_errno=True)


class _File:
    """A file and what must be in it.

    *keeps_old*: a descriptor that was opened for reading before the first change of a large file
    shows the bytes of that moment (docs/semantics.md).
    """

    def __init__(self, path: Path, data: bytes, source: random.Random, *, keeps_old: bool) -> None:
        self._path = path
        self._data = bytearray(data)
        self._random = source
        self._keeps_old = keeps_old and len(data) >= LARGE
        self.told: deque[str] = deque(maxlen=80)
        self._acts = (
            self.write, self.write, self.write_at_position, self.append, self.truncate,
            self.ftruncate, self.map, self.store, self.store, self.load, self.fallocate,
            self.fallocate, self.copy_range, self.read, self.read, self.read_at_position,
            self.direct_write, self.direct_read, self.seek_data, self.sync, self.reopen_reader,
            self.stat, self.evict,
        )  # fmt: skip
        self._old: bytes | None = None
        self.open()

    def open(self) -> None:
        # The reader comes first: before any change when there was none.
        self._reader = os.open(self._path, os.O_RDONLY)
        if self._keeps_old:
            self._old = bytes(self._data)
        self._writer = self._appender = -1
        self._mapped: mmap.mmap | None = None
        self._position = 0

    def close(self) -> None:
        for fd in (self._reader, self._writer, self._appender):
            if fd >= 0:
                os.close(fd)
        if self._mapped is not None:
            self._mapped.close()
        self._reader = self._writer = self._appender = -1
        self._mapped = None

    def step(self) -> None:
        self._random.choice(self._acts)()

    def check(self) -> None:
        """All of the bytes, as a new descriptor shows them."""
        self._same("all", self._path.read_bytes(), bytes(self._data))

    # --- changes

    def write(self) -> None:
        at, data = self._place(), self._bytes()
        self._tell("pwrite", at, len(data))
        assert os.pwrite(self._writing(), data, at) == len(data)
        self._put(at, data)

    def write_at_position(self) -> None:
        fd, data = self._writing(), self._bytes()
        if self._position > MOST or self._random.random() < 0.3:
            self._position = os.lseek(fd, self._place(), os.SEEK_SET)
        self._tell("write", self._position, len(data))
        assert os.write(fd, data) == len(data)
        self._put(self._position, data)
        self._position += len(data)
        assert os.lseek(fd, 0, os.SEEK_CUR) == self._position

    def append(self) -> None:
        data = self._bytes()
        if len(self._data) > MOST:
            return
        self._tell("append", len(data))
        if self._appender < 0:
            self._begin_change()
            self._appender = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        assert os.write(self._appender, data) == len(data)
        self._put(len(self._data), data)

    def truncate(self) -> None:
        size = self._place()
        self._tell("truncate", size)
        self._begin_change()
        os.truncate(self._path, size)
        self._resize(size)

    def ftruncate(self) -> None:
        size = self._place()
        self._tell("ftruncate", size)
        os.ftruncate(self._writing(), size)
        self._resize(size)

    def map(self) -> None:
        fd = self._writing()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        if self._data:
            self._tell("mmap", len(self._data))
            self._mapped = mmap.mmap(fd, len(self._data))

    def store(self) -> None:
        mapped = self._mapped
        if mapped is None or not self._touchable():
            return
        at = self._random.randrange(self._touchable())
        data = self._bytes()[: self._touchable() - at]
        flush = self._random.random() < 0.3
        self._tell("store", at, len(data), flush)
        mapped[at : at + len(data)] = data
        if flush:
            mapped.flush()
        self._put(at, data)

    def fallocate(self) -> None:
        mode = self._random.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, 17))
        at, length = self._place(), self._random.randrange(1, 2 * LARGE)
        self._tell("fallocate", mode, at, length)
        fd = self._writing()
        if _libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), "fallocate")
        if not mode & KEEP_SIZE:
            self._resize(max(len(self._data), at + length))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(at + length, len(self._data))
            self._data[at:end] = bytes(max(0, end - at))

    def copy_range(self) -> None:
        source, target = self._place(), self._place()
        length = min(self._random.randrange(1, 2 * LARGE), abs(source - target))
        expected = bytes(self._data[source : source + length])
        if not length or target + length > MOST:
            return
        self._tell("copy_file_range", source, target, length)
        fd = self._writing()
        done = 0
        while done < len(expected):
            step = os.copy_file_range(fd, fd, len(expected) - done, source + done, target + done)
            assert step > 0
            done += step
        if expected:
            self._put(target, expected)

    def direct_write(self) -> None:
        at = self._place() // PAGE * PAGE
        with mmap.mmap(-1, self._random.randrange(1, 8) * PAGE) as aligned:
            aligned[:] = self._bytes(len(aligned))
            self._tell("direct write", at, len(aligned))
            self._begin_change()
            fd = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
            try:
                assert os.pwritev(fd, [aligned], at) == len(aligned)
            finally:
                os.close(fd)
            self._put(at, aligned[:])

    # --- looks

    def read(self) -> None:
        at, size = self._place(), self._random.randrange(2 * LARGE)
        fds = [fd for fd in (self._reader, self._writer) if fd >= 0]
        fd = self._random.choice(fds)
        self._tell("pread", at, size, "reader" if fd == self._reader else "writer")
        expected = self._data
        if fd == self._reader and self._old is not None:
            expected = bytearray(self._old)
        self._same("pread", os.pread(fd, size, at), bytes(expected[at : at + size]))

    def read_at_position(self) -> None:
        if self._writer < 0:
            return
        size = self._random.randrange(LARGE)
        self._tell("read", self._position, size)
        found = os.read(self._writer, size)
        expected = bytes(self._data[self._position : self._position + size])
        self._same("read", found, expected)
        self._position += len(found)

    def load(self) -> None:
        if self._mapped is not None and self._touchable():
            at = self._random.randrange(self._touchable())
            end = min(at + 2 * PAGE, self._touchable())
            self._tell("load", at, end)
            self._same("load", self._mapped[at:end], bytes(self._data[at:end]))

    def direct_read(self) -> None:
        at = self._place() // PAGE * PAGE
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, self._random.randrange(1, 8) * PAGE) as aligned:
                self._tell("direct read", at, len(aligned))
                found = aligned[: os.preadv(fd, [aligned], at)]
                self._same("direct read", found, bytes(self._data[at : at + len(aligned)]))
        finally:
            os.close(fd)

    def seek_data(self) -> None:
        if self._writer < 0 or not self._data:
            return
        at = self._random.randrange(len(self._data))
        hole = os.lseek(self._writer, at, os.SEEK_HOLE)
        assert at <= hole <= len(self._data)
        try:
            data = os.lseek(self._writer, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here on
            data = len(self._data)
        self._tell("seek", at, data, hole)
        assert not any(self._data[at:data]), "a hole that is none"
        os.lseek(self._writer, self._position, os.SEEK_SET)

    def stat(self) -> None:
        assert self._path.stat().st_size == len(self._data)
        if self._writer >= 0:
            assert os.fstat(self._writer).st_size == len(self._data)

    # --- other

    def sync(self) -> None:
        if self._writer >= 0:
            self._tell("fsync")
            os.fsync(self._writer)

    def reopen_reader(self) -> None:
        self._tell("reopen the reader")
        os.close(self._reader)
        self._reader = os.open(self._path, os.O_RDONLY)
        self._old = bytes(self._data) if self._keeps_old else None

    def evict(self) -> None:
        if self._random.random() < 0.1:
            self._tell("drop caches")
            drop_caches()

    # --- helpers

    def _begin_change(self) -> None:
        """From the first change on new descriptors show what is written."""
        self._keeps_old = False

    def _writing(self) -> int:
        if self._writer < 0:
            self._begin_change()
            self._tell("open for writing")
            self._writer = os.open(self._path, os.O_RDWR)
        return self._writer

    def _tell(self, *words: object) -> None:
        self.told.append(" ".join(str(word) for word in words))

    def _place(self) -> int:
        """An offset, often one that is special."""
        size = len(self._data)
        if self._random.random() < 0.5:
            return self._random.randrange(MOST)
        near = self._random.choice((0, PAGE, LARGE, size, size // 2 // PAGE * PAGE, MOST // 2))
        return max(0, near + self._random.choice((-1, 0, 0, 1)))

    def _bytes(self, size: int | None = None) -> bytes:
        if size is None:
            size = self._random.choice((1, 100, PAGE, self._random.randrange(1, LARGE)))
        return self._random.randbytes(size)

    def _touchable(self) -> int:
        """How far the mapping may be touched; beyond the file's end there is SIGBUS."""
        return 0 if self._mapped is None else min(len(self._mapped), len(self._data))

    def _resize(self, size: int) -> None:
        del self._data[size:]
        self._data += bytes(size - len(self._data))

    def _put(self, at: int, data: bytes) -> None:
        self._resize(max(len(self._data), at + len(data)))
        self._data[at : at + len(data)] = data

    @staticmethod
    def _same(what: str, found: bytes, expected: bytes) -> None:
        if found != expected:
            differing = (n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
            place = next(differing, min(len(found), len(expected)))
            raise AssertionError(f"{what}: {len(found)} of {len(expected)}, differs from {place}")


@pytest.mark.parametrize("clone", ["write", "open"])
@pytest.mark.parametrize("size", [5000, 5 * LARGE + 77])
@pytest.mark.timeout(600 * EFFORT)
def test_bytes_of_one_file_are_those_in_memory(
    mount_copy: MountCopy, xfs: Path, mode: str, clone: str, size: int
) -> None:
    source = random.Random(f"{SEED} {mode} {clone} {size}")
    data = source.randbytes(size)
    (xfs / "source").mkdir()
    (xfs / "source/file").write_bytes(data)
    origin = Origin(mount_copy, xfs / "source", (f"clone={clone}",))
    copy = mount_copy(origin.source, origin.mountpoint, *origin.options, "copy=one")
    keeps_old = mode == "passthrough" and clone == "write"
    file = _File(copy / "file", data, source, keeps_old=keeps_old)
    try:
        for _step in range(STEPS):
            file.step()
            if source.random() < 0.01:
                file.check()
            if source.random() < 0.002:
                file.told.append("remount")
                file.close()
                mount_copy.unmount(copy)
                mount_copy(origin.source, copy, *origin.options, "copy=one")
                file.check()
                file.open()
        file.check()
    except BaseException as error:
        told = "\n".join(file.told)
        raise AssertionError(f"seed {SEED}: {error}\n{told}") from error
    finally:
        file.close()
    origin.check_unchanged()
