"""A daemon that serves never forks: every call would wait meanwhile for its memory to be copied."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cowfs.observe import bpf, tracepoints
from cowfs.observe.bpf import STACK, Assembler
from integration.command import COWFS, cowfs, run
from integration.mounts import MountCopy

CLONE_THREAD = 0x10000
MIB = 1 << 20


@contextmanager
def forks_of(pid: int) -> Iterator[list[int]]:
    """Counts the processes that a process makes, and not its threads, in the list's one number."""
    count = [0]
    with ExitStack() as resources:
        made = bpf.Map(bpf.ARRAY, 4, 8, 1, "cowfs_forks")
        resources.callback(made.close)
        with tracepoints.Tracefs() as tracefs:
            at = tracefs.find("task/task_newtask")
        assert at is not None
        code = Assembler()
        code.do("mov", 6, 1)
        code.call(bpf.GET_PID_TGID)
        code.do_number("rsh", 0, 32)
        code.jump_if_number(0, "ne", pid, "out")
        code.load(1, 6, *at.fields["clone_flags"])
        code.jump_if_number(1, "set", CLONE_THREAD, "out")
        code.store_number(STACK, -4, 0, 4)
        code.map(1, made.fd)
        code.do("mov", 2, STACK)
        code.do_number("add", 2, -4)
        code.call(bpf.LOOKUP_ELEM)
        code.jump_if_number(0, "eq", 0, "out")
        code.do_number("mov", 1, 1)
        code.add_to_memory(0, 0, 1)
        code.label("out")
        code.do_number("mov", 0, 0)
        code.leave()
        program = bpf.load(code.assembled(), "cowfs_forks")
        resources.callback(os.close, program)
        resources.callback(os.close, tracepoints.attach(program, at))
        yield count
        value = made.get(bytes(4))
        assert value is not None
        (count[0],) = struct.unpack("=Q", value)


def test_the_counter_sees_a_fork_and_no_thread() -> None:
    script = "import os, sys, threading\nsys.stdin.readline()\n"
    script += "t = threading.Thread(target=int); t.start(); t.join()\n"
    script += "for _ in range(3):\n    if os.fork() == 0: os._exit(0)\n    os.wait()\n"
    with subprocess.Popen(["python3", "-c", script], stdin=subprocess.PIPE) as process:
        with forks_of(process.pid) as count:
            process.communicate(b"\n", timeout=30)
        assert count == [3]


def test_a_daemon_that_serves_does_not_fork(mount_plain: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(20 * MIB))  # cloned by a thread
    for number in range(200):
        (source / f"small{number}").write_text(str(number))
    root = mount_plain(source, None, "watchdog=1")
    pid = mount_plain.daemon_pid(root)
    with forks_of(pid) as count:
        with subprocess.Popen(
            [COWFS, "top", "--json", "--interval", "0.2", root], stdout=subprocess.PIPE
        ) as top:
            assert top.stdout is not None
            top.stdout.readline()
            with (root / "large").open("r+b") as file:
                file.write(b"changed")
                os.fsync(file.fileno())
            for number in range(200):
                path = root / f"small{number}"
                path.read_text()
                path.chmod(0o600)
                path.rename(root / f"renamed{number}")
            run("cp", "-a", root, xfs / "taken")
            run("rm", "-rf", root / "large")
            cowfs("stats", root)
            cowfs("list")
            os.kill(pid, signal.SIGUSR2)  # stacks, as the keeper asks for them
            with (root / "renamed1").open() as busy:  # an unmount that is refused
                assert cowfs("umount", root, check=False).returncode == 32
                busy.read()
            top.kill()
        assert mount_plain.daemon_pid(root) == pid
    assert count == [0]
