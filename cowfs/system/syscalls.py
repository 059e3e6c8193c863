"""System calls that Python's standard library does not offer, and those whose flags it hides.

This file knows numbers, structures and how a failure is reported: always as `OSError` with the
errno of the call. It knows nothing about overlays, templates or copies. The ioctl numbers are those
of asm-generic (x86-64, arm64, riscv64).

Every call releases the GIL while it is in the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

# fcntl.h, linux/fcntl.h
_AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
# Before Linux 6.6 any other statx(2) of a FUSE file asks the server, who may be the caller.
_OF_MOUNT = AT_EMPTY_PATH | _AT_STATX_DONT_SYNC

# linux/limits.h
PATH_MAX = 4096  # bytes of a path in one call, the NUL included

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
FS_COMPR_FL = 0x4
FS_IMMUTABLE_FL = 0x10
FS_NOCOW_FL = 0x800000

# linux/fiemap.h
FIEMAP_EXTENT_LAST = 0x1
FIEMAP_EXTENT_UNWRITTEN = 0x800
FIEMAP_EXTENT_SHARED = 0x2000

# sys/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_SILENT = 0x8000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# linux/sched.h
CLONE_NEWNS = 0x20000

# linux/mount.h
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_MOUNT_ATTR_NOEXEC = 0x8
_MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR_STRICTATIME = 0x20
_MOUNT_ATTR__ATIME = 0x70  # the bits of all of them; relatime is none of these bits

_MOUNT_ATTRIBUTES = {
    MS_RDONLY: _MOUNT_ATTR_RDONLY,
    MS_NOSUID: _MOUNT_ATTR_NOSUID,
    MS_NODEV: _MOUNT_ATTR_NODEV,
    MS_NOEXEC: _MOUNT_ATTR_NOEXEC,
}

_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1

# sys/inotify.h
_IN_UNMOUNT = 0x2000
_IN_ONLYDIR = 0x1000000

# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01

_FICLONE = 0x40049409
_FS_IOC_FIEMAP = 0xC020660B
_FS_IOC_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16
_FS_IOC_SETFLAGS = 0x40006602 | struct.calcsize("l") << 16

_PR_SET_PDEATHSIG = 1

_SYS_OPEN_TREE = 428  # these have one number on every architecture but alpha
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_CACHESTAT = 451
_SYS_STATMOUNT = 457
_MAP_FAILED = ctypes.c_void_p(-1).value

_MAX_HANDLE_SZ = 128
_STATX_BTIME = 0x800
_STATX_BTIME_OFFSET = 0x50  # seconds (signed), nanoseconds
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE = 256
_STATX_INO_OFFSET = 0x20
_STATX_DEV_OFFSET = 0x88  # major, minor
_STATX_MNT_ID_OFFSET = 0x90
_STATMOUNT_SIZE = 512

_FIEMAP_FLAG_SYNC = 1
_FIEMAP_BATCH = 512
_FIEMAP_HEADER = struct.Struct("=QQIIII")  # start, length, flags, mapped, room, reserved
# logical, physical, length, two reserved, flags, three reserved
_FIEMAP_EXTENT = struct.Struct("=QQQQQIIII")


class Extent(NamedTuple):
    """One run of a file's blocks: where it is in the file and on the device, in bytes."""

    logical: int
    physical: int
    length: int
    flags: int  # FIEMAP_EXTENT_*


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_char * _MAX_HANDLE_SZ),
    )


class _MntIdReq(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("spare", ctypes.c_uint32),
        ("mnt_id", ctypes.c_uint64),
        ("param", ctypes.c_uint64),
    )


class _CachestatRange(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = (
        ("nr_cache", ctypes.c_uint64),
        ("nr_dirty", ctypes.c_uint64),
        ("nr_writeback", ctypes.c_uint64),
        ("nr_evicted", ctypes.c_uint64),
        ("nr_recently_evicted", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.linkat.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
)
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.statx.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_void_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)


def _call(function: Callable[..., int], *args: object, filename: bytes | None = None) -> int:
    """Call into libc, again after EINTR (Python's signal handlers have run by then)."""
    while True:
        result = function(*args)
        if result != -1:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            break
    if filename is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), filename)


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Make `dst_fd` share every block of `src_fd`, as ioctl_ficlone(2).

    Dirty pages of the source are written out first. On btrfs an empty `dst_fd` becomes a file
    without checksums (chattr +C) where the source is one, as in copying/clone.c. OSError: EXDEV
    other filesystem (before Linux 5.18 also another mount of the same one), EOPNOTSUPP no reflink,
    ENOSPC, EINVAL, ETXTBSY (a swap file).
    """
    try:
        fcntl.ioctl(dst_fd, _FICLONE, src_fd)
    except OSError as error:
        if error.errno != errno.EINVAL or not _clone_in_kind(dst_fd, src_fd):
            raise


def _clone_in_kind(dst_fd: int, src_fd: int) -> bool:
    try:
        nocow = get_file_flags(src_fd) & FS_NOCOW_FL
    except OSError:  # not every filesystem has flags
        return False
    for wanted in (nocow, nocow ^ FS_NOCOW_FL):
        try:
            flags = get_file_flags(dst_fd) & ~FS_NOCOW_FL
            set_file_flags(dst_fd, flags & ~FS_COMPR_FL | wanted if wanted else flags)
        except OSError:
            continue
        try:
            fcntl.ioctl(dst_fd, _FICLONE, src_fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return True
    return False


def clones_between(to_fd: int, from_fd: int) -> bool:
    """Whether `ficlone` works from the mount of one directory to that of another, which must be of
    one filesystem.  What it says of two directories tells: before Linux 5.18 it looks at the mounts
    first."""
    target = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=to_fd)
    try:
        source = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=from_fd)
        try:
            ficlone(target, source)
        except OSError as error:
            return error.errno != errno.EXDEV
        finally:
            os.close(source)
    finally:
        os.close(target)
    return True


def open_by_handle(fd: int, mount_fd: int, flags: int) -> int:
    """Open the file of *fd* again through its handle, in the mount of *mount_fd* (no O_PATH).

    name_to_handle_at(2), open_by_handle_at(2). OSError: EPERM without CAP_DAC_READ_SEARCH,
    EOPNOTSUPP where the filesystem has no handles.
    """
    handle = _FileHandle(_MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    place = ctypes.byref(handle), ctypes.byref(mount_id)
    _call(_libc.name_to_handle_at, fd, b"", *place, AT_EMPTY_PATH)
    return _call(_libc.open_by_handle_at, mount_fd, place[0], flags | os.O_CLOEXEC)


def fiemap(fd: int, sync: bool = True) -> list[Extent]:
    """Every extent of a file (Documentation/filesystems/fiemap.rst); holes have none.

    `sync` writes dirty data out first, so that no extent is without a place.
    """
    extents: list[Extent] = []
    start = 0
    while True:
        request = bytearray(_FIEMAP_HEADER.size + _FIEMAP_BATCH * _FIEMAP_EXTENT.size)
        flags = _FIEMAP_FLAG_SYNC if sync else 0
        _FIEMAP_HEADER.pack_into(
            request, 0, start, (1 << 64) - 1 - start, flags, 0, _FIEMAP_BATCH, 0
        )
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
        mapped = _FIEMAP_HEADER.unpack_from(request)[3]
        for index in range(mapped):
            logical, physical, length, _, _, flags, _, _, _ = _FIEMAP_EXTENT.unpack_from(
                request, _FIEMAP_HEADER.size + index * _FIEMAP_EXTENT.size
            )
            extents.append(Extent(logical, physical, length, flags))
        if not mapped or extents[-1].flags & FIEMAP_EXTENT_LAST:
            return extents
        start = extents[-1].logical + extents[-1].length


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), in bytes; unlike posix_fallocate(3) it never writes. OSError: EOPNOTSUPP."""
    _call(_libc.fallocate, fd, mode, offset, length)


def syncfs(fd: int) -> None:
    """Write all that the filesystem of an open file has in memory (syncfs(2)). OSError: EIO."""
    _call(_libc.syncfs, fd)


def openat2(
    dir_fd: int,
    path: bytes,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
) -> int:
    """Open `path` below `dir_fd` without following a symlink or leaving the tree (openat2(2)).

    The descriptor is close-on-exec. OSError: ELOOP a symlink, EXDEV the path leads out of the tree
    (or, with RESOLVE_NO_XDEV, into another mount).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _call(
        _libc.syscall,
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
        filename=path,
    )


def open_below(dir_fd: int, path: bytes, flags: int, resolve: int = 0) -> int:
    """`openat2` for a relative path of any length, b"" for the directory itself.

    Never follows a symlink or leaves the tree; `resolve` adds to that.
    """
    resolve |= RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    start, at = dir_fd, 0
    try:
        while len(path) - at >= PATH_MAX:
            cut = path.rindex(b"/", at, at + PATH_MAX)
            step = openat2(start, path[at:cut], os.O_PATH | os.O_DIRECTORY, 0, resolve)
            if start != dir_fd:
                os.close(start)
            start, at = step, cut + 1
        return openat2(start, path[at:] or b".", flags, 0, resolve)
    finally:
        if start != dir_fd:
            os.close(start)


def open_tmpfile(dir_fd: int, mode: int) -> int:
    """A new file without a name on the filesystem of `dir_fd`, open for reading and writing.

    The umask applies to `mode`.
    """
    return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def fsync_directory(fd: int) -> None:
    """fsync(2) of an open directory. OSError: EIO also when the volume is no more.

    XFS writes nothing for a directory that is not in its log any more, and so reports success for
    one whose changes were thrown away when the volume was shut down meanwhile. Opening it again
    tells.
    """
    os.fsync(fd)
    os.close(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))


def link_fd(fd: int, dir_fd: int, name: bytes) -> None:
    """Give the file of `fd` a name (linkat(2), AT_EMPTY_PATH); O_PATH and O_TMPFILE do.

    Needs CAP_DAC_READ_SEARCH, without which the kernel says ENOENT. OSError: EEXIST, ENOENT,
    EMLINK, EPERM.
    """
    _call(_libc.linkat, fd, b"", dir_fd, name, AT_EMPTY_PATH, filename=name)


def renameat2(old_dir_fd: int, old: bytes, new_dir_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2), with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT in `flags`."""
    _call(_libc.renameat2, old_dir_fd, old, new_dir_fd, new, flags, filename=old)


def get_file_flags(fd: int) -> int:
    """The FS_*_FL flags that lsattr(1) shows (ioctl_iflags(2))."""
    buffer = bytearray(8)
    fcntl.ioctl(fd, _FS_IOC_GETFLAGS, buffer)
    return int(struct.unpack_from("=I", buffer)[0])


def set_file_flags(fd: int, flags: int) -> None:
    """Set the FS_*_FL flags of a file to exactly these (ioctl_iflags(2))."""
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=II", flags, 0))


def set_immutable(fd: int, on: bool) -> None:
    """Set or clear FS_IMMUTABLE_FL, as chattr(1) +i; the other flags stay.

    Needs CAP_LINUX_IMMUTABLE. OSError: ENOTTY or EOPNOTSUPP where the filesystem has no such flags.
    """
    flags = get_file_flags(fd)
    wanted = flags | FS_IMMUTABLE_FL if on else flags & ~FS_IMMUTABLE_FL
    if wanted != flags:
        set_file_flags(fd, wanted)


def statx_mount_id(fd: int) -> int:
    """The id of the mount that an open file (O_PATH too) belongs to, as in /proc/self/mountinfo.

    OSError: ENOSYS on a kernel before 5.8, which does not tell.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _call(_libc.statx, fd, b"", _OF_MOUNT, _STATX_MNT_ID, buffer)
    if not struct.unpack_from("=I", buffer)[0] & _STATX_MNT_ID:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return int(struct.unpack_from("=Q", buffer, _STATX_MNT_ID_OFFSET)[0])


def statx_unique_mount_id(fd: int) -> int:
    """An id that no other mount ever has, for the same; Linux 6.8.

    An older kernel tells the other one, which the next mount may get when this one has gone.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _call(_libc.statx, fd, b"", _OF_MOUNT, _STATX_MNT_ID_UNIQUE, buffer)
    if not struct.unpack_from("=I", buffer)[0] & _STATX_MNT_ID_UNIQUE:
        return statx_mount_id(fd)
    return int(struct.unpack_from("=Q", buffer, _STATX_MNT_ID_OFFSET)[0])


def statx_identity(path: bytes) -> tuple[str, int]:
    """Device ("major:minor") and inode number of what a path leads to, as the kernel knows them.

    A filesystem that may not answer is not asked (AT_STATX_DONT_SYNC).
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _call(_libc.statx, _AT_FDCWD, path, _AT_STATX_DONT_SYNC, 0, buffer, filename=path)
    major, minor = struct.unpack_from("=II", buffer, _STATX_DEV_OFFSET)
    return f"{major}:{minor}", int(struct.unpack_from("=Q", buffer, _STATX_INO_OFFSET)[0])


def is_mounted(mount_id: int) -> bool:
    """Whether the mount of a unique id is in the tree of this mount namespace; statmount(2), which
    asks the mount itself nothing.

    OSError: ENOSYS before Linux 6.8, where ids are not unique, EPERM if a filter does not know it.
    """
    asked = _MntIdReq(size=ctypes.sizeof(_MntIdReq), mnt_id=mount_id)
    answer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    try:
        _call(
            _libc.syscall,
            ctypes.c_long(_SYS_STATMOUNT),
            ctypes.byref(asked),
            answer,
            ctypes.c_size_t(_STATMOUNT_SIZE),
            ctypes.c_uint(0),
        )
    except FileNotFoundError:
        return False
    return True


def birth_time(path: bytes, *, follow: bool) -> int | None:
    """When a file was made, in nanoseconds since the epoch (stx_btime of statx(2)).

    None where the filesystem does not say. *follow* tells whether a symlink is followed.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    _call(_libc.statx, _AT_FDCWD, path, flags, _STATX_BTIME, buffer, filename=path)
    if not struct.unpack_from("=I", buffer)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process as soon as that parent has ended: PR_SET_PDEATHSIG, prctl(2)."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was quicker
        os.kill(os.getpid(), signal.SIGKILL)


def outlive_parent() -> None:
    """Take `die_with_parent` back."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, 0, 0, 0, 0)


def mount_apart(dir_fd: int, flags: int) -> int:
    """A descriptor (O_PATH) of the same directory in a mount of its own, which nobody else sees.

    *flags*: with MS_RDONLY nothing can be opened there for writing: EROFS, whoever asks, the kernel
    included. MS_NOATIME, MS_STRICTATIME or neither (relatime) say how access times change there.
    MS_NOSUID, MS_NODEV and MS_NOEXEC come to what the mount of the directory has.
    OSError: ENOSYS before Linux 5.12, EPERM without CAP_SYS_ADMIN; open_tree(2), mount_setattr(2).
    """
    attributes = _MountAttr(attr_clr=_MOUNT_ATTR__ATIME)
    for flag, attribute in _MOUNT_ATTRIBUTES.items():
        if flags & flag:
            attributes.attr_set |= attribute
    if flags & MS_NOATIME:
        attributes.attr_set |= _MOUNT_ATTR_NOATIME
    elif flags & MS_STRICTATIME:
        attributes.attr_set |= _MOUNT_ATTR_STRICTATIME
    fd = _call(
        _libc.syscall,
        ctypes.c_long(_SYS_OPEN_TREE),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH),
    )
    try:
        _call(
            _libc.syscall,
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(AT_EMPTY_PATH),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def move_mount(mount_fd: int, dir_fd: int) -> None:
    """Mount what `mount_apart` has made on an open directory (O_PATH): move_mount(2)."""
    _call(
        _libc.syscall,
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH),
    )


def has_filesystem(fstype: bytes) -> bool:
    """Whether the kernel has filesystems of this type, if need be in a module, which is loaded.

    OSError: EPERM where nobody may ask.
    """
    try:
        os.close(_fsopen(fstype))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def create_filesystem(fstype: bytes, parameters: Mapping[bytes, bytes]) -> int:
    """A descriptor of a new filesystem of this type that is mounted nowhere, and ends with it.

    fsopen(2), fsconfig(2), Linux 5.2. OSError of the filesystem; ENODEV: the kernel has no such
    type. Before Linux 5.12 overlayfs wants no comma in what it is told.
    """
    fd = _fsopen(fstype)
    try:
        for key, value in parameters.items():
            _fsconfig(fd, _FSCONFIG_SET_STRING, key, value)
        _fsconfig(fd, _FSCONFIG_CMD_CREATE, None, None)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_nowhere(fstype: bytes) -> int:
    """A descriptor (O_PATH) of the root of a filesystem that needs no source, in a mount nobody
    else sees and that ends with it. fsmount(2), Linux 5.2. OSError as above."""
    fd = create_filesystem(fstype, {})
    try:
        return _call(
            _libc.syscall,
            ctypes.c_long(_SYS_FSMOUNT),
            ctypes.c_int(fd),
            ctypes.c_uint(_FSMOUNT_CLOEXEC),
            ctypes.c_uint(0),
        )
    finally:
        os.close(fd)


def _fsopen(fstype: bytes) -> int:
    return _call(
        _libc.syscall,
        ctypes.c_long(_SYS_FSOPEN),
        ctypes.c_char_p(fstype),
        ctypes.c_uint(_FSOPEN_CLOEXEC),
    )


def _fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None) -> None:
    _call(
        _libc.syscall,
        ctypes.c_long(_SYS_FSCONFIG),
        ctypes.c_int(fd),
        ctypes.c_uint(command),
        ctypes.c_char_p(key),
        ctypes.c_char_p(value),
        ctypes.c_int(0),
    )


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2) of a filesystem, with MS_* flags."""
    _call(_libc.mount, source, target, fstype, flags, data, filename=target)


def watch_end(root: bytes) -> int:
    """A descriptor that can be read as soon as the filesystem of this root directory has ended.

    That is when it is mounted nowhere any more and its last file is closed (IN_UNMOUNT of
    inotify(7)); the watch keeps it from neither. What is left to the kernel then is done a moment
    later.
    """
    fd = _call(_libc.inotify_init1, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _call(_libc.inotify_add_watch, fd, root, _IN_UNMOUNT | _IN_ONLYDIR, filename=root)
    except BaseException:
        os.close(fd)
        raise
    return fd


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    _call(_libc.umount2, target, flags, filename=target)


def remount(target: bytes, flags: int) -> None:
    """Give a mount and its filesystem other MS_* flags: mount(2) with MS_REMOUNT.

    Without any of the flags about atime those that are there stay.
    """
    _call(_libc.mount, None, target, None, flags | MS_REMOUNT, None, filename=target)


def enter_mount_namespace(fd: int) -> None:
    """setns(2) of this process, which may have no other threads. fd: of /proc/PID/ns/mnt."""
    _call(_libc.setns, fd, CLONE_NEWNS)


def cachestat(fd: int, offset: int, length: int) -> int:
    """How many pages of a range of a file (bytes, length above 0) its page cache holds.

    cachestat(2). OSError: ENOSYS before Linux 6.5, EPERM for who neither owns the file nor may
    write it.
    """
    asked, found = _CachestatRange(offset, length), _Cachestat()
    _call(
        _libc.syscall,
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_int(fd),
        ctypes.byref(asked),
        ctypes.byref(found),
        ctypes.c_uint(0),
    )
    return int(found.nr_cache)


def pages_in_memory(fd: int, offset: int, length: int) -> int:
    """How many pages of a range of a file are in its page cache, on every kernel.

    OSError: EPERM as cachestat(2) has it. Before Linux 6.5 a caller that would get EPERM is told
    that all of them are in memory.
    """
    try:
        return cachestat(fd, offset, length)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    before = offset % mmap.PAGESIZE
    return mincore(fd, offset - before, length + before)


def mincore(fd: int, offset: int, length: int) -> int:
    """How many pages of a range of a file a new mapping of it would find in memory.

    Where FUSE passes a file through, those are the pages of the backing file, which cachestat(2)
    does not see. *offset* is that of a page. To who neither owns the file nor may write it the
    kernel says that all of them are in memory (mincore(2)). OSError of mmap(2).
    """
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        _call(_libc.mincore, address, length, pages)
        return pages.raw.count(b"\1")
    finally:
        _libc.munmap(address, length)
