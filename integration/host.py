"""A machine on which cowfs is installed, for mount(8): it looks for its helpers in /sbin alone.

It is a mount namespace of its own, where what `cowfs install --root` made lies over /usr/sbin. So
the machine that runs the tests stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

from integration import kernel
from integration.command import Result, cowfs, run
from integration.mounts import RECORDS, record_of

_UNEXPECTED = ("Traceback (most recent call last)", " ERROR: ", " CRITICAL: ")


class Host:
    """Runs commands in the namespace. `close` takes away what they have mounted."""

    def __init__(self, directory: Path) -> None:
        """directory: a new one, for what is installed."""
        cowfs("install", "--root", directory)
        self.sbin = directory / "usr/sbin"
        # libmount keeps notes in /run/mount, for one machine
        script = """
            mount -t overlay -o "lowerdir=$0:/usr/sbin" sbin /usr/sbin || exit
            mkdir -p /run/mount && mount -t tmpfs notes /run/mount || exit
            echo && exec cat"""
        # cat ends with our end of its pipe, however the tests end
        self._holder = subprocess.Popen(
            [*kernel.in_own_mounts(script, "slave"), self.sbin],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        ready, _, _ = select.select([self._holder.stdout], [], [], 30)
        assert ready, "no namespace was made"
        assert self._holder.stdout.readline() == b"\n", "nothing could be mounted in it"
        self.pid = self._holder.pid

    def run(self, *args: str | os.PathLike[str], check: bool = True, user: int = 0) -> Result:
        """Run a command there, as this user."""
        enter = ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--wdns=/")
        who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups") if user else ()
        return run(*enter, *who, *args, check=check)

    def mounts(self) -> list[kernel.Mount]:
        """The copies of this session that are mounted there."""
        return [mount for mount in kernel.session_mounts(self.pid) if kernel.is_cowfs(mount)]

    def mounted_at(self, mountpoint: Path) -> kernel.Mount:
        """The copy at this place."""
        [mount] = [m for m in self.mounts() if m.mountpoint == os.path.realpath(mountpoint)]
        return mount

    def root_of(self, path: Path) -> Path:
        """The path as this process can use it: a mount of the namespace is not in ours."""
        return Path(f"/proc/{self.pid}/root{path}")

    def processes(self, mountpoint: Path) -> list[int]:
        """The processes behind the copy at this place; the last one serves it."""
        record = json.loads(record_of(self.mounted_at(mountpoint)).read_text())
        pids = (record["keeper_pid"], record["daemon_pid"])
        return [pid for pid in pids if pid is not None]

    def daemon(self, mountpoint: Path) -> int:
        """The process that serves the copy at this place."""
        return self.processes(mountpoint)[-1]

    def close(self) -> None:
        """Unmount everything. Fails the test for a daemon that stays, or has logged an error."""
        complaints = []
        for mount in reversed(self.mounts()):
            self.run("umount", "-i", "-l", mount.mountpoint)
            log = RECORDS / f"{mount.device}.log"
            if any(mark in log.read_text(errors="replace") for mark in _UNEXPECTED):
                complaints.append(f"the daemon of {mount.mountpoint} logged an error: {log}")
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()
        assert not complaints, "\n".join(complaints)


@contextlib.contextmanager
def container() -> Iterator[subprocess.Popen[bytes]]:
    """A process with mounts of its own, private copies of those that this session has."""
    with subprocess.Popen(
        kernel.in_own_mounts("echo; exec sleep 1000"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()
