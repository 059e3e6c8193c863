"""truncate(2), fallocate(2), holes, and limits of size."""

from __future__ import annotations

import os
import resource
import signal

from integration.conformance import calls
from integration.conformance.cases import case, equal, fails, get, hash_of, outcome, put
from integration.conformance.furniture import BIG, DIGITS, furnish_for_users
from integration.conformance.processes import ALICE, BOB, act_as, apart

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
BLOCK = 4096


def _allocate(path: str, mode: int, offset: int, length: int) -> tuple[object, int]:
    fd = os.open(path, os.O_RDWR)
    try:
        return outcome(calls.fallocate, fd, mode, offset, length), os.fstat(fd).st_size
    finally:
        os.close(fd)


def _holes(path: str) -> list[object]:
    """Where data and holes begin."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    seen: list[object] = []
    at = 0
    while at < size:
        data = outcome(os.lseek, fd, at, os.SEEK_DATA)
        seen.append(data)
        if not isinstance(data, int):
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        seen.append(at)
    os.close(fd)
    return seen


@case
def truncate_cuts_and_extends_with_zeros() -> object:
    seen: list[object] = []
    for path, data in (("file", DIGITS), ("big", BIG), ("empty", b""), ("link", None)):
        for size in (5, 9000, 3, 300_000, 0):
            os.truncate(path, size)
            equal(os.stat(path).st_size, size)
            if size == 9000 and data:
                equal(get(path), data[:5] + bytes(8995))
            seen.append(hash_of(path))
    os.truncate("hard1", 3)
    equal(get("dir/hard2"), b"two")
    return seen


@case
def truncate_errors() -> None:
    fails("EISDIR", os.truncate, "dir", 0)
    fails("EISDIR", os.truncate, ".", 0)
    fails("ENOENT", os.truncate, "none", 0)
    fails("ENOENT", os.truncate, "dangling", 0)
    fails("ELOOP", os.truncate, "loop", 0)
    fails("ENOTDIR", os.truncate, "file/below", 0)
    fails("EINVAL", os.truncate, "file", -1)
    fails("EINVAL", os.truncate, "null", 0)
    fails("EINVAL", os.truncate, "fifo", 0)
    fails("EBADF", os.ftruncate, 999, 0)
    fd = os.open("file", os.O_RDONLY)
    fails("EINVAL", os.ftruncate, fd, 0)
    os.close(fd)


@case
def largest_offset() -> object:
    fd = os.open("file", os.O_RDWR)
    try:
        seen = [outcome(os.pwrite, fd, b"x", 2**63 - 2), outcome(os.ftruncate, fd, 2**63 - 1)]
    finally:
        os.ftruncate(fd, 10)  # nobody shall read all of it
    seen.append(outcome(os.lseek, fd, 2**63 - 1, os.SEEK_SET))
    fails("EINVAL", os.lseek, fd, -1, os.SEEK_SET)
    fails("EINVAL", os.pread, fd, 1, -1)
    fails("EINVAL", os.lseek, fd, 0, 99)
    os.close(fd)
    return seen


@case(prepare=furnish_for_users)
def truncate_needs_write_permission_and_ftruncate_a_writer() -> None:
    fails("EACCES", act_as, BOB, os.truncate, "alice.file", 0)
    fails("EACCES", act_as, BOB, os.truncate, "file", 0)
    act_as(ALICE, os.truncate, "alice.file", 0)
    os.chmod("alice.big", 0o400)
    fails("EACCES", act_as, ALICE, os.truncate, "alice.big", 0)

    def act() -> int:
        fd = os.open("made", os.O_CREAT | os.O_RDWR, 0)
        os.ftruncate(fd, 100)
        size = os.fstat(fd).st_size
        os.close(fd)
        return size

    equal(act_as(ALICE, act), 100)


@case
def writing_beyond_the_end_leaves_zeros() -> list[int]:
    seen = []
    for path, size in (("file", 10), ("big", len(BIG)), ("empty", 0)):
        fd = os.open(path, os.O_RDWR)
        equal(os.lseek(fd, 5000, os.SEEK_END), size + 5000)
        equal(os.read(fd, 10), b"")
        equal(os.fstat(fd).st_size, size)
        os.write(fd, b"end")
        equal(os.pread(fd, 5003, size), bytes(5000) + b"end")
        seen.append(os.fstat(fd).st_size)
        os.close(fd)
    return seen


@case
def fallocate_in_every_mode() -> object:
    seen: list[object] = []
    for path in ("file", "big"):
        seen += [
            _allocate(path, 0, 0, 20 * BLOCK),
            _allocate(path, KEEP_SIZE, 0, 100 * BLOCK),
            _allocate(path, PUNCH_HOLE | KEEP_SIZE, BLOCK, 2 * BLOCK),
            _allocate(path, ZERO, 5, 100),
            _allocate(path, ZERO | KEEP_SIZE, 0, 200 * BLOCK),
            hash_of(path),
        ]
    return seen


@case(copy=["ENOTSUP"] * 3)  # the kernel refuses these on FUSE before it asks anybody
def collapse_insert_and_unshare() -> object:
    seen = [
        _allocate("big", INSERT, BLOCK, BLOCK)[0],
        _allocate("big", COLLAPSE, 0, BLOCK)[0],
        _allocate("big", UNSHARE, 0, BLOCK)[0],
    ]
    put("big", BIG)
    return seen


@case
def fallocate_errors() -> object:
    fd = os.open("file", os.O_RDWR)
    fails("EINVAL", calls.fallocate, fd, 0, -1, 10)
    fails("EINVAL", calls.fallocate, fd, 0, 0, 0)
    fails("EINVAL", calls.fallocate, fd, 0, 0, -1)
    fails("EFBIG", calls.fallocate, fd, 0, 2**62, 2**62)
    fails("ENOTSUP", calls.fallocate, fd, PUNCH_HOLE, 0, BLOCK)
    fails("ENOTSUP", calls.fallocate, fd, 1 << 20, 0, BLOCK)
    os.close(fd)
    fd = os.open("file", os.O_RDONLY)
    fails("EBADF", calls.fallocate, fd, 0, 0, 10)
    os.close(fd)
    fd = os.open("fifo", os.O_RDWR)
    fails("ESPIPE", calls.fallocate, fd, 0, 0, 10)
    os.close(fd)
    fd = os.open("dir", os.O_RDONLY)
    seen = [outcome(calls.fallocate, fd, 0, 0, 10)]
    os.close(fd)
    return seen


@case
def holes_are_found() -> object:
    put("sparse")
    os.truncate("sparse", 1 << 20)
    fd = os.open("sparse", os.O_RDWR)
    os.pwrite(fd, b"d" * BLOCK, 256 << 10)
    os.fsync(fd)
    seen: list[object] = [_holes("sparse")]
    fails("ENXIO", os.lseek, fd, 300 << 10, os.SEEK_DATA)
    fails("ENXIO", os.lseek, fd, 1 << 20, os.SEEK_DATA)
    fails("ENXIO", os.lseek, fd, 1 << 20, os.SEEK_HOLE)
    fails("ENXIO|EINVAL", os.lseek, fd, -1, os.SEEK_DATA)
    equal(os.lseek(fd, 5, os.SEEK_HOLE), 5)
    os.close(fd)
    seen += [_holes(path) for path in ("file", "big", "empty")]
    calls_made = _allocate("big", PUNCH_HOLE | KEEP_SIZE, BLOCK, 4 * BLOCK)
    return [*seen, calls_made, _holes("big")]


@case
def limit_of_file_size_is_kept() -> object:
    def act(path: str) -> list[object]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 10)
        seen = [
            outcome(os.pwrite, fd, b"x" * 2000, 0),
            outcome(os.pwrite, fd, b"x", 1000),
            outcome(os.pwrite, fd, b"x" * 100, 950),
            outcome(os.ftruncate, fd, 1001),
            outcome(os.truncate, path, 1001),
            outcome(os.ftruncate, fd, 1000),
            outcome(calls.fallocate, fd, 0, 0, 2000),
            os.fstat(fd).st_size,
        ]
        os.close(fd)
        equal(seen[:6], [1000, "EFBIG", 50, "EFBIG", "EFBIG", None])
        return seen

    return [apart(act, path) for path in ("file", "big", "new")]


@case
def limit_of_file_size_sends_sigxfsz() -> list[int]:
    got: list[int] = []

    def act(path: str) -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, lambda number, _frame: got.append(number))
        with open(path, "r+b", buffering=0) as file:
            file.truncate(0)
            file.seek(1000)
            fails("EFBIG", file.write, b"x")
            fails("EFBIG", file.truncate, 2000)
        return len(got)

    seen = [apart(act, path) for path in ("file", "big")]
    equal(seen, [2, 2])
    return seen


@case
def appending_stops_at_the_limit() -> object:
    def act() -> list[object]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, 15))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open("file", os.O_WRONLY | os.O_APPEND)
        return [outcome(os.write, fd, b"abcdefgh"), outcome(os.write, fd, b"i"), get("file")]

    seen = apart(act)
    equal(seen, [5, "EFBIG", b"0123456789abcde"])
    return seen


@case
def blocks_are_counted() -> list[bool]:
    put("new", b"x" * 50_000)
    fd = os.open("new", os.O_RDWR)
    os.fsync(fd)
    full = os.fstat(fd).st_blocks
    calls.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 8 * BLOCK)
    less = os.fstat(fd).st_blocks
    os.ftruncate(fd, 0)
    equal([full * 512 >= 50_000, less < full, os.fstat(fd).st_blocks], [True, True, 0])
    os.close(fd)
    return [full * 512 >= 50_000, less < full]
