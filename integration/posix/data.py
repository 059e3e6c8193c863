"""read, write, truncate, lseek, fallocate, copy_file_range, mmap, execve, splice, fsync."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

from integration.posix.notes import Notes, acting_as, opened

_libc = ctypes.CDLL(None, use_errno=True)
_KEEP, _PUNCH, _COLLAPSE, _ZERO, _INSERT, _UNSHARE = 1, 2, 8, 16, 32, 64
MIB = 1 << 20


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def truncating(notes: Notes, root: Path) -> None:
    for name in ("file", "large", "void", "to-file", "dangling", "loop", "fifo", "null", "nothing"):
        for size in (0, 5, 5000, 3 * MIB, -1):
            notes.call(f"{name} {size}", os.truncate, root / name, size)
            notes.call("then", os.stat, root / name)
    notes.call("bytes", lambda: hash((root / "large").read_bytes()))
    fd = os.open(root / "script", os.O_RDONLY)
    notes.expect("EINVAL", "ftruncate, read-only", os.ftruncate, fd, 1)
    os.close(fd)
    with acting_as(3000):
        notes.expect("EACCES", "another's", os.truncate, root / "script", 1)
        notes.call("another's, to what it is", os.truncate, root / "script", 19)
    notes.expect("EISDIR", "a directory", os.truncate, root / "dir", 1)
    notes.call("too large", os.truncate, root / "file", 1 << 62)
    notes.call("huge", os.truncate, root / "file", (1 << 43) - 1)
    notes.call("then", os.stat, root / "file")
    os.truncate(root / "file", 7)


def positions(notes: Notes, root: Path) -> None:
    for name in ("file", "large", "empty"):
        fd = os.open(root / name, os.O_RDWR)
        for whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE, 9):
            for offset in (0, 5, -1, 10 * MIB):
                notes.call(f"{name} lseek {offset} {whence}", os.lseek, fd, offset, whence)
        notes.call("pread", os.pread, fd, 10, 3)
        notes.call("pread behind the end", os.pread, fd, 10, 10 * MIB)
        notes.call("pread below zero", os.pread, fd, 10, -1)
        notes.call("pwrite behind the end", os.pwrite, fd, b"far", 4 * MIB)
        notes.call("size", os.fstat, fd)
        notes.call("hole", os.lseek, fd, 0, os.SEEK_HOLE)
        notes.call("hole's bytes", os.pread, fd, 4, 3 * MIB)
        os.close(fd)
    appending = os.open(root / "file", os.O_WRONLY | os.O_APPEND)
    os.lseek(appending, 0, os.SEEK_SET)
    notes.call("append", os.write, appending, b"tail")
    notes.call("pwrite appends", os.pwrite, appending, b"more", 0)
    notes.call("position", os.lseek, appending, 0, os.SEEK_CUR)
    os.close(appending)
    notes.call("end", lambda: (root / "file").read_bytes()[-8:])
    for flags, action in ((os.O_RDONLY, os.write), (os.O_WRONLY, os.read), (os.O_PATH, os.read)):
        fd = os.open(root / "file", flags)
        notes.call("wrong way", action, fd, b"x" if action is os.write else 1)  # type: ignore[operator]
        os.close(fd)
    fd = os.open(root / "dir", os.O_RDONLY)
    notes.expect("EISDIR", "read of a directory", os.read, fd, 1)
    os.close(fd)


def allocating(notes: Notes, root: Path) -> None:
    for name in ("file", "large"):
        fd = os.open(root / name, os.O_RDWR)
        for mode in (0, _KEEP, _PUNCH | _KEEP, _ZERO, _ZERO | _KEEP, _PUNCH):
            for offset, length in (
                (0, 4096),
                (100, 50),
                (MIB, MIB),
                (5 * MIB, 8192),
                (0, 0),
                (-1, 5),
            ):
                notes.call(f"{name} {mode} {offset} {length}", fallocate, fd, mode, offset, length)
                notes.call("then", os.fstat, fd)
                notes.note("blocks", os.fstat(fd).st_blocks > 0)
        notes.call("bytes", hash, (root / name).read_bytes())
        os.close(fd)
        fd = os.open(root / name, os.O_RDONLY)
        notes.expect("EBADF", "read-only", fallocate, fd, 0, 0, 10)
        os.close(fd)


def copying_ranges(notes: Notes, root: Path) -> None:
    (root / "target").write_bytes(b"t" * 100)
    for source in ("file", "large", "empty"):
        for length, at, to in (
            (5, 0, 0),
            (MIB, 4096, 8192),
            (10, 1 << 30, 0),
            (0, 0, 0),
            (10, 3, 7),
        ):
            notes.call(f"{source} {length} {at} {to}", _copy_range, root / source, root / "target",
                       length, at, to)  # fmt: skip
            notes.call("target", os.stat, root / "target")
    notes.call("inside", _copy_range, root / "large", root / "large", 4096, 0, 65536)
    notes.expect("EINVAL", "overlapping", _copy_range, root / "large", root / "large", 4096, 0, 100)
    notes.call(
        "bytes", lambda: hash((root / "target").read_bytes() + (root / "large").read_bytes())
    )
    notes.call("from a directory", _copy_range, root / "dir", root / "target", 1, 0, 0)
    source, target = os.open(root / "file", os.O_RDONLY), os.open(root / "target", os.O_RDONLY)
    notes.expect("EBADF", "to what is read-only", os.copy_file_range, source, target, 10)
    os.close(target)
    target = os.open(root / "target", os.O_WRONLY | os.O_APPEND)
    notes.expect("EBADF", "to what appends", os.copy_file_range, source, target, 10)
    os.close(target)
    os.close(source)


def _copy_range(source: Path, target: Path, length: int, at: int, to: int) -> int:
    one = os.open(source, os.O_RDONLY)
    try:
        other = os.open(target, os.O_RDWR)
        try:
            return os.copy_file_range(one, other, length, at, to)
        finally:
            os.close(other)
    finally:
        os.close(one)


def mapping(notes: Notes, root: Path) -> None:
    for name in ("file", "large"):
        fd = os.open(root / name, os.O_RDWR)
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size) as shared, mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE) as private:
            os.pwrite(fd, b"WRITTEN", 2)
            notes.note("a write shows in the mapping", shared[:10])
            shared[0:2] = b"SH"
            notes.call("a store shows in a read", os.pread, fd, 10, 0)
            private[0:2] = b"PR"
            notes.call("a private store does not", os.pread, fd, 10, 0)
            notes.note("private", private[:4])
            shared.flush()
        os.close(fd)
        with (root / name).open("rb") as file:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC) as code:
                notes.note("executable", code[:10])
            notes.call("shared store without write permission", mmap.mmap, file.fileno(), 0)
    notes.call("an empty file", _map_empty, root / "empty")


def _map_empty(path: Path) -> Any:
    with path.open("r+b") as file:
        try:
            return mmap.mmap(file.fileno(), 10)
        except ValueError as error:  # Python's own check
            return str(error)


def executing(notes: Notes, root: Path) -> None:
    run = lambda path: subprocess.run([path], capture_output=True, check=False).stdout  # noqa: E731
    notes.call("script", run, root / "script")
    (root / "binary").write_bytes(Path("/bin/true").read_bytes())
    (root / "binary").chmod(0o755)
    notes.call("binary", run, root / "binary")
    with (root / "script").open("ab"):
        notes.expect("ETXTBSY", "open for writing", run, root / "script")
    (root / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (root / "sleep").chmod(0o755)
    child = subprocess.Popen([root / "sleep", "100"])
    try:
        notes.expect("ETXTBSY", "written while it runs", opened, root / "sleep", os.O_WRONLY)
        notes.expect("ETXTBSY", "truncated while it runs", os.truncate, root / "sleep", 1)
        notes.call("read while it runs", opened, root / "sleep", os.O_RDONLY)
        notes.call("unlinked while it runs", os.unlink, root / "sleep")
    finally:
        child.kill()
        child.wait()
    (root / "script").chmod(0o644)
    notes.expect("EACCES", "not executable", run, root / "script")
    notes.call("a directory", run, root / "dir")


def limits(notes: Notes, root: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, before[1]))
    try:
        fd = os.open(root / "file", os.O_RDWR)
        notes.call("up to the limit", os.pwrite, fd, b"x" * 100, 9950)
        notes.expect("EFBIG", "behind it", os.pwrite, fd, b"x", 10000)
        notes.expect("EFBIG", "ftruncate", os.ftruncate, fd, 10001)
        notes.call("fallocate", fallocate, fd, 0, 0, 20000)
        notes.call("size", os.fstat, fd)
        os.close(fd)
        notes.call("shared", os.truncate, root / "large", 3 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def pipes(notes: Notes, root: Path) -> None:
    reading, writing = os.pipe()
    for name in ("file", "large"):
        fd = os.open(root / name, os.O_RDWR)
        notes.call("splice out", os.splice, fd, writing, 1000, 3)
        notes.call("into the pipe", os.read, reading, 2000)
        os.write(writing, b"from a pipe")
        notes.call("splice in", os.splice, reading, fd, 11, None, 5)
        notes.call("then", os.pread, fd, 20, 0)
        notes.call("sendfile", os.sendfile, writing, fd, 0, 100)
        notes.call("sent", os.read, reading, 200)
        notes.call("readahead", os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_WILLNEED)
        notes.call("dontneed", os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
        notes.call("readv", lambda fd=fd: os.readv(fd, [bytearray(5), bytearray(5)]))
        notes.call("pwritev append", lambda fd=fd: os.pwritev(fd, [b"ab", b"cd"], 0, os.RWF_APPEND))
        notes.call("size", os.fstat, fd)
        notes.call("fsync", os.fsync, fd)
        notes.call("fdatasync", os.fdatasync, fd)
        notes.call(
            "sync_file_range", _libc.sync_file_range, fd, ctypes.c_long(0), ctypes.c_long(0), 7
        )
        os.close(fd)
    os.close(reading)
    os.close(writing)
    fd = os.open(root / "dir", os.O_RDONLY)
    notes.call("fsync of a directory", os.fsync, fd)
    os.close(fd)


def direct(notes: Notes, root: Path) -> None:
    page = mmap.mmap(-1, 8192)
    page[:] = b"D" * 8192
    for name in ("file", "large"):
        fd = os.open(root / name, os.O_RDWR | os.O_DIRECT)
        notes.call("aligned write", os.pwritev, fd, [page], 8192)
        notes.call("aligned read", os.preadv, fd, [page], 0)
        notes.note("bytes", hash(bytes(page)))
        notes.call("at the end", os.preadv, fd, [page], 8192)
        os.close(fd)
        notes.call("size", os.stat, root / name)


def removed_while_open(notes: Notes, root: Path) -> None:
    for name in ("file", "large", "linked"):
        fd = os.open(root / name, os.O_RDWR)
        os.unlink(root / name)
        notes.call("count", os.fstat, fd)
        notes.call("write", os.pwrite, fd, b"after", 3)
        notes.call("read", os.pread, fd, 20, 0)
        notes.call("truncate", os.ftruncate, fd, 6)
        notes.call("chmod", os.fchmod, fd, 0o601)
        notes.call("xattr", os.setxattr, fd, "user.after", b"x")
        notes.call("xattr", os.getxattr, fd, "user.after")
        notes.call("allocate", fallocate, fd, 0, 0, 100000)
        notes.call("then", os.fstat, fd)
        notes.call("again", opened, f"/proc/self/fd/{fd}", os.O_RDWR)
        notes.call("sync", os.fsync, fd)
        (root / name).write_bytes(b"another file")
        notes.call("not mixed up", os.pread, fd, 20, 0)
        os.close(fd)
    directory = os.open(root / "void", os.O_RDONLY)
    os.rmdir(root / "void")
    notes.call("listing", os.listdir, directory)
    notes.call("stat", os.fstat, directory)
    notes.call("create in it", os.open, "new", os.O_CREAT, dir_fd=directory)
    notes.call("mkdir in it", os.mkdir, "new", dir_fd=directory)
    notes.call("up", os.stat, "..", dir_fd=directory)
    notes.call("chmod", os.fchmod, directory, 0o700)
    os.close(directory)


def leases(notes: Notes, root: Path) -> None:
    fd = os.open(root / "owned/mine", os.O_RDONLY)
    notes.call("read lease", fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    notes.call("has", fcntl.fcntl, fd, fcntl.F_GETLEASE)
    notes.call("unlock", fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(fd)


CASES = (
    truncating, positions, allocating, copying_ranges, mapping, executing, limits, pipes, direct,
    removed_while_open, leases,
)  # fmt: skip
