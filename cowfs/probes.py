"""Questions to the kernel that only trying answers: does FICLONE work here, does FUSE passthrough?

Each probe does the real thing in the smallest way and takes it back. The FUSE superblock of the
passthrough probe is never attached to the mount tree (fsopen(2)), so that nobody can see it and
nothing can be left behind.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct

from cowfs import syscalls

_SYS_FSOPEN = 430  # one number on every architecture but alpha
_SYS_FSCONFIG = 431
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

# <linux/fuse.h>, protocol 7.40
_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, max_stack_depth, unused[6]
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_FUSE_INIT = 26
_INIT_EXT = 1 << 30
_PASSTHROUGH_FLAGS2 = 1 << 5  # bit 37 of the 64
_BACKING_MAP = struct.Struct("<iIQ")
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502

_PATIENCE_MS = 2000


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


def passthrough(directory: str) -> str | None:
    """None when a file of the directory's volume can back a FUSE file; else why not.

    OSError when FUSE itself does not work: no /dev/fuse, no permission, no fsopen(2).
    """
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        superblock = _fuse_superblock(fuse)
        try:
            refusal = _negotiate(fuse)
            return refusal if refusal is not None else _register(fuse, directory)
        finally:
            os.close(superblock)
    finally:
        os.close(fuse)


class _tmpfile:  # noqa: N801 -- used as a function
    def __init__(self, dir_fd: int) -> None:
        self.fd = syscalls.open_tmpfile(dir_fd, 0o600)

    def __enter__(self) -> _tmpfile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _fuse_superblock(fuse: int) -> int:
    """A descriptor that holds a new FUSE superblock; it ends when that is closed."""
    context = _syscall(_SYS_FSOPEN, ctypes.c_char_p(b"fuse"), ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        for key, value in (
            (b"source", b"cowfs-doctor"),
            (b"fd", b"%d" % fuse),
            (b"rootmode", b"40000"),
            (b"user_id", b"0"),
            (b"group_id", b"0"),
        ):
            _fsconfig(context, _FSCONFIG_SET_STRING, key, value)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
    except BaseException:
        os.close(context)
        raise
    return context


def _negotiate(fuse: int) -> str | None:
    """Answer the kernel's INIT with passthrough on; why it is not to be had, else None."""
    poll = select.poll()
    poll.register(fuse, select.POLLIN)
    if not poll.poll(_PATIENCE_MS):
        return "the kernel did not start the FUSE connection"
    request = os.read(fuse, 1 << 17)
    _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if opcode != _FUSE_INIT:
        return f"the kernel began with request {opcode} instead of INIT"
    major, minor, _, flags, flags2 = _INIT_IN.unpack_from(
        request.ljust(_IN_HEADER.size + _INIT_IN.size, b"\0"), _IN_HEADER.size
    )
    if not (flags & _INIT_EXT and flags2 & _PASSTHROUGH_FLAGS2):
        return f"FUSE protocol {major}.{minor} of this kernel does not have it; Linux 6.9 does"
    body = _INIT_OUT.pack(major, minor, 0, _INIT_EXT, 0, 0, 4096, 1, 0, 0, _PASSTHROUGH_FLAGS2, 1)
    os.write(fuse, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body)
    return None


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


def _fsconfig(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    _syscall(
        _SYS_FSCONFIG,
        ctypes.c_int(context),
        ctypes.c_uint(command),
        ctypes.c_char_p(key),
        ctypes.c_char_p(value),
        ctypes.c_int(0),
    )


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
