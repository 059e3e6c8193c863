"""Reading, writing and copying by the less common calls."""

from __future__ import annotations

import mmap
import os

from integration.conformance import calls
from integration.conformance.cases import case, equal, fails, get, hash_of, outcome, put
from integration.conformance.furniture import BIG, DIGITS


@case
def vectors_and_positions() -> list[bytes]:
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR)
        parts = [bytearray(3), bytearray(0), bytearray(4)]
        equal(os.preadv(fd, parts, 2), 7)
        equal(bytes(parts[0] + parts[2]), b"2345678")
        equal(os.lseek(fd, 0, os.SEEK_CUR), 0)
        equal(os.pwritev(fd, [b"AB", b"", b"C"], 1), 3)
        equal(os.writev(fd, [b"x", b"y"]), 2)
        equal(os.pread(fd, 5, 0), b"xyBC4")
        os.close(fd)
    return [get("file")]


@case
def flags_of_one_write() -> object:
    seen: list[object] = []
    for path, size in (("file", 10), ("big", len(BIG))):
        fd = os.open(path, os.O_RDWR)
        equal(os.pwritev(fd, [b"end"], 0, os.RWF_APPEND), 3)
        equal(os.fstat(fd).st_size, size + 3)
        os.pwritev(fd, [b"sync"], 0, os.RWF_SYNC)
        os.pwritev(fd, [b"S"], 0, os.RWF_DSYNC)
        assert outcome(os.preadv, fd, [bytearray(4)], 0, os.RWF_NOWAIT) in (4, "EAGAIN", "ENOTSUP")
        fails("ENOTSUP", os.preadv, fd, [bytearray(4)], 0, 1 << 30)
        os.close(fd)
        seen.append(hash_of(path))
    return seen


@case
def direct_io_wants_alignment() -> object:
    block = mmap.mmap(-1, 8192)
    seen: list[object] = []
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        seen.append(os.preadv(fd, [memoryview(block)[:4096]], 0))
        block[:4096] = b"D" * 4096
        seen.append(os.pwritev(fd, [memoryview(block)[:4096]], 4096))
        seen.append(os.preadv(fd, [memoryview(block)[4096:]], 4096))
        equal(block[4096:], b"D" * 4096)
        os.close(fd)
        seen.append(hash_of(path))
    return seen


@case
def sendfile_splice_and_tee() -> list[bytes]:
    seen = []
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR)
        reading, writing = os.pipe()
        other_reading, other_writing = os.pipe()
        equal(os.sendfile(writing, fd, 2, 5), 5)
        equal(os.splice(fd, writing, 3, offset_src=0), 3)
        equal(calls.tee(reading, other_writing, 100), 8)
        equal(os.read(other_reading, 100), b"23456012")
        out = os.open(f"{path}.out", os.O_WRONLY | os.O_CREAT)
        equal(os.splice(reading, out, 8, offset_dst=7), 8)
        os.sendfile(out, fd, 0, 10)
        fails("EBADF", os.sendfile, fd, out, 0, 1)
        for each in (fd, out, reading, writing, other_reading, other_writing):
            os.close(each)
        seen.append(get(f"{path}.out"))
    return seen


@case
def copy_file_range_copies() -> object:
    seen: list[object] = []
    for path in ("file", "big"):
        source, target = os.open(path, os.O_RDONLY), os.open(f"{path}.out", 0o102, 0o600)
        equal(os.copy_file_range(source, target, 4, 3, 100), 4)
        equal(os.copy_file_range(source, target, 1 << 30, 10**9), 0)
        equal(os.lseek(source, 0, os.SEEK_CUR), 0)
        seen.append(os.copy_file_range(source, target, 1 << 20))
        os.close(source)
        os.close(target)
        seen.append(hash_of(f"{path}.out"))
    return seen


@case
def copy_file_range_errors() -> None:
    fd, reader = os.open("file", os.O_RDWR), os.open("big", os.O_RDONLY)
    fails("EBADF", os.copy_file_range, fd, reader, 1)
    fails("EINVAL", os.copy_file_range, fd, fd, 5, 0, 2)
    directory = os.open("dir", os.O_RDONLY)
    fails("EISDIR", os.copy_file_range, directory, fd, 1)
    fifo = os.open("fifo", os.O_RDWR)
    fails("EINVAL", os.copy_file_range, fifo, fd, 1)
    appending = os.open("other", os.O_WRONLY | os.O_APPEND)
    fails("EBADF", os.copy_file_range, fd, appending, 1)
    for each in (fd, reader, directory, fifo, appending):
        os.close(each)


@case
def mappings_and_descriptors_show_the_same() -> list[bytes]:
    put("new", DIGITS)
    for path in ("file", "big", "new"):
        with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 10) as mapped:
            mapped[2:4] = b"MM"
            equal(os.pread(file.fileno(), 5, 0), b"01MM4")
            os.pwrite(file.fileno(), b"WW", 6)
            equal(mapped[5:9], b"5WW8")
            mapped.flush()
    return [get("file"), get("new")]
