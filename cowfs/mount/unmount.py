"""Take a mount away, and wait until its daemon has finished.

Nothing here looks into the mount itself: its daemon may be dead or hang, and unmounting is the
remedy for both. What became of the copy, `outcome.py` says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs.system import mountinfo, processes, remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure, SystemFailure, UsageError
from cowfs.system.mountinfo import Mount
from cowfs.system.processes import Process

if TYPE_CHECKING:
    from cowfs.store.runtime import Record
    from cowfs.system.processes import Place

# A daemon syncs what was written and deletes an ephemeral copy before it ends.
FINISH_SECONDS = 60.0
_SHOWN_HOLDERS = 5
# How often to try to unmount while the users of a mount are ending, and the pause: seconds.
_TRIES = 50
_PAUSE = 0.02


class Taken(NamedTuple):
    """What was unmounted. record: None when its daemon had died. lazy: its last user may not have
    gone yet. elsewhere: where the same copy is mounted yet."""

    mount: Mount
    record: Record | None
    lazy: bool
    elsewhere: Place | None


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> Taken:
    """Unmount, wait until the daemon has put the copy away, and return what was mounted.

    force: MNT_FORCE, requests that are under way fail. It does not wait with force, as the daemon
    may hang, nor with lazy, nor for a copy that is mounted elsewhere, too (mount --bind, a
    container). Raises UsageError (not ours, or no permission) or MountFailure (busy).
    """
    mount = find(mountpoint)
    from cowfs.store import runtime

    record = runtime.of(mount)
    waiting = [] if record is None else _pidfds(record)
    flags = syscalls.MNT_DETACH if lazy else 0
    flags |= syscalls.MNT_FORCE if force else 0
    # Device number and mount id are free as soon as the mount is gone, and a mount that has both of
    # them later is another one. So ours is not among those that are looked for.
    before = {
        place.key
        for place in processes.places(mount.device)
        if place.process is not None or place.mount.mount_id != mount.mount_id
    }
    elsewhere = None
    try:
        try:
            _unmount(mount, record, flags)
        except OSError as error:
            raise _refused(mount, error, record) from None
        if not force:
            after = processes.places(mount.device)
            elsewhere = next((place for place in after if place.key in before), None)
        if not (lazy or force or elsewhere):
            elsewhere = _wait(waiting, mount)
            if record is not None and record.engine == "overlay" and elsewhere is None:
                _settle(record)
    finally:
        for fd in waiting:
            os.close(fd)
    return Taken(mount, record, lazy, elsewhere)


def _unmount(mount: Mount, record: Record | None, flags: int) -> None:
    """umount2(2) of this mount. OSError: EBUSY when a process uses it that is not just ending.

    When a parent learns that its child has ended, the kernel has let go of the child's mounts. But
    a process that was killed, and that nobody waits for, may use the mount for a moment longer.
    """
    from cowfs.mount.mountpoint import Mountpoint

    place = Mountpoint.of(mount)
    for left in reversed(range(_TRIES)):
        try:
            place.unmount(flags)
        except OSError as error:
            if error.errno != errno.EBUSY or not left:
                raise
            if _inner(mount) or not all(_is_ending(user.pid) for user in _users(mount, record)):
                raise
        else:
            return
        time.sleep(_PAUSE)


def _inner(mount: Mount) -> list[str]:
    """What is mounted in it."""
    below = mount.mountpoint + "/"
    return [inner.mountpoint for inner in mountinfo.read() if inner.mountpoint.startswith(below)]


def _users(mount: Mount, record: Record | None) -> list[Process]:
    ours = () if record is None else (record.daemon_pid, record.keeper_pid)
    return [holder for holder in holders(mount) if holder.pid not in ours]


def _is_ending(pid: int, proc: str = "/proc") -> bool:
    """Whether a process has ended, or been killed: proc_pid_status(5)."""
    try:
        with open(os.path.join(proc, str(pid), "status"), "rb") as lines:
            status = dict(line.split(b":", 1) for line in lines)
        pending = int(status[b"SigPnd"], 16) | int(status[b"ShdPnd"], 16)
    except (OSError, KeyError, ValueError):
        return True
    return bool(pending >> signal.SIGKILL - 1 & 1) or status[b"State"].split()[0] in (b"Z", b"X")


def _settle(record: Record) -> None:
    """Nobody else does it, if the attendant was killed."""
    from cowfs.store.store import Store

    with contextlib.suppress(
        CowfsError, FileNotFoundError
    ):  # whoever looks next says what there is to say
        store = Store.open(record.store)
        with contextlib.closing(store):
            store.settle(record.copy)


def find(mountpoint: str) -> Mount:
    """The cowfs mount that the user means. UsageError when there is none."""
    from cowfs.mount.mountpoint import spellings

    mounts = mountinfo.read()
    for path in spellings(mountpoint):
        mount = mountinfo.mounted_at(path, mounts)
        if mount is not None:
            break
    else:
        raise _not_mounted(mountpoint)
    if not mount.is_cowfs:
        raise UsageError(
            f"{mountpoint} is not a cowfs mount but {mount.fstype}: unmount it with: "
            f"{remedy.command('umount', mount.mountpoint)}"
        )
    return mount


def _not_mounted(mountpoint: str) -> UsageError:
    """Nothing is mounted there: not any more, or not here."""
    from cowfs.store import runtime

    real = os.path.realpath(mountpoint)
    for record in (*runtime.all(), *runtime.elsewhere()):
        if record.mountpoint == real and (place := runtime.place(record)):
            return UsageError(
                f"{mountpoint} is not mounted any more, but its copy {record.copy} still is "
                f"{place}: unmount that"
            )
    listing = remedy.command("cowfs list")
    return UsageError(f"{mountpoint} is not mounted: {listing} shows what is")


def holders(mount: Mount, proc: str = "/proc") -> Iterator[Process]:
    """Processes with a file, directory or mapping of the mount; those that we may look into."""
    own = os.getpid()
    for entry in os.listdir(proc):
        if entry.isdecimal() and int(entry) != own:
            directory = os.path.join(proc, entry)
            try:
                if _holds(directory, mount):
                    with open(os.path.join(directory, "comm"), "rb") as comm:
                        yield Process(int(entry), os.fsdecode(comm.read().rstrip(b"\n")))
            except OSError:
                continue  # it has ended, or is none of our business


def _holds(directory: str, mount: Mount) -> bool:
    for link in ("cwd", "root", "exe"):
        try:
            if mountinfo.is_within(os.readlink(os.path.join(directory, link)), mount.mountpoint):
                return True
        except FileNotFoundError:
            continue  # a kernel thread has no exe
    # fdinfo names the mount without asking its filesystem, which stat(2) would
    for name in os.listdir(os.path.join(directory, "fdinfo")):
        try:
            with open(os.path.join(directory, "fdinfo", name), "rb") as lines:
                if any(
                    line.startswith(b"mnt_id:") and int(line.split()[1]) == mount.mount_id
                    for line in lines
                ):
                    return True
        except FileNotFoundError:
            continue  # closed meanwhile
    major, minor = map(int, mount.device.split(":"))
    device = b"%02x:%02x" % (major, minor)
    with open(os.path.join(directory, "maps"), "rb") as lines:
        return any(line.split(maxsplit=4)[3] == device for line in lines)


def _refused(mount: Mount, error: OSError, record: Record | None) -> Exception:
    path = mount.mountpoint
    if error.errno in (errno.EPERM, errno.EACCES):
        return UsageError(f"no permission to unmount {path}: run it as root")
    if error.errno in (errno.EINVAL, errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
        return MountFailure(
            f"{path} leads to something else than the mount, which is left alone: somebody has "
            "moved it, unmounted it, or mounted over it just now"
        )
    if error.errno != errno.EBUSY:
        return MountFailure(f"cannot unmount {path}: {error.strerror}")
    if inner := _inner(mount):
        first = remedy.command("umount", inner[-1])
        return MountFailure(f"{path} is busy: {inner[-1]} is mounted in it; first: {first}")
    found = _users(mount, record)
    names = ", ".join(map(str, found[:_SHOWN_HOLDERS]))
    if len(found) > _SHOWN_HOLDERS:
        names += f" and {len(found) - _SHOWN_HOLDERS} more"
    if not found:
        names = "a process that is not visible from here (in another container?)"
    return MountFailure(
        f"{path} is busy, held by {names}: end what uses it, or detach it with: "
        f"{remedy.command('cowfs umount --lazy', path)}"
    )


def _pidfds(record: Record) -> list[int]:
    """Descriptors that tell when the processes of a mount have ended (pidfd_open(2))."""
    fds = []
    for pid in {record.daemon_pid, record.keeper_pid}:
        try:
            fds.append(os.pidfd_open(pid))
        except OSError as error:
            # EINVAL: before Linux 6.13 of a number that only a session or a group still has.
            if error.errno in (errno.ESRCH, errno.EINVAL):
                continue
            raise SystemFailure(f"cannot watch process {pid}: {error.strerror}") from None
    return fds


def _wait(pidfds: list[int], mount: Mount) -> Place | None:
    """Until keeper and daemon have ended, or for FINISH_SECONDS; then where it is mounted yet."""
    from cowfs.store import runtime

    deadline = time.monotonic() + FINISH_SECONDS
    for fd in pidfds:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            continue
        # A container that was started in that very moment has one, too.
        if place := next(iter(processes.places(mount.device)), None):
            return place
        raise MountFailure(
            f"unmounted {mount.mountpoint}, but its daemon has not ended within "
            f"{FINISH_SECONDS:g} s, and the copy is in use until it does: see "
            f"{runtime.log_path(mount.device)}"
        )
    return None
