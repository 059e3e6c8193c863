"""A mount of the kernel's overlayfs: made here, by whoever runs `cowfs mount`, and attended to by a
process of its own (attendant.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

from cowfs import __version__
from cowfs.mount import attendant
from cowfs.mount.conversation import LOCK, ORDER
from cowfs.mount.mountpoint import Mountpoint
from cowfs.mount.options import join
from cowfs.store import lowers, overlayfs, remedies, runtime
from cowfs.system import remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowfs.mount.config import Config
    from cowfs.store.copies import Copy
    from cowfs.store.store import Store
    from cowfs.trees.cloning import Progress


class Refused(MountFailure):
    """The kernel does not mount this copy by overlayfs; FUSE may."""


class OverlayMount(NamedTuple):
    """One that was made: `held` is what its attendant needs, by name."""

    record: runtime.Record
    held: dict[str, int]


def make(
    store: Store,
    copy: Copy,
    config: Config,
    progress: Callable[[], contextlib.AbstractContextManager[Progress | None]],
) -> OverlayMount:
    """Mount the copy. Refused; CowfsError; both leave nothing mounted."""
    try:
        lower_fd = lowers.opened(store, copy.template, progress)
    except OSError as error:
        raise _no_lower(store, error) from None
    try:  # while that is open nobody removes it; later the copy's lock keeps it
        return _mount(store, copy, config)
    except OSError as error:
        raise MountFailure(
            f"cannot mount on {config.mountpoint}: {error.strerror or error}"
        ) from None
    finally:
        os.close(lower_fd)


def _mount(store: Store, copy: Copy, config: Config) -> OverlayMount:
    copy_fd = copy.open()
    try:
        _require_a_free_upper(store, copy, copy_fd)
        copy.note_overlayfs()
        upper_fd = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=copy_fd)
        try:
            overlayfs.drop_marks(upper_fd)
        finally:
            os.close(upper_fd)
        place = Mountpoint(config.mountpoint)
        try:
            overlayfs.mount(
                copy_fd,
                copy.template.id,
                os.fsencode(config.source),
                place.path,
                config.options.mount_flags,
            )
        except OSError as error:
            raise _refusal(copy.name, error) from None
    finally:
        os.close(copy_fd)
    try:
        device = place.mounted()
        runtime.claim(device)
        watch = _watch(place.path)
        record = _record(copy, config, device)
        order = attendant.write_order(place.mount_id, asdict(record))
    except BaseException:
        with contextlib.suppress(OSError):
            place.unmount(syscalls.MNT_DETACH)
        raise
    return OverlayMount(record, {ORDER: order, LOCK: copy.lock_fd, attendant.WATCH: watch})


def _require_a_free_upper(store: Store, copy: Copy, copy_fd: int) -> None:
    """Refused where nobody could tell later whether overlayfs still has the copy. MountFailure."""
    try:
        taken = overlayfs.is_taken(store, copy_fd)
    except OSError as error:
        raise Refused(
            f"the kernel's overlayfs does not tell whether it has the copy {copy.name}: "
            f"{error.strerror} (it needs CAP_DAC_READ_SEARCH)"
        ) from None
    if taken:
        raise MountFailure(f"an overlayfs has the copy {copy.name} in another place: unmount that")


def _watch(root: bytes) -> int:
    try:
        return syscalls.watch_end(root)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENOSPC):
            raise
        raise Refused(
            "root has no inotify watch left for the end of the mount: raise "
            "fs.inotify.max_user_instances and max_user_watches with sysctl"
        ) from None


def write_record(record: runtime.Record, pid: int) -> None:
    """Say in /run/cowfs that it is served, with the attendant's pid. OSError."""
    runtime.write(replace(record, daemon_pid=pid, keeper_pid=pid))


def go_on(held: dict[str, int]) -> None:
    """This process is going to attend to a mount whose attendant has ended."""
    record = runtime.Record.from_fields(attendant.read_order(held)["record"])
    with contextlib.suppress(OSError):  # `cowfs list` does not know it then
        write_record(record, os.getpid())


def _record(copy: Copy, config: Config, device: str) -> runtime.Record:
    return runtime.Record(
        device=device,
        mountpoint=config.mountpoint,
        source=config.source,
        store=config.store,
        copy=copy.name,
        template=copy.template.id,
        daemon_pid=0,
        keeper_pid=0,
        started=time.time(),
        options=join(config.options.given),
        persistent=copy.persistent,
        version=__version__,
        engine="overlay",
    )


def _refusal(name: str, error: OSError) -> Refused:
    if error.errno == errno.ENODEV:
        return Refused(f"this kernel has no overlayfs (try: {remedy.command('modprobe overlay')})")
    return Refused(
        f"the kernel's overlayfs does not serve the copy {name}: {error.strerror} (dmesg says more)"
    )


def _no_lower(store: Store, error: OSError) -> CowfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MountFailure(
            f"no space left on the volume of {store.path} for the tree that overlayfs needs: mount "
            f"it with -o engine=fuse, or {remedies.room(store.path)}"
        )
    return MountFailure(
        f"cannot make the tree that overlayfs needs in {store.path}: {error.strerror}"
    )
