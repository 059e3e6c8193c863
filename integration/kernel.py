"""The mounts, FUSE connections, loop devices, processes and remembered stores of this session.

A session is known by two things that every child inherits or lies below: the directory
`session_dir()` and the environment variable COWFS_TEST_SESSION. So a session never touches the
mounts of another one, or of a user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import subprocess
from pathlib import Path
from typing import NamedTuple

TOKEN = "COWFS_TEST_SESSION"
DIRECTORY = "COWFS_TEST_DIR"
#: What the sessions of one ./test.sh share, the workers of pytest-xdist: a directory of that.
RUN = "COWFS_TEST_RUN"
CONNECTIONS = Path("/sys/fs/fuse/connections")
#: Where cowfs remembers stores that are elsewhere than at the top of a volume.
REGISTRY = Path("/var/lib/cowfs/stores")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    device: str  # "major:minor"
    mountpoint: str
    fstype: str
    source: str
    options: str  # of the filesystem


def in_own_mounts(script: str, propagation: str = "private") -> tuple[str, ...]:
    """The command that runs a script of sh in a new mount namespace; its words are $0, $1, ...

    What other sessions have mounted goes there first: they would wonder who still has it, since
    what they unmount is unmounted there only if / is shared.
    """
    own = f"{session_dir()}/"
    theirs = f'$2 ~ "^/var/tmp/cowfs-test-" && index($2, "{own}") != 1 {{ print $2 }}'
    let_go = f"awk '{theirs}' /proc/self/mounts | tac | xargs -r -n1 umount -l 2>&- || :\n"
    return ("unshare", "--mount", f"--propagation={propagation}", "sh", "-c", let_go + script)


def session_dir() -> Path:
    """The directory below which this session keeps its images and mountpoints. Never on a tmpfs."""
    return Path(os.environ[DIRECTORY])


def mounts(pid: int | str = "self") -> list[Mount]:
    """Every mount of a process's mount namespace, in the order in which they were made."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        found.append(
            Mount(fields[2], _unescape(fields[4]), tail[0], _unescape(tail[1]), _unescape(tail[2]))
        )
    return found


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def session_mounts(pid: int | str = "self") -> list[Mount]:
    """The mounts of this session, in the order in which they were made."""
    below = f"{session_dir()}/"
    return [mount for mount in mounts(pid) if mount.mountpoint.startswith(below)]


def is_cowfs(mount: Mount) -> bool:
    """Whether a copy is mounted there, by whichever engine."""
    return mount.fstype == "fuse.cowfs" or ",upperdir=upper,workdir=work" in mount.options


def session_loops() -> list[str]:
    """Loop devices that are backed by a file of this session, also by one that is deleted; each
    with that file."""
    below = f"{session_dir()}/"
    found = []
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it was released meanwhile
            backed = loop.read_text().rstrip("\n")
            if backed.startswith(below):
                found.append(f"/dev/{loop.parts[-3]} {backed}")
    return found


def session_processes() -> dict[int, str]:
    """The processes that this session started and that still run: command lines by process id."""
    mark = f"{TOKEN}={os.environ[TOKEN]}\0".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if mark not in (entry / "environ").read_bytes():
                continue  # zombies and kernel threads come here too: their environment is empty
            words = (entry / "cmdline").read_bytes().split(b"\0")
            found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except PermissionError:
            continue  # something special of the machine's own, such as init in a sandbox
    return found


def wait_for_end(pid: int, timeout: float) -> bool:
    """Wait until the process has ended, at most `timeout` seconds; say whether it has."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        # EINVAL: before Linux 6.13 of a number that only a session or a group still has.
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return True
        raise
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(pidfd)


def cpu_ticks(pid: int) -> int:
    """The CPU time of a process so far, in units of 10 ms: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def forget_stores() -> None:
    """Let cowfs remember no store of this session."""
    below = f"{session_dir()}/"
    for entry in REGISTRY.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # another session takes away its own
            if str(json.loads(entry.read_text())["path"]).startswith(below):
                entry.unlink()


def detach(mountpoint: str) -> None:
    """Take a mount out of the tree at once; the kernel drops it when nobody uses it any more."""
    done = subprocess.run(["umount", "-i", "-l", mountpoint], capture_output=True, check=False)
    # An aborted connection may have taken the mount along already.
    assert done.returncode == 0 or mountpoint not in {m.mountpoint for m in mounts()}, done.stderr


def abort_connections() -> list[str]:
    """End the kernel connection of every cowfs mount of this session and return their mountpoints.

    Every waiting request fails then with ECONNABORTED, every later one with ENOTCONN: the only
    thing that frees a process whose request was read by a daemon that does not answer (linux:
    Documentation/filesystems/fuse.rst).
    """
    found = [mount for mount in session_mounts() if is_cowfs(mount)]
    mount_it = bool(found) and not any(mount.fstype == "fusectl" for mount in mounts())
    if mount_it:
        subprocess.run(["mount", "-t", "fusectl", "fusectl", str(CONNECTIONS)], check=True)
    for mount in found:
        # The directory is named after the device number, of which an unnamed device has the minor
        # part only.
        abort = CONNECTIONS / mount.device.partition(":")[2] / "abort"
        try:
            abort.write_text("1")
        except FileNotFoundError:
            continue  # the connection ended meanwhile
    if mount_it:
        detach(str(CONNECTIONS))
    return [mount.mountpoint for mount in found]
