"""What is in a source directory, and whether it has changed since.

One walk gives the fingerprint (design section 5: relative path, inode, size, mtime and ctime of
every entry) and the lists that sealing works from. File data is never read.

The source belongs to users who may change it at any moment, and may mean harm: directories are
opened below the source's descriptor without following a link (openat2(2)), entries are looked at
with lstat only, and other mounts are not entered. An entry that vanishes between two steps is
`SourceChanged`, which the caller answers by starting again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowfs import mountinfo, ondisk, syscalls

# How far two writes can be apart and still get the same ctime: one tick of the kernel's coarse
# clock (10 ms at HZ=100), with some room.
_TICK_NS = 20_000_000

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RECORD = struct.Struct("<QQqq")  # st_ino, st_size, st_mtime_ns, st_ctime_ns
_LAST_NS = (1 << 63) - 1
_LENGTHS = struct.Struct("<QQQ")
_NAMED = 3  # entries that a warning names
_MOUNT_RECORD = b"\xff" * _RECORD.size  # of an entry that another mount hides

# What a path gives that was a file or directory a moment ago and is something else now.
# ENODATA: an attribute that was listed. EAGAIN: a lease on a file that is opened with O_NONBLOCK.
CHANGED = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ESTALE,
        errno.ENXIO,
        errno.ENODATA,
        errno.EAGAIN,
    }
)


class SourceChanged(Exception):  # noqa: N818 -- not an error: the reason to start again
    """The source was changed while it was read. `path` is the entry, relative to the source."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Directory:
    """One directory of the source. `path` is relative to the source, "" for the source itself."""

    __slots__ = ("files", "mounted", "names", "path", "records", "special", "subdirectories")

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: list[str] = []  # regular files, but for those in Scan.links
        self.special: list[str] = []  # symlinks, fifos and devices, in the same way
        self.subdirectories: list[str] = []
        self.mounted: list[tuple[str, bool]] = []  # hidden by another mount; whether a directory
        self.names: list[str] = []  # every entry, in order
        self.records = b""  # a _RECORD for each of the names

    def path_of(self, name: str) -> str:
        """The path of an entry, relative to the source."""
        return f"{self.path}/{name}" if self.path else name


class Place(NamedTuple):
    """An entry of the source: the directory it is in, and its name there."""

    directory: Directory
    name: str


class Scan:
    """What one walk found."""

    def __init__(self) -> None:
        self.digest = b""
        self.directories: list[Directory] = []  # each after its parent
        self.links: list[list[Place]] = []  # every name of each file that has several here
        self.entries = 0  # of the template: all but what is left out
        self.bytes = 0  # st_size of the regular files, each once
        self.newest_ctime = 0  # nanoseconds since the epoch
        self.mounts: list[str] = []  # left out, with an empty entry in their place
        self.sockets: list[str] = []  # left out
        self.whiteouts: list[str] = []  # left out


class Scanner:
    """Walks one source directory, again and again.

    Owns the descriptor `fd` of the source. OSError when it cannot be opened.
    """

    def __init__(
        self, source: str, leave_out: tuple[int, int] | None, *, whiteouts: bool = False
    ) -> None:
        """`source` is canonical; `leave_out` is st_dev and st_ino of a directory to pass over.

        With `whiteouts` character devices 0:0 are entries like all others.
        """
        self.source = source
        self._leave_out = leave_out
        self._whiteouts = whiteouts
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fd = syscalls.open_below(root, os.fsencode(source).strip(b"/"), _OPEN_DIRECTORY)
        finally:
            os.close(root)

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def settled(self) -> Scan:
        """A scan that a later change cannot leave equal.

        A second write within one tick of the clock may leave no trace in a file's ctime. So what
        was changed in the last tick is scanned again when the tick is over.
        """
        started = time.time_ns()
        scan = self.scan()
        if abs(started - scan.newest_ctime) < _TICK_NS:
            time.sleep(_TICK_NS / 1e9)
            again = self.scan()
            changed = first_difference(scan, again)
            if changed is not None:
                raise SourceChanged(changed)
            return again
        return scan

    def scan(self) -> Scan:
        """Walk the source once. SourceChanged; OSError with the entry's relative path."""
        walk = _Walk(self.fd, self._mounted_below(), self._leave_out, self._whiteouts)
        return walk.run()

    def _mounted_below(self) -> frozenset[str]:
        prefix = self.source.rstrip("/") + "/"
        return frozenset(
            mount.mountpoint[len(prefix) :]
            for mount in mountinfo.read()
            if mount.mountpoint.startswith(prefix)
        )


def first_difference(old: Scan, new: Scan) -> str | None:
    """The relative path of an entry that two scans see differently, "" the source itself; None."""
    if old.digest == new.digest:
        return None
    # A file first, when one can be named: each change of an entry also changes its directory.
    for before, after in zip(old.directories, new.directories, strict=False):
        if before.path != after.path:
            return before.path
        known = dict(records(before))
        for name, record in records(after):
            if known.get(name) != record and name not in after.subdirectories:
                return after.path_of(name)
        if before.names != after.names:
            missing = set(before.names).symmetric_difference(after.names)
            return after.path_of(min(missing))
    return ""


def records(directory: Directory) -> Iterator[tuple[str, bytes]]:
    """Each entry's name, and the bytes that differ when it was changed."""
    size = _RECORD.size
    for index, name in enumerate(directory.names):
        yield name, directory.records[index * size : (index + 1) * size]


def size_and_mtime(record: bytes) -> tuple[int, int]:
    """What an entry's record holds of its size in bytes and its mtime in nanoseconds."""
    _, size, mtime_ns, _ = _RECORD.unpack(record)
    return size, mtime_ns


def warn_of_left_out(source: str, found: Scan, warn: Callable[[str], None]) -> None:
    """One line for each kind of thing that the scan passed over."""
    if found.mounts:
        warn(
            "left out of the copy, an empty place is kept for each: what is mounted at "
            + ", ".join(os.path.join(source, path) for path in sorted(found.mounts))
        )
    for kind, paths in (
        ("sockets, which belong to running programs", found.sockets),
        ("overlayfs whiteouts (character devices 0:0)", found.whiteouts),
    ):
        if paths:
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            named = ", ".join(os.path.join(source, path) for path in paths[:_NAMED])
            warn(f"left out of the copy: {kind}: {named}{more}")


def _record(st: os.stat_result) -> bytes:
    """A _RECORD of any entry: 64 bits of nanoseconds end in 2262, and XFS has times up to 2486."""
    times = (min(st.st_mtime_ns, _LAST_NS), min(st.st_ctime_ns, _LAST_NS))
    return _RECORD.pack(st.st_ino, st.st_size, *times)


class _Walk:
    """One walk in progress: the state that its steps share."""

    def __init__(
        self,
        root_fd: int,
        mounted: frozenset[str],
        leave_out: tuple[int, int] | None,
        whiteouts: bool,
    ) -> None:
        self._root_fd = root_fd
        self._whiteouts = whiteouts
        self._mounted = mounted
        self._leave_out = leave_out
        self._scan = Scan()
        self._digest = hashlib.blake2b(digest_size=32)
        self._linked: dict[tuple[int, int], list[Place]] = {}
        self._linked_regular: set[tuple[int, int]] = set()

    def run(self) -> Scan:
        scan = self._scan
        st = os.fstat(self._root_fd)
        self._digest.update(_record(st))
        scan.newest_ctime = st.st_ctime_ns
        scan.entries = 1
        pending = [""]
        while pending:
            directory = self._read(pending.pop())
            pending += map(directory.path_of, reversed(directory.subdirectories))
        for key, places in self._linked.items():
            if len(places) > 1:
                scan.links.append(places)
            else:  # its other names are outside of the source
                place = places[0]
                regular = key in self._linked_regular
                kind = place.directory.files if regular else place.directory.special
                kind.append(place.name)
        scan.digest = self._digest.digest()
        return scan

    def _read(self, path: str) -> Directory:
        directory = Directory(path)
        try:
            fd = syscalls.open_below(
                self._root_fd, os.fsencode(path), _OPEN_DIRECTORY, syscalls.RESOLVE_NO_XDEV
            )
        except OSError as error:
            # EXDEV: mounted since the mount table was read
            raise changed_or_located(error, path, also=errno.EXDEV) from None
        try:
            # The entries' stat() goes through this descriptor, by name.
            with os.scandir(fd) as entries:
                listing = sorted([(entry.name, entry) for entry in entries])
            self._look_at(directory, listing)
        finally:
            os.close(fd)
        names = "\0".join(directory.names).encode("utf-8", "surrogateescape")
        place = path.encode("utf-8", "surrogateescape")
        self._digest.update(_LENGTHS.pack(len(place), len(names), len(directory.records)))
        self._digest.update(place + names + directory.records)
        self._scan.directories.append(directory)
        return directory

    def _look_at(self, directory: Directory, listing: list[tuple[str, os.DirEntry[str]]]) -> None:
        # The innermost loop of a mount: one lstat for each entry, and little else.
        scan = self._scan
        pack = _RECORD.pack
        records = []
        newest = scan.newest_ctime
        total = 0
        for name, entry in listing:
            if self._mounted and directory.path_of(name) in self._mounted:
                # Not even looked at: what is mounted there may hang.
                directory.names.append(name)
                directory.mounted.append((name, entry.is_dir(follow_symlinks=False)))
                scan.mounts.append(directory.path_of(name))
                records.append(_MOUNT_RECORD)
                scan.entries += 1
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except OSError as error:
                raise changed_or_located(error, directory.path_of(name)) from None
            mode = st.st_mode
            kind = stat.S_IFMT(mode)
            ctime = st.st_ctime_ns
            if kind == stat.S_IFDIR:
                if self._leave_out == (st.st_dev, st.st_ino):
                    continue
                directory.subdirectories.append(name)
            elif kind == stat.S_IFSOCK:
                scan.sockets.append(directory.path_of(name))
                scan.entries -= 1
            elif ondisk.is_whiteout(st) and not self._whiteouts:
                scan.whiteouts.append(directory.path_of(name))
                scan.entries -= 1
            elif st.st_nlink > 1:
                total += self._remember_link(directory, name, st)
            elif kind == stat.S_IFREG:
                directory.files.append(name)
                total += st.st_size
            else:
                directory.special.append(name)
            directory.names.append(name)
            try:
                records.append(pack(st.st_ino, st.st_size, st.st_mtime_ns, ctime))
            except struct.error:
                records.append(_record(st))
            if ctime > newest:
                newest = ctime
            scan.entries += 1
        scan.newest_ctime = newest
        scan.bytes += total
        directory.records = b"".join(records)

    def _remember_link(self, directory: Directory, name: str, st: os.stat_result) -> int:
        """Note a name of a file with several; returns the bytes that it adds."""
        # st_dev too: a btrfs subvolume is no mount, and has inode numbers of its own
        key = (st.st_dev, st.st_ino)
        places = self._linked.setdefault(key, [])
        places.append(Place(directory, name))
        if not stat.S_ISREG(st.st_mode):
            return 0
        self._linked_regular.add(key)
        return st.st_size if len(places) == 1 else 0


def changed_or_located(error: OSError, path: str, also: int = 0) -> Exception:
    """What an error at an entry of the source means: it was changed, or it cannot be read."""
    if error.errno in CHANGED or error.errno == also:
        return SourceChanged(path)
    return OSError(error.errno, os.strerror(error.errno or 0), path)
