"""Starting the keeper and getting rid of it, with small scripts in the keeper's place."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.mount import forkerlink, launch
from cowfs.mount.config import Config
from cowfs.mount.launch import Keeper
from cowfs.mount.options import Options
from cowfs.system.errors import CowfsError, InternalError, Interrupted, SystemFailure
from cowfs.system.interrupts import Interrupts

Start = Callable[..., Keeper]

CONFIG = Config("/data/model", "/mnt/a", "/data/.cowfs", "mnt-a", 0, Options())

PREAMBLE = """
import json, os, socket, sys, time
from cowfs.mount.conversation import receive_order
sock = socket.socket(fileno=int(sys.argv[2]))
def answer(words):
    sock.sendall(json.dumps(words).encode() + b"\\n")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a keeper whose program is PREAMBLE and the given lines."""
    monkeypatch.setenv(forkerlink.VARIABLE, "off")
    started: list[Keeper] = []

    def start(program: str, *, automounted: bool = False) -> Keeper:
        script = tmp_path / "keeper.py"
        script.write_text(PREAMBLE + program)
        monkeypatch.setattr(launch, "KEEPER_COMMAND", (sys.executable, "-I", str(script)))
        started.append(Keeper.start(automounted=automounted))
        return started[-1]

    yield start
    for keeper in started:
        keeper.dismiss()
        keeper.end()
        with pytest.raises(ProcessLookupError):
            os.kill(keeper.pid, 0)


def test_a_keeper_that_is_ready_is_told_apart(start: Start) -> None:
    keeper = start(
        "order, lock = receive_order(sock)\n"
        "source = json.loads(order)['source']\n"
        "answer({'ready': True, 'pid': os.getpid(), 'source': source})\n"
    )
    assert keeper.serve(CONFIG) == {"ready": True, "pid": keeper.pid, "source": "/data/model"}


def test_what_the_keeper_refuses_is_the_users_error_with_its_exit_code(start: Start) -> None:
    keeper = start("receive_order(sock)\nanswer({'error': 'no room for it', 'exit_code': 2})\n")
    with pytest.raises(CowfsError, match=r"^no room for it$") as failure:
        keeper.serve(CONFIG)
    assert failure.value.exit_code == 2


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("receive_order(sock); os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("os._exit(0)", "exit code 0"),
    ],
)
def test_a_keeper_that_dies_is_an_internal_error_that_says_how(
    start: Start, program: str, end: str
) -> None:
    keeper = start(program)
    with pytest.raises(InternalError, match=end):
        keeper.serve(CONFIG)


def test_a_keeper_that_has_nothing_to_serve_leaves(start: Start) -> None:
    keeper = start("assert receive_order(sock) is None\n")
    keeper.dismiss()
    keeper.end()


def test_a_keeper_that_does_not_leave_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GIVE_UP_SECONDS", 0.2)
    keeper = start("import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(9)\n")
    keeper.dismiss()
    keeper.end()


def test_a_program_that_cannot_be_started_is_a_system_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(forkerlink.VARIABLE, "off")
    monkeypatch.setattr(launch, "KEEPER_COMMAND", ("/nowhere/python", "-I"))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(SystemFailure, match="/nowhere/python"):
        Keeper.start()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_keeper_has_a_session_of_its_own_and_no_descriptor_of_its_caller(start: Start) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        keeper = start(
            "order, lock_fd = receive_order(sock)\n"
            "os.close(lock_fd)\n"
            "fds = {n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')\n"
            "       if os.path.lexists(f'/proc/self/fd/{n}')}\n"
            "answer({'ready': True, 'session': os.getsid(0), 'fds': fds})\n"
        )
        answer = keeper.serve(CONFIG)
    finally:
        os.close(reading)
        os.close(writing)
    assert answer["session"] == keeper.pid
    fds = answer["fds"]
    assert fds.pop("0") == "/dev/null"
    assert set(fds) - {"1", "2"} == {n for n, target in fds.items() if "socket" in target} - {
        "1",
        "2",
    }
    assert not any("pipe" in target for number, target in fds.items() if int(number) > 2)


def test_the_keeper_of_an_automounter_is_in_its_process_group(start: Start) -> None:
    program = "receive_order(sock)\nanswer({'ready': True, 'group': os.getpgrp()})\n"
    assert start(program, automounted=True).serve(CONFIG)["group"] == os.getpgrp()
    keeper = start(program)
    assert keeper.serve(CONFIG)["group"] == keeper.pid


def test_the_keeper_does_not_import_from_the_callers_directory_or_environment(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "struct.py").write_text("raise SystemExit(77)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    keeper = start("receive_order(sock)\nanswer({'ready': True})\n")
    assert keeper.serve(CONFIG) == {"ready": True}


def test_signals_reach_the_keeper_even_when_the_caller_ignores_them(start: Start) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        keeper = start(
            "import signal\nreceive_order(sock)\n"
            "answer({'ready': True,\n"
            "  'default': signal.getsignal(signal.SIGTERM) == signal.SIG_DFL})\n"
        )
        assert keeper.serve(CONFIG)["default"]
    finally:
        signal.signal(signal.SIGTERM, before)


def send_soon(number: signal.Signals) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(0.05), os.kill(os.getpid(), number)))
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_where_that_is_allowed(number: signal.Signals) -> None:
    with Interrupts("nothing is mounted") as interrupts:
        thread = send_soon(number)
        with pytest.raises(Interrupted, match=number.name) as failure, interrupts.allowed():
            time.sleep(10)
        thread.join()
    assert failure.value.exit_code == 8


def test_a_signal_waits_where_it_would_do_harm() -> None:
    with Interrupts("nothing is mounted") as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        done = True  # nothing is raised here
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(Interrupted), interrupts.allowed():
            done = False
    assert done


def test_a_second_signal_does_not_tear_the_cleaning_up() -> None:
    steps = []

    def work(interrupts: Interrupts) -> None:
        with interrupts.allowed():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                steps.append("cleaned up")

    with Interrupts("nothing is mounted") as interrupts, pytest.raises(Interrupted):
        work(interrupts)
    assert steps == ["cleaned up"]


def test_handlers_are_as_before_afterwards_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts("nothing is mounted"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
