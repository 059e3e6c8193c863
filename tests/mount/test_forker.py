"""What a forker compares before it forks, and what it makes of a child; without a mount."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowfs.mount import forked, forker, forkerlink
from cowfs.mount.conversation import DAEMON
from cowfs.system import shown


def in_child(program: str) -> str:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stdout


def test_code_is_current_until_a_file_of_it_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "module_of_the_test.py"
    module.write_text("NUMBER = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("module_of_the_test")
    assert forked.Code(time.time() + 10).is_current()
    # A file that is younger may be another one than was imported.
    assert not forked.Code(time.time() - 3600).is_current()
    code = forked.Code(time.time() + 10)
    module.write_text("NUMBER = 2\n")
    assert not code.is_current()
    module.unlink()
    assert not code.is_current()
    del sys.modules["module_of_the_test"]


def test_what_is_shown_of_a_process_can_be_set() -> None:
    if not shown.can_be_set():
        pytest.skip("this kernel has no CONFIG_CHECKPOINT_RESTORE")
    said = in_child(
        "from cowfs.system import shown\n"
        "for words, variables in ((['long ' * 5000], {}), (['python', 'x y'], {'A': 'b=c'})):\n"
        "    shown.show(words, variables)\n"
        "blocks = [bytearray(10_000) for _ in range(2000)]\n"
        "print([open(f'/proc/self/{name}', 'rb').read() for name in ('cmdline', 'environ')])\n"
    )
    assert said == "[b'python\\x00x y\\x00', b'A=b=c\\x00']\n"


def test_a_forked_program_has_no_handler_mask_or_descriptor_of_who_forked_it() -> None:
    said = in_child(
        "import os, signal, sys\n"
        "from cowfs.mount import forked\n"
        "reading, writing = os.pipe2(os.O_NONBLOCK)\n"
        "signal.set_wakeup_fd(writing)\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):\n"
        "    signal.signal(number, lambda *_: None)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "kept = os.open('/dev/zero', os.O_RDONLY)\n"
        "def program():\n"
        "    forked.begin(['x'], kept)\n"
        "    fds = [fd for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/dev/fd/{fd}')]\n"
        "    print(len(fds), signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
        "    print({n: h for n in signal.valid_signals() if (h := signal.getsignal(n))\n"
        "           not in (signal.SIG_DFL, None)})\n"
        "    print(signal.set_wakeup_fd(-1), sys.argv)\n"
        "    return 7\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "if not (pid := os.fork()):\n"
        "    forked.run(program)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    first, *others = said.splitlines()
    assert first == "4 set()"
    assert "SIGTERM" not in others[0]
    assert "SIGHUP" not in others[0]
    assert "default_int_handler" in others[0]
    assert others[1:] == ["-1 ['x']", "7"]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("print('word'); return 0", 0, ""),
    ],
)
def test_a_forked_program_ends_as_a_started_one(body: str, code: int, said: str) -> None:
    program = (
        "from cowfs.mount import forked\n"
        f"def program():\n    {body}\n"
        "try:\n    forked.run(program)\nfinally:\n    print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ("word\n" if "word" in body else "")


def test_processes_of_one_place_are_alike_and_others_are_not() -> None:
    own = forker._likeness("self")
    for before, what in {
        (): set(),
        ("unshare", "--mount"): {"mnt namespace"},
        ("unshare", "--uts"): {"uts namespace"},
        ("unshare", "--ipc", "--net"): {"ipc namespace", "net namespace"},
        ("setpriv", "--no-new-privs"): {"NoNewPrivs"},
        ("setpriv", "--bounding-set=-sys_time"): {"CapBnd"},
        ("setpriv", "--reuid=65534", "--clear-groups"): {"Uid"},
    }.items():
        with subprocess.Popen(
            [*before, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            theirs = forker._likeness(str(process.pid))
            process.terminate()
        others = {name for name, value in own.items() if theirs[name] != value}
        assert others - {"CapPrm", "CapEff"} == what


def test_without_a_forker_that_answers_there_is_no_keeper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("forker.sock")  # the path of a socket is short
    monkeypatch.setattr(forkerlink, "path", lambda: str(path))
    monkeypatch.setattr(forkerlink, "PATIENCE", 0.2)
    monkeypatch.setenv(forkerlink.VARIABLE, "on")
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        asked = forkerlink.ask(theirs.fileno(), {})
        assert asked is not None
        assert path.exists()
        assert asked.answer() is None
        assert not path.exists()  # it does not hold up another mount
        for answer in (b"refused for a reason", b"forked 1", b"forked x", b"", b"\xff"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as again:
                again.bind(str(path))
                again.listen()
                asked = forkerlink.ask(theirs.fileno(), {})
                assert asked is not None
                connection, _ = again.accept()
                with connection:
                    if answer:
                        connection.send(answer)
                assert asked.answer() is None
            path.unlink()


def test_signals_are_as_before_when_a_daemon_was_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    code = forked.Code(time.time() + 10)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(os, "fork", lambda: 17)
    command = [sys.executable, *DAEMON, "3"]
    assert forked.Daemons(code)(command, apart=True) == 17
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
