"""Questions to the kernel that only trying answers: does FICLONE work here, what has its FUSE?

Each probe does the real thing in the smallest way and takes it back. The FUSE superblock of the
passthrough probe is never attached to the mount tree (fsopen(2)), so that nobody can see it and
nothing can be left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cowfs.system import syscalls

# <linux/fuse.h>, protocol 7.40
_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, unused[6]
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_FUSE_INIT = 26
_INIT_EXT = 1 << 30
_SETXATTR_EXT = 1 << 29
_PASSTHROUGH = 1 << 37
_HAS_RESEND = 1 << 39
_BACKING_MAP = struct.Struct("<iIQ")
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502

_PATIENCE_MS = 2000

_URING_HINTS = {
    errno.EPERM: " (switched off by the sysctl kernel.io_uring_disabled or a seccomp filter)",
    errno.ENOSYS: " (the kernel was built without it, or a seccomp filter hides it)",
    errno.ENOMEM: " (the limit of locked memory, RLIMIT_MEMLOCK, is too small)",
}


def reflink(directory: str) -> None:
    """Clone a block between two nameless files in the directory.

    OSError: EOPNOTSUPP, EINVAL, EXDEV or ENOTTY where the filesystem cannot; EROFS, ENOSPC, EACCES
    where it may not.
    """
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _tmpfile(dir_fd) as source, _tmpfile(dir_fd) as target:
            os.write(source.fd, b"\0" * 4096)
            syscalls.ficlone(target.fd, source.fd)
    finally:
        os.close(dir_fd)


class Fuse(NamedTuple):
    """What the kernel offers in its INIT: protocol 7.*minor*, and the flags."""

    minor: int
    flags: int

    @classmethod
    def from_init(cls, request: bytes) -> Fuse:
        """Before Linux 5.17 a request has no second word of flags."""
        _, minor, _, flags, flags2 = _INIT_IN.unpack_from(
            request.ljust(_IN_HEADER.size + _INIT_IN.size, b"\0"), _IN_HEADER.size
        )
        return cls(minor, flags | flags2 << 32 if flags & _INIT_EXT else flags)

    @property
    def has_passthrough(self) -> bool:
        """FUSE_PASSTHROUGH, Linux 6.9."""
        return bool(self.flags & _PASSTHROUGH)

    @property
    def resends(self) -> bool:
        """FUSE_NOTIFY_RESEND, Linux 6.9."""
        return bool(self.flags & _HAS_RESEND)

    @property
    def has_tmpfile(self) -> bool:
        """FUSE_TMPFILE, Linux 6.1."""
        return self.minor >= 37

    @property
    def has_birth_times(self) -> bool:
        """FUSE_STATX, Linux 6.6."""
        return self.minor >= 39

    @property
    def says_who_sets_an_acl(self) -> bool:
        """FUSE_SETXATTR_ACL_KILL_SGID, Linux 5.13."""
        return bool(self.flags & _SETXATTR_EXT)


def fuse() -> Fuse:
    """OSError when FUSE itself does not work: no /dev/fuse, no permission, no fsopen(2)."""
    with _connection() as device:
        return _read_init(device)[0]


def passthrough(directory: str) -> str | None:
    """None when a file of the directory's volume can back a FUSE file; else why not. OSError: as
    `fuse`.
    """
    with _connection() as device:
        offered, unique = _read_init(device)
        if not offered.has_passthrough:
            return f"FUSE 7.{offered.minor} of this kernel does not have it; Linux 6.9 does"
        _agree_on_passthrough(device, offered, unique)
        return _register(device, directory)


def io_uring() -> str | None:
    """None when a ring can be set up; else why not, in a few words."""
    from cowfs.copying import Ring

    try:
        Ring(2, 4096)
    except OSError as error:
        hint = _URING_HINTS.get(error.errno or 0, "")
        return f"io_uring_setup: {error.strerror}{hint}"
    return None


class _tmpfile:  # noqa: N801 -- used as a function
    def __init__(self, dir_fd: int) -> None:
        self.fd = syscalls.open_tmpfile(dir_fd, 0o600)

    def __enter__(self) -> _tmpfile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


@contextmanager
def _connection() -> Iterator[int]:
    """A new FUSE connection, whose INIT can be read."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        parameters = {b"fd": b"%d" % device, b"rootmode": b"40000", b"user_id": b"0"}
        superblock = syscalls.create_filesystem(b"fuse", {**parameters, b"group_id": b"0"})
        try:
            yield device
        finally:
            os.close(superblock)
    finally:
        os.close(device)


def _read_init(fuse: int) -> tuple[Fuse, int]:
    """What the kernel offers, and the number of its request. OSError."""
    poll = select.poll()
    poll.register(fuse, select.POLLIN)
    if not poll.poll(_PATIENCE_MS):
        raise OSError(errno.ETIMEDOUT, "the kernel did not start the FUSE connection")
    request = os.read(fuse, 1 << 17)
    _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if opcode != _FUSE_INIT:
        raise OSError(errno.EPROTO, f"the kernel began with request {opcode} instead of INIT")
    return Fuse.from_init(request), unique


def _agree_on_passthrough(fuse: int, offered: Fuse, unique: int) -> None:
    flags2 = _PASSTHROUGH >> 32
    body = _INIT_OUT.pack(7, offered.minor, 0, _INIT_EXT, 0, 0, 4096, 1, 0, 0, flags2, 1)
    os.write(fuse, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body)


def _register(fuse: int, directory: str) -> str | None:
    """Let a nameless file of the directory back a FUSE file; why the kernel refuses, else None."""
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _tmpfile(dir_fd) as backing:
            # a bytearray: only with a mutable argument does fcntl.ioctl return the call's result
            request = bytearray(_BACKING_MAP.pack(backing.fd, 0, 0))
            backing_id = fcntl.ioctl(fuse, _BACKING_OPEN, request)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return (
                f"{directory} is on a stacked filesystem (overlayfs), which cannot back FUSE files"
            )
        if error.errno == errno.EPERM:
            return "registering a backing file needs CAP_SYS_ADMIN in the initial user namespace"
        return f"a file in {directory} cannot back FUSE files: {error.strerror}"
    finally:
        os.close(dir_fd)
    fcntl.ioctl(fuse, _BACKING_CLOSE, struct.pack("<I", backing_id))
    return None
