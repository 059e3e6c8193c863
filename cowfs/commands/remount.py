"""`mount -o remount`: other flags for a mount that is there.

The kernel keeps these flags by itself, so its daemon need not know: a mount that is read-only sends
it no changes, and goes on as before when it is writable again. The options that the daemon got at
its start stay. A daemon that was started read-only has nowhere to write to, and serves shared files
in a way that allows no later change; on a mount that shows "rw" every change would fail with EROFS.
"""

from __future__ import annotations

import errno
import os

from cowfs.mount import options
from cowfs.mount.options import Options
from cowfs.store import runtime
from cowfs.store.runtime import Record
from cowfs.system import mountinfo, remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.system.mountinfo import Mount
from cowfs.system.syscalls import MS_NODEV, MS_NOSUID


def remount(source: str, mountpoint: str, wanted: Options, *, pretend: bool) -> None:
    """Give the copy of source at mountpoint the flags of *wanted*; with *pretend* only check it.

    As in mount(8), flags that are not wanted are taken away, but nosuid, nodev and those about
    atime stay as they are when they are not spoken of. MountFailure.
    """
    path = os.path.realpath(mountpoint)
    mount = mountinfo.mounted_at(path)
    if mount is None or not mount.is_cowfs:
        raise MountFailure(f"{mountpoint} is not a mounted copy: there is nothing to remount")
    if mount.source not in (source, os.path.realpath(source)):
        raise MountFailure(f"{mountpoint} is a copy of {mount.source}, not of {source}")
    record = runtime.of(mount)
    if record is None:
        raise MountFailure(
            f"the daemon of {mountpoint} has died: mount it again after: "
            f"{remedy.command('cowfs umount', path)}"
        )
    _check_fixed(mountpoint, wanted, record)
    if pretend:
        return
    try:
        syscalls.remount(os.fsencode(path), _flags(wanted, mount))
    except OSError as error:
        raise _failure(mountpoint, error) from None


def _flags(wanted: Options, mount: Mount) -> int:
    """mount(8) never says "suid" to its helpers, so its silence takes nothing away."""
    flags = wanted.mount_flags
    for bit, kept in ((MS_NOSUID, "nosuid"), (MS_NODEV, "nodev")):
        spoken_of = any(bit in options.GENERIC.get(word, ()) for word in wanted.given)
        if not spoken_of:
            flags = flags & ~bit | (bit if kept in mount.options.split(",") else 0)
    return flags


def _check_fixed(mountpoint: str, wanted: Options, record: Record) -> None:
    """Refuse what only a new mount can change. mount(8) adds fstab's options, which may be given
    again as they are."""
    started = options.parse([record.options], sloppy=True)
    running = {
        **started.to_dict(),
        "copy": record.copy,
        "store": os.path.realpath(record.store),
        "ephemeral": not record.persistent,
    }
    given = {item.partition("=")[0] for item in wanted.given}
    asked = wanted.to_dict()
    if wanted.store is not None:
        asked["store"] = os.path.realpath(wanted.store)
    for name in options.FIXED:
        if name in given and asked[name] != running[name]:
            raise MountFailure(
                f"{mountpoint}: a remount cannot change {name}: unmount the copy, and mount it "
                "again"
            )
    if started.read_only and not wanted.read_only:
        raise MountFailure(
            f"{mountpoint} was mounted read-only, and no remount makes it writable: unmount the "
            "copy, and mount it again with rw"
        )


def _failure(mountpoint: str, error: OSError) -> CowfsError:
    if error.errno == errno.EBUSY:
        return MountFailure(
            f"cannot make {mountpoint} read-only: files in it are open for writing "
            f"({remedy.command('fuser -vm', mountpoint)} tells by whom)"
        )
    if error.errno == errno.EPERM:
        return UsageError(f"no permission to remount {mountpoint}: run it as root")
    return MountFailure(f"cannot remount {mountpoint}: {error.strerror}")
