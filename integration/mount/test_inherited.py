"""A mount has nothing of whoever made it: no limits, variables, priorities or descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration import kernel
from integration.command import COWFS
from integration.conftest import MODES
from integration.mounts import MountCopy, record_of

# Everything that a process hands on, set to what would be noticed; then it becomes the command.
CALLER = """
import ctypes, os, resource, signal, sys
libc = ctypes.CDLL(None)
os.umask(0o777)
for number in signal.valid_signals():
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGHUP, signal.SIGRTMIN])
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.nice(7)
libc.syscall(ctypes.c_long(251 if os.uname().machine == "x86_64" else 30), 1, 0, 3 << 13)  # idle
libc.prctl(29, ctypes.c_ulong(12_000_000), 0, 0, 0)  # PR_SET_TIMERSLACK
libc.prctl(41, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_THP_DISABLE
nodes = (ctypes.c_ulong * 16)(1)
number = 238 if os.uname().machine == "x86_64" else 237
libc.syscall(ctypes.c_long(number), ctypes.c_long(2), nodes, ctypes.c_long(1000))  # MPOL_BIND
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
os.setgroups([7, 8])
os.setresgid(9, 9, 9)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("321")
os.dup2(os.open("/dev/zero", os.O_RDONLY), 100)
os.chdir(sys.argv[1])
for limit, value in {
    "AS": 4 << 30, "CORE": 1 << 20, "CPU": 500, "DATA": 4 << 30, "FSIZE": 4096, "MEMLOCK": 1 << 16,
    "NOFILE": 200, "NPROC": 5000, "RSS": 1 << 30, "RTTIME": 10**6, "SIGPENDING": 50,
    "STACK": 1 << 20,
}.items():
    number = getattr(resource, "RLIMIT_" + limit)
    resource.setrlimit(number, (value, resource.getrlimit(number)[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""
VARIABLES = {
    "JOURNAL_STREAM": "9:12345",
    "NOTIFY_SOCKET": "/run/of-another-unit",
    "FDSTORE": "100",
    "PYTHONWARNINGS": "error",
    "LD_BIND_NOW": "1",
    "SOME_SECRET": "hunter2",
    "TZ": "UTC",
}


def status(pid: int, name: str) -> str:
    """A line of proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def signals(pid: int, name: str) -> set[int]:
    mask = int(status(pid, name), 16)
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


def limits(pid: int) -> dict[str, str]:
    """The soft limits that are below the hard ones, proc_pid_limits(5)."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    return {name: soft for name, (soft, hard) in found.items() if soft != hard}


def variables(pid: int) -> set[str]:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(word).partition("=")[0] for word in words if word}


def field(pid: int, number: int) -> int:
    """Of proc_pid_stat(5), where the first one has the number 1."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number - 3])


def descriptors(pid: int) -> set[str]:
    names = os.listdir(f"/proc/{pid}/fd")
    return {os.readlink(f"/proc/{pid}/fd/{name}") for name in names}


def io_priority(pid: int) -> str:
    done = subprocess.run(["ionice", "-p", str(pid)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


# What is said on purpose of a process in the foreground.
SUPERVISED = {
    *("processors", "scheduler", "niceness", "I/O priority", "timer slack", "huge pages"),
    *("memory policy", "personality", "groups", "group", "OOM score", "session"),
}
# By Python, and those of the C library's own, which nobody can change.
IGNORED = {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
ALL_PROCESSORS = set(range(os.cpu_count() or 1))


def inherited(pid: int, caller: Path) -> dict[str, object]:
    """What a process of a mount has, by what it might have it of; each is False if it does not."""
    return {
        "limits": {
            name: soft
            for name, soft in limits(pid).items()
            if (name, soft)
            not in (
                ("Max core file size", "0"),
                ("Max open files", str(1 << 20)),
                ("Max stack size", str(8 << 20)),
            )
        },
        "umask": status(pid, "Umask") not in ("0000", "0077"),
        "ignored signals": signals(pid, "SigIgn") - IGNORED,
        "blocked signals": signals(pid, "SigBlk"),
        "processors": os.sched_getaffinity(pid) != ALL_PROCESSORS,
        "scheduler": os.sched_getscheduler(pid) != os.SCHED_OTHER,
        "niceness": os.getpriority(os.PRIO_PROCESS, pid),
        "I/O priority": "idle" in io_priority(pid),
        "timer slack": Path(f"/proc/{pid}/timerslack_ns").read_text() != "50000\n",
        "huge pages": status(pid, "THP_enabled") != "1",
        "memory policy": " bind:" in Path(f"/proc/{pid}/numa_maps").read_text(),
        "personality": int(Path(f"/proc/{pid}/personality").read_text(), 16),
        "groups": status(pid, "Groups"),
        "group": status(pid, "Gid").split() != ["0"] * 4,
        "OOM score": Path(f"/proc/{pid}/oom_score_adj").read_text() not in ("0\n", "-1000\n"),
        "descriptors": descriptors(pid) & {"/dev/zero"},
        "directory": os.readlink(f"/proc/{pid}/cwd") == str(caller),
        "session": field(pid, 6) == os.getsid(0),
        "variables": {
            name
            for name in variables(pid)
            if not name.startswith(("COWFS_", "LC_")) and name not in ("LANG", "LANGUAGE", "TZ")
        },
    }


@pytest.fixture
def twisted(mount_plain: MountCopy, model: Path, tmp_path: Path) -> Path:
    """A copy that somebody odd has mounted."""
    mountpoint = mount_plain.mountpoint()
    command = [COWFS, "mount", "-o", "passthrough=off", model, mountpoint]
    subprocess.run(
        [sys.executable, "-c", CALLER, tmp_path, *command],
        check=True,
        env={**os.environ, **VARIABLES},
        stdin=subprocess.DEVNULL,
    )
    return mountpoint


def test_a_mount_has_nothing_of_its_caller(
    twisted: Path, mount_plain: MountCopy, tmp_path: Path
) -> None:
    record = mount_plain.record(twisted)
    for pid in (record["keeper_pid"], record["daemon_pid"]):
        assert {name: was for name, was in inherited(pid, tmp_path).items() if was} == {}


@pytest.mark.skipif("passthrough" not in MODES, reason="no other daemon can go on on this kernel")
def test_nor_has_the_next_daemon(twisted: Path, mount_plain: MountCopy, tmp_path: Path) -> None:
    first = mount_plain.daemon_pid(twisted)
    os.kill(first, signal.SIGKILL)
    pid = mount_plain.wait_until_served(twisted, other_than=first)
    assert {name: was for name, was in inherited(pid, tmp_path).items() if was} == {}


def test_the_limit_of_file_sizes_is_that_of_whoever_writes(twisted: Path) -> None:
    (twisted / "large").write_bytes(bytes(1 << 20))
    limited = ["prlimit", "--fsize=4096", "sh", "-c", "head -c 8192 /dev/zero >>large"]
    done = subprocess.run(limited, cwd=twisted, capture_output=True, check=False)
    assert done.returncode != 0
    assert (twisted / "large").stat().st_size == 1 << 20


def is_served(mountpoint: Path) -> bool:
    mounts = [mount for mount in kernel.session_mounts() if mount.mountpoint == str(mountpoint)]
    return any(record_of(mount).exists() for mount in mounts)


def test_a_mount_in_the_foreground_keeps_what_its_supervisor_has_set(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    mountpoint = mount_plain.mountpoint()
    command = [COWFS, "mount", "--foreground", "-o", "passthrough=off", model, mountpoint]
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, tmp_path, *command],
        env={**os.environ, **VARIABLES, "NOTIFY_SOCKET": ""},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as keeper:
        try:
            while not is_served(mountpoint):
                assert keeper.poll() is None
                time.sleep(0.02)
            pid = mount_plain.daemon_pid(mountpoint)
            kept = {name for name, was in inherited(pid, tmp_path).items() if was}
            assert kept == SUPERVISED
        finally:
            keeper.terminate()
            keeper.wait(20)


def test_a_limit_that_nobody_may_raise_is_told(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    mountpoint = mount_plain.mountpoint()
    bound = ["setpriv", "--bounding-set=-sys_resource", "prlimit", f"--fsize={1 << 40}:{1 << 40}"]
    done = subprocess.run(
        [*bound, COWFS, "mount", model, mountpoint], check=True, capture_output=True, text=True
    )
    assert f"nobody can make a file of {mountpoint} larger than {1 << 40} bytes" in done.stderr
