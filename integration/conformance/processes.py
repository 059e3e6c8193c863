"""Other processes and other users, for as long as one function takes."""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

#: Seconds after which something hangs.
PATIENCE = 20


class User(NamedTuple):
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = User(1001, 1001)
BOB = User(1002, 1002)
#: In the group of ALICE and in another one, but only as supplementary ones.
CAROL = User(1003, 1003, (1001, 2000))

STAFF = 2000  # a group that only CAROL is in


class Child:
    """A function in a forked process; `result` waits for what it gives.

    A process of its own keeps identity, umask, limits, working directory and locks apart.
    """

    def __init__(self, function: Callable[..., object], *args: Any, user: User | None = None):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _live(writing, user, function, args)
        os.close(writing)
        self._reading = reading

    def result(self) -> Any:
        """What the function gave; an exception of it is raised here. Kills it when it hangs."""
        sent = b""
        while True:
            ready = select.select([self._reading], [], [], PATIENCE)[0]
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                break
            piece = os.read(self._reading, 1 << 16)
            if not piece:
                break
            sent += piece
        os.close(self._reading)
        status = os.waitpid(self.pid, 0)[1]
        assert ready, f"nothing happened for {PATIENCE} s"
        assert sent, f"the process ended with status {os.waitstatus_to_exitcode(status)}"
        done, value = pickle.loads(sent)  # noqa: S301 - from our own child
        if done:
            return value
        raise value


def act_as(user: User, function: Callable[..., T], *args: Any) -> T:
    """Do something as an ordinary user, in a process of its own."""
    result: T = Child(function, *args, user=user).result()
    return result


def apart(function: Callable[..., T], *args: Any) -> T:
    """Do something in a process of its own."""
    result: T = Child(function, *args).result()
    return result


def _live(writing: int, user: User | None, function: Callable[..., object], args: Any) -> None:
    """The child: it never leaves this function."""
    code = 1
    try:
        try:
            if user is not None:
                os.setgroups(user.groups)
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
            sent = pickle.dumps((True, function(*args)))
        except OSError as error:
            sent = pickle.dumps((False, OSError(error.errno, f"{error.strerror}\n{_where(error)}")))
        except BaseException as error:
            told = str(error) if isinstance(error, AssertionError) else repr(error)
            sent = pickle.dumps((False, AssertionError(f"{told}\n{_where(error)}")))
        view = memoryview(sent)
        while view:
            view = view[os.write(writing, view) :]
        code = 0
    finally:
        os._exit(code)


def _where(error: BaseException) -> str:
    """The line of the case, not of the words that it is written in."""
    frames = [
        f"  {frame.name}, line {frame.lineno}: {frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.endswith(("/cases.py", "/processes.py"))
    ]
    return "\n".join(frames)
