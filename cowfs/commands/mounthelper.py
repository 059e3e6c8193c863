"""`mount.cowfs`: what mount(8) calls for `mount -t cowfs SOURCE MOUNTPOINT`.

    mount.cowfs SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]

The same as `cowfs mount`, but for what mount(8) asks of a helper: it checks everything and does not
mount (-f), passes over unknown options (-s), talks (-v), and changes the flags of a mount that is
there (-o remount). There is no table of mounts to write, so -n changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from cowfs.commands import helper, messages, report, which
from cowfs.commands.helper import Option
from cowfs.mount import launch, options, origin
from cowfs.system import mountinfo
from cowfs.system.errors import MountFailure

PROGRAM = "mount.cowfs"
_MOUNT = "/bin/mount"
OPERANDS = "SPEC DIR"
OPTIONS = (
    Option("s", "", "Pass over options that are not known."),
    Option("f", "", "Check everything, and do not mount."),
    Option("n", "", "Leave no note for umount(8), which then does not wait for the daemon."),
    Option("v", "", "Say what was mounted."),
    Option("N", "NAMESPACE", "Mount in this mount namespace, a process id or a file."),
    Option("o", "OPTIONS", "Options of the mount, separated by commas: see cowfs(5)."),
    Option("t", "TYPE.SUBTYPE", "Accepted: what serves the copy decides."),
)


def main(arguments: Sequence[str]) -> int:
    """The exit code, as in mount(8)."""
    return messages.told(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    call = helper.Call(PROGRAM, OPERANDS, OPTIONS, arguments)
    source, mountpoint = call.operands
    sloppy = call.has("s")
    items = [item for text in call.values("o") for item in options.split(text)]
    remount = "remount" in items
    wanted = options.parse(
        [options.join(item for item in items if item != "remount")], sloppy=sloppy
    )
    if namespaces := call.values("N"):
        helper.enter_namespace(namespaces[-1])
    source, wanted = which.source(PROGRAM, source, wanted)
    if remount:
        from cowfs.commands.remount import remount as change

        change(source, mountpoint, wanted, pretend=call.has("f"))
        done = "remounted"
    else:
        _check_mountpoint_outside(source, mountpoint)
        launch.mount(
            source,
            mountpoint,
            wanted,
            foreground=False,
            warn=lambda message: messages.warn(PROGRAM, message),
            progress=report.sealing_progress,
            pretend=call.has("f"),
        )
        if not (call.has("f") or call.has("n")):
            _note_for_umount(mountpoint, network="_netdev" in items)
        done = "mounted a copy of"
    if call.has("v"):
        would = "could have " if call.has("f") else ""
        report.tell(f"{PROGRAM}: {would}{done} {source} on {mountpoint}")
    return 0


def _check_mountpoint_outside(source: str, mountpoint: str) -> None:
    """What fstab mounts at each boot must not be a part of what it copies."""
    if origin.named(source) is not None:
        return
    inside, above = os.path.realpath(mountpoint), os.path.realpath(source)
    if inside != above and mountinfo.is_within(inside, above):
        raise MountFailure(
            f"mountpoint {mountpoint} is inside the source {source}: name a directory outside of it"
        )


def _note_for_umount(mountpoint: str, *, network: bool) -> None:
    """Have umount(8) call our helper.

    It takes the type of what it unmounts from statfs(2), which knows no subtypes: all it would look
    for is umount.fuse. Where /run/mount/utab has an entry it looks closer. That file is libmount's
    own, so mount(8) writes it; without an entry umount works too, and returns a moment earlier.
    """
    mount = mountinfo.mounted_at(os.path.realpath(mountpoint))
    if mount is None or mount.fstype != mountinfo.FSTYPE:
        return  # overlayfs: umount(8) would look for the helper of that
    words = "uhelper=cowfs,_netdev" if network else "uhelper=cowfs"
    paths = (mount.source, os.path.realpath(mountpoint))
    command = (_MOUNT, "-i", "-f", "-t", mountinfo.FSTYPE, "-o", words, "--", *paths)
    silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    try:
        os.waitpid(os.posix_spawn(_MOUNT, command, os.environ, file_actions=silence), 0)
    except OSError:
        pass  # there is none, or our caller has SIGCHLD ignored
