"""The keeper by itself, with daemons that are small scripts: whom it starts again, and when not."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.mount import keeper, supervisor, threads
from cowfs.mount.conversation import CONTROL, send_order
from cowfs.mount.supervisor import Event, Role
from cowfs.system.errors import InternalError

# A keeper that goes on with a mount, with shorter times and no protection from the OOM killer.
KEEPER = """
import json, os, sys
from cowfs.mount import keeper, oom, supervisor
oom.protect = lambda: None
settings = json.loads(sys.argv[1])
for name, value in settings.get("times", {}).items():
    setattr(supervisor, name, value)
names = settings.get("held", ("order", "lock", "device"))
held = {name: os.memfd_create(name) for name in names}
if "control" in settings:
    import socket
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(settings["control"] + ".new")
    control.listen()
    os.rename(settings["control"] + ".new", settings["control"])
    held["control"] = control.fileno()
kept = keeper.Keeper(None, held)
kept.supervisor.command = settings["command"]
sys.exit(kept.run())
"""

# What a daemon is made of; and one that has been told to go: what it does then comes after this.
BEGINNING = """
import os, signal, socket, sys, time
from pathlib import Path
from cowfs.mount.conversation import receive_packet, send_packet
sock = socket.socket(fileno=int(sys.argv[-1]))
def wait_for(word):
    while receive_packet(sock)[0] != word:
        pass
parent = os.getppid()
def wait_until(path):
    while not Path(path).exists() and os.getppid() == parent:
        time.sleep(0.01)
"""
DAEMON = BEGINNING + 'wait_for("go")\n'

# A version that can take over, or is started again; what it does then comes after this.
NEW = BEGINNING + (
    "while (word := receive_packet(sock)[0]) != 'go':\n"
    "    if word == 'check':\n"
    "        send_packet(sock, 'able')\n"
)
OLD = "send_packet(sock, 'ready', '{}')\n"

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


def wait_until(*paths: Path) -> None:
    """Until a script has made these files."""
    deadline = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.01)


def last_words(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a keeper has ended, and what it logged."""
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(
    "command", [daemon("sys.exit(3)"), ["/no/such/python"]], ids=["fails", "is not there"]
)
def test_a_mount_that_no_daemon_can_serve_is_given_up(start: Start, command: list[str]) -> None:
    code, said = last_words(start(command))
    assert code == InternalError.exit_code
    assert len(said.splitlines()) == supervisor.HOPELESS
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


@pytest.mark.parametrize("moment", ["stuck", "writes its stacks"])
def test_a_signal_to_a_daemon_that_is_stuck_reaches_the_next_one(
    start: Start, tmp_path: Path, moment: str
) -> None:
    stuck, writing, first = tmp_path / "stuck", tmp_path / "writing", tmp_path / "first"
    process = start(
        daemon(
            f"if not os.path.exists({str(first)!r}):\n"
            f"    Path({str(first)!r}).touch()\n"
            f"    signal.signal(signal.SIGUSR2, lambda *_: Path({str(writing)!r}).touch())\n"
            "    signal.signal(signal.SIGTERM, lambda *_: None)\n"
            "    send_packet(sock, 'watch', '0.4')\n"
            "    send_packet(sock, 'ready', '{}')\n"
            f"    Path({str(stuck)!r}).touch()\n"
            "    time.sleep(60)\n"
            "    time.sleep(60)\n"
            "def end(*_):\n"
            "    send_packet(sock, 'bye', '7')\n"
            "    os._exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "send_packet(sock, 'ready', '{}')\n"
            "time.sleep(30)\n"
        )
    )
    wait_until(stuck if moment == "stuck" else writing)
    process.send_signal(signal.SIGTERM)
    code, said = last_words(process)
    assert code == 7
    assert "has answered nothing for 0.4 s and is replaced" in said


def test_a_signal_that_a_daemon_has_heeded_is_not_told_to_the_next_one(
    start: Start, tmp_path: Path
) -> None:
    ready, heeded = tmp_path / "ready", tmp_path / "heeded"
    process = start(
        daemon(
            "def heed(*_):\n"
            "    send_packet(sock, 'done', '15')\n"  # the mount is in use, and stays
            f"    Path({str(heeded)!r}).touch()\n"
            "    os._exit(1)\n"
            f"if not os.path.exists({str(heeded)!r}):\n"
            "    signal.signal(signal.SIGTERM, heed)\n"
            "    send_packet(sock, 'ready', '{}')\n"
            f"    Path({str(ready)!r}).touch()\n"
            "    time.sleep(30)\n"
            "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n"
            "send_packet(sock, 'ready', '{}')\n"
            "time.sleep(0.3)\n"
            "send_packet(sock, 'bye', '0')\n"
        )
    )
    wait_until(ready)
    process.send_signal(signal.SIGTERM)
    code, said = last_words(process)
    assert code == 0
    assert said.count("ended") == 1


def test_a_machine_that_was_frozen_ends_no_daemon(start: Start, tmp_path: Path) -> None:
    # Between a ping and its answer, for longer than the watchdog has patience.
    frozen = tmp_path / "frozen"
    process = start(
        daemon(
            "send_packet(sock, 'watch', '2')\n"
            "send_packet(sock, 'ready', '{}')\n"
            "wait_for('ping')\n"
            f"Path({str(frozen)!r}).write_text(str(os.getpid()))\n"
            "os.kill(os.getppid(), signal.SIGSTOP)\n"
            "os.kill(os.getpid(), signal.SIGSTOP)\n"
            "send_packet(sock, 'pong')\n"
            "wait_for('ping')\n"
            "send_packet(sock, 'bye', '0')\n"
        )
    )
    wait_until(frozen)
    while not frozen.read_text():
        time.sleep(0.01)
    pid = int(frozen.read_text())
    while {threads.state(pid), threads.state(process.pid)} != {"T"}:
        time.sleep(0.01)
    time.sleep(2.1)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.2)  # the keeper is the first to look
    os.kill(pid, signal.SIGCONT)
    assert last_words(process) == (0, "")


class Upgrade:
    """Somebody who asks a keeper for the daemon of another version."""

    def __init__(self, path: Path, command: list[str]) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(20)
        self._sock.connect(str(path))
        self._sock.sendall(b"\0".join(map(os.fsencode, command)))

    def answer(self) -> bytes:
        """What the keeper says to it; empty if it ends without a word."""
        with self._sock:
            return self._sock.recv(1000)


@pytest.mark.parametrize("pause", [0.0, 2.0], ids=["at once", "after a pause"])
@pytest.mark.parametrize("able", [True, False])
def test_who_asked_for_an_upgrade_is_told_of_no_other_daemon(
    start: Start, tmp_path: Path, pause: float, able: bool
) -> None:
    # The last version's daemon ends while the new one is being asked, and has a successor.
    control, asked, ended = tmp_path / "control", tmp_path / "asked", tmp_path / "ended"
    again, served = tmp_path / "again", tmp_path / "served"
    last = daemon(
        f"if os.path.exists({str(ended)!r}):\n"
        "    send_packet(sock, 'ready', '{}')\n"
        f"    Path({str(again)!r}).touch()\n"
        f"    wait_until({str(tmp_path / 'end')!r})\n"
        "    send_packet(sock, 'bye', '5')\n"
        "    sys.exit()\n"
        "send_packet(sock, 'ready', '{}')\n"
        f"wait_until({str(asked)!r})\n"
        f"Path({str(ended)!r}).touch()\n"
    )
    new = [
        *(sys.executable, "-c"),
        BEGINNING + "wait_for('check')\n"
        f"Path({str(asked)!r}).touch()\n"
        f"wait_until({str(ended if pause else again)!r})\n"
        "time.sleep(0.2)\n"
        f"send_packet(sock, {'able' if able else 'unable'!r}, 'why \\udcff')\n"
        "wait_for('go')\n"
        "send_packet(sock, 'ready', '{}')\n"
        f"Path({str(served)!r}).write_text(str(os.getpid()))\n"
        f"wait_until({str(tmp_path / 'end')!r})\n"
        "send_packet(sock, 'bye', '6')\n",
    ]
    times = {"AT_ONCE": 0 if pause else 3, "FIRST_PAUSE": pause, "LONGEST_PAUSE": pause}
    process = start(last, control=str(control), times=times)
    wait_until(control)
    while (said := Upgrade(control, new).answer()).startswith(b"refused the daemon is just"):
        pass  # it does not serve yet
    (tmp_path / "end").touch()
    code, _log = last_words(process)
    if able:
        assert (said, code) == (b"ok " + served.read_bytes(), 6)
    else:
        assert (said, code) == (b"refused why \xff", 5)


def test_a_version_that_has_ended_by_now_is_not_able_to_take_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The old one would be killed for nothing.
    kept = keeper.Keeper(None, {})
    told: list[Event] = []
    monkeypatch.setattr(kept.supervisor, "handle", lambda event, *_, **__: told.append(event))
    script = BEGINNING + "send_packet(sock, 'able'); send_packet(sock, 'unable', 'why')\n"
    pid = kept.start(Role.STANDBY, [sys.executable, "-c", script])
    os.waitpid(pid, 0)
    kept._ended(kept._processes[Role.STANDBY], "exit code 0")
    kept.forget(Role.STANDBY)
    assert told == [Event.UNABLE, Event.EXITED]


def test_what_cannot_be_started_may_have_any_path(start: Start, tmp_path: Path) -> None:
    control, asked = tmp_path / "control", tmp_path / "asked"
    process = start(
        daemon(
            "send_packet(sock, 'ready', '{}')\n"
            f"wait_until({str(tmp_path / 'end')!r})\n"
            "send_packet(sock, 'bye', '0')\n"
        ),
        control=str(control),
    )
    wait_until(control)
    command = ["/no/such/\udcff/python", "-c", "pass"]
    while (said := Upgrade(control, command).answer()).startswith(b"refused the daemon is just"):
        pass  # it does not serve yet
    assert said == b"refused cannot start /no/such/\xff/python: No such file or directory"
    script = f"wait_for('check')\nPath({str(asked)!r}).touch()\nwhile sock.recv(1000): pass\n"
    waiting = Upgrade(control, [sys.executable, "-c", BEGINNING + script])
    wait_until(asked)
    (tmp_path / "end").touch()
    assert last_words(process) == (0, "")
    assert waiting.answer() == b"ended"


def upgraded(control: Path, script: str) -> bytes:
    """What a keeper answers to who asks it to go on with this, once it does not refuse to ask."""
    wait_until(control)
    command = [sys.executable, "-c", NEW + script]
    while (said := Upgrade(control, command).answer()).startswith(b"refused the daemon is just"):
        pass  # it does not serve yet
    return said


def test_the_way_back_ends_when_the_new_version_serves(start: Start, tmp_path: Path) -> None:
    # Then it is started again like any other, and the one before it may be gone by now.
    control, served = tmp_path / "control", tmp_path / "served"
    process = start(daemon(OLD + "time.sleep(30)\n"), control=str(control))
    said = upgraded(
        control,
        f"if os.path.exists({str(served)!r}): sys.exit(3)\n"
        f"Path({str(served)!r}).touch()\n"
        "send_packet(sock, 'ready', '{}')\n"
        "time.sleep(0.2)\n",
    )
    assert said.startswith(b"ok ")
    code, log = last_words(process)
    assert code == InternalError.exit_code
    assert "going back" not in log


def test_a_new_version_that_does_not_serve_is_gone_back_from(start: Start, tmp_path: Path) -> None:
    control, upgrading = tmp_path / "control", tmp_path / "upgrading"
    old = (
        f"if os.path.exists({str(upgrading)!r}): send_packet(sock, 'bye', '0'); sys.exit()\n"
        "time.sleep(30)\n"
    )
    process = start(daemon(OLD + old), control=str(control))
    said = upgraded(control, f"Path({str(upgrading)!r}).touch()\nsys.exit(3)\n")
    assert said == b"refused it does not serve: the last version does again, see the log"
    code, log = last_words(process)
    assert code == 0
    assert "the new version does not serve: going back to the last one" in log


def test_a_daemon_that_does_not_begin_is_ended(start: Start) -> None:
    times = {"STARTING": 0.3, "HOPELESS": 2, "FIRST_PAUSE": 0.01}
    code, said = last_words(start(daemon("time.sleep(60)"), times=times))
    assert code == InternalError.exit_code
    assert said.count("does not begin to serve, and is ended") == 2


def test_a_mount_in_the_foreground_begins_with_order_and_lock(start: Start) -> None:
    script = (
        "send_packet(sock, 'put', 'device', os.memfd_create('device'))\n"
        "send_packet(sock, 'ready', '{}')\n"
        "send_packet(sock, 'bye', '7')\n"
    )
    assert last_words(start(daemon(script), held=["order", "lock"])) == (7, "")


def test_a_first_daemon_that_dies_before_the_mount_has_no_successor(start: Start) -> None:
    code, said = last_words(start(daemon("sys.exit(3)"), held=["order", "lock"]))
    assert code == InternalError.exit_code
    assert said.count("the daemon died before the mount was ready (exit code 3)") == 1
    assert len(said.splitlines()) == 1


def test_a_daemon_that_closes_its_end_is_replaced(start: Start, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    script = (
        "send_packet(sock, 'ready', '{}')\n"
        f"if os.path.exists({str(closed)!r}): send_packet(sock, 'bye', '7'); sys.exit()\n"
        f"Path({str(closed)!r}).touch()\n"
        "sock.close()\n"
        "time.sleep(60)\n"
    )
    code, said = last_words(start(daemon(script)))
    assert code == 7
    assert "ended (killed by signal 9)" in said


def test_a_keeper_that_is_restarted_leaves_the_mount_to_the_next_one(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("FDSTORE", "100")
        process = start(
            daemon(
                "send_packet(sock, 'ready', '{}')\n"
                f"Path({str(begun)!r} + '.new').write_text(str(os.getpid()))\n"
                f"os.rename({str(begun)!r} + '.new', {str(begun)!r})\n"
                "time.sleep(60)\n"
            )
        )
        wait_until(begun)
        process.send_signal(signal.SIGUSR1)
        code, said = last_words(process)
        heard = []
        while select.select([manager], [], [], 0)[0]:
            heard.append(manager.recv(4096).decode())
    assert code == 0
    assert said.endswith("restarted: the mount stays, and its calls wait for the next daemon\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
    stored = [line for text in heard for line in text.splitlines() if line.startswith("FDNAME=")]
    assert sorted(stored) == ["FDNAME=device", "FDNAME=lock", "FDNAME=order"]
    assert not any("FDSTOREREMOVE" in text for text in heard)


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
    assert code == InternalError.exit_code


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
        keeper.Keeper(None, {CONTROL: control.fileno()})._accept()
        assert asking.recv(1000).startswith(b"refused the daemon is just being replaced")
