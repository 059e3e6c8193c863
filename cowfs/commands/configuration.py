"""What a unit's configuration says now, for the mount that the unit has: `cowfs mount --remount`.

A restart keeps the mount, and with it all that its first daemon was started with. What the kernel
keeps by itself is changed as by `mount -o remount`; for the rest one line each says that it takes a
stop and a start. Other than a remount, this takes what it is given for all that is wanted: what is
not spoken of is the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cowfs.commands import remount, which
from cowfs.mount import options, preflight
from cowfs.mount.options import Options
from cowfs.store import runtime
from cowfs.store.runtime import Record
from cowfs.system import mountinfo, remedy
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.system.syscalls import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)

# In the environment of ExecStartPost= and ExecReload=: systemd.exec(5).
_MAIN_PID = "MAINPID"

# What the mount table shows of a mount's flags, but for ro and rw.
_SHOWN = {
    MS_NOSUID: "nosuid",
    MS_NODEV: "nodev",
    MS_NOEXEC: "noexec",
    MS_NOATIME: "noatime",
    MS_NODIRATIME: "nodiratime",
    MS_RELATIME: "relatime",
    MS_NOSYMFOLLOW: "nosymfollow",
}
# What the daemon goes by, too, and is told once.
_TOLD = {MS_SYNCHRONOUS: "sync", MS_DIRSYNC: "dirsync", MS_LAZYTIME: "lazytime"}


class _Unit(NamedTuple):
    """Who has called us: its main process, and the file that describes its mount."""

    main_pid: int
    file: str


def apply(
    source: str,
    mountpoint: str,
    items: Sequence[str],
    *,
    say: Callable[[str], None],
    say_error: Callable[[str], None],
) -> int:
    """Change what can be changed of the mount of this unit, or else of that at mountpoint, to what
    is said here. The exit code: 0, or that of a mount if something goes on as it was.

    *say*: what was changed. *say_error*: what goes on as it was, one line each. CowfsError: nothing
    was changed.
    """
    unit = _unit()
    record = _record(mountpoint, unit)
    try:
        preflight.require_name("source", source)
        preflight.require_name("mountpoint", mountpoint)
        source, wanted = which.source("cowfs", source, options.parse(items))
    except UsageError as error:
        raise UsageError(f"{record.mountpoint} goes on as before: {error}") from None
    code = 0
    for what, running in _fixed(source, mountpoint, wanted, record):
        say_error(f"{record.mountpoint} goes on {running}: {what} needs {_anew(record, unit)}")
        code = MountFailure.exit_code
    try:
        if shown := _change(record, wanted):
            say(f"{record.mountpoint} is {shown} from now on")
    except CowfsError as error:
        say_error(str(error))
        code = error.exit_code
    return code


def _unit() -> _Unit | None:
    file = os.environ.get(preflight.CONFIGURATION_VARIABLE)
    pid = os.environ.get(_MAIN_PID, "")
    return _Unit(int(pid), file) if file and pid.isdecimal() else None


def _record(mountpoint: str, unit: _Unit | None) -> Record:
    """Of the mount that is meant. A unit's own: its configuration may name another place by now."""
    if unit is not None:
        for record in runtime.all():
            if record.keeper_pid == unit.main_pid:
                return record
        raise MountFailure(f"process {unit.main_pid} serves no mount: nothing can be changed")
    preflight.require_privilege()
    preflight.require_name("mountpoint", mountpoint)
    return remount.record_of(remount.mounted(mountpoint))


def _fixed(source: str, mountpoint: str, wanted: Options, record: Record) -> list[tuple[str, str]]:
    """What only a new mount can change, as it is wanted, and how the mount goes on."""
    found = []
    if record.source not in (source, os.path.realpath(source)):
        found.append((f"SOURCE={source}", f"with the source {record.source}"))
    if record.mountpoint != mountpoint and record.mountpoint != os.path.realpath(mountpoint):
        found.append((f"MOUNTPOINT={mountpoint}", "where it is"))
    started = options.parse([record.options], sloppy=True)
    now, before = (
        {item.partition("=")[0]: item for item in one.given} for one in (wanted, started)
    )
    for bit, name in _TOLD.items():
        if (wanted.mount_flags ^ started.mount_flags) & bit:
            found.append(_change_of(name, now, before))
    for name in remount.fixed(wanted, record):
        if name == remount.READ_WRITE:
            found.append(("rw", "read-only, as it was started"))
        else:
            found.append(_change_of(name, now, before))
    return found


def _change_of(name: str, now: dict[str, str], before: dict[str, str]) -> tuple[str, str]:
    running = f"with {before[name]}" if name in before else f"without {name}"
    return now.get(name, f"to be without {name}"), running


def _anew(record: Record, unit: _Unit | None) -> str:
    """The commands for it."""
    if unit is None:
        again = remedy.command("cowfs umount", record.mountpoint)
        return f"a new mount: unmount it with {again}, and mount it again"
    name = f"cowfs@{Path(unit.file).stem}"
    stop, start = remedy.command("systemctl stop", name), remedy.command("systemctl start", name)
    return f"a stop and a start: {stop}; {start}"


def _change(record: Record, wanted: Options) -> str:
    """The flags that the mount has afterwards, in words; empty when nothing has changed.

    A mount that has them already is left alone: a remount has the kernel forget all names.
    """
    mount = mountinfo.mounted_at(record.mountpoint)
    if mount is None or mount.device != record.device:
        raise MountFailure(f"{record.mountpoint} shows something else by now: nothing was changed")
    started = options.parse([record.options], sloppy=True)
    told = sum(_TOLD)
    flags = wanted.mount_flags & ~told | started.mount_flags & told
    if started.read_only:
        flags |= MS_RDONLY
    if not flags & (MS_NOATIME | MS_STRICTATIME):
        flags |= MS_RELATIME  # the default of a mount, of which a remount knows nothing
    shown = ["ro" if flags & MS_RDONLY else "rw"]
    shown += [word for bit, word in _SHOWN.items() if flags & bit]
    has = {"ro", "rw", *_SHOWN.values()} & set(mount.options.split(","))
    if set(shown) == has:
        return ""
    remount.change(mount, flags)
    return ", ".join(shown)
