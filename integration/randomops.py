"""Random file operations, said once and done anywhere. Knows nothing about cowfs.

A `Plan` draws operations: calls as plain data, with names relative to a root and descriptors by
slot. A `Hand` does them below one root and says what came of it as plain data too, so that two
hands can be compared. Everything follows from the seed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from integration.trees import Entry, tree_state

KIB = 1 << 10
LARGE = 64 * KIB  # the share_min that the tests mount with
SLOTS = 8
USER = 1000
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
UTIME_OMIT = (1 << 30) - 2
AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x400, 0x1000
FICLONE = 0x40049409

# Every time that is set is before this one, every time that a change leaves is after it.
LONG_AGO_NS = 1_500_000_000_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class Data(NamedTuple):
    """Bytes that can be printed: one word again and again."""

    word: int
    size: int

    def __bytes__(self) -> bytes:  # the size is in words of 8
        return self.word.to_bytes(8, "little") * self.size


class _Whatever:
    """Equal to everything: a time that nobody promises."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "whatever"


WHATEVER = _Whatever()


class Operation(NamedTuple):
    name: str
    args: tuple[Any, ...]
    as_user: bool

    def __str__(self) -> str:
        args = ", ".join(a if isinstance(a, str) else repr(a) for a in self.args)
        return f"{self.name}({args}){' as user' if self.as_user else ''}"


def make_source(path: Path) -> Path:
    """Few names, so that operations meet; everything that a template may have; times long ago.

    No symlink says "..": wherever it is moved to, it stays below the root.
    """
    path.mkdir()
    for name in ("a", "a/b", "a/b/c", "d", "d/e", "void"):
        (path / name).mkdir()
    block = bytes(range(256)) * 4
    for name, size in (
        ("small", 10), ("a/small", 5000), ("a/b/small", 0), ("d/small", 3 * KIB),
        ("large", 3 * LARGE), ("a/large", LARGE), ("a/b/c/large", 2 * LARGE + 17),
        ("d/e/large", 5 * LARGE), ("group", 100), ("biggroup", 2 * LARGE),
    ):  # fmt: skip
        (path / name).write_bytes((name.encode() + block * (size // 1024 + 1))[:size])
    for name in ("a/group", "d/e/group"):
        os.link(path / "group", path / name)
    for name in ("d/biggroup", "a/b/c/biggroup"):
        os.link(path / "biggroup", path / name)
    with (path / "holes").open("wb") as file:
        file.truncate(8 * LARGE)
        file.seek(4 * LARGE)
        file.write(b"island" * 1000)
    (path / "link").symlink_to("a/small")
    (path / "a/link").symlink_to("b/small")
    os.link(path / "link", path / "d/link", follow_symlinks=False)
    os.mkfifo(path / "fifo")
    os.setxattr(path / "small", "user.origin", b"hub")
    os.setxattr(path / "d", "user.origin", b"hub")
    (path / "d").chmod(0o777)
    os.chown(path / "d/small", USER, USER)
    for directory, names, files in os.walk(path, topdown=False):
        for name in (*names, *files):
            where = os.path.join(directory, name)
            os.utime(where, ns=(LONG_AGO_NS // 2, LONG_AGO_NS // 3), follow_symlinks=False)
    os.utime(path, ns=(LONG_AGO_NS // 2, LONG_AGO_NS // 3))
    return path


# --- what to do -----------------------------------------------------------------------------------

_NAMES = ("a", "b", "c", "d", "e", "small", "large", "group", "biggroup", "link", "n1", "n2", "n3")
_SIZES = (0, 1, 10, 4095, 4096, 5000, LARGE - 1, LARGE, 2 * LARGE + 3, 6 * LARGE)
_OPEN_FLAGS = (
    os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR,
    os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_CREAT | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_PATH | os.O_NOFOLLOW,
)  # fmt: skip
_MODES = (0o600, 0o644, 0o640, 0o755, 0o777, 0o000, 0o444, 0o1777)


class Plan:
    """Draws operations on what is there below `root`, and on names that are not."""

    def __init__(self, seed: object, root: Path) -> None:
        self._random = random.Random(str(seed))
        self._root = root
        self._drawers: list[Callable[[], tuple[Any, ...]]] = []
        self._weights: list[int] = []
        self._names: list[str] = []
        path, new, slot, pick = self._path, self._new, self._slot, self._random.choice
        size, data = self._size, self._data
        for weight, name, draw in (
            (14, "open", lambda: (slot(), self._either(), pick(_OPEN_FLAGS), pick(_MODES))),
            (4, "close", lambda: (slot(),)),
            (6, "pread", lambda: (slot(), size(), size())),
            (8, "pwrite", lambda: (slot(), data(), size())),
            (2, "read", lambda: (slot(), size())),
            (4, "write", lambda: (slot(), data())),
            (3, "lseek", lambda: (slot(), size(), pick((0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE)))),
            (3, "ftruncate", lambda: (slot(), size())),
            (2, "fsync", lambda: (slot(), pick((True, False)))),
            (3, "fallocate", lambda: (slot(), pick((0, 1, 3, 16, 17)), size(), size())),
            (4, "fstat", lambda: (slot(),)),
            (2, "fchmod", lambda: (slot(), pick(_MODES))),
            (2, "fchown", lambda: (slot(), *self._owner())),
            (2, "futimens", lambda: (slot(), *self._times())),
            (2, "fxattr", lambda: (slot(), self._key(), self._value())),
            (2, "link_fd", lambda: (slot(), new())),
            (3, "copy_range", lambda: (slot(), slot(), size(), size(), size())),
            (4, "map", lambda: (slot(), pick((True, False)))),
            (3, "map_read", lambda: (slot(), size(), 100)),
            (4, "map_store", lambda: (slot(), size(), data(), pick((True, False)))),
            (1, "unmap", lambda: (slot(),)),
            (2, "list_fd", lambda: (slot(),)),
            (4, "truncate", lambda: (path(), size())),
            (6, "overwrite", lambda: (self._either(), data())),
            (4, "append", lambda: (path(), data())),
            (4, "read_all", lambda: (path(),)),
            (14, "rename", lambda: (path(), self._either(), pick((0, 0, 0, 1, 2, 2)))),
            (4, "link", lambda: (path(), new())),
            (2, "symlink", lambda: (pick(("small", "a/large", "nowhere", "d", "n1")), new())),
            (6, "unlink", lambda: (path(),)),
            (4, "rmdir", lambda: (path(directory=True),)),
            (1, "rmtree", lambda: (path(directory=True),)),
            (6, "mkdir", lambda: (new(), pick((*_MODES[:-1], 0o2775)))),
            (1, "mkfifo", lambda: (new(), pick(_MODES))),
            (1, "mknod", lambda: (new(), pick(_MODES), pick((stat.S_IFREG, stat.S_IFCHR)))),
            (4, "chmod", lambda: (path(), pick(_MODES))),
            (3, "chown", lambda: (path(), *self._owner())),
            (4, "utimens", lambda: (path(), *self._times())),
            (4, "set_xattr", lambda: (path(), self._key(), self._value(), pick((0, 0, 1, 2)))),
            (2, "remove_xattr", lambda: (path(), self._key())),
            (2, "list_xattrs", lambda: (path(),)),
            (3, "list", lambda: (path(directory=True),)),
            (6, "stat", lambda: (self._either(),)),
            (1, "readlink", lambda: (path(),)),
        ):  # fmt: skip
            self._names.append(name)
            self._weights.append(weight)
            self._drawers.append(draw)

    def draw(self) -> Operation:
        [place] = self._random.choices(range(len(self._names)), self._weights)
        name, arguments = self._names[place], self._drawers[place]()
        # rmtree stops at the first error, and which one that is the order of names decides.
        return Operation(name, arguments, self._random.random() < 0.06 and name != "rmtree")

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _path(self, *, directory: bool = False) -> str:
        """A name that is there, as a rule: a walk down from the root with a random end."""
        at = "."
        for _depth in range(6):
            try:
                with os.scandir(self._root / at) as found:
                    entries = sorted(
                        (e.name, e.is_dir(follow_symlinks=False))
                        for e in found
                        if not e.name.startswith("mine")
                    )
            except OSError:
                break
            if directory:
                entries = [e for e in entries if e[1]]
            if not entries:
                break
            name, is_directory = self._random.choice(entries)
            at = os.path.normpath(os.path.join(at, name))
            if not is_directory or self._random.random() < 0.4:
                break
        return at

    def _new(self) -> str:
        return os.path.normpath(
            os.path.join(self._path(directory=True), self._random.choice(_NAMES))
        )

    def _either(self) -> str:
        return self._path() if self._random.random() < 0.6 else self._new()

    def _slot(self) -> int:
        return self._random.randrange(SLOTS)

    def _size(self) -> int:
        if self._random.random() < 0.6:
            return self._random.choice(_SIZES)
        return self._random.randrange(4 * LARGE)

    def _data(self) -> Data:
        return Data(self._random.getrandbits(64), min(self._size(), 2 * LARGE) // 8 + 1)

    def _owner(self) -> tuple[int, int]:
        return self._random.choice((-1, 0, USER, 77)), self._random.choice((-1, 0, USER, 88))

    def _times(self) -> tuple[int | None, int | None]:
        def one() -> int | None:
            return None if self._random.random() < 0.3 else self._random.randrange(LONG_AGO_NS)

        return one(), one()

    def _key(self) -> str:
        return self._random.choice(("user.origin", "user.a", "trusted.b"))

    def _value(self) -> bytes:
        return self._random.randbytes(1) * self._random.choice((0, 1, 10, 30))


# --- doing it -------------------------------------------------------------------------------------


class Hand:
    """Does operations below `root`, with descriptors and mappings of its own.

    *keeps_snapshots*: beside each read-only descriptor of a large file keep a clone of what it
    shows at first; see `snapshot_result`.
    """

    def __init__(self, root: Path, *, keeps_snapshots: bool = False) -> None:
        self.root = root
        self._keeps_snapshots = keeps_snapshots
        self.fds: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}
        self.snapshots: dict[int, int] = {}
        # Inode numbers of files that a mapping may have changed, at a time that nobody promises.
        self.stored: set[int] = set()

    def do(self, operation: Operation) -> object:
        """What it gives; an OSError as its name."""
        try:
            with _user() if operation.as_user else _nobody_else():
                result = getattr(self, "_" + operation.name)(*operation.args)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        if operation.name == "open" and self._keeps_snapshots:
            slot, _path, flags, _mode = operation.args
            self._keep_snapshot(slot, flags)
        return result

    def _keep_snapshot(self, slot: int, flags: int) -> None:
        st = os.fstat(self.fds[slot])
        if (
            flags & (os.O_ACCMODE | os.O_TRUNC)
            or st.st_size < LARGE
            or not stat.S_ISREG(st.st_mode)
        ):
            return
        self.snapshots[slot] = os.open(self.root.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        if not flags & os.O_PATH:
            fcntl.ioctl(self.snapshots[slot], FICLONE, self.fds[slot])

    def snapshot_result(self, operation: Operation) -> object:
        """What an operation that reads would have given when its descriptor was opened."""
        slot = operation.args[0]
        real = self.fds[slot]
        self.fds[slot] = self.snapshots[slot]
        try:
            return self.do(operation)
        finally:
            self.fds[slot] = real

    def close_all(self) -> None:
        for slot in list(self.maps):
            self._unmap(slot)
        for slot in list(self.fds):
            self._close(slot)

    def flush(self) -> None:
        for mapped in self.maps.values():
            try:
                mapped.flush()
            except OSError:
                pass  # cut off by a truncation, or read-only

    def _at(self, path: str) -> Path:
        return self.root / path

    def _fd(self, slot: int) -> int:
        if slot not in self.fds:
            raise OSError(errno.EBADF, "empty slot")
        return self.fds[slot]

    def _open(self, slot: int, path: str, flags: int, mode: int) -> object:
        if slot in self.maps:
            self._unmap(slot)
        if slot in self.fds:
            self._close(slot)
        fd = os.open(self._at(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        self.fds[slot] = fd
        st = os.fstat(fd)
        return self._seen(st)

    def _close(self, slot: int) -> None:
        os.close(self._fd(slot))
        del self.fds[slot]
        if slot in self.snapshots:
            os.close(self.snapshots.pop(slot))

    def _pread(self, slot: int, offset: int, size: int) -> object:
        return _digest(os.pread(self._fd(slot), size, offset))

    def _pwrite(self, slot: int, data: Data, offset: int) -> object:
        return os.pwrite(self._fd(slot), bytes(data), offset)

    def _read(self, slot: int, size: int) -> object:
        return _digest(os.read(self._fd(slot), size))

    def _write(self, slot: int, data: Data) -> object:
        fd = self._fd(slot)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return None  # pipes have no bounds here
        return os.write(fd, bytes(data)), os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_size

    def _lseek(self, slot: int, offset: int, whence: int) -> object:
        fd = self._fd(slot)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None  # the positions in a directory are the filesystem's own
        return os.lseek(fd, offset, whence)

    def _ftruncate(self, slot: int, size: int) -> object:
        os.ftruncate(self._fd(slot), size)
        return self._fstat(slot)

    def _fsync(self, slot: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._fd(slot))

    def _fallocate(self, slot: int, mode: int, offset: int, length: int) -> object:
        fd = self._fd(slot)
        _check(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))
        return self._fstat(slot)

    def _fstat(self, slot: int) -> object:
        return self._seen(os.fstat(self._fd(slot)))

    def _fchmod(self, slot: int, mode: int) -> object:
        os.fchmod(self._fd(slot), mode)
        return self._fstat(slot)

    def _fchown(self, slot: int, uid: int, gid: int) -> object:
        _check(_libc.fchownat(self._fd(slot), b"", uid, gid, AT_EMPTY_PATH))
        return self._fstat(slot)

    def _futimens(self, slot: int, atime: int | None, mtime: int | None) -> object:
        times = (ctypes.c_long * 4)()
        for place, time in enumerate((atime, mtime)):
            times[2 * place : 2 * place + 2] = (
                (0, UTIME_OMIT) if time is None else divmod(time, 10**9)
            )
        _check(_libc.futimens(self._fd(slot), times))
        return self._fstat(slot)

    def _fxattr(self, slot: int, key: str, value: bytes) -> object:
        os.setxattr(self._fd(slot), key, value)
        return sorted(os.listxattr(self._fd(slot))), os.getxattr(self._fd(slot), key)

    def _link_fd(self, slot: int, path: str) -> object:
        where = b"/proc/self/fd/%d" % self._fd(slot)
        target = os.fsencode(self._at(path))
        _check(_libc.linkat(-100, where, -100, target, AT_SYMLINK_FOLLOW))
        return self._fstat(slot)

    def _copy_range(self, source: int, target: int, size: int, at: int, to: int) -> object:
        source_fd, target_fd = self._fd(source), self._fd(target)
        if os.fstat(source_fd).st_ino == os.fstat(target_fd).st_ino:
            return None
        return os.copy_file_range(source_fd, target_fd, size, at, to)

    def _map(self, slot: int, writable: bool) -> object:
        fd = self._fd(slot)
        if slot in self.maps:
            self._unmap(slot)
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_size == 0:
            return None
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.maps[slot] = mmap.mmap(fd, st.st_size, mmap.MAP_SHARED, protection)
        if writable:
            self.stored.add(st.st_ino)
        return None

    def _unmap(self, slot: int) -> None:
        if slot in self.maps:
            self.maps.pop(slot).close()

    def mapped_bytes(self, slot: int) -> int:
        """How far a mapping may be touched; beyond the file's end there is SIGBUS."""
        if slot not in self.maps or slot not in self.fds:
            return 0
        return min(len(self.maps[slot]), os.fstat(self.fds[slot]).st_size)

    def _map_read(self, slot: int, offset: int, size: int) -> object:
        return _digest(self.maps[slot][offset : offset + size])

    def _map_store(self, slot: int, offset: int, data: Data, flush: bool) -> object:
        mapped = self.maps[slot]
        stored = bytes(data)[: min(self.mapped_bytes(slot) - offset, 5000)]
        try:
            mapped[offset : offset + len(stored)] = stored
        except TypeError:
            return "read-only"
        if flush:
            mapped.flush()
        return _digest(os.pread(self._fd(slot), len(stored) + 10, offset))

    def _list_fd(self, slot: int) -> object:
        return sorted(os.listdir(self._fd(slot)))

    def _truncate(self, path: str, size: int) -> object:
        os.truncate(self._at(path), size)
        return self._stat(path)

    def _overwrite(self, path: str, data: Data) -> object:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        fd = os.open(self._at(path), flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return os.write(fd, bytes(data)), self._seen(os.fstat(fd)), self._stat(path)
        finally:
            os.close(fd)

    def _append(self, path: str, data: Data) -> object:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return os.write(fd, bytes(data)), self._stat(path)
        finally:
            os.close(fd)

    def _read_all(self, path: str) -> object:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return _digest(os.read(fd, 1 << 30))
        finally:
            os.close(fd)

    def _rename(self, old: str, new: str, flags: int) -> None:
        if "." in (old, new):
            return  # the root of a mount
        old_path, new_path = os.fsencode(self._at(old)), os.fsencode(self._at(new))
        try:
            _check(_libc.renameat2(-100, old_path, -100, new_path, flags))
        except FileExistsError as error:
            if not flags:  # rename(2): "EEXIST or ENOTEMPTY"; XFS says the first, most the second
                raise OSError(errno.ENOTEMPTY, "not empty") from error
            raise

    def _link(self, old: str, new: str) -> object:
        os.link(self._at(old), self._at(new), follow_symlinks=False)
        return self._stat(old), self._stat(new)

    def _symlink(self, target: str, path: str) -> None:
        self._at(path).symlink_to(target)

    def _unlink(self, path: str) -> None:
        self._at(path).unlink()

    def _rmdir(self, path: str) -> None:
        if path != ".":
            self._at(path).rmdir()

    def _rmtree(self, path: str) -> None:
        if path != ".":
            shutil.rmtree(self._at(path))

    def _mkdir(self, path: str, mode: int) -> object:
        self._at(path).mkdir(mode)
        return self._stat(path)

    def _mkfifo(self, path: str, mode: int) -> object:
        os.mkfifo(self._at(path), mode)
        return self._stat(path)

    def _mknod(self, path: str, mode: int, kind: int) -> object:
        os.mknod(self._at(path), mode | kind, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)
        return self._stat(path)

    def _chmod(self, path: str, mode: int) -> object:
        self._at(path).chmod(mode)
        return self._stat(path)

    def _chown(self, path: str, uid: int, gid: int) -> object:
        os.lchown(self._at(path), uid, gid)
        return self._stat(path)

    def _utimens(self, path: str, atime: int | None, mtime: int | None) -> object:
        times = (ctypes.c_long * 4)()
        for place, time in enumerate((atime, mtime)):
            times[2 * place : 2 * place + 2] = (
                (0, UTIME_OMIT) if time is None else divmod(time, 10**9)
            )
        _check(_libc.utimensat(-100, os.fsencode(self._at(path)), times, 0x100))
        return self._stat(path)

    def _set_xattr(self, path: str, key: str, value: bytes, flags: int) -> object:
        os.setxattr(self._at(path), key, value, flags, follow_symlinks=False)
        return self._list_xattrs(path)

    def _remove_xattr(self, path: str, key: str) -> object:
        os.removexattr(self._at(path), key, follow_symlinks=False)
        return self._list_xattrs(path)

    def _list_xattrs(self, path: str) -> object:
        where = self._at(path)
        names = sorted(os.listxattr(where, follow_symlinks=False))
        return [(name, os.getxattr(where, name, follow_symlinks=False)) for name in names]

    def _list(self, path: str) -> object:
        with os.scandir(self._at(path)) as entries:
            return sorted(
                (e.name, stat.S_IFMT(e.stat(follow_symlinks=False).st_mode)) for e in entries
            )

    def _stat(self, path: str) -> object:
        st = os.lstat(self._at(path))
        same = [slot for slot, fd in sorted(self.fds.items()) if os.fstat(fd).st_ino == st.st_ino]
        return self._seen(st), same

    def _readlink(self, path: str) -> object:
        return os.readlink(self._at(path))

    def _seen(self, st: os.stat_result) -> tuple[object, ...]:
        """What of a stat must be the same everywhere: all but number, device, blocks and atime."""
        is_directory = stat.S_ISDIR(st.st_mode)
        return (
            oct(st.st_mode),
            st.st_nlink,
            (st.st_uid, st.st_gid),
            0 if is_directory else st.st_size,
            st.st_rdev,
            WHATEVER if st.st_ino in self.stored else old_time(st.st_mtime_ns),
        )

    def tree(self) -> dict[str, Entry]:
        """`tree_state`, with times as far as they were set and not just left by a change."""
        self.flush()
        state = tree_state(self.root)
        inodes = {path: os.lstat(self.root / path).st_ino for path in state}
        return {
            path: entry._replace(
                mtime_ns=WHATEVER  # type: ignore[arg-type]
                if inodes[path] in self.stored
                else old_time(entry.mtime_ns or 0)
            )
            for path, entry in state.items()
        }


def old_time(time_ns: int) -> int:
    """A time that somebody set; -1 for one that a change left."""
    return time_ns if time_ns < LONG_AGO_NS else -1


def _digest(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()[:16]


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def _nobody_else() -> Iterator[None]:
    yield


@contextmanager
def _user() -> Iterator[None]:
    """Act as an ordinary user meanwhile."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(USER)
    os.seteuid(USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
