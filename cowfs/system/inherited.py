"""What a process inherits, and what a mount has instead: it serves everybody, not whoever made it.

Two kinds. A limit, the umask and an ignored signal make calls of users fail, wherever they come
from: they go in every process of a mount. How a process is scheduled, and what the kernel does with
it when memory is short, is said on purpose by whoever supervises a mount in the foreground (Nice=
and OOMScoreAdjust= of a unit, a container); a mount in the background has nothing of its caller's.

What stays: user id, namespaces, capabilities and the root directory, which are where the mount is
made; and the control group, which only systemd may leave to somebody else (scope.py).

A row that the kernel or a container refuses is left as it is. This file imports little: the keeper
has to stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal

TYPE_CHECKING = False  # as mypy understands it: see conversation.py
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Each open file of a mount takes two descriptors at most, one here and one in the kernel's backing
# table; fs.nr_open bounds it from above.
DESCRIPTORS = 1 << 20

# Soft limits; the hard one is raised with each as far as we may.
LIMITS = {
    resource.RLIMIT_AS: resource.RLIM_INFINITY,
    resource.RLIMIT_CORE: 0,  # as systemd has it
    resource.RLIMIT_CPU: resource.RLIM_INFINITY,
    resource.RLIMIT_DATA: resource.RLIM_INFINITY,
    resource.RLIMIT_FSIZE: resource.RLIM_INFINITY,  # that of whoever writes counts, in the kernel
    resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY,  # io_uring before Linux 5.12
    resource.RLIMIT_NOFILE: DESCRIPTORS,
    resource.RLIMIT_NPROC: resource.RLIM_INFINITY,
    resource.RLIMIT_RSS: resource.RLIM_INFINITY,
    resource.RLIMIT_RTTIME: resource.RLIM_INFINITY,
    resource.RLIMIT_SIGPENDING: resource.RLIM_INFINITY,
    resource.RLIMIT_STACK: 8 << 20,  # of each thread
}

# Variables that go through to keeper and daemon; what begins with one of the second line, too.
VARIABLES = ("LANG", "LANGUAGE", "TZ")
PREFIXES = ("COWFS_", "LC_")
# How a service manager talks to the process that it has started: sd_notify(3).
OF_THE_MANAGER = ("NOTIFY_SOCKET", "FDSTORE")
JOURNAL = "JOURNAL_STREAM"

# Python has these ignored, and its own code expects that.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)

# linux/prctl.h, linux/keyctl.h, linux/ioprio.h, linux/mempolicy.h
_PR_SET_TIMERSLACK = 29
_PR_SET_THP_DISABLE = 41
_TIMER_SLACK = 50_000  # nanoseconds, as the first process has it
_KEYCTL_JOIN_SESSION_KEYRING = 1
_IOPRIO_WHO_PROCESS = 1
_LOWEST = 2 << 13 | 7  # of the best-effort class, ioprio_set(2)
# ioprio_set, set_mempolicy, keyctl; all but x86-64 have those of asm-generic
_X86_64 = (251, 238, 250)
_GENERIC = (30, 237, 219)

_OOM_SCORE = "/proc/self/oom_score_adj"

_libc = ctypes.CDLL(None)


def environment(*, foreground: bool) -> dict[str, str]:
    """What keeper, daemon and attendant get of ours.

    In the foreground what is for the process that we become, too. JOURNAL_STREAM only if our
    stderr is the journal, which it says by itself: systemd.exec(5).
    """
    names = VARIABLES + (OF_THE_MANAGER if foreground else ())
    found = {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(PREFIXES)
    }
    if foreground and is_journal(2):
        found[JOURNAL] = os.environ[JOURNAL]
    return found


def is_journal(fd: int) -> bool:
    """Whether this descriptor is the stream to the journal that our service manager has made."""
    stream = os.environ.get(JOURNAL)
    if stream is None:
        return False
    try:
        st = os.fstat(fd)
    except OSError:
        return False
    return stream == f"{st.st_dev}:{st.st_ino}"


def drop_limits() -> None:
    """Limits and umask, so that users have their own and no others."""
    for limit, soft in LIMITS.items():
        _set_limit(limit, soft)
    os.umask(0o077)


def _set_limit(limit: int, soft: int) -> None:
    """This soft limit, with the hard one raised if need be, or as much as that one allows."""
    _, hard = resource.getrlimit(limit)
    endless = resource.RLIM_INFINITY
    if hard == endless or (soft != endless and soft <= hard):
        ways = [(soft, hard), (soft, soft)]
    else:
        ways = [(soft, soft), (hard, hard)]
    for way in ways:
        # Not ours to raise; or above fs.nr_open, which may have become less than we have already.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, way)
            return


def largest_file() -> int | None:
    """The size in bytes above which a write fails for everybody; None: there is no such limit."""
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if size == resource.RLIM_INFINITY else size


def drop_signals() -> None:
    """Ignored signals: nohup(1), a shell's `&`."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _IGNORED:
            signal.signal(number, signal.SIG_DFL)


def drop_scheduling() -> None:
    """All that decides when this process runs, where its memory lies and whether it is ended."""
    for _name, step in SCHEDULING:
        try:
            step()
        except OSError:
            continue


def give_way() -> None:
    """To everybody else who wants processor or disk; but what is begun comes to an end, also on a
    machine that always has something to do."""
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    _system_call(0, _IOPRIO_WHO_PROCESS, 0, _LOWEST)


def descriptors(*but: int) -> Iterator[int]:
    """Those that our caller left open to whatever we start, and that are not for it."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in but:
            try:
                if os.get_inheritable(fd):
                    yield fd
            except OSError:
                pass  # the one that listed the directory is closed


def _set_affinity() -> None:
    os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))


def _set_oom_score() -> None:
    with open(_OOM_SCORE, "w") as file:
        file.write("0")


def _system_call(index: int, *arguments: int) -> None:
    number = (_X86_64 if os.uname().machine == "x86_64" else _GENERIC)[index]
    _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))


# The personality first: with another one uname(2) names another machine.
SCHEDULING: tuple[tuple[str, Callable[[], object]], ...] = (
    ("personality", lambda: _libc.personality(0)),
    ("policy", lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))),
    ("niceness", lambda: os.setpriority(os.PRIO_PROCESS, 0, 0)),
    ("processors", _set_affinity),
    ("I/O priority", lambda: _system_call(0, _IOPRIO_WHO_PROCESS, 0, 0)),
    ("memory policy", lambda: _system_call(1, 0, 0, 0)),
    ("keyring", lambda: _system_call(2, _KEYCTL_JOIN_SESSION_KEYRING, 0)),
    ("timer slack", lambda: _libc.prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK, 0, 0, 0)),
    ("huge pages", lambda: _libc.prctl(_PR_SET_THP_DISABLE, 0, 0, 0, 0)),
    ("groups", lambda: os.setgroups([])),
    ("group", lambda: os.setresgid(0, 0, 0)),
    ("OOM score", _set_oom_score),
)
