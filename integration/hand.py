"""Does random operations (randomops.py) below a root and says what came of them as plain data.

So two hands can be compared: one in a copy and one on plain XFS. Knows nothing about cowfs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from integration.randomops import LARGE, LONG_AGO_NS, NOW, USER, Data, Operation
from integration.streams import Stream
from integration.trees import Entry, tree_state

PAGE = 4096
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x400, 0x1000
FICLONE = 0x40049409
F_OFD_SETLK = 37

_ACL = ("system.posix_acl_access", "system.posix_acl_default")

_CHANGES_NAMES = {
    "open", "overwrite", "link_fd", "rename", "link", "symlink", "unlink", "rmdir", "mkdir",
    "mkfifo", "mknod",
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class _Whatever:
    """Equal to everything: a time that nobody promises."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "whatever"


WHATEVER = _Whatever()


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
        self.streams: dict[int, Stream] = {}
        # Inode numbers of files that a mapping may have changed, at a time that nobody promises.
        self.stored: set[int] = set()

    def do(self, operation: Operation) -> object:
        """What it gives; an OSError as its name."""
        if operation.name in _CHANGES_NAMES:
            names = {os.path.basename(arg) for arg in operation.args if isinstance(arg, str)}
            for stream in self.streams.values():
                stream.touched |= names
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
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()

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
        self._vacate(slot)
        fd = os.open(self._at(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        self.fds[slot] = fd
        st = os.fstat(fd)
        return self._seen(st)

    def _tmpfile(self, slot: int, directory: str, flags: int, mode: int) -> object:
        self._vacate(slot)
        fd = os.open(self._at(directory), flags | os.O_TMPFILE | os.O_CLOEXEC, mode)
        self.fds[slot] = fd
        return self._seen(os.fstat(fd))

    def _vacate(self, slot: int) -> None:
        self._unmap(slot)
        if slot in self.fds:
            self._close(slot)

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

    def _direct_read(self, slot: int, page: int, pages: int) -> object:
        with self._direct(slot) as fd, mmap.mmap(-1, max(pages, 1) * PAGE) as aligned:
            size = os.preadv(fd, [aligned], page * PAGE)
            return _digest(aligned[:size])

    def _direct_write(self, slot: int, word: int, page: int, pages: int) -> object:
        if fcntl.fcntl(self._fd(slot), fcntl.F_GETFL) & os.O_APPEND:
            return None  # the end is not aligned; what is not passed through does not mind
        with self._direct(slot) as fd, mmap.mmap(-1, max(pages, 1) * PAGE) as aligned:
            aligned[:] = bytes(Data(word, len(aligned) // 8))
            return os.pwritev(fd, [aligned], page * PAGE), self._fstat(slot)

    @contextmanager
    def _direct(self, slot: int) -> Iterator[int]:
        fd = self._fd(slot)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        try:
            yield fd
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)

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
        futimens(self._fd(slot), atime, mtime)
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
        copied = os.copy_file_range(self._fd(source), self._fd(target), size, at, to)
        return copied, self._fstat(target)

    def _flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self._fd(slot), kind | fcntl.LOCK_NB)

    def _range_lock(self, slot: int, kind: int, start: int, length: int) -> None:
        lock = struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(self._fd(slot), F_OFD_SETLK, lock)

    def _map(self, slot: int, writable: bool) -> object:
        fd = self._fd(slot)
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

    def _list_begin(self, slot: int, path: str, count: int) -> None:
        if slot in self.streams:
            self.streams.pop(slot).close()
        self.streams[slot] = Stream(self._at(path))
        self.streams[slot].read(count)

    def _list_back(self, slot: int, place: int) -> None:
        if slot in self.streams:
            self.streams[slot].back(place)
            self.streams[slot].read(1)

    def _list_rest(self, slot: int) -> object:
        return self.streams[slot].rest() if slot in self.streams else None

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
        _check(_libc.renameat2(-100, old_path, -100, new_path, flags))

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
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()  # whose names go
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
        where, times = os.fsencode(self._at(path)), _timespecs(atime, mtime)
        _check(_libc.utimensat(-100, where, times, AT_SYMLINK_NOFOLLOW))
        return self._stat(path)

    def _set_xattr(self, path: str, key: str, value: bytes, flags: int) -> object:
        os.setxattr(self._at(path), key, value, flags, follow_symlinks=False)
        return self._list_xattrs(path)

    def _remove_xattr(self, path: str, key: str) -> object:
        os.removexattr(self._at(path), key, follow_symlinks=False)
        return self._list_xattrs(path)

    def _set_acl(self, path: str, default: bool, permissions: Sequence[int]) -> object:
        os.setxattr(self._at(path), _ACL[default], _acl(permissions), follow_symlinks=False)
        return self._stat(path), self._list_xattrs(path)

    def _remove_acl(self, path: str, default: bool) -> object:
        os.removexattr(self._at(path), _ACL[default], follow_symlinks=False)
        return self._stat(path), self._list_xattrs(path)

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


def futimens(fd: int, atime: int | None, mtime: int | None) -> None:
    """futimens(2): nanoseconds since the epoch, None for UTIME_OMIT, or `NOW`."""
    _check(_libc.futimens(fd, _timespecs(atime, mtime)))


def _timespecs(*times: int | None) -> ctypes.Array[ctypes.c_long]:
    """As utimensat(2) takes them, of nanoseconds, None or `NOW`."""
    numbers: list[int] = []
    for time in times:
        if time is None or time == NOW:
            numbers += (0, UTIME_OMIT if time is None else UTIME_NOW)
        else:
            numbers += divmod(time, 10**9)
    return (ctypes.c_long * 4)(*numbers)


def _acl(permissions: Sequence[int]) -> bytes:
    """A POSIX ACL as the kernel takes it, linux/posix_acl_xattr.h."""
    owner, *user, group, mask, others = (
        permissions if len(permissions) == 5 else (*permissions[:2], None, permissions[2])
    )
    nobody = 0xFFFFFFFF
    entries = [(1, owner, nobody), *((2, bits, USER) for bits in user), (4, group, nobody)]
    entries += [(16, mask, nobody)] if mask is not None else []
    entries += [(32, others, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


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
