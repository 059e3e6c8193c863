"""What a service manager is told, and what it keeps for us: sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time

from cowfs.mount import conversation
from cowfs.mount.logline import log

# Seconds. What is held for less than the first is not told to the service manager (the keeper takes
# what a daemon says in bunches, half as far apart); and it is told no more often than the second.
LASTING = 0.01
SETTLING = 0.1
# Between two tries when it takes nothing, at most: seconds.
LONGEST_PAUSE = 5.0
# How long to wait for a service manager that takes nothing, in seconds: with a message that can be
# sent later, and with the last one.
_PATIENCE = 0.2
_LAST_PATIENCE = 10.0


class Systemd:
    """The service manager, if there is one: NOTIFY_SOCKET.

    Its store is to have what is held here.  It is not told of what comes and goes at once, as most
    files without a name do: a change waits for a moment, and then the manager is told how things
    stand.  So nothing is lost when the manager takes nothing: it is told later.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        # Whether it holds descriptors for us (since systemd 254 it says so; 0: it does not).
        limit = os.environ.get("FDSTORE", "")
        self._limit = int(limit) if limit.isdecimal() else 0
        self.stores = bool(self._address) and self._limit > 0
        # What it has by our knowledge, and the names of which that may not be true any more.
        self._stored: set[str] = set()
        # What it has given back to us, and has still, until we have stored that anew.
        self._given_back: set[str] = set()
        self._changed: dict[str, None] = {}
        # What it has no room for: files that are lost to their users when this process is killed.
        self._crowded: dict[str, None] = {}
        # What it could not be told, in the order.
        self._unsaid: list[str] = []
        self._pause = SETTLING
        self._next = 0.0

    def say(self, text: str) -> None:
        """Tell the manager, now or as soon as it reads."""
        if self._address:
            self._unsaid.append(text)
            self._say_unsaid()

    def change(self, name: str) -> None:
        """What is held under this name is another one, or nothing, from now on."""
        if self.stores:
            if not self._changed:
                self._next = max(self._next, time.monotonic() + LASTING)
            self._changed[name] = None
            self._crowded.pop(name, None)

    def was_given_back(self, held: dict[str, int]) -> None:
        """What it has held for the process before this one."""
        self._given_back.update(held)

    def due(self) -> float | None:
        """When `settle` has something to do; None: never."""
        return self._next if self._unsaid or self._changed else None

    def settle(self, held: dict[str, int]) -> None:
        """Have it store what is held now, if the time has come."""
        due = self.due()
        now = time.monotonic()
        if due is None or now < due:
            return
        self._next = now + SETTLING
        if self._say_unsaid():
            for name in list(self._changed):
                if not self._say_change(name, held.get(name)):
                    break

    def finish(self, held: dict[str, int]) -> None:
        """The same as the last thing, for which there is no later."""
        for name in (self._stored | self._given_back) - held.keys():
            self.change(name)
        deadline = time.monotonic() + _LAST_PATIENCE
        while (due := self.due()) is not None and time.monotonic() < deadline:
            time.sleep(max(0.0, min(due, deadline) - time.monotonic()))
            self.settle(held)
        if self.due() is not None:
            log(f"systemd was not told of everything: it took nothing for {_LAST_PATIENCE:g} s")

    def _say_change(self, name: str, fd: int | None) -> bool:
        """Whether it was taken, or need not be said."""
        if name in self._stored or (fd is None and name in self._given_back):
            if not self._send(f"FDSTOREREMOVE=1\nFDNAME={name}"):
                return False
            self._stored.discard(name)
            self._given_back.discard(name)
            self._changed.update(self._crowded)
            self._crowded.clear()
        if fd is not None and len(self._stored) >= self._limit:
            self._crowded[name] = None
        elif fd is not None:
            # FDPOLL: the device has an error to tell once it is unmounted, and is ours to close
            if not self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd):
                return False
            self._stored.add(name)
            self._given_back.discard(name)
        del self._changed[name]
        return True

    def _say_unsaid(self) -> bool:
        while self._unsaid:
            if not self._send(self._unsaid[0]):
                return False
            del self._unsaid[0]
        return True

    def _send(self, text: str, fd: int | None = None) -> bool:
        """Whether it was taken; else it is tried again, after a pause that grows."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.connect(self._address)
                if fd is None:
                    sock.sendall(conversation.encoded(text))
                else:
                    socket.send_fds(sock, [conversation.encoded(text)], [fd])
        except OSError as error:
            if self._pause == SETTLING:
                log(f"cannot tell systemd, which is told later: {error.strerror or error}")
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._next = time.monotonic() + self._pause
            return False
        self._pause = SETTLING
        return True
