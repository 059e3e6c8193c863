"""System calls that Python has no function for, by libc; errors are OSError."""

from __future__ import annotations

import ctypes
import os
from typing import Any

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EACCESS = 0x200
AT_EMPTY_PATH = 0x1000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.rewinddir.argtypes = [ctypes.c_void_p]
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]
_libc.tee.restype = ctypes.c_ssize_t
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
]  # fmt: skip
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.syscall.restype = ctypes.c_long

_FCHMODAT2 = 452
_FACCESSAT2 = 439


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.readdir.restype = ctypes.POINTER(_Dirent)


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: str, new: str, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def linkat(fd: int, path: str, new: str, flags: int) -> None:
    _checked(_libc.linkat(fd, os.fsencode(path), AT_FDCWD, os.fsencode(new), flags))


def link_followed(path: str, new: str) -> None:
    """link(2) of what a symlink points to, which os.link does not do."""
    linkat(AT_FDCWD, path, new, AT_SYMLINK_FOLLOW)


def link_fd(fd: int, new: str) -> None:
    """Give the file of a descriptor a name."""
    link_followed(f"/proc/self/fd/{fd}", new)


def fchmodat2(fd: int, path: str, mode: int, flags: int) -> None:
    number, at = ctypes.c_long(_FCHMODAT2), ctypes.c_long(fd)
    _checked(_libc.syscall(number, at, os.fsencode(path), ctypes.c_long(mode), flags))


def faccessat2(path: str, mode: int, flags: int) -> None:
    number, at = ctypes.c_long(_FACCESSAT2), ctypes.c_long(AT_FDCWD)
    _checked(_libc.syscall(number, at, os.fsencode(path), ctypes.c_long(mode), flags))


def fchownat(fd: int, path: str, uid: int, gid: int, flags: int) -> None:
    _checked(_libc.fchownat(fd, os.fsencode(path), uid, gid, flags))


UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times are (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT stand for nanoseconds."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, offset, length))


def tee(source: int, target: int, size: int, flags: int = 0) -> int:
    return _checked(_libc.tee(source, target, size, flags))


def mmap(fd: int, size: int, protection: int, flags: int) -> None:
    """Map and unmap: only the check counts."""
    address = _libc.mmap(None, size, protection, flags, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        _checked(-1)
    _checked(_libc.munmap(address, size))


class Listing:
    """opendir(3) and its companions. An entry is (name, inode number, kind, place behind it)."""

    def __init__(self, path: str) -> None:
        self._dir = _libc.opendir(os.fsencode(path))
        if not self._dir:
            _checked(-1)

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(self._dir)

    def read(self) -> Any:
        """The next entry, None at the end."""
        ctypes.set_errno(0)
        found = _libc.readdir(self._dir)
        if not found:
            if ctypes.get_errno():
                _checked(-1)
            return None
        entry = found.contents
        return os.fsdecode(entry.d_name), entry.d_ino, entry.d_type, entry.d_off

    def tell(self) -> int:
        return int(_libc.telldir(self._dir))

    def seek(self, place: int) -> None:
        _libc.seekdir(self._dir, place)

    def rewind(self) -> None:
        _libc.rewinddir(self._dir)


def entries(path: str) -> list[tuple[str, int, int, int]]:
    """All entries of a directory, "." and ".." too."""
    with Listing(path) as listing:
        found = []
        while entry := listing.read():
            found.append(entry)
    return found
