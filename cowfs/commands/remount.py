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
from cowfs.mount.mountpoint import Mountpoint
from cowfs.mount.options import Options
from cowfs.store import runtime
from cowfs.store.runtime import Record
from cowfs.system import mountinfo, remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.system.mountinfo import Mount
from cowfs.system.syscalls import MS_NODEV, MS_NOSUID

# What a mount that was started read-only cannot become.
READ_WRITE = "rw"
# Fields of Options that are not called as the option is.
_FIELDS = {"inplace": "in_place"}


def remount(source: str, mountpoint: str, wanted: Options, *, pretend: bool) -> None:
    """Give the copy of source at mountpoint the flags of *wanted*; with *pretend* only check it.

    As in mount(8), flags that are not wanted are taken away, but nosuid, nodev and those about
    atime stay as they are when they are not spoken of. MountFailure.
    """
    mount = mounted(mountpoint)
    if mount.source not in (source, os.path.realpath(source)):
        raise MountFailure(f"{mountpoint} is a copy of {mount.source}, not of {source}")
    record = record_of(mount)
    given = {item.partition("=")[0] for item in wanted.given}
    for name in fixed(wanted, record):
        if name == READ_WRITE:
            raise MountFailure(
                f"{mountpoint} was mounted read-only, and no remount makes it writable: unmount "
                "the copy, and mount it again with rw"
            )
        # mount(8) adds fstab's options, which may be given again as they are, or not at all.
        if name in given:
            raise MountFailure(
                f"{mountpoint}: a remount cannot change {name}: unmount the copy, and mount it "
                "again"
            )
    if not pretend:
        change(mount, _flags(wanted, mount))


def mounted(mountpoint: str) -> Mount:
    """The copy that is mounted there. MountFailure."""
    mount = mountinfo.mounted_at(os.path.realpath(mountpoint))
    if mount is None or not mount.is_cowfs:
        raise MountFailure(f"{mountpoint} is not a mounted copy: there is nothing to remount")
    return mount


def record_of(mount: Mount) -> Record:
    """What is known of it. MountFailure: nobody serves it."""
    record = runtime.of(mount)
    if record is None:
        raise MountFailure(
            f"the daemon of {mount.mountpoint} has died: mount it again after: "
            f"{remedy.command('cowfs umount', mount.mountpoint)}"
        )
    return record


def fixed(wanted: Options, record: Record) -> list[str]:
    """The names of those options that only a new mount can change to what *wanted* says."""
    started = options.parse([record.options], sloppy=True)
    names = [name for name in options.FIXED if _differs(name, wanted, started, record)]
    return [*names, READ_WRITE] if started.read_only and not wanted.read_only else names


def change(mount: Mount, flags: int) -> None:
    """Give it these MS_* flags. CowfsError."""
    try:
        syscalls.remount(Mountpoint.of(mount).path, flags)
    except OSError as error:
        raise _failure(mount.mountpoint, error) from None


def _differs(name: str, wanted: Options, started: Options, record: Record) -> bool:
    """A copy or store that nobody has named is the one that the mount has got."""
    asked, had = (getattr(one, _FIELDS.get(name, name)) for one in (wanted, started))
    if name in ("copy", "store") and asked is None:
        return had is not None
    if name == "copy":
        return bool(asked != record.copy)
    if name == "store":
        return bool(os.path.realpath(asked) != os.path.realpath(record.store))
    if name == "engine":
        return bool(asked not in ("auto", record.engine))
    if name == "ephemeral":
        return bool(asked) == record.persistent
    return bool(asked != had)


def _flags(wanted: Options, mount: Mount) -> int:
    """mount(8) never says "suid" to its helpers, so its silence takes nothing away."""
    flags = wanted.mount_flags
    for bit, kept in ((MS_NOSUID, "nosuid"), (MS_NODEV, "nodev")):
        spoken_of = any(bit in options.GENERIC.get(word, ()) for word in wanted.given)
        if not spoken_of:
            flags = flags & ~bit | (bit if kept in mount.options.split(",") else 0)
    return flags


def _failure(mountpoint: str, error: OSError) -> CowfsError:
    if error.errno == errno.EBUSY:
        return MountFailure(
            f"cannot make {mountpoint} read-only: files in it are open for writing "
            f"({remedy.command('fuser -vm', mountpoint)} tells by whom)"
        )
    if error.errno == errno.EPERM:
        return UsageError(f"no permission to remount {mountpoint}: run it as root")
    return MountFailure(f"cannot remount {mountpoint}: {error.strerror}")
