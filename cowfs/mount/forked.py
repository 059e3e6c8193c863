"""A forked keeper or daemon, made as if it had been started; and whether it still may be.

Whoever forks one never gets it back: it runs its program and ends, so nothing of the caller's
stack is unwound in it, and no object of the caller's closes a descriptor that is another one by
now.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from cowfs.mount import keeper
from cowfs.mount.conversation import DAEMON
from cowfs.system import shown

_BY_NOBODY = (signal.SIGKILL, signal.SIGSTOP)


class Code:
    """The files that this process is made of: what it has imported and what it has mapped.

    As soon as one of them is another one, a process of an older installation would be forked where
    one of the newer is wanted.
    """

    def __init__(self, before: float) -> None:
        """*before*: seconds since the epoch; what has changed since may have changed after it was
        imported."""
        names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        names |= _mapped()
        self._files = {name: _look(name) for name in names if name}
        limit = before * 1e9
        self._is_settled = all(
            look is not None and look[-1] < limit for look in self._files.values()
        )

    def is_current(self) -> bool:
        """Whether a process that was started now would be of the same files."""
        return self._is_settled and all(_look(name) == was for name, was in self._files.items())


def _mapped() -> set[str]:
    """The interpreter, and the libraries that no module is: libfuse, libc."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        lines = [line.rstrip("\n").split(maxsplit=5) for line in maps]
    return {words[5] for words in lines if len(words) == 6 and words[5].startswith("/")}


def _look(name: str) -> tuple[int, ...] | None:
    try:
        st = os.stat(name)
    except OSError:
        return None
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


class Daemons:
    """Starts the daemons of a forked keeper: by fork(2) as long as its code is what is installed.

    The keeper has imported what a daemon needs and begun nothing of it: no threads, no event loop,
    no device.
    """

    def __init__(self, code: Code) -> None:
        self._code = code

    def __call__(self, command: list[str], *, apart: bool) -> int:
        """What `keeper.spawn` does. OSError."""
        if tuple(command[:-1]) != (sys.executable, *DAEMON) or not self._code.is_current():
            return keeper.spawn(command, apart=apart)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if not pid:
                run(lambda: _become_daemon(command, apart=apart))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid


def _become_daemon(command: list[str], *, apart: bool) -> int:
    from cowfs.mount import daemon

    if apart:
        os.setpgid(0, 0)
    begin(command, int(command[-1]))
    return daemon.main([command[-1]])


def begin(command: list[str], *fds: int) -> None:
    """Signals, descriptors and what /proc shows, as execve(2) and Python's start leave them.

    All signals are blocked when this is called. *fds*: what stays open beside 0, 1 and 2. OSError.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in _BY_NOBODY and signal.getsignal(number) is not signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in fds:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))
    shown.show(command, os.environ)
    sys.argv = list(command)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run(program: Callable[[], int]) -> NoReturn:
    """Run it in this process, and end."""
    code = 1
    try:
        code = program()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code & 0xFF)
