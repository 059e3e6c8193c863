"""A mount in the background gets a scope of its own from systemd: systemd.scope(5).

Keeper and daemon begin in the control group of whoever called `cowfs mount` or mount(8): a .mount
unit, a session, another service.  When that one is stopped or killed, systemd ends whatever is in
its group, and a copy that others use would go with it.  In a scope they stay until the mount ends.

Without systemd they stay in that group, as the daemons of other FUSE filesystems do.  A container
runtime, a batch system or a supervisor made it, to bound and to end whatever is started in it, and
there is nobody to ask for another one.  Leaving it by hand would be an escape that its owner knows
nothing of, and leads nowhere: a container has its own group as the root of what it sees, and may
seldom write there; a group of cgroup v2 that hands controllers on takes no process (EBUSY); v1 has
many trees; and memory stays charged to where it was first used.

The manager is asked over its private socket, as systemctl does for root: the bus may not run yet
when the mounts of fstab are made, and a client library would take longer to import than all of the
mount.  Messages are those of the D-Bus specification, and only what this one question needs.
"""

from __future__ import annotations

import os
import socket
import struct

_BOOTED = "/run/systemd/system"
_SOCKET = "/run/systemd/private"
# The manager answers at once, but for a reload of many units.
_PATIENCE = 5.0

_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8
_FIXED_HEADER = 16


def enter(name: str, description: str, pids: list[int]) -> bool:
    """Move these processes into the new scope *name*; False where systemd is not the init.

    OSError: they stay where they are.
    """
    if not _is_init():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(_SOCKET)
        sock.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        if not _line(sock).startswith(b"OK "):
            raise PermissionError(0, "systemd does not know us")
        sock.sendall(b"BEGIN\r\n" + _question(name, description, pids))
        _check_answer(sock)
    return True


def _is_init() -> bool:
    """Whether systemd is the first process, here, and not only in a directory of the host's."""
    try:
        with open("/proc/1/comm") as comm:
            return comm.read() == "systemd\n" and os.path.isdir(_BOOTED)
    except OSError:
        return False


def _question(name: str, description: str, pids: list[int]) -> bytes:
    body = _Marshal()
    body.string(name)
    body.string("fail")
    with body.array(8):
        body.item("PIDs", "au")
        with body.array(4):
            for pid in pids:
                body.number(pid)
        body.item("Description", "s")
        body.string(description)
        # Not stopped when the machine goes down: what is mounted is unmounted, and that ends it.
        body.item("DefaultDependencies", "b")
        body.number(0)
        # Asked to end, the daemon unmounts what is idle; what is in use stays.
        body.item("SendSIGKILL", "b")
        body.number(0)
        # Nothing is left of it to look at: the log is the mount's.
        body.item("CollectMode", "s")
        body.string("inactive-or-failed")
    with body.array(8):
        pass
    header = _Marshal()
    header.data += struct.pack("<cBBBII", b"l", _CALL, 0, 1, len(body.data), 1)
    with header.array(8):
        for code, kind, value in (
            (_PATH, "o", "/org/freedesktop/systemd1"),
            (_INTERFACE, "s", "org.freedesktop.systemd1.Manager"),
            (_MEMBER, "s", "StartTransientUnit"),
            (_DESTINATION, "s", "org.freedesktop.systemd1"),
            (_SIGNATURE, "g", "ssa(sv)a(sa(sv))"),
        ):
            header.field(code, kind, value)
    header.align(8)
    return bytes(header.data + body.data)


class _Marshal:
    """Values in little-endian D-Bus form."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def number(self, value: int) -> None:
        self.align(4)
        self.data += struct.pack("<I", value)

    def string(self, value: str) -> None:
        encoded = value.encode(errors="replace")
        self.number(len(encoded))
        self.data += encoded + b"\0"

    def signature(self, value: str) -> None:
        self.data += bytes([len(value)]) + value.encode() + b"\0"

    def item(self, name: str, kind: str) -> None:
        """The name and type of what follows."""
        self.align(8)
        self.string(name)
        self.signature(kind)

    def field(self, code: int, kind: str, value: str) -> None:
        """One of a header."""
        self.align(8)
        self.data.append(code)
        self.signature(kind)
        if kind == "g":
            self.signature(value)
        else:
            self.string(value)

    def array(self, alignment: int) -> _Array:
        """Of what is marshalled in its context."""
        return _Array(self, alignment)


class _Array:
    def __init__(self, marshal: _Marshal, alignment: int) -> None:
        self._marshal, self._alignment = marshal, alignment

    def __enter__(self) -> None:
        self._marshal.number(0)
        self._length_at = len(self._marshal.data) - 4
        self._marshal.align(self._alignment)
        self._begin = len(self._marshal.data)

    def __exit__(self, *_: object) -> None:
        length = len(self._marshal.data) - self._begin
        struct.pack_into("<I", self._marshal.data, self._length_at, length)


def _line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _exactly(sock, 1)
    return line


def _check_answer(sock: socket.socket) -> None:
    """Wait for it, past what the manager tells everybody.  OSError with its reason."""
    while True:
        fixed = _exactly(sock, _FIXED_HEADER)
        kind = fixed[1]
        length, _serial, fields = struct.unpack_from("<III", fixed, 4)
        _exactly(sock, fields + -fields % 8)
        body = _exactly(sock, length)
        if kind == _RETURN:
            return
        if kind == _ERROR:
            size = struct.unpack_from("<I", body)[0] if length else 0
            raise OSError(0, body[4 : 4 + size].decode(errors="replace") or "no reason given")


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionResetError(0, "systemd has closed the connection")
        data += more
    return data
