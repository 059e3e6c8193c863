"""What must be true before a mount is tried, checked before anything is created.

Each check raises the error that the user sees: what is wrong, with which thing, and the way out.
The checks are cheap and import little, because `cowfs mount` makes them before it starts the
daemon. They are for good messages, not for safety: whatever changes after a check still fails
later, only less kindly. The store checks what concerns the store itself (owner, mode, clones).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from cowfs.mount import privileges
from cowfs.system import mountinfo, nearby, remedy
from cowfs.system.errors import CowfsError, MountFailure, SystemFailure, UsageError

FUSE_DEVICE = "/dev/fuse"

# Which file a unit has its source and mountpoint from.
CONFIGURATION_VARIABLE = "COWFS_CONFIGURATION"

CAP_SYS_ADMIN = 21  # <linux/capability.h>


class SourceMissing(MountFailure):
    """There is no such directory (any more)."""


# Inode number of the initial user namespace in nsfs (PROC_USER_INIT_INO of <linux/proc_ns.h>).
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
_WHOLE_UID_MAP = ["0", "0", "4294967295"]


def has_capability(number: int, status: str = "/proc/self/status") -> bool:
    """Whether this process has the capability in its effective set (capabilities(7))."""
    with open(status, "rb") as lines:
        for line in lines:
            if line.startswith(b"CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def in_initial_user_namespace() -> bool:
    """Whether capabilities count on the host's filesystems, not only in a namespace of ours."""
    try:
        if os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE:
            return True
        with open("/proc/self/uid_map", encoding="ascii") as lines:
            return lines.read().split() == _WHOLE_UID_MAP
    except FileNotFoundError:
        return True  # a kernel without user namespaces has only the initial one


def require_privilege() -> None:
    """UsageError (mount(8): no permission) unless mount(2) and trusted.* attributes work."""
    if not has_capability(CAP_SYS_ADMIN):
        raise privileges.refusal(["SYS_ADMIN"])
    if not in_initial_user_namespace():
        raise UsageError(
            "no permission to mount: this is a user namespace (a rootless container or unshare "
            "-U), and cowfs needs CAP_SYS_ADMIN in the initial one; run it as the host's root"
        )


def require_fuse_device(device: str = FUSE_DEVICE) -> None:
    """SystemFailure unless /dev/fuse opens; opening it makes the kernel load its module."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            way = (
                f"load the module with: {remedy.command('modprobe fuse')}; in a container, start "
                "it with --device /dev/fuse"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            way = "in a container, allow the device with --device /dev/fuse"
        else:
            way = "see the kernel's log (dmesg)"
        raise SystemFailure(f"cannot open {device} ({error.strerror}): {way}") from None


def check_source(source: str) -> str:
    """The canonical path of a directory that can be copied. MountFailure says why it cannot."""
    require_name("source", source)
    path = os.path.realpath(source)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise MountFailure(
                f"source {source} is not a directory: name the directory that holds the files"
            )
        with os.scandir(path) as entries:
            next(entries, None)
    except OSError as error:
        raise _unusable("source", source, error) from None
    return path


def check_mountpoint(mountpoint: str) -> str:
    """The canonical path of a directory to mount on; the mount hides what it holds."""
    require_name("mountpoint", mountpoint)
    path = os.path.realpath(mountpoint)
    mount = mountinfo.mounted_at(path)
    if mount is not None and mount.is_cowfs:
        raise MountFailure(
            f"mountpoint {mountpoint} is already a cowfs mount of {mount.source}: name another "
            f"directory, or unmount it with: {remedy.command('cowfs umount', path)}"
        )
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise MountFailure(f"mountpoint {mountpoint} is not a directory: name a directory")
    except OSError as error:
        raise _unusable("mountpoint", mountpoint, error) from None
    return path


def check_apart_from_store(source: str, mountpoint: str, store: str) -> None:
    """MountFailure where source or mountpoint (canonical) and store are in each other's way."""
    if mountinfo.is_within(source, store):
        raise MountFailure(
            f"source {source} is inside the store {store}: mount the directory that the template "
            f"was made of, which {remedy.command('cowfs list', store=store)} shows"
        )
    if mountinfo.is_within(mountpoint, store):
        raise MountFailure(
            f"mountpoint {mountpoint} is inside the store {store}: name a directory outside of it"
        )
    if mountinfo.is_within(store, mountpoint):
        raise MountFailure(
            f"mountpoint {mountpoint} would hide the store {store}: name a directory that does "
            "not contain it"
        )


@contextlib.contextmanager
def comments_explained(*values: str) -> Iterator[None]:
    """Say so where what a unit's configuration says is refused, and has a comment behind it."""
    try:
        yield
    except CowfsError as error:
        configuration = os.environ.get(CONFIGURATION_VARIABLE)
        if configuration and any(re.search(r"\s#", value) for value in values):
            error.args = (
                f"{error} (in {configuration} a comment has a line of its own; behind a value it "
                "is a part of it)",
            )
        raise


def require_name(role: str, path: str) -> None:
    """UsageError for an empty path: a variable that was not set is not the present directory."""
    if path:
        return
    way = "name a directory"
    if configuration := os.environ.get(CONFIGURATION_VARIABLE):
        way = f"say {role.upper()}=DIRECTORY in {configuration}"
        if not os.path.exists(configuration):
            way += ", which is not there"
    raise UsageError(f"the {role} has no name: {way}")


def _missing(source: str) -> str:
    """That there is no such source, and what may be meant."""
    place = os.path.realpath(source)
    leads = f" (it leads to {place})" if os.path.islink(source) else ""
    meant = nearby.directory(place)
    way = "name an existing directory" if meant is None else f"did you mean {meant}?"
    return f"source {source} does not exist{leads}: {way}"


def _unusable(role: str, path: str, error: OSError) -> CowfsError:
    if error.errno == errno.ENOENT:
        if role == "mountpoint":
            make = remedy.command("mkdir -p", path)
            return MountFailure(f"mountpoint {path} does not exist: make it with: {make}")
        return SourceMissing(_missing(path))
    if error.errno == errno.ENOTDIR:
        return MountFailure(f"{role} {path} is not a directory: a part of its path is a file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return MountFailure(
            f"{role} {path} is not readable ({error.strerror}): run cowfs as a user who may read "
            "it, root with CAP_DAC_OVERRIDE"
        )
    if error.errno == errno.ENOTCONN:
        return MountFailure(
            f"{role} {path} is a FUSE mount that has lost its daemon: unmount it with: "
            f"{remedy.command('umount -l', path)}"
        )
    return MountFailure(f"{role} {path} cannot be used: {error.strerror}")
