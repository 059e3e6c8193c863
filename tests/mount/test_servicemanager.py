"""What is in systemd's descriptor store, when it takes all, little or nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.mount import servicemanager


class Manager:
    """A service manager, and what it has heard."""

    def __init__(self, path: Path, limit: int) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self.environment = {"NOTIFY_SOCKET": str(path), "FDSTORE": str(limit)}

    def heard(self) -> list[str]:
        """What was said since the last question; of a descriptor +NAME or -NAME."""
        found: list[str] = []
        while True:
            try:
                text = self._sock.recv(4096, socket.MSG_DONTWAIT).decode()
            except BlockingIOError:
                return found
            fields = dict(line.split("=", 1) for line in text.split("\n"))
            sign = "+" if "FDSTORE" in fields else "-"
            found.append(sign + fields["FDNAME"] if "FDNAME" in fields else text)

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """One whose store has room for two, and is told at once of what is due."""
    manager = Manager(tmp_path / "notify", 2)
    for name, value in manager.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(servicemanager, "SETTLING", 0.0)
    monkeypatch.setattr(servicemanager, "LASTING", 0.0)
    yield manager
    manager.close()


def change(store: servicemanager.Systemd, *names: str) -> None:
    for name in names:
        store.change(name)


def test_no_more_is_stored_than_systemd_takes(manager: Manager) -> None:
    store = servicemanager.Systemd()
    change(store, "a", "b", "c")
    store.settle({"a": 0, "b": 0, "c": 0})
    assert manager.heard() == ["+a", "+b"]
    assert store.due() is None
    change(store, "c")
    store.settle({"a": 0, "b": 0})
    assert manager.heard() == []
    change(store, "d", "a")
    store.settle({"b": 0, "d": 0})
    store.settle({"b": 0, "d": 0})
    assert manager.heard() == ["-a", "+d"]


def test_what_comes_and_goes_at_once_is_not_told(manager: Manager) -> None:
    store = servicemanager.Systemd()
    for number in range(2000):
        change(store, f"gone-{number}", f"gone-{number}")  # put and dropped
    change(store, "stays")
    store.settle({"stays": 0})
    change(store, "stays", "stays", "other", "other")  # dropped, and put again: another one
    store.settle({"stays": 1})
    assert manager.heard() == ["+stays", "-stays", "+stays"]


def test_changes_wait_for_what_they_come_to(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicemanager, "LASTING", 3600.0)
    store = servicemanager.Systemd()
    change(store, "a")
    store.settle({"a": 0})
    assert manager.heard() == []
    due = store.due()
    assert due is not None
    assert due > time.monotonic() + 3000


def test_a_service_manager_that_takes_nothing_is_told_later(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicemanager, "_PATIENCE", 0.001)
    monkeypatch.setattr(servicemanager, "LONGEST_PAUSE", 0.0)
    store = servicemanager.Systemd()
    for _ in range(1000):  # more than its queue has room for
        store.say("STATUS=busy")
    change(store, "a", "b")
    store.settle({"a": 0, "b": 0})
    change(store, "b")
    store.settle({"a": 0})
    heard: list[str] = []
    while store.due() is not None:
        heard += manager.heard()
        store.settle({"a": 0})
    heard += manager.heard()
    assert heard == ["STATUS=busy"] * 1000 + ["+a"]


def test_the_store_is_empty_at_the_end(manager: Manager) -> None:
    store = servicemanager.Systemd()
    change(store, "a", "b")
    store.settle({"a": 0, "b": 0})
    store.finish({})
    assert sorted(manager.heard()) == ["+a", "+b", "-a", "-b"]
