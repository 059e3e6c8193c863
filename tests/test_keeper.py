"""The keeper by itself, with daemons that are small scripts: whom it starts again, and when not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs import keeper
from cowfs.conversation import send_order

# A keeper that goes on with a mount, with shorter times and no protection from the OOM killer.
KEEPER = """
import json, os, sys
from cowfs import keeper
keeper.protect_from_oom = lambda: None
settings = json.loads(sys.argv[1])
for name, value in settings.get("times", {}).items():
    setattr(keeper, name, value)
held = {name: os.memfd_create(name) for name in ("order", "lock", "device")}
kept = keeper.Keeper(None, held)
kept.command, kept.fallback = settings["command"], settings.get("fallback")
sys.exit(kept.run())
"""

# A daemon that has been told to go: what it does then comes after this.
DAEMON = """
import os, signal, socket, sys, time
from cowfs.conversation import receive_packet, send_packet
sock = socket.socket(fileno=int(sys.argv[-1]))
while receive_packet(sock)[0] != "go":
    pass
"""

Start = Callable[..., "subprocess.Popen[str]"]


def daemon(script: str) -> list[str]:
    return [sys.executable, "-c", DAEMON + script]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(COMMAND, ...)` runs a keeper whose daemon is this command."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], **settings: object) -> subprocess.Popen[str]:
        times = {"FIRST_PAUSE": 0.01, "LONGEST_PAUSE": 0.02}
        told = json.dumps({"times": times, "command": command} | settings)
        process = subprocess.Popen(
            [sys.executable, "-c", KEEPER, told], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def last_words(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a keeper has ended, and what it logged."""
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(
    "command", [daemon("sys.exit(3)"), ["/no/such/python"]], ids=["fails", "is not there"]
)
def test_a_mount_that_no_daemon_can_serve_is_given_up(start: Start, command: list[str]) -> None:
    code, said = last_words(start(command))
    assert code == keeper.INTERNAL_ERROR
    assert len(said.splitlines()) == keeper.HOPELESS
    assert "signal" not in said
    assert "and none can serve: giving the mount up" in said.splitlines()[-1]


def test_a_signal_while_the_daemon_is_replaced_reaches_the_next_one(
    start: Start, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    process = start(
        daemon(
            f"open({str(begun)!r}, 'w').close()\n"
            "time.sleep(0.5)\n"
            "signal.signal(signal.SIGTERM, lambda *_: send_packet(sock, 'bye', '7'))\n"
            "send_packet(sock, 'ready', '{}')\n"
            "time.sleep(30)\n"
        )
    )
    while not begun.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert last_words(process) == (7, "")


def test_the_way_back_ends_when_the_new_version_serves(start: Start, tmp_path: Path) -> None:
    # Then it is started again like any other, and the one before it may be gone by now.
    served = tmp_path / "served"
    script = (
        f"if os.path.exists({str(served)!r}): sys.exit(3)\n"
        f"open({str(served)!r}, 'w').close()\n"
        "send_packet(sock, 'ready', '{}')\n"
        "time.sleep(0.2)\n"
    )
    code, said = last_words(start(daemon(script), fallback=["/bin/false"]))
    assert code == keeper.INTERNAL_ERROR
    assert "going back" not in said


def test_a_new_version_that_does_not_serve_is_gone_back_from(start: Start) -> None:
    back = daemon("send_packet(sock, 'ready', '{}'); send_packet(sock, 'bye', '0')")
    code, said = last_words(start(daemon("sys.exit(3)"), fallback=back))
    assert code == 0
    assert "the new version does not serve: going back to the last one" in said


def test_a_daemon_that_does_not_begin_is_ended(start: Start) -> None:
    times = {"STARTING": 0.3, "HOPELESS": 2, "FIRST_PAUSE": 0.01}
    code, said = last_words(start(daemon("time.sleep(60)"), times=times))
    assert code == keeper.INTERNAL_ERROR
    assert said.count("does not begin to serve, and is ended") == 2


def test_what_the_launcher_takes_does_not_count(tmp_path: Path) -> None:
    # It seals a source, which may take hours. The daemon is started before, and waits.
    ours, theirs = socket.socketpair()
    script = (
        "send_packet(sock, 'put', 'device', os.memfd_create('device'))\n"
        "time.sleep(0.2)\n"
        "send_packet(sock, 'ready', '{}')\n"
        "send_packet(sock, 'bye', '0')\n"
    )
    waits_for_order = KEEPER.replace(
        "keeper.Keeper(None, held)",
        f"keeper.Keeper(__import__('socket').socket(fileno={theirs.fileno()}), {{}})",
    )
    told = json.dumps({"times": {"STARTING": 0.5}, "command": daemon(script)})
    with ours, (tmp_path / "lock").open("w") as lock:
        process = subprocess.Popen(
            [sys.executable, "-c", waits_for_order, told],
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        time.sleep(1)
        send_order(ours, b"{}", lock.fileno())
        assert last_words(process) == (0, "")


def test_a_daemon_that_takes_nothing_does_not_hold_the_keeper_up(start: Start) -> None:
    stopped = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]
    times = {"STARTING": 0.3, "HOPELESS": 2, "FIRST_PAUSE": 0.01}
    code, _said = last_words(start(stopped, times=times))
    assert code == keeper.INTERNAL_ERROR


def test_pauses_stay_short_however_many_have_died() -> None:
    held = {"device": os.memfd_create("device")}
    kept = keeper.Keeper(None, held)
    for kept.deaths in (4, 100, 5000):
        kept._plan_restart("it ended", ready=True, served=0.1)
        assert kept.exit_code is None
        assert kept.restart_at <= time.monotonic() + keeper.LONGEST_PAUSE
    os.close(held["device"])


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
    monkeypatch.setattr(keeper, "SETTLING", 0.0)
    monkeypatch.setattr(keeper, "LASTING", 0.0)
    yield manager
    manager.close()


def change(store: keeper.Systemd, *names: str) -> None:
    for name in names:
        store.change(name)


def test_no_more_is_stored_than_systemd_takes(manager: Manager) -> None:
    store = keeper.Systemd()
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
    store = keeper.Systemd()
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
    monkeypatch.setattr(keeper, "LASTING", 3600.0)
    store = keeper.Systemd()
    change(store, "a")
    store.settle({"a": 0})
    assert manager.heard() == []
    due = store.due()
    assert due is not None
    assert due > time.monotonic() + 3000


def test_a_service_manager_that_takes_nothing_is_told_later(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_NOTIFY_PATIENCE", 0.001)
    monkeypatch.setattr(keeper, "LONGEST_PAUSE", 0.0)
    store = keeper.Systemd()
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
    store = keeper.Systemd()
    change(store, "a", "b")
    store.settle({"a": 0, "b": 0})
    store.finish({})
    assert sorted(manager.heard()) == ["+a", "+b", "-a", "-b"]


def test_a_request_of_odd_bytes_is_answered(tmp_path: Path) -> None:
    # Such as the path of an interpreter may have: not UTF-8.
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking,
    ):
        control.bind(str(tmp_path / "control"))
        control.listen()
        asking.settimeout(5)
        asking.connect(str(tmp_path / "control"))
        asking.send(b"/opt/\xff/python\0-c\0pass")
        keeper.Keeper(None, {keeper.CONTROL: control.fileno()})._accept()
        assert asking.recv(1000).startswith(b"refused the daemon is just being replaced")
