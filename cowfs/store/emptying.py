"""Emptying the trash of a store, beside everything else: nobody waits for it.

    python -m cowfs.emptying FD    empty the trash that is open there, and end

A mount only renames into the trash. What it finds there, or has put there, is left to a process of
its own that takes what processor and disk have to spare. One is enough: it has a lock (flock) on
the directory meanwhile, as `cowfs gc` has. If it is killed the next mount starts another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator

from cowfs.system import directories, inherited
from cowfs.trees import removal

EMPTYING = ("-I", "-m", "cowfs.emptying")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def start(trash_fd: int) -> None:
    """Have a process empty the trash, if there is anything in it. OSError: none can be started."""
    with _opened(trash_fd) as fd:
        if not directories.names(fd):
            return
        os.set_inheritable(fd, True)
        command = [sys.executable, *EMPTYING, str(fd)]
        os.posix_spawn(
            command[0],
            command,
            inherited.environment(foreground=False),
            # It must not keep the caller's output open, nor any other of its files.
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
                *((os.POSIX_SPAWN_CLOSE, other) for other in inherited.descriptors(fd)),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
        )


def empty(trash_fd: int) -> None:
    """Remove everything in the trash, also beside another process that does. OSError."""
    with _opened(trash_fd) as fd:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in directories.names(fd):
            removal.remove(fd, name)


@contextlib.contextmanager
def _opened(trash_fd: int) -> Iterator[int]:
    """Open it anew: for a lock of our own, and to see what is there by now."""
    fd = os.open(".", _DIRECTORY, dir_fd=trash_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def main(arguments: list[str]) -> int:
    """The process that `start` starts."""
    fd = int(arguments[0])
    os.set_inheritable(fd, False)
    inherited.drop_scheduling()
    inherited.give_way()
    tried: set[str] = set()
    # Others leave to us what they find meanwhile: so we look again, at the end without the lock.
    while found := set(directories.names(fd)) - tried:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        while found:
            for name in found:
                with contextlib.suppress(OSError):  # what cannot be removed keeps no other thing
                    removal.remove(fd, name)
            tried |= found
            found = set(directories.names(fd)) - tried
        fcntl.flock(fd, fcntl.LOCK_UN)
    return 0
