"""Mounts copies for a test and takes them away again, whatever state the test left them in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from integration import kernel
from integration.command import Result, cowfs
from integration.volumes import unmount

#: Where a running mount has its record and its log, named after its device number.
RECORDS = Path("/run/cowfs")

#: What no test expects to find in a daemon's log.
_UNEXPECTED = ("Traceback (most recent call last)", " ERROR: ", " CRITICAL: ")


def record_of(mount: kernel.Mount) -> Path:
    """Where the record of a mount is."""
    suffix = "overlay" if mount.fstype == "overlay" else "json"
    return RECORDS / f"{mount.device}.{suffix}"


class _Daemon:
    """A process that serves a mount, and what it logs."""

    def __init__(self, mountpoint: Path, pid: int, log: Path) -> None:
        self.mountpoint = mountpoint
        self.pid = pid
        self._log = log
        self._last_words: str | None = None

    def log(self) -> str:
        if self._last_words is not None:
            return self._last_words
        return self._log.read_text(errors="replace")

    def wait_for_end(self) -> str | None:
        """Wait until it has ended, as it must without its mount; say what is wrong with that.

        Reads its log at once: the next mount gets the same device number and begins it anew.
        """
        if self._last_words is not None:
            return None
        found = None
        if not kernel.wait_for_end(self.pid, 10):
            found = f"the daemon {self.pid} of {self.mountpoint} outlives its mount"
            os.kill(self.pid, signal.SIGKILL)
        self._last_words = self.log()
        if any(mark in self._last_words for mark in _UNEXPECTED):
            found = f"the daemon of {self.mountpoint} logged:\n{self._last_words}"
        return found


class MountCopy:
    """What the fixtures `mount_copy` and `mount_plain` give: call it to mount a copy.

    Every mountpoint that was made by it, or is told to `adopt`, is unmounted at the end of the
    test.
    """

    def __init__(self, directory: Path, options: Iterable[str] = ()) -> None:
        self._directory = directory
        self._options = tuple(options)
        self._mountpoints: list[Path] = []
        self._daemons: list[_Daemon] = []

    def __call__(
        self,
        source: str | os.PathLike[str],
        mountpoint: Path | None = None,
        *options: str,
        timeout: float = 60,
    ) -> Path:
        """Mount a copy of `source` with `options` ("copy=a", "ro", ...) and return its mountpoint.

        Without `mountpoint` a new directory is made for it. Fails the test when the command fails.
        """
        if mountpoint is None:
            mountpoint = self.mountpoint()
        else:
            self.adopt(mountpoint)
        arguments = [arg for option in (*self._options, *options) for arg in ("-o", option)]
        cowfs("mount", *arguments, source, mountpoint, timeout=timeout)
        self._watch(mountpoint)
        return mountpoint

    def mountpoint(self) -> Path:
        """A new empty directory; what is mounted there is unmounted at the end of the test."""
        path = self._directory / f"mnt{len(self._mountpoints)}"
        path.mkdir()
        self.adopt(path)
        return path

    def adopt(self, mountpoint: Path) -> None:
        """Unmount this one too at the end of the test."""
        if mountpoint not in self._mountpoints:
            self._mountpoints.append(mountpoint)

    def unmount(self, mountpoint: Path) -> Result:
        """`cowfs umount`, and wait until the daemon has ended. Returns what the command said."""
        daemon = self._watch(mountpoint)
        result = cowfs("umount", mountpoint)
        complaint = daemon.wait_for_end()
        assert complaint is None, complaint
        return result

    def kill(self, mountpoint: Path) -> None:
        """End keeper and daemon by SIGKILL, and take the dead mount away."""
        self.orphan(mountpoint)
        kernel.detach(os.path.realpath(mountpoint))

    def orphan(self, mountpoint: Path) -> None:
        """End keeper and daemon by SIGKILL; the mount stays, and nobody answers."""
        daemon = self._watch(mountpoint)
        keeper = self.record(mountpoint)["keeper_pid"]
        os.kill(keeper, signal.SIGKILL)  # first, or it starts another daemon
        os.kill(daemon.pid, signal.SIGKILL)
        complaint = daemon.wait_for_end()
        assert kernel.wait_for_end(keeper, 10)
        assert complaint is None, complaint

    def log(self, mountpoint: Path) -> str:
        """What the last daemon of this mountpoint has logged, also when it has ended."""
        return next(d for d in reversed(self._daemons) if d.mountpoint == mountpoint).log()

    def _watch(self, mountpoint: Path) -> _Daemon:
        pid = self.daemon_pid(mountpoint)
        for daemon in self._daemons:
            if daemon.pid == pid:
                return daemon
        daemon = _Daemon(mountpoint, pid, RECORDS / f"{self._mount(mountpoint).device}.log")
        self._daemons.append(daemon)
        return daemon

    def _mount(self, mountpoint: Path) -> kernel.Mount:
        # Not from stat(2): it would wait for a daemon that does not answer.
        path = os.path.realpath(mountpoint)
        mounted = [mount for mount in kernel.mounts() if mount.mountpoint == path]
        assert mounted, f"nothing is mounted on {mountpoint}"
        assert kernel.is_cowfs(mounted[-1]), f"{mountpoint} is no copy: {mounted[-1]}"
        return mounted[-1]

    def record(self, mountpoint: Path) -> dict[str, Any]:
        """What the running mount says about itself in /run/cowfs."""
        text = record_of(self._mount(mountpoint)).read_text()
        record: dict[str, Any] = json.loads(text)
        return record

    def daemon_pid(self, mountpoint: Path) -> int:
        """The process that serves the mount."""
        pid = self.record(mountpoint)["daemon_pid"]
        assert isinstance(pid, int)
        return pid

    def wait_until_served(self, mountpoint: Path, other_than: int = 0, patience: float = 30) -> int:
        """The pid of the daemon that serves, as soon as it is the one that the keeper runs."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            record = self.record(mountpoint)
            pid = int(record["daemon_pid"])
            if pid == daemon_of(record["keeper_pid"]) and pid != other_than:
                return pid
            time.sleep(0.01)
        raise AssertionError(f"nobody serves {mountpoint} after {patience:g} s")

    def clean_up(self) -> None:
        """Unmount everything and see every daemon end. Fails the test when that takes force."""
        complaints = []
        roots = [os.path.realpath(path) for path in self._mountpoints]
        for mount in reversed(kernel.mounts()):
            if not any(f"{mount.mountpoint}/".startswith(f"{root}/") for root in roots):
                continue
            try:
                if kernel.is_cowfs(mount):
                    # A killed daemon has no record any more, and nobody waits for its end.
                    with contextlib.suppress(FileNotFoundError):
                        self._watch(Path(mount.mountpoint))
                unmount(Path(mount.mountpoint))
            except (AssertionError, OSError) as error:
                complaints.append(str(error))
                force_unmount(mount)
        complaints += [line for daemon in self._daemons if (line := daemon.wait_for_end())]
        assert not complaints, "\n".join(complaints)


def daemon_of(keeper: int, patience: float = 10) -> int:
    """The process that the keeper runs just now."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.002)
    raise AssertionError(f"the keeper {keeper} has started no daemon")


def force_unmount(mount: kernel.Mount) -> None:
    """Take a mount away that is busy or does not answer."""
    if kernel.is_cowfs(mount):
        kernel.abort_connections()
    kernel.detach(mount.mountpoint)
