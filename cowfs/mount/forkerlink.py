"""The launcher's side of the forker: ask for a keeper, and have a forker that can be asked.

    launcher -> forker   JSON: {"identity": ..., "environment": {...},
                         "limits": [[soft, hard], ...]}, with the keeper's socket
    keeper -> launcher   forked PID, with a pidfd of it
    launcher -> keeper   what its standard output and error are: a forker that hangs would keep
                         them open. Now it is what the launcher would have started
    forker -> launcher   refused REASON

The socket is in /run/cowfs, and named after the installation: another version, interpreter or place
of the package has another forker. Who finds none takes the lock beside it, makes the socket, and
starts a forker with both; the others, who come meanwhile, wait in the queue of the socket. A forker
that does not answer in time loses its socket, so that it costs one mount that time and no other.
Then, and in every other case, the launcher starts its keeper itself: nothing here is an error.
"""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import cowfs
from cowfs.store import runtime
from cowfs.system import inherited, shown
from cowfs.system.interrupts import SIGNALS

FORKER = ("-I", "-X", "utf8", "-m", "cowfs.forker")
FORKED, REFUSED = "forked", "refused"
MAX_REQUEST = 1 << 16

# on: mounts are forked. A number: they are, and a forker that is started now ends after so many
# seconds without a mount. off: mounts are started. Without it BY_DEFAULT decides.
VARIABLE = "COWFS_FORKER"
BY_DEFAULT = "off"
IDLE = 300
# How long to wait for a keeper, seconds: one that is forked answers in a few thousandths.
PATIENCE = 3.0

# Before it is trusted, a file of the installation must not have changed for so long, in seconds.
_SETTLED = 1.0
_LIMITS = 16  # RLIM_NLIMITS
_CREDENTIALS = struct.Struct("3i")


class Forked(NamedTuple):
    """A keeper that is not our child; the descriptor is the caller's."""

    pid: int
    pidfd: int


class Asked:
    """A keeper that was asked for. Owns the connection."""

    def __init__(self, connection: socket.socket, forker: int | None) -> None:
        self._connection = connection
        #: The pid of a forker that was started for this.
        self.forker = forker

    def answer(self) -> Forked | None:
        """Wait for it; None: there is none, and there will be none."""
        fds: list[int] = []
        forked = None
        self._connection.settimeout(PATIENCE)
        try:
            packet, fds, _, _ = socket.recv_fds(self._connection, MAX_REQUEST, 1)
            for fd in fds:
                os.set_inheritable(fd, False)
            verb, _, argument = packet.decode(errors="replace").partition(" ")
            if verb == FORKED and len(fds) == 1:
                socket.send_fds(self._connection, [b" "], [1, 2])
                forked = Forked(int(argument), fds.pop())
        except TimeoutError:
            with contextlib.suppress(OSError):
                os.unlink(path())
        except (OSError, ValueError):
            pass
        for fd in fds:
            os.close(fd)
        self._connection.close()
        return forked


def ask(sock: int, environment: Mapping[str, str]) -> Asked | None:
    """Ask for a keeper with this socket, and do not wait. None: it is to be started."""
    if not _is_possible():
        return None
    try:
        connection, forker = _connect()
        if connection is None:
            return None
        try:
            _send(connection, sock, environment)
        except BaseException:
            connection.close()
            raise
        return Asked(connection, forker)
    except OSError:
        return None


def identity() -> str:
    """What tells this installation from every other one."""
    place = os.path.realpath(os.path.dirname(cowfs.__file__))
    return "\0".join((cowfs.__version__, sys.executable, sys.version, place))


def name() -> str:
    """The same in eight letters."""
    return f"{binascii.crc32(os.fsencode(identity())):08x}"


def path() -> str:
    """Where the forker of this installation listens."""
    return os.path.join(runtime.RUN_DIR, f"forker-{name()}.sock")


def _wanted() -> str:
    return os.environ.get(VARIABLE) or BY_DEFAULT


def _is_possible() -> bool:
    """Whether a forker could be what we would start: its names are UTF-8, it is root, and what
    /proc shows of it can be set."""
    return (
        _wanted() != "off"
        and sys.getfilesystemencoding() == "utf-8"
        and not os.getuid()
        and shown.can_be_set()
    )


def _connect() -> tuple[socket.socket | None, int | None]:
    """A connection, and the pid of a forker that was started for it. OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            sock.connect(path())
            return _of_root(sock), None
        forker = _start()
        # Another mount that starts one has made the socket in a moment.
        for pause in (0.001, 0.004, 0.016):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                sock.connect(path())
                return _of_root(sock), forker
            time.sleep(pause)
    except BaseException:
        sock.close()
        raise
    sock.close()
    return None, None


def _of_root(sock: socket.socket) -> socket.socket:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1]:
        raise PermissionError
    return sock


def _send(connection: socket.socket, sock: int, environment: Mapping[str, str]) -> None:
    limits = [resource.getrlimit(number) for number in range(_LIMITS)]
    words = {"identity": identity(), "environment": dict(environment), "limits": limits}
    request = json.dumps(words).encode()
    if len(request) > MAX_REQUEST:
        raise OSError
    socket.send_fds(connection, [request], [sock])


def _start() -> int | None:
    """Start a forker, unless somebody has: its pid. OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(os.path.join(runtime.directory(), f"forker-{name()}.lock"), flags, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not _has_usual_personality():
            return None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path())
            listener.listen(128)
            return _spawn(listener.fileno(), lock)
    finally:
        os.close(lock)


def _has_usual_personality() -> bool:
    """Whether what we start is laid out at random: for every mount that is forked of it."""
    with open("/proc/self/personality", "rb") as personality:
        return int(personality.read(), 16) == 0


def _spawn(listener: int, lock: int) -> int:
    idle = _wanted()
    # Not 0, 1 or 2, which are opened anew.
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 3) for fd in (listener, lock)]
    try:
        command = [
            sys.executable,
            *FORKER,
            name(),
            str(time.time() - _SETTLED),
            idle if idle.isdecimal() else str(IDLE),
            *map(str, given),
        ]
        return os.posix_spawn(
            command[0],
            command,
            {},
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited.descriptors(*given)),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD],
        )
    finally:
        for fd in given:
            os.close(fd)
