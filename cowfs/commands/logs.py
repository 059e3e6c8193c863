"""`cowfs logs`: what those have to say who serve a mount, wherever they say it.

A mount in the background has a file in /run/cowfs. One that was made in the foreground speaks on
the stderr that it was given: under a unit of systemd that is the journal, which journalctl shows.
"""

from __future__ import annotations

import os
import re
import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from cowfs.mount import unmount
from cowfs.store import runtime
from cowfs.system.errors import MountFailure, UsageError

if TYPE_CHECKING:
    from cowfs.store.runtime import Record

_UNIT = re.compile(r"/([^/\n]+\.service)(?:/|$)", re.MULTILINE)
_PAUSE_MS = 250  # between two looks at a log that is followed

Show = Callable[[str], None]


def show(mountpoint: str, *, lines: int | None, follow: bool, out: Show) -> None:
    """Give the log of a mount to `out`, line by line; lines: only the last ones. follow: go on
    until the mount ends. CowfsError."""
    mount = unmount.find(mountpoint)
    record = runtime.of(mount)
    if record is None:
        if os.geteuid() != 0:
            raise UsageError(f"no permission to read the log of {mountpoint}: run cowfs as root")
        raise MountFailure(f"{mountpoint} is served by nobody: unmount it and mount it again")
    stderr = _stderr(record)
    if stderr == runtime.log_path(record.device):
        _show_file(stderr, record, lines, follow, out)
    elif stderr.startswith("socket:") and (unit := _unit(record)):
        _become_journalctl(unit, lines, follow)
    else:
        raise MountFailure(
            f"{mountpoint} is served in the foreground by process {record.keeper_pid}, whose log "
            f"goes to {stderr or 'nowhere'}"
        )


def _stderr(record: Record) -> str:
    for pid in (record.keeper_pid, record.daemon_pid):
        if runtime.living(pid):
            try:
                return os.readlink(f"/proc/{pid}/fd/2")
            except OSError:
                continue
    return runtime.log_path(record.device)  # nobody is left of those who wrote there


def _unit(record: Record) -> str | None:
    """The service that the mount belongs to."""
    try:
        with open(f"/proc/{record.keeper_pid}/cgroup", encoding="utf-8") as lines:
            found = _UNIT.findall(lines.read())
    except (OSError, ValueError):
        return None
    return found[-1] if found else None


def _become_journalctl(unit: str, lines: int | None, follow: bool) -> None:
    command = ["journalctl", f"--unit={unit}", "--output=cat", "--no-pager"]
    command += [f"--lines={'all' if lines is None else lines}"]
    command += ["--follow"] if follow else []
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        raise MountFailure(f"cannot start {' '.join(command)}: {error.strerror}") from None


def _show_file(path: str, record: Record, lines: int | None, follow: bool, out: Show) -> None:
    try:
        log = open(path, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except OSError as error:
        raise MountFailure(f"the log {path} cannot be read: {error.strerror}") from None
    with log:
        for line in deque(log, maxlen=lines):
            out(line.rstrip("\n"))
        while follow:
            follow = _wait(record)
            for line in log:
                out(line.rstrip("\n"))
            if not follow and (successor := _successor(record)) is not None:
                record, follow = successor, True


def _successor(record: Record) -> Record | None:
    """The same mount with another keeper: it was upgraded."""
    for one in runtime.all():
        if (one.device, one.mountpoint, one.copy) == (
            record.device,
            record.mountpoint,
            record.copy,
        ):
            return one if one.keeper_pid != record.keeper_pid else None
    return None


def _wait(record: Record) -> bool:
    """For a moment; whether the keeper is still there."""
    try:
        keeper = os.pidfd_open(record.keeper_pid)
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(keeper, select.POLLIN)
        return not poll.poll(_PAUSE_MS)
    finally:
        os.close(keeper)
