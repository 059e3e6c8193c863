"""`umount.cowfs`: what umount(8) calls for a copy.

    umount.cowfs DIR [-flnrv] [-N NAMESPACE] [-t TYPE.SUBTYPE]

It returns when the daemon has put the copy away, so that an ephemeral one is gone. What mount(8)
has noted of the mount it takes away itself, so -n changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from cowfs.commands import helper, messages, outcome, report
from cowfs.commands.helper import Option
from cowfs.mount import unmount
from cowfs.system.errors import MountFailure

PROGRAM = "umount.cowfs"
OPERANDS = "DIR"
OPTIONS = (
    Option(
        "f", "", "Let what is under way in the mount fail (MNT_FORCE); nobody waits for the daemon."
    ),
    Option("l", "", "Detach it now, and let what still uses it finish; nobody waits."),
    Option("n", "", "Accepted: what is noted of mounts is umount(8)'s affair."),
    Option("r", "", "When it is busy, make it read-only."),
    Option("v", "", "Say what was kept."),
    Option("N", "NAMESPACE", "Unmount in this mount namespace, a process id or a file."),
    Option("t", "TYPE.SUBTYPE", "Accepted: what serves the copy decides."),
)


def main(arguments: Sequence[str]) -> int:
    """The exit code, as in mount(8)."""
    return messages.told(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    call = helper.Call(PROGRAM, OPERANDS, OPTIONS, arguments)
    [mountpoint] = call.operands
    if namespaces := call.values("N"):
        helper.enter_namespace(namespaces[-1])
    lazy = call.has("l")
    try:
        taken = unmount.unmount(mountpoint, lazy=lazy, force=call.has("f"))
    except MountFailure as error:
        if not call.has("r") or not _made_read_only(mountpoint):
            raise
        messages.warn(PROGRAM, f"{error}; it is read-only now")
        return 0
    if call.has("v"):
        report.tell(f"{PROGRAM}: {outcome.line(taken)}")
    return 0


def _made_read_only(mountpoint: str) -> bool:
    """What umount -r asks for when a mount is busy; False when it is no mount any more, or written
    to just now."""
    from cowfs.mount import options
    from cowfs.mount.mountpoint import Mountpoint
    from cowfs.system import syscalls

    mount = unmount.find(mountpoint)
    flags = options.parse([mount.options, "ro"], sloppy=True).mount_flags
    try:
        syscalls.remount(Mountpoint.of(mount).path, flags)
    except OSError:
        return False
    return True
