"""What is in a source directory, and whether it has changed since.

One walk gives the fingerprint (of relative path, inode, size, mtime and ctime of every entry) and
the lists that sealing works from. File data is never read. A link that becomes a file of the copy
(links.py) is an entry as if that file were there; its record is the file's.

The source belongs to users who may change it at any moment, and may mean harm: directories are
opened below the source's descriptor without following a link (treewalk.py), entries are looked at
with lstat only, and other mounts are not entered. An entry that vanishes between two steps is
`SourceChanged`, which the caller answers by starting again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from cowfs.system import directories, mountinfo, ondisk, syscalls
from cowfs.trees.links import Links, Policy, links_of
from cowfs.trees.treewalk import Tree

# How far two writes can be apart and still get the same ctime: one tick of the kernel's coarse
# clock (10 ms at HZ=100), with some room.
_TICK_NS = 20_000_000

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_RECORD = struct.Struct("<QQqq")  # st_ino, st_size, st_mtime_ns, st_ctime_ns
_LAST_NS = (1 << 63) - 1
_LENGTHS = struct.Struct("<QQQ")
_NAMED = 3  # entries that a warning names
_NONE: AbstractSet[str] = frozenset()
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
    """One directory of the source, known by its name and its parent; the source itself has none.

    Full paths of all would be quadratic in the depth of the tree, which is whatever users make it.
    `key` stands for the path where one has to be kept: see `key_below`.
    """

    __slots__ = (
        "depth",
        "files",
        "followed",
        "in_parts",
        "key",
        "mounted",
        "name",
        "names",
        "parent",
        "records",
        "special",
        "subdirectories",
    )

    def __init__(self, name: str = "", parent: Directory | None = None) -> None:
        self.name = name
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.key: str = "" if parent is None else key_below(parent.key, name)
        self.files: list[str] = []  # regular files, but for those in Scan.links
        self.followed: AbstractSet[str] = _NONE  # those of the files that are links in the source
        self.special: list[str] = []  # symlinks, fifos and devices, in the same way
        self.subdirectories: list[str] = []
        self.in_parts = False  # another one of the same path has the rest of it
        self.mounted: list[tuple[str, bool]] = []  # hidden by another mount; whether a directory
        self.names: list[str] = []  # every entry, in order
        self.records = b""  # a _RECORD for each of the names

    def follow(self, name: str) -> None:
        """Note that one of the files is a link in the source."""
        if not isinstance(self.followed, set):  # most directories have none
            self.followed = set()
        self.followed.add(name)

    @property
    def path(self) -> str:
        """Its path relative to the source, "" for the source itself: made anew each time."""
        return "/".join(self._steps([]))

    def path_of(self, name: str) -> str:
        """The path of an entry, made in the same way."""
        return "/".join(self._steps([name]))

    def key_of(self, name: str) -> str:
        """What stands for the path of an entry."""
        return _joined(self.key, name)

    def _steps(self, names: list[str]) -> list[str]:
        step: Directory = self
        while step.parent is not None:
            names.append(step.name)
            step = step.parent
        names.reverse()
        return names


class Place(NamedTuple):
    """An entry of the source: the directory it is in, and its name there."""

    directory: Directory
    name: str

    @property
    def path(self) -> str:
        """Relative to the source."""
        return self.directory.path_of(self.name)

    @property
    def key(self) -> str:
        """What stands for the path: see `key_below`."""
        return self.directory.key_of(self.name)


def key_below(key: str, name: str) -> str:
    """The key of a directory, from that of its parent.

    It is the path, or, where that is longer than the system takes one, a hash of it (which no path
    is taken for: no name has a NUL): so keys are of bounded length.
    """
    path = _joined(key, name)
    if len(path) < syscalls.PATH_MAX:
        return path
    return "\0" + hashlib.blake2b(_encoded(path), digest_size=32).hexdigest()


def key_of_path(path: str) -> str:
    """What `Directory.key_of` gives for the entry with that path."""
    *above, name = path.split("/")
    key = ""
    for step in above:
        key = key_below(key, step)
    return _joined(key, name)


def _joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class LinkOut(NamedTuple):
    """A link that leads out of the source and stays one; why, if that has a reason."""

    path: str  # relative to the source
    target: str
    why: str


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
        self.sockets: list[Place] = []  # left out
        self.whiteouts: list[Place] = []  # left out
        self.symlinks: list[Place] = []  # those that stay links


class Scanner:
    """Walks one source directory, again and again.

    Owns the descriptor `fd` of the source, and `links`. OSError when it cannot be opened.
    """

    def __init__(
        self,
        source: str,
        leave_out: tuple[int, int] | None,
        *,
        whiteouts: bool = False,
        links: Policy = "keep",
        volumes: bool = False,
    ) -> None:
        """`source` is canonical; `leave_out` is st_dev and st_ino of a directory to pass over.

        With `whiteouts` character devices 0:0 are entries like all others. `links` says which links
        are followed; with `volumes` to files of other volumes, too.
        """
        self.source = source
        self.policy = links
        self._leave_out = leave_out
        self._whiteouts = whiteouts
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fd = syscalls.open_below(root, os.fsencode(source).strip(b"/"), _OPEN_DIRECTORY)
        finally:
            os.close(root)
        try:
            self.links = links_of(source, links, None if volumes else os.fstat(self.fd).st_dev)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Scanner:
        return self

    def __exit__(self, *_: object) -> None:
        self.links.close()
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
        with Tree(self.fd, syscalls.RESOLVE_NO_XDEV) as tree:
            mounted = self._mounted_below()
            return _Walk(tree, mounted, self._leave_out, self._whiteouts, self.links).run()

    def leading_out(self, links: Iterable[Place]) -> list[LinkOut]:
        """Those of the links that stay links that lead out of the source."""
        leading = []
        with Tree(self.fd, syscalls.RESOLVE_NO_XDEV) as tree:
            for place in links:
                directory, name = place
                with contextlib.suppress(OSError):  # gone meanwhile
                    fd = tree.open(directory)
                    why = self.links.why_kept(fd, name, directory.depth)
                    if why is not None:
                        leading.append(LinkOut(place.path, os.readlink(name, dir_fd=fd), why))
        return leading

    def _mounted_below(self) -> frozenset[str]:
        """The keys of what other mounts hide."""
        prefix = self.source.rstrip("/") + "/"
        return frozenset(
            key_of_path(mount.mountpoint[len(prefix) :])
            for mount in mountinfo.read()
            if mount.mountpoint.startswith(prefix)
        )


def first_difference(old: Scan, new: Scan) -> str | None:
    """The relative path of an entry that two scans see differently, "" the source itself; None."""
    if old.digest == new.digest:
        return None
    # A file first, when one can be named: each change of an entry also changes its directory.
    for before, after in zip(old.directories, new.directories, strict=False):
        if before.key != after.key:
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
    for kind, places in (
        ("sockets, which belong to running programs", found.sockets),
        ("overlayfs whiteouts (character devices 0:0)", found.whiteouts),
    ):
        if places:
            more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
            named = ", ".join(os.path.join(source, place.path) for place in places[:_NAMED])
            warn(f"left out of the copy: {kind}: {named}{more}")


def warn_of_links(
    scanner: Scanner, links: Iterable[Place], how: str, warn: Callable[[str], None]
) -> None:
    """One line for all links that stay ones and lead out of the copy; none if that was asked for.

    `how` is what the caller would write to have files in their place.
    """
    leading = [] if scanner.policy == "keep" else scanner.leading_out(links)
    if not leading:
        return
    path, target, why = leading[0]
    example = f"{os.path.join(scanner.source, path)} -> {target}" + (f" ({why})" if why else "")
    if len(leading) == 1:
        told = f"a link leads out of the source and stays one: {example}"
    else:
        told = f"{len(leading)} links lead out of the source and stay links, such as {example}"
    remedy = "" if scanner.policy == "follow" else f"; {how} makes files of such links where it can"
    warn(f"{told}; what is written through a link changes what it leads to, not a copy{remedy}")


def _record(st: os.stat_result) -> bytes:
    """A _RECORD of any entry: 64 bits of nanoseconds end in 2262, and XFS has times up to 2486."""
    times = (min(st.st_mtime_ns, _LAST_NS), min(st.st_ctime_ns, _LAST_NS))
    return _RECORD.pack(st.st_ino, st.st_size, *times)


class _Walk:
    """One walk in progress: the state that its steps share."""

    def __init__(
        self,
        tree: Tree,
        mounted: frozenset[str],
        leave_out: tuple[int, int] | None,
        whiteouts: bool,
        links: Links,
    ) -> None:
        self._tree = tree
        self._links = links
        self._whiteouts = whiteouts
        self._mounted = mounted
        self._leave_out = leave_out
        self._scan = Scan()
        self._digest = hashlib.blake2b(digest_size=32)
        self._linked: dict[tuple[int, int], list[Place]] = {}
        self._linked_regular: set[tuple[int, int]] = set()

    def run(self) -> Scan:
        scan = self._scan
        root = Directory()
        st = os.fstat(self._tree.open(root))
        self._digest.update(_record(st))
        scan.newest_ctime = st.st_ctime_ns
        scan.entries = 1
        pending = [root]
        while pending:
            directory = pending.pop()
            self._read(directory)
            pending += [Directory(name, directory) for name in reversed(directory.subdirectories)]
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

    def _read(self, directory: Directory) -> None:
        with contextlib.ExitStack() as opened:
            try:
                fd = self._tree.open(directory)
                # The entries' stat() goes through what is open here, by name.
                entries = opened.enter_context(directories.entries(fd))
                listing = sorted([(entry.name, entry) for entry in entries])
            except OSError as error:
                # EXDEV: mounted since the mount table was read
                raise changed_or_located(error, directory.path, also=errno.EXDEV) from None
            self._look_at(directory, fd, listing)
        names = _encoded("\0".join(directory.names))
        place = _encoded(directory.key)
        self._digest.update(_LENGTHS.pack(len(place), len(names), len(directory.records)))
        self._digest.update(place + names + directory.records)
        self._scan.directories.append(directory)

    def _look_at(
        self, directory: Directory, fd: int, listing: list[tuple[str, os.DirEntry[str]]]
    ) -> None:
        # The innermost loop of a mount: one lstat for each entry, and little else.
        scan = self._scan
        pack = _RECORD.pack
        records = []
        newest = scan.newest_ctime
        total = 0
        for name, entry in listing:
            if self._mounted and directory.key_of(name) in self._mounted:
                self._pass_over(directory, name, entry)
                records.append(_MOUNT_RECORD)
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except OSError as error:
                raise changed_or_located(error, directory.path_of(name)) from None
            kind = stat.S_IFMT(st.st_mode)
            if kind == stat.S_IFREG and st.st_nlink <= 1:
                directory.files.append(name)
                total += st.st_size
            elif kind == stat.S_IFLNK and (file := self._followed(directory, fd, name)) is not None:
                newest = max(newest, st.st_ctime_ns)
                st = file
                total += st.st_size
            elif kind != stat.S_IFDIR:
                total += self._note_other(directory, name, kind, st)
            elif self._leave_out == (st.st_dev, st.st_ino):
                continue
            else:
                directory.subdirectories.append(name)
            directory.names.append(name)
            ctime = st.st_ctime_ns
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

    def _pass_over(self, directory: Directory, name: str, entry: os.DirEntry[str]) -> None:
        """Note an entry that another mount hides: not even looked at, since that may hang."""
        directory.names.append(name)
        directory.mounted.append((name, entry.is_dir(follow_symlinks=False)))
        self._scan.mounts.append(directory.path_of(name))
        self._scan.entries += 1

    def _followed(self, directory: Directory, fd: int, name: str) -> os.stat_result | None:
        """Note a link that becomes a file; what that file is. None: it stays a link."""
        if not self._links.follows:
            return None
        try:
            target = self._links.target(fd, name, directory.depth)
        except OSError as error:
            raise changed_or_located(error, directory.path_of(name)) from None
        if target is None:
            return None
        try:
            st = os.fstat(target)
        finally:
            os.close(target)
        directory.files.append(name)
        directory.follow(name)
        return st

    def _note_other(self, directory: Directory, name: str, kind: int, st: os.stat_result) -> int:
        """Note what is neither a directory nor a file with one name; returns the bytes it adds."""
        scan = self._scan
        left_out = None
        if kind == stat.S_IFSOCK:
            left_out = scan.sockets
        elif ondisk.is_whiteout(st) and not self._whiteouts:
            left_out = scan.whiteouts
        elif kind == stat.S_IFLNK:
            scan.symlinks.append(Place(directory, name))
        if left_out is not None:
            left_out.append(Place(directory, name))
            scan.entries -= 1  # for the one that is added for every entry
            return 0
        if st.st_nlink > 1:
            return self._remember_link(directory, name, st)
        directory.special.append(name)
        return 0

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
