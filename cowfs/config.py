"""What a daemon is told about the mount that it is to serve, and how it is told.

`cowfs mount` starts the daemon before it knows these things, so that the daemon's imports run while
the source is being sealed; they follow over a stream socket. Both directions of that conversation
are here, so that the two processes cannot disagree about it:

    launcher -> daemon   4 bytes length (big endian), JSON of Config; the first byte carries the
    copy's lock
                         descriptor (SCM_RIGHTS)
    daemon -> launcher   one line of JSON: {"ready": true, "pid": N, "passthrough": bool}
                         or {"error": "one line", "exit_code": N}

An end of file in place of the first message tells the daemon that there is nothing to serve: it
leaves without a word. An end of file in place of the answer tells the launcher that the daemon
died.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cowfs.options import Options

_LENGTH = struct.Struct(">I")
# A config holds four paths of at most PATH_MAX; whoever sends more is not our launcher.
MAX_CONFIG = 1 << 20
MAX_ANSWER = 1 << 16


@dataclass(frozen=True)
class Config:
    """One mount. Paths are absolute; bytes that are not UTF-8 are surrogate-escaped (os.fsdecode).

    copy: name of the copy within the store.
    lock_fd: the open file description that holds the copy's flock; whoever gets the Config owns it.
    """

    source: str
    mountpoint: str
    store: str
    copy: str
    lock_fd: int
    options: Options

    def to_json(self) -> bytes:
        """Everything but lock_fd, whose number means nothing to another process."""
        return json.dumps(
            {
                "source": self.source,
                "mountpoint": self.mountpoint,
                "store": self.store,
                "copy": self.copy,
                "options": self.options.to_dict(),
            }
        ).encode("ascii")  # json escapes lone surrogates, so odd file names survive

    @classmethod
    def from_json(cls, data: bytes, lock_fd: int) -> Config:
        """Raises ValueError, KeyError or TypeError when this is not what to_json() made."""
        values = json.loads(data)
        return cls(
            source=values["source"],
            mountpoint=values["mountpoint"],
            store=values["store"],
            copy=values["copy"],
            lock_fd=lock_fd,
            options=Options.from_dict(values["options"]),
        )


def send_config(sock: socket.socket, config: Config) -> None:
    """Launcher's side. Blocking; BrokenPipeError, ConnectionResetError: the daemon is gone."""
    body = config.to_json()
    message = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(sock, [message], [config.lock_fd])
    sock.sendall(message[sent:])


def receive_config(sock: socket.socket) -> Config | None:
    """Daemon's side. Blocking; None when the launcher left without a word.

    The lock descriptor arrives close-on-exec. Raises EOFError for a message cut short, ValueError,
    KeyError or TypeError for one that makes no sense; descriptors that came with it are closed
    then.
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
                if not 0 < length <= MAX_CONFIG:
                    raise ValueError(f"a config of {length} bytes")
                wanted += length
        if len(fds) != 1:
            raise ValueError(f"{len(fds)} descriptors came with the config, not one")
        config = Config.from_json(data[_LENGTH.size :], fds[0])
        fds.clear()  # the caller's now
        return config
    finally:
        for fd in fds:
            os.close(fd)


def send_answer(sock: socket.socket, answer: Mapping[str, Any]) -> None:
    """Daemon's side. OSError when the launcher is gone."""
    sock.sendall(json.dumps(dict(answer)).encode("ascii") + b"\n")


def receive_answer(sock: socket.socket) -> dict[str, Any] | None:
    """Launcher's side: the daemon's line, None if it died without one. ValueError: nonsense."""
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
            raise ValueError("the daemon's answer does not end")
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError(f"the daemon answered {answer!r}")
    return answer
