"""The daemon's side of its keeper: what is to outlive the daemon, and word of how it is.

What is put into the vault is safe as soon as the call returns, even if this process is killed in
the next moment: the packet lies in the keeper's socket then.  All of it belongs to the event loop's
thread.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import trio

from cowfs.mount.conversation import BYE, DROP, FAILED, FD, PUT, READY, receive_packet, send_packet

log = logging.getLogger("cowfs")

# Packets that wait for a keeper that is not scheduled, in bytes of the socket's memory.
_BUFFER = 8 << 20
# A keeper that reads nothing for this many seconds is stopped: what it should know waits here.
_PATIENCE = 2
# How long to wait for its answer to our last word, in seconds.
_LAST_PATIENCE = 10
_TIMEVAL = struct.Struct("ll")  # seconds, microseconds


class KeeperLink:
    """The keeper, as its daemon sees it.

    A mount goes on when its keeper dies: the daemon logs that once, and serves on without one. It
    waits once for a keeper that is stopped. From then on what the keeper is to hold waits here
    until it reads again: if this daemon is killed before, files without a name are lost.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Takes over the socket that the keeper gave us."""
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with contextlib.suppress(OSError):  # not without CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, 32, _BUFFER)  # SO_SNDBUFFORCE
        # The kernel's time-out: with Python's, each call would be preceded by a poll(2).
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(_PATIENCE, 0))
        self.is_alive = True
        #: Set as long as something waits for the keeper.
        self.is_late = trio.Event()
        # What waits, in the order, by verb and argument; with what is to be held under that name.
        self._waiting: dict[tuple[str, str], tuple[str, int | None]] = {}
        # The names under which the keeper holds something, when it has taken all that was sent.
        self._sent: set[str] = set()
        #: Whether the connection is gone, and nothing is left for another daemon to serve.
        self.unmounted = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def order(self) -> tuple[str, str, dict[str, int]] | None:
        """The keeper's next word that is no descriptor, (verb, argument, descriptors by name).

        The descriptors are the caller's.  None: there is nothing to serve.
        """
        held: dict[str, int] = {}
        while (packet := receive_packet(self._sock)) is not None:
            verb, argument, fd = packet
            if verb != FD:
                self._sent = set(held)
                return verb, argument, held
            if fd is not None:
                held[argument] = fd
        for fd in held.values():
            os.close(fd)
        return None

    def word(self) -> str | None:
        """What the keeper says while the mount is served; None when it is gone."""
        try:
            packet = receive_packet(self._sock, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return ""
        if packet is None:
            self._lost()
            return None
        return packet[0]

    def put(self, name: str, fd: int) -> None:
        """Have a duplicate of *fd* held under a name, in the place of what it was before."""
        self._say(PUT, name, fd)

    def drop(self, name: str) -> None:
        """What was put there is not needed any more."""
        self._say(DROP, name)

    def say(self, verb: str, argument: str = "") -> None:
        """One of the verbs of `conversation.py`."""
        self._say(verb, argument)

    def ready(self, answer: Mapping[str, Any]) -> None:
        """The mount answers."""
        self._say(READY, json.dumps(dict(answer)))

    def failed(self, problem: str, exit_code: int) -> None:
        """The mount never will: one line for the user, and the exit code of the launcher."""
        self._say(FAILED, json.dumps({"error": problem, "exit_code": exit_code}))

    def bye(self, exit_code: int) -> None:
        """All is put away; to be followed by the end of this process."""
        self._say(BYE, str(exit_code))
        deadline = time.monotonic() + _LAST_PATIENCE
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        while self.is_late.is_set() and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self.catch_up()

    def catch_up(self) -> None:
        """Tell the keeper what it has not taken so far, as far as it takes it now."""
        while self._waiting:
            key, (argument, fd) = next(iter(self._waiting.items()))
            if not self._send(key[0], argument, fd, socket.MSG_DONTWAIT):
                return
            if self._waiting.pop(key, None) and fd is not None:
                os.close(fd)
        if self.is_late.is_set():
            self.is_late = trio.Event()
            log.warning("the keeper takes what it is told again")

    def _say(self, verb: str, argument: str, fd: int | None = None) -> None:
        if not self.is_alive:
            return
        if self.is_late.is_set():
            self._put_off(verb, argument, fd)
            self.catch_up()
        elif not self._send(verb, argument, fd) and self.is_alive:
            log.warning(
                "the keeper takes nothing, and is told later: it is stopped, or has no time"
            )
            self.is_late.set()
            self._put_off(verb, argument, fd)

    def _send(self, verb: str, argument: str, fd: int | None, flags: int = 0) -> bool:
        """Whether it was taken, or never will be."""
        try:
            send_packet(self._sock, verb, argument, fd, flags)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._lost()
            return False
        except OSError as error:  # the kernel is out of memory: it may hear the next
            log.warning("the keeper was not told: %s %s: %s", verb, argument, error.strerror)
            return True
        if verb == PUT:
            self._sent.add(argument)
        elif verb == DROP:
            self._sent.discard(argument)
        return True

    def _put_off(self, verb: str, argument: str, fd: int | None) -> None:
        """The keeper need not know of what comes and goes before it reads again."""
        if verb not in (PUT, DROP):
            self._waiting[verb, argument] = argument, None
            return
        for key in ((PUT, argument), (DROP, argument)):
            _, old = self._waiting.pop(key, ("", None))
            if old is not None:
                os.close(old)
        if fd is None:
            if argument in self._sent:
                self._waiting[DROP, argument] = argument, None
            return
        try:
            self._waiting[PUT, argument] = argument, os.dup(fd)
        except OSError as error:
            log.warning("the keeper will not be told: %s %s: %s", verb, argument, error.strerror)

    def _lost(self) -> None:
        if self.is_alive:
            self.is_alive = False
            for _, fd in self._waiting.values():
                if fd is not None:
                    os.close(fd)
            self._waiting.clear()
            log.warning("the keeper is gone: the mount goes on, and ends with this daemon")
