"""flock(2), and fcntl(2) locks of processes and of open file descriptions."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable

from integration.conformance.cases import case, equal, fails, outcome
from integration.conformance.processes import Child, apart

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB
_BUSY = "EAGAIN|EACCES"


def _flock(path: str, how: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, how | NB)
    finally:
        os.close(fd)


def _lockf(path: str, how: int, start: int = 0, length: int = 0) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, how | NB, length, start)
    os.close(fd)


def _ofd(fd: int, kind: int, start: int, length: int, command: int = fcntl.F_OFD_SETLK) -> int:
    sent = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    kind_found: int = struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, sent))[0]
    return kind_found


@case
def flock_keeps_others_out() -> None:
    for path in ("file", "big", "dir/hard2"):
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, EX)
        fails("EAGAIN", apart, _flock, path, EX)
        fails("EAGAIN", _flock, path, SH)
        fcntl.flock(fd, SH)
        apart(_flock, path, SH)
        fails("EAGAIN", apart, _flock, path, EX)
        fcntl.flock(fd, UN)
        apart(_flock, path, EX)
        fcntl.flock(fd, EX)
        second = os.dup(fd)
        os.close(fd)
        fails("EAGAIN", apart, _flock, path, SH)
        os.close(second)
        apart(_flock, path, EX)


@case
def flock_of_directories() -> None:
    fd = os.open("dir", os.O_RDONLY)
    fcntl.flock(fd, EX)
    other = os.open("dir", os.O_RDONLY)
    fails("EAGAIN", fcntl.flock, other, SH | NB)
    os.close(fd)
    fcntl.flock(other, EX | NB)
    os.close(other)


@case
def every_name_has_the_locks_of_the_file() -> None:
    fd = os.open("hard1", os.O_RDWR)
    fcntl.flock(fd, EX)
    fcntl.lockf(fd, EX)
    fails("EAGAIN", apart, _flock, "dir/hard2", EX)
    fails(_BUSY, apart, _lockf, "dir/hard2", EX)
    os.rename("hard1", "renamed")
    fails("EAGAIN", apart, _flock, "renamed", EX)
    os.close(fd)
    apart(_lockf, "dir/hard2", EX)


@case
def ranges_conflict_where_they_overlap() -> None:
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, EX, 100, 1000)
        fcntl.lockf(fd, SH, 10, 5000)
        apart(_lockf, path, EX, 0, 1000)
        apart(_lockf, path, EX, 1100, 100)
        fails(_BUSY, apart, _lockf, path, EX, 1099, 1)
        fails(_BUSY, apart, _lockf, path, SH, 0, 0)
        apart(_lockf, path, SH, 5000, 5)
        fails(_BUSY, apart, _lockf, path, EX, 5009, 5)
        fcntl.lockf(fd, UN, 50, 1000)
        apart(_lockf, path, EX, 1000, 50)
        os.close(os.open(path, os.O_RDONLY))  # closing any descriptor drops them all
        apart(_lockf, path, EX)
        os.close(fd)


@case
def locks_need_the_access_mode() -> None:
    fd = os.open("file", os.O_RDONLY)
    fails("EBADF", fcntl.lockf, fd, EX | NB)
    fcntl.lockf(fd, SH | NB)
    os.close(fd)
    fd = os.open("file", os.O_WRONLY)
    fails("EBADF", fcntl.lockf, fd, SH | NB)
    os.close(fd)


@case
def locks_of_open_descriptions_conflict_inside_of_a_process() -> list[int]:
    first, second = os.open("file", os.O_RDWR), os.open("file", os.O_RDWR)
    _ofd(first, fcntl.F_WRLCK, 0, 10)
    fails(_BUSY, _ofd, second, fcntl.F_WRLCK, 5, 10)
    fails(_BUSY, _ofd, second, fcntl.F_RDLCK, 5, 10)
    _ofd(second, fcntl.F_WRLCK, 10, 10)
    seen = [_ofd(second, fcntl.F_WRLCK, 0, 1, fcntl.F_OFD_GETLK)]
    equal(seen, [fcntl.F_WRLCK])
    os.close(first)
    _ofd(second, fcntl.F_WRLCK, 0, 0)
    os.close(second)
    return seen


def _waits_for(lock: Callable[[int], None], unlock: Callable[[int], None]) -> bool:
    """Whether a child that asks for a lock goes on when it is given back."""
    fd = os.open("file", os.O_RDWR)
    lock(fd)

    def wait() -> str:
        own = os.open("file", os.O_RDWR)
        lock(own)
        return "locked"

    child = Child(wait)
    while not _is_waiting(child.pid):
        time.sleep(0.001)
    unlock(fd)
    got: str = child.result()
    os.close(fd)
    return got == "locked"


def _is_waiting(pid: int) -> bool:
    """Whether proc_locks(5) shows the process behind an arrow."""
    with open("/proc/locks") as file:
        return any("->" in line and str(pid) in line.split() for line in file)


@case
def waiting_ends_with_the_lock() -> list[bool]:
    seen = [
        _waits_for(lambda fd: fcntl.flock(fd, EX), lambda fd: fcntl.flock(fd, UN)),
        _waits_for(lambda fd: fcntl.lockf(fd, EX), lambda fd: fcntl.lockf(fd, UN)),
    ]
    equal(seen, [True, True])
    return seen


@case
def waiting_is_interrupted_by_a_signal() -> object:
    def wait(how: str) -> object:
        def handler(_number: int, _frame: object) -> None:
            raise InterruptedError(errno.EINTR, "interrupted")

        signal.signal(signal.SIGALRM, handler)
        fd = os.open("big", os.O_RDWR)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return outcome(getattr(fcntl, how), fd, EX)

    fd = os.open("big", os.O_RDWR)
    fcntl.flock(fd, EX)
    fcntl.lockf(fd, EX)
    seen = [apart(wait, "flock"), apart(wait, "lockf")]
    os.close(fd)
    equal(seen, ["EINTR", "EINTR"])
    return seen


@case
def two_that_wait_for_each_other_are_told() -> object:
    reading, writing = os.pipe()

    def other() -> object:
        fd = os.open("file", os.O_RDWR)
        fcntl.lockf(fd, EX, 1, 1)
        os.write(writing, b"x")
        return outcome(fcntl.lockf, fd, EX, 1, 0)

    fd = os.open("file", os.O_RDWR)
    fcntl.lockf(fd, EX, 1, 0)
    child = Child(other)
    os.read(reading, 1)
    mine = outcome(fcntl.lockf, fd, EX, 1, 1)
    os.close(fd)
    seen = sorted(str(found) for found in (mine, child.result()))
    equal(seen, ["EDEADLOCK", "None"])
    return list(seen)
