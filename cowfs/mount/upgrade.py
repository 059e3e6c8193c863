"""`cowfs upgrade`: the version that runs this takes mounts over from the one that serves them.

The keeper of a mount does it (`keeper.py`): it starts the new daemon, asks it whether it can read
the state, and only then ends the old one.  Reads that are passed through go on meanwhile; other
calls wait for a moment.  A version that cannot take over refuses, and one that does not serve is
replaced by the old one: nothing is ever unmounted.  The way back is the same command of the old
version.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from cowfs import __version__
from cowfs.mount.conversation import DAEMON, ENDED, OK, REFUSED
from cowfs.store import runtime
from cowfs.system import remedy
from cowfs.system.errors import MountFailure, UsageError

if TYPE_CHECKING:
    from cowfs.store.runtime import Record

# A new daemon is started, and looks at what is open, in well under a second; on a machine that
# swaps it may take longer.
PATIENCE = 120.0


def records(mountpoint: str | None) -> list[Record]:
    """The mounts that are meant: one, or all.  UsageError when there is none at *mountpoint*."""
    if mountpoint is None:
        return runtime.all()
    from cowfs.mount import unmount

    record = runtime.of(unmount.find(mountpoint))
    if record is None:
        raise UsageError(
            f"no daemon serves {mountpoint} any more: mount it again after: "
            f"{remedy.command('cowfs umount', mountpoint)}"
        )
    return [record]


def upgrade(record: Record) -> str:
    """Take one mount over; the line that says so.  MountFailure: the old version serves on."""
    if record.engine == "overlay":
        return (
            f"{record.mountpoint} is served by the kernel's overlayfs: there is nothing to upgrade"
        )
    if not record.replaceable:
        raise MountFailure(
            f"{record.mountpoint} cannot be taken over: this kernel (Linux {os.uname().release}) "
            "sends a mount's requests to one daemon only, 6.9 and later to the next one, too; "
            f"cowfs {record.version} serves it as before. Once nobody uses it, unmount it and "
            "mount it again"
        )
    try:
        reply = _ask(record)
    except PermissionError:
        raise UsageError(f"no permission to upgrade {record.mountpoint}: run it as root") from None
    except OSError as error:
        raise MountFailure(
            f"the keeper of {record.mountpoint} (pid {record.keeper_pid}) does not answer: "
            f"{error.strerror or error}; the mount is served as before"
        ) from None
    verb, _, argument = reply.partition(" ")
    if verb in (ENDED, ""):
        raise MountFailure(
            f"the mount {record.mountpoint} ended, or its keeper did, while it was asked: "
            f"{remedy.command('cowfs list')} shows what is there"
        )
    if verb == OK and not _is_ours(argument):
        verb, argument = REFUSED, "another daemon than the new one serves it: try again"
    if verb != OK:
        raise MountFailure(
            f"{record.mountpoint} is not upgraded: {argument or 'the keeper gave no reason'}; "
            f"cowfs {record.version} serves it as before"
        )
    return (
        f"{record.mountpoint} is served by cowfs {__version__} (pid {argument}), before it was "
        f"{record.version}"
    )


def _ask(record: Record) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(runtime.control_path(record.device))
        sock.sendall(os.fsencode("\0".join(_command())))
        return os.fsdecode(sock.recv(1 << 16))


def _command() -> tuple[str, ...]:
    """The daemon of this installation."""
    return sys.executable, *DAEMON


def _is_ours(pid: str) -> bool:
    """Whether the daemon that serves is of this installation.  A keeper is as old as its mount, and
    some old ones have taken another daemon of the old version for the new one."""
    try:
        with open(f"/proc/{int(pid)}/cmdline", "rb") as words:
            return words.read().startswith(os.fsencode("\0".join((*_command(), ""))))
    except (OSError, ValueError):
        return False
