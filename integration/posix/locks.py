"""flock, fcntl and OFD locks, between processes."""

# ruff: noqa: B023 - what is made in a loop is called before the next turn

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

from integration.posix.notes import Notes

_OFD_GETLK, _OFD_SETLK, _OFD_SETLKW = 36, 37, 38
_FLOCK = struct.Struct("hhqqi4x")


def _request(kind: int, start: int = 0, length: int = 0) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def _in_child(action: Callable[[], object]) -> object:
    """What *action* gives in another process, or the errno that it fails with."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(action())
        except OSError as error:
            said = os.strerror(error.errno or 0)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


def _locked(path: Path, operation: int) -> str:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
        return "locked"
    finally:
        os.close(fd)


def whole_files(notes: Notes, root: Path) -> None:
    for name in ("file", "large", "empty"):
        fd = os.open(root / name, os.O_RDWR)
        for mine in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
            fcntl.flock(fd, mine)
            for theirs in (fcntl.LOCK_SH, fcntl.LOCK_EX):
                notes.note(
                    f"{name} {mine} {theirs}", _in_child(lambda: _locked(root / name, theirs))
                )
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, b"written under the lock")
        notes.note("after a write", _in_child(lambda: _locked(root / name, fcntl.LOCK_SH)))
        os.close(fd)
        notes.note("released", _in_child(lambda: _locked(root / name, fcntl.LOCK_EX)))
    fd = os.open(root / "dir", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def _try(path: Path, command: int, kind: int, start: int, length: int) -> str:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, command, _request(kind, start, length))
        return "locked"
    finally:
        os.close(fd)


def ranges(notes: Notes, root: Path) -> None:
    for name in ("file", "large"):
        for command in (fcntl.F_SETLK, _OFD_SETLK):
            fd = os.open(root / name, os.O_RDWR)
            fcntl.fcntl(fd, command, _request(fcntl.F_WRLCK, 10, 10))
            fcntl.fcntl(fd, command, _request(fcntl.F_RDLCK, 100, 10))
            for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
                for start, length in (
                    (0, 10),
                    (0, 11),
                    (15, 1),
                    (20, 5),
                    (105, 1),
                    (0, 0),
                    (110, 0),
                ):
                    for theirs in (fcntl.F_SETLK, _OFD_SETLK):
                        said = _in_child(lambda: _try(root / name, theirs, kind, start, length))
                        notes.note(f"{name} {command} {theirs} {kind} {start}+{length}", said)
            found = _FLOCK.unpack(fcntl.fcntl(fd, command - 1, _request(fcntl.F_WRLCK, 0, 5)))
            notes.note("get", found[:4])
            if command == fcntl.F_SETLK:
                os.close(os.open(root / name, os.O_RDONLY))  # lets all locks of the process go
                said = _in_child(lambda: _try(root / name, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 0))
                notes.note("after closing another descriptor", said)
            os.close(fd)
    fd = os.open(root / "file", os.O_RDONLY)
    notes.expect("EBADF", "write lock on what is read-only", fcntl.fcntl, fd, fcntl.F_SETLK,
                 _request(fcntl.F_WRLCK))  # fmt: skip
    notes.call("nonsense", fcntl.fcntl, fd, fcntl.F_SETLK, _request(99))
    os.close(fd)


def waiting(notes: Notes, root: Path) -> None:
    path = root / "file"
    fd = os.open(path, os.O_RDWR)
    for command in (fcntl.F_SETLK, _OFD_SETLK):
        fcntl.fcntl(fd, command, _request(fcntl.F_WRLCK))
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            mine = os.open(path, os.O_RDWR)
            os.write(writing, b"?")
            fcntl.fcntl(mine, command + 1, _request(fcntl.F_WRLCK))
            os.write(writing, b"!")
            os._exit(0)
        os.close(writing)
        notes.call("waits", os.read, reading, 1)
        fcntl.fcntl(fd, command, _request(fcntl.F_UNLCK))
        notes.call("has it", os.read, reading, 1)
        os.waitpid(pid, 0)
        os.close(reading)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def interrupted() -> str:
        def alarm(_number: int, _frame: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        other = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(other, fcntl.LOCK_EX)
        except InterruptedError:
            return "interrupted"
        return "locked"

    notes.note("a waiter is interrupted", _in_child(interrupted))
    os.close(fd)


def deadlock(notes: Notes, root: Path) -> None:
    path = root / "large"
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLK, _request(fcntl.F_WRLCK, 0, 1))
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        mine = os.open(path, os.O_RDWR)
        fcntl.fcntl(mine, fcntl.F_SETLK, _request(fcntl.F_WRLCK, 1, 1))
        os.write(writing, b"?")
        try:
            fcntl.fcntl(mine, fcntl.F_SETLKW, _request(fcntl.F_WRLCK, 0, 1))
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    os.read(reading, 1)
    said = notes.call("wait", fcntl.fcntl, fd, fcntl.F_SETLKW, _request(fcntl.F_WRLCK, 1, 1))
    os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    notes.lines.pop()  # which of the two is told depends on who came last
    notes.note(
        "one of them is told EDEADLK",
        (said in ("EDEADLK", "EDEADLOCK")) != (status == errno.EDEADLK),
    )
    os.close(reading)
    os.close(writing)


CASES = (whole_files, ranges, waiting, deadlock)
