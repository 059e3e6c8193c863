"""The forker: a process that has imported all that a mount needs, and forks keepers.

Most of the time and memory of a mount that is started goes to interpreters that import the same
modules again. The forker has them, and has begun nothing: no threads, no event loop, no device. A
keeper that is forked of it shares its memory, and forks its own daemons in the same way
(forked.py).

    python -I -X utf8 -m cowfs.forker NAME BEFORE IDLE LISTENER LOCK

The first mount in the background starts it (forkerlink.py), one for each installation; without a
mount to fork for IDLE seconds it ends. It holds nothing that anybody needs. A keeper is nobody's
child, so it may be killed at any time, and so may a mount that has asked it: what was not forked
yet is started by who wants it, and a keeper that nobody waits for any more leaves.

It forks only for root, and only for a process that is where it is itself: a keeper inherits its
namespaces, root directory, capabilities and security label, and those are the caller's. Limits and
control group, which a process can change of itself, are given to it. For all others, and as soon
as a file of the installation is another one, it refuses, and the mount is started as before.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from cowfs.mount import forked, forkerlink, keeper
from cowfs.mount.conversation import KEEPER, encoded
from cowfs.system import inherited, mountinfo

# How long a caller may take for its request, seconds: it sends it when it has connected.
_PATIENCE = 0.5
# How often to look whether there is still an installation to fork for, seconds.
_LOOK = 60.0

_SO_PEERPIDFD = 77
_CREDENTIALS = struct.Struct("3i")

# Of proc_pid_status(5): what is not the same must be the caller's, and cannot be.
_STATUS = (
    *("Uid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters"),
)


class Refused(Exception):  # noqa: N818 -- the name says what happened
    """The caller starts its mount itself; why."""


def main(arguments: list[str]) -> int:
    """The process that a mount starts."""
    name, before, idle, listener, lock = arguments
    inherited.drop_limits()
    inherited.drop_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    inherited.drop_scheduling()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are nobody's children
    os.chdir("/")
    for fd in (int(listener), int(lock)):
        os.set_inheritable(fd, False)
    if name != forkerlink.name():
        return 1  # another installation than the one that wants it
    _import()
    forker = _Forker(socket.socket(fileno=int(listener)), forked.Code(float(before)), float(idle))
    gc.collect()
    gc.freeze()  # no collection of a forked process writes to what it shares
    forker.run()
    return 0


def _import() -> None:
    """All that a keeper and a daemon will ever import."""
    import cowfs.mount.daemon
    import cowfs.mount.servicemanager  # noqa: F401


class _Forker:
    def __init__(self, listener: socket.socket, code: forked.Code, idle: float) -> None:
        self._listener = listener
        self._code = code
        self._idle = idle
        self._own = _likeness("self")
        self._identity = forkerlink.identity()
        self._path = forkerlink.path()
        self._bound = _identity(self._path)

    def run(self) -> None:
        """Until there was nothing to fork for some time."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        deadline = time.monotonic() + self._idle
        while (left := deadline - time.monotonic()) > 0:
            asked = poll.poll(min(left, _LOOK) * 1000)
            if not self._is_wanted():
                break  # who has asked starts its mount, and the next one another forker
            if asked:
                connection, _ = self._listener.accept()
                with connection:
                    if self._answer(connection):
                        deadline = time.monotonic() + self._idle
        if _identity(self._path) == self._bound:
            os.unlink(self._path)

    def _is_wanted(self) -> bool:
        """Whether the socket is ours yet: a mount that has waited in vain removes it. And whether
        what we would fork is what is installed."""
        return _identity(self._path) == self._bound and self._code.is_current()

    def _answer(self, connection: socket.socket) -> bool:
        """Whether a keeper was forked."""
        fds: list[int] = []
        try:
            connection.settimeout(_PATIENCE)
            packet, fds, _, _ = socket.recv_fds(connection, forkerlink.MAX_REQUEST, 1)
            for fd in fds:
                os.set_inheritable(fd, False)
            if len(fds) != 1:
                raise Refused("one descriptor belongs to a request")
            request = json.loads(packet)
            if request["identity"] != self._identity:
                raise Refused("the caller is of another installation")
            caller = self._caller(connection)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                if not os.fork():
                    forked.run(lambda: self._become_keeper(connection, request, fds[0], caller))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
        except (OSError, ValueError, LookupError, TypeError, Refused) as reason:
            _say(connection, f"{forkerlink.REFUSED} {reason}")
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _caller(self, connection: socket.socket) -> int:
        """The pid of who asks. Refused: what it would start would be another process."""
        size = _CREDENTIALS.size
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, _gid = _CREDENTIALS.unpack(credentials)
        if uid or pid <= 0:
            raise Refused("only root of the same namespaces is served")
        # The pid may be another's by now, unless the process is still there at the end.
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        try:
            theirs = _likeness(str(pid))
            signal.pidfd_send_signal(pidfd, 0)
        finally:
            os.close(pidfd)
        for what, value in self._own.items():
            if theirs.get(what) != value:
                raise Refused(f"the caller has another {what}")
        if theirs["Seccomp"] != "0":
            raise Refused("the caller has a filter of system calls")
        return int(pid)

    def _become_keeper(
        self, connection: socket.socket, request: dict[str, Any], launcher: int, caller: int
    ) -> int:
        """In the child: be what the caller would have started, and say so."""
        command = [sys.executable, *KEEPER, "launcher", str(launcher)]
        try:
            os.setsid()
            _join_groups(caller)
            for number, (soft, hard) in enumerate(request["limits"]):
                resource.setrlimit(number, (soft, hard))
            os.environ.clear()
            os.environ.update(request["environment"])
            time.tzset()
            forked.begin(command, launcher, connection.fileno())
            pidfd = os.pidfd_open(os.getpid())
        except (OSError, ValueError, LookupError, TypeError, Refused) as reason:
            _say(connection, f"{forkerlink.REFUSED} {reason}")
            return 1
        if not _say(connection, f"{forkerlink.FORKED} {os.getpid()}", pidfd):
            return 0  # nobody waits for it any more
        os.close(pidfd)
        connection.settimeout(None)
        _, streams, _, _ = socket.recv_fds(connection, 1, 2)
        if len(streams) != 2:
            return 0
        for fd, stream in enumerate(streams, 1):
            os.dup2(stream, fd)
            os.close(stream)
        connection.close()
        return keeper.main(["launcher", str(launcher)], forked.Daemons(self._code))


def _say(connection: socket.socket, text: str, *fds: int) -> bool:
    """False: nobody listens."""
    try:
        socket.send_fds(connection, [encoded(text)], fds)
    except OSError:
        return False
    return True


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.lstat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def _likeness(process: str) -> dict[str, object]:
    """What a process hands on and cannot be given: each by a name for it. OSError."""
    where = f"/proc/{process}"
    root = os.stat(f"{where}/root")
    found: dict[str, object] = {"root directory": (root.st_dev, root.st_ino)}
    for name in sorted(os.listdir(f"{where}/ns")):
        found[f"{name} namespace"] = os.readlink(f"{where}/ns/{name}")
    for name in ("attr/current", "loginuid"):
        found[name] = _read(f"{where}/{name}")
    for line in _read(f"{where}/status").splitlines():
        name, _, value = line.partition(":")
        if name in _STATUS:
            found[name] = value.strip()
    return found


def _read(path: str) -> str:
    """A file of /proc; nothing when this kernel has none such."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _join_groups(caller: int) -> None:
    """Enter the caller's control group. Refused: with cgroup v1, or if it takes no process."""
    wanted = _read(f"/proc/{caller}/cgroup").splitlines()
    found = _read("/proc/self/cgroup").splitlines()
    if wanted == found:
        return
    others = [line for line in wanted if line not in found]
    if len(others) != 1 or not others[0].startswith("0::/") or "/../" in f"{others[0]}/":
        raise Refused("the caller has another control group")
    mounts = [mount for mount in mountinfo.read() if mount.fstype == "cgroup2"]
    for mount in mounts:
        if mount.root == "/":
            with open(f"{mount.mountpoint}{others[0][3:]}/cgroup.procs", "w") as group:
                group.write("0")
            break
    if _read("/proc/self/cgroup").splitlines() != wanted:
        raise Refused("the caller has another control group")
