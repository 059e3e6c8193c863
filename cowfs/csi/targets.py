"""Where the kubelet wants a volume: resolved below its directory, bound, and unbound.

A target lies below the kubelet's directory, by name and in truth: no symbolic link is followed from
there on, and the directory that holds the target has to be root's alone, so that nobody exchanges
what is in it between a look and the next step. A bind mount is made apart and moved onto the
descriptor of the target; there is no moment at which it is writable and should not be.

Nothing here looks into a mount. What is mounted where the mount table says, and a daemon that hangs
or is dead keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from grpc import StatusCode

from cowfs.csi.calls import Refused, invalid, precondition
from cowfs.mount.mountpoint import Mountpoint
from cowfs.system import mountinfo, syscalls
from cowfs.system.mountinfo import Mount

log = logging.getLogger(__name__)

# While the runtime takes a container apart its mounts are busy: for how long to try, and the pause.
_BUSY_SECONDS = 5.0
_PAUSE = 0.05

# Mount options that a volume may ask for, and the flags of mount(2) that they are.
FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "rw": 0,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "relatime": 0,
}

_POD = re.compile(r"pods/([^/]+)/volumes/kubernetes\.io~csi/[^/]+/mount")


class Place(NamedTuple):
    """A path below the kubelet's directory. real: with that directory's links followed."""

    root: str
    below: str

    @property
    def real(self) -> str:
        return f"{self.root}/{self.below}"

    @property
    def pod(self) -> str:
        """The UID of the pod whose target it is; empty when it is no pod's."""
        match = _POD.fullmatch(self.below)
        return match[1] if match else ""

    @property
    def mount(self) -> Mount | None:
        """What is mounted there."""
        return mountinfo.mounted_at(self.real)

    def is_gone(self) -> bool:
        """Whether there is not even the directory that would hold it."""
        try:
            with self._parent():
                return False
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR)

    @contextlib.contextmanager
    def _parent(self) -> Iterator[int]:
        """The directory that holds it, open. OSError."""
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            above = os.fsencode(os.path.dirname(self.below))
            fd = syscalls.open_below(root, above, os.O_PATH | os.O_DIRECTORY)
        finally:
            os.close(root)
        try:
            yield fd
        finally:
            os.close(fd)

    @property
    def _name(self) -> str:
        return os.path.basename(self.below)

    @contextlib.contextmanager
    def opened(self, *, make: bool) -> Iterator[int]:
        """The directory there itself (O_PATH), made if need be. Refused says why it cannot be."""
        try:
            with self._parent() as parent:
                st = os.fstat(parent)
                if st.st_uid != 0 or st.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise precondition(
                        f"the directory that holds {self.real} is not root's alone, and somebody "
                        "could exchange what is in it"
                    )
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(self._name, 0o750, dir_fd=parent)
                flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(self._name, flags, dir_fd=parent)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            # Of what is mounted on it nobody is asked: a mount is a directory.
            if self.mount is None and not stat.S_ISDIR(kind := os.fstat(fd).st_mode):
                what = "a symbolic link" if stat.S_ISLNK(kind) else "no directory"
                raise invalid(f"the path {self.real} is {what}")
            yield fd
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Take the directory away, if nothing is in it or mounted on it. OSError."""
        try:
            with self._parent() as parent:
                os.rmdir(self._name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP):
                raise
            # What somebody else has put there is not ours to remove.
            log.warning("%s is left there: %s", self.real, error.strerror)

    def _unusable(self, error: OSError) -> Refused:
        if error.errno == errno.ELOOP:
            return invalid(f"the path {self.real} leads through a symbolic link")
        if error.errno == errno.ENOTDIR:
            return invalid(f"a part of the path {self.real} is no directory")
        if error.errno == errno.ENOENT:
            return precondition(f"the directory of {self.real} is not there")
        if error.errno == errno.ENAMETOOLONG:
            return invalid(f"the path {self.real[:64]}... is too long")
        return Refused(
            StatusCode.INTERNAL, f"the path {self.real} cannot be used: {error.strerror}"
        )


def place(kubelet: str, path: str, what: str) -> Place:
    """Where a path of a request is. kubelet: its directory, as it and we call it. Refused."""
    if not path:
        raise invalid(f"the {what} is missing")
    if not path.startswith("/") or "\0" in path or os.path.normpath(path) != path.rstrip("/"):
        raise invalid(f"the {what} is no plain absolute path")
    if len(os.fsencode(path)) >= syscalls.PATH_MAX:
        raise invalid(f"the {what} is longer than a path can be")
    root = kubelet.rstrip("/")
    below = path.rstrip("/").removeprefix(f"{root}/")
    if not mountinfo.is_within(path.rstrip("/"), root) or below in ("", root):
        raise invalid(f"the {what} {path} is not below {root}, which is the kubelet's directory")
    return Place(os.path.realpath(root), below)


def bind(mountpoint: str, where: Place, flags: int, *, make: bool) -> None:
    """Bind what is mounted at `mountpoint`, a path of ours, where it is wanted.

    Nothing happens when it is there already. Refused: something else is; OSError.
    """
    volume = mountinfo.mounted_at(mountpoint)
    if volume is None:
        raise OSError(errno.ESTALE, "the volume's mount has just gone")
    if (there := where.mount) is not None:
        if there.device == volume.device:
            return
        raise precondition(
            f"something else is mounted at {where.real}: {there.fstype} of {there.source}"
        )
    source = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        apart = syscalls.mount_apart(source, flags)
    finally:
        os.close(source)
    try:
        with where.opened(make=make) as target:
            syscalls.move_mount(apart, target)
    finally:
        os.close(apart)


def unbind(where: Place) -> None:
    """Unmount every copy that is mounted there; what is still busy after a while is detached.

    Anything else that is mounted there stays. OSError.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    flags = 0
    while (mount := where.mount) is not None and mount.is_cowfs:
        try:
            Mountpoint.of(mount).unmount(flags)
        except OSError as error:
            # The others: somebody was quicker, or mounts something over it just now.
            if error.errno not in (errno.EBUSY, errno.EINVAL, errno.ENOENT):
                raise
            if time.monotonic() > deadline:
                if flags:
                    raise
                log.warning("%s is busy, and is detached from its users", where.real)
                flags = syscalls.MNT_DETACH
                deadline += _BUSY_SECONDS
            time.sleep(_PAUSE)
