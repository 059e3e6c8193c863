"""Asking systemd for a scope, with a manager of our own in its place."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cowfs.mount import scope

RETURN, ERROR, SIGNAL = 2, 3, 4
ANSWER = struct.pack("<I", 5) + b"/a/b\0\0"


class Reader:
    """Values in little-endian D-Bus form, taken apart as the specification says."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def align(self, size: int) -> None:
        padding = -self.at % size
        assert self.take(padding) == bytes(padding)

    def take(self, size: int) -> bytes:
        taken = self.data[self.at : self.at + size]
        assert len(taken) == size
        self.at += size
        return taken

    def number(self) -> int:
        self.align(4)
        return int(struct.unpack("<I", self.take(4))[0])

    def text(self, length: int) -> str:
        text = self.take(length).decode()
        assert self.take(1) == b"\0"
        return text

    def values(self, signature: str) -> list[Any]:
        found = []
        while signature:
            value, signature = self._value(signature)
            found.append(value)
        return found

    def _value(self, signature: str) -> tuple[Any, str]:
        kind, rest = signature[0], signature[1:]
        if kind in "so":
            return self.text(self.number()), rest
        if kind == "g":
            return self.text(self.take(1)[0]), rest
        if kind == "y":
            return self.take(1)[0], rest
        if kind in "ub":
            return self.number(), rest
        if kind == "v":
            (value,) = self.values(self._value("g")[0])
            return value, rest
        if kind == "(":  # always alone, as the element of an array
            self.align(8)
            return tuple(self.values(rest[:-1])), ""
        assert kind == "a"
        if rest[0] == "(":
            end = self._end_of_struct(rest)
            element, rest = rest[:end], rest[end:]
        else:
            element, rest = rest[0], rest[1:]
        length = self.number()
        self.align(8 if element[0] == "(" else 4)
        end_at = self.at + length
        found = []
        while self.at < end_at:
            found += self.values(element)
        assert self.at == end_at
        return found, rest

    @staticmethod
    def _end_of_struct(signature: str) -> int:
        depth = 0
        for at, char in enumerate(signature):
            depth += {"(": 1, ")": -1}.get(char, 0)
            if depth == 0:
                return at + 1
        raise AssertionError(signature)


class Manager:
    """Listens where systemd does, and answers one call with these bytes."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.hello = b"OK 0123456789abcdef\r\n"
        self.answers: list[tuple[int, str, bytes]] = [(RETURN, "o", ANSWER)]
        self.heard = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as sock:
            while not self.heard.endswith(b"\n"):
                self.heard += sock.recv(1)
            sock.sendall(self.hello)
            while b"systemd1.Manager" not in self.heard:
                more = sock.recv(1 << 16)
                if not more:
                    return
                self.heard += more
            sock.sendall(b"".join(message(*answer) for answer in self.answers))

    def wait(self) -> bytes:
        """What it was told, from the first byte on."""
        self._thread.join()
        return self.heard


def message(kind: int, signature: str, body: bytes) -> bytes:
    """One of the manager's, with its signature as the only field of the header."""
    fields = struct.pack("<BBxxB", 8, 1, len(signature))  # never looked at, so the form is enough
    header = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), 7, len(fields))
    return header + fields + bytes(-len(fields) % 8) + body


def said(text: str) -> bytes:
    """A string as a body."""
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that says yes."""
    path = tmp_path / "private"
    monkeypatch.setattr(scope, "_SOCKET", str(path))
    monkeypatch.setattr(scope, "_is_init", lambda: True)
    manager = Manager(path)
    yield manager
    manager.wait()


def test_the_manager_is_asked_for_a_scope_of_these_processes(manager: Manager) -> None:
    assert scope.enter("cowfs-17.scope", "Copy of /data/größe on /mnt", [17, 18])
    heard = manager.wait()
    uid = str(os.geteuid()).encode().hex().encode()
    hello, call = heard.split(b"BEGIN\r\n")
    assert hello == b"\0AUTH EXTERNAL " + uid + b"\r\n"

    header = Reader(call)
    assert header.take(4) == b"l\x01\x00\x01"  # little-endian, a call, no flags, version 1
    length, serial = header.number(), header.number()
    assert serial
    (fields,) = header.values("a(yv)")
    assert dict(fields) == {
        1: "/org/freedesktop/systemd1",
        2: "org.freedesktop.systemd1.Manager",
        3: "StartTransientUnit",
        6: "org.freedesktop.systemd1",
        8: "ssa(sv)a(sa(sv))",
    }
    header.align(8)

    body = Reader(header.take(length))
    assert header.at == len(call)
    name, mode, properties, others = body.values("ssa(sv)a(sa(sv))")
    assert body.at == length
    assert (name, mode, others) == ("cowfs-17.scope", "fail", [])
    assert dict(properties) == {
        "PIDs": [17, 18],
        "Description": "Copy of /data/größe on /mnt",
        "DefaultDependencies": 0,
        "SendSIGKILL": 0,
        "CollectMode": "inactive-or-failed",
    }


@pytest.mark.parametrize("length", range(8))
def test_every_length_of_a_name_is_padded_right(manager: Manager, length: int) -> None:
    assert scope.enter("x" * length, "y" * length, [1])
    call = manager.wait().split(b"BEGIN\r\n")[1]
    header = Reader(call)
    header.at = 4
    size = header.number()
    body = Reader(call[-size:])
    assert body.values("ss") == ["x" * length, "fail"]
    assert len(body.values("a(sv)a(sa(sv))")[0]) == 5
    assert body.at == size


def test_what_the_manager_tells_everybody_is_passed_over(manager: Manager) -> None:
    manager.answers.insert(0, (SIGNAL, "s", said("UnitNew")))
    assert scope.enter("cowfs-17.scope", "Copy", [17])


def test_the_reason_of_a_refusal_is_told(manager: Manager) -> None:
    manager.answers = [(ERROR, "s", said("Unit cowfs-17.scope already exists."))]
    with pytest.raises(OSError, match=r"Unit cowfs-17\.scope already exists\."):
        scope.enter("cowfs-17.scope", "Copy", [17])


def test_a_refusal_without_a_reason_is_one(manager: Manager) -> None:
    manager.answers = [(ERROR, "", b"")]
    with pytest.raises(OSError, match="no reason given"):
        scope.enter("cowfs-17.scope", "Copy", [17])


def test_a_manager_that_goes_away_is_told(manager: Manager) -> None:
    manager.answers = []
    with pytest.raises(ConnectionResetError, match="closed the connection"):
        scope.enter("cowfs-17.scope", "Copy", [17])


def test_a_manager_that_does_not_know_us_is_told(manager: Manager) -> None:
    manager.hello = b"REJECTED EXTERNAL\r\n"
    with pytest.raises(PermissionError, match="does not know us"):
        scope.enter("cowfs-17.scope", "Copy", [17])


def test_without_systemd_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "_BOOTED", str(tmp_path / "missing"))
    assert not scope.enter("cowfs-17.scope", "Copy", [17])
