"""How the processes of a mount talk: the launcher, the keeper, the daemon.

Launcher and keeper, over a stream socket:

    launcher -> keeper   4 bytes length (big endian), the order (JSON of a Config); the first byte
                         carries the copy's lock descriptor (SCM_RIGHTS)
    keeper -> launcher   one line of JSON: {"ready": true, "pid": N, "passthrough": bool}
                         or {"error": "one line", "exit_code": N}

An end of file in place of the order tells the keeper that there is nothing to serve: it leaves
without a word.  An end of file in place of the answer tells the launcher that the keeper died.

Keeper and daemon, over a SOCK_SEQPACKET pair: packets of a verb, a space and an argument, each with
at most one descriptor. Those of different versions talk, too: what a verb means does not change.

    keeper -> daemon   fd NAME +descriptor    one of what the keeper holds
                       check                  say whether you could take over from these
                       go | go bound PID      that was all: serve; bound: die with the keeper
                       ping                   say pong if requests are answered
                       undo                   nobody wants the mount any more: detach it
    daemon -> keeper   put NAME +descriptor   hold this, in the place of the last one of the name
                       drop NAME              and this no longer
                       able | unable REASON   what a check has shown
                       watch SECONDS          ping me, and end me after so long without a pong
                       ready JSON             the mount answers
                       done NUMBER            what this signal asks for was done, or refused
                       failed JSON            it never will: {"error": ..., "exit_code": ...}
                       bye CODE               it has ended, and all is put away
                       pong

`cowfs upgrade` and the keeper, over a SOCK_SEQPACKET socket in /run/cowfs: one packet there and one
back.

    upgrade -> keeper   the new daemon's command, its words separated by NUL
    keeper -> upgrade   ok PID            it serves
                        refused REASON    the last version serves
                        ended             there is no mount any more

This file imports little: the keeper has to stay small.
"""

from __future__ import annotations

import os
import signal
import socket
import struct

TYPE_CHECKING = False  # as mypy understands it; typing itself would be a tenth of the keeper
if TYPE_CHECKING:
    from typing import Any

# How the processes are started, behind the interpreter: -I, because a daemon of root's imports
# nothing from the directory or the PYTHONPATH of its caller.
DAEMON = ("-I", "-m", "cowfs.daemon")
KEEPER = ("-I", "-m", "cowfs.keeper")

# The names of what a keeper holds of every mount; the rest belongs to files, see restore.py.
ORDER, LOCK, DEVICE, LEDGER = "order", "lock", "device", "ledger"
PLACE, LOG, CONTROL = "place", "log", "control"

# Keeper to daemon.
FD, CHECK, GO, PING, UNDO = "fd", "check", "go", "ping", "undo"
# Daemon to keeper.
PUT, DROP, ABLE, UNABLE, WATCH = "put", "drop", "able", "unable", "watch"
READY, DONE, FAILED, BYE, PONG = "ready", "done", "failed", "bye", "pong"
OF_THE_DAEMON = (PUT, DROP, ABLE, UNABLE, WATCH, READY, DONE, FAILED, BYE, PONG)
# Keeper to `cowfs upgrade`.
OK, REFUSED, ENDED = "ok", "refused", "ended"

# What asks for an unmount, of keeper, daemon or attendant.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# How long SIGTERM asks for it while the mount is in use, in seconds: when a machine goes down, its
# users are told to end in the same moment.
PERSISTENCE = 10.0
# The service manager restarts keeper or attendant (RestartKillSignal=): leave the mount in its
# descriptor store.
LEAVE = signal.SIGUSR1

_LENGTH = struct.Struct(">I")
_DESCRIPTOR = struct.Struct("i")
# An order holds four paths of at most PATH_MAX; a longer one does not come from our launcher.
MAX_ORDER = 1 << 20
MAX_ANSWER = 1 << 16
# A word and a name, or one line of JSON.
MAX_PACKET = 1 << 16


def send_order(sock: socket.socket, order: bytes, fd: int) -> None:
    """Launcher's side. Blocking; BrokenPipeError, ConnectionResetError: the keeper is gone."""
    message = _LENGTH.pack(len(order)) + order
    sent = socket.send_fds(sock, [message], [fd])
    sock.sendall(message[sent:])


def receive_order(sock: socket.socket) -> tuple[bytes, int] | None:
    """Keeper's side. Blocking; None when the launcher left without a word.

    The descriptor arrives close-on-exec. Raises EOFError for a message cut short, ValueError for
    one that makes no sense; descriptors that came with it are closed then.
    """
    fds: list[int] = []
    try:
        data = b""
        wanted = _LENGTH.size
        while len(data) < wanted:
            # recv_fds always, not only for the first byte: the kernel ends a read where the
            # ancillary data changes, and what comes later brings none.
            chunk, new_fds, _, _ = socket.recv_fds(sock, wanted - len(data), 1)
            fds += new_fds
            for fd in new_fds:
                os.set_inheritable(fd, False)  # Python before 3.14 drops the flag that would do it
            if not chunk:
                if not data:
                    return None
                raise EOFError("the launcher left in the middle of its message")
            data += chunk
            if len(data) == _LENGTH.size == wanted:
                (length,) = _LENGTH.unpack(data)
                if not 0 < length <= MAX_ORDER:
                    raise ValueError(f"an order of {length} bytes")
                wanted += length
        if len(fds) != 1:
            raise ValueError(f"{len(fds)} descriptors came with the order, not one")
        return data[_LENGTH.size :], fds.pop()
    finally:
        for fd in fds:
            os.close(fd)


def receive_answer(sock: socket.socket) -> dict[str, Any] | None:
    """Launcher's side: the keeper's line, None if it died without one. ValueError: nonsense."""
    import json

    data = b""
    while not data.endswith(b"\n"):
        try:
            chunk = sock.recv(4096)
        except ConnectionResetError:
            return None  # it died with our message unread
        if not chunk:
            return None
        data += chunk
        if len(data) > MAX_ANSWER:
            raise ValueError("the answer does not end")
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError(f"the answer was {answer!r}")
    return answer


def encoded(text: str) -> bytes:
    """A message or a line of the log as bytes: any path may be in it, and none raises an error."""
    return text.encode("utf-8", "surrogateescape")


def send_packet(
    sock: socket.socket, verb: str, argument: str = "", fd: int | None = None, flags: int = 0
) -> None:
    """Either side of keeper and daemon. OSError when the other one is gone.

    BlockingIOError with MSG_DONTWAIT, or after SO_SNDTIMEO, when it takes nothing.
    """
    packet = encoded(f"{verb} {argument}")
    if fd is None:
        sock.send(packet, flags)
    else:  # socket.send_fds takes twice as long
        sock.sendmsg(
            (packet,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd)),), flags
        )


def receive_packet(sock: socket.socket, flags: int = 0) -> tuple[str, str, int | None] | None:
    """(verb, argument, descriptor) of one packet; None when the other side is gone.

    BlockingIOError with MSG_DONTWAIT when there is none.
    """
    # Not socket.recv_fds: it forgets the flags (Python 3.11).
    room = socket.CMSG_SPACE(_DESCRIPTOR.size)
    flags |= socket.MSG_CMSG_CLOEXEC
    try:
        packet, ancillary, _, _ = sock.recvmsg(MAX_PACKET, room, flags)
    except ConnectionResetError:
        # It ended without reading all that we sent.  This error comes once, before what it sent.
        packet, ancillary, _, _ = sock.recvmsg(MAX_PACKET, room, flags)
    fd = None
    for level, kind, data in ancillary:
        if (
            level == socket.SOL_SOCKET
            and kind == socket.SCM_RIGHTS
            and len(data) == _DESCRIPTOR.size
        ):
            (fd,) = _DESCRIPTOR.unpack(data)
    if not packet:
        return None
    verb, _, argument = packet.decode("utf-8", "surrogateescape").partition(" ")
    return verb, argument, fd
