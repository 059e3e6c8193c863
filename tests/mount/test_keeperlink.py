"""What a daemon tells its keeper, and when that takes nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cowfs.mount import keeperlink
from cowfs.mount.conversation import receive_packet
from cowfs.mount.keeperlink import KeeperLink


class Kept:
    """A keeper that is stopped until it is told to hear."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.held: set[str] = set()
        self.words: list[str] = []

    def hear(self) -> None:
        while True:
            try:
                packet = receive_packet(self._sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            assert packet is not None
            verb, argument, fd = packet
            if fd is not None:
                os.close(fd)
            if verb == "put":
                self.held.add(argument)
            elif verb == "drop":
                self.held.discard(argument)
            else:
                self.words.append(verb)

    def die(self) -> None:
        self._sock.close()


Pair = tuple[KeeperLink, Kept]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """The daemon's end, and a keeper whose socket has little room."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(keeperlink, "_BUFFER", 1 << 16)
    monkeypatch.setattr(keeperlink, "_PATIENCE", 1)
    with ours, theirs:
        yield KeeperLink(ours), Kept(theirs)


def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packets for which the daemon stands still in vain, from now on."""
    found: list[str] = []
    send = keeperlink.send_packet

    def counted(
        sock: socket.socket, verb: str, argument: str, fd: int | None, flags: int = 0
    ) -> None:
        try:
            send(sock, verb, argument, fd, flags)
        except BlockingIOError:
            if not flags & socket.MSG_DONTWAIT:
                found.append(argument)
            raise

    monkeypatch.setattr(keeperlink, "send_packet", counted)
    return found


def test_a_stopped_keeper_is_waited_for_once_and_told_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link, kept = pair
    waited = waits(monkeypatch)
    link.put("before", 0)
    for number in range(3000):  # temporary files: opened, removed, closed
        link.put(f"gone-{number}", 0)
        if number % 100:
            link.drop(f"gone-{number}")
    link.drop("before")
    for verb, argument in (("done", "15"), ("pong", ""), ("done", "2"), ("pong", "")):
        link.say(verb, argument)
    assert len(waited) == 1
    assert link.is_late.is_set()
    while link.is_late.is_set():
        kept.hear()
        link.catch_up()
    kept.hear()
    assert kept.held == {f"gone-{number}" for number in range(0, 3000, 100)}
    assert kept.words == ["done", "pong", "done"]
    assert len(caplog.records) == 2


def test_what_waits_for_a_keeper_costs_no_more_than_what_is_there(pair: Pair) -> None:
    link, kept = pair
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3000):
        link.put(f"gone-{number}", 0)
        link.drop(f"gone-{number}")
    assert link.is_late.is_set()
    assert len(os.listdir("/proc/self/fd")) == before
    kept.hear()
    link.catch_up()
    assert not link.is_late.is_set()  # nothing of it was left to tell


def test_a_keeper_that_dies_while_something_waits_is_done_without(pair: Pair) -> None:
    link, kept = pair
    before = len(os.listdir("/proc/self/fd"))
    number = 0
    while not link.is_late.is_set():
        link.put(f"gone-{number}", 0)
        number += 1
    kept.die()
    link.put("gone-last", 0)
    link.bye(0)
    assert not link.is_alive
    assert len(os.listdir("/proc/self/fd")) == before - 1
