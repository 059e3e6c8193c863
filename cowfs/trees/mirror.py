"""A tree of clones that is made after another tree, and follows it until both are the same.

The other one may be changed meanwhile, by anybody and in any way: the kernel's passthrough and
overlayfs ask nobody before they write. So nothing is held off. What there is gets looked at
(`look`), made (`Mirror.follow`), and looked at again; what is another by then is made again.

Two looks that are the same prove that the whole tree had this one state at the moment between them:
every change of a file or directory gives it another ctime. Where the clock of a filesystem is too
coarse for that (before Linux 6.13, or bcachefs), what was changed just now counts as another one at
the next look.

FICLONE writes out what is dirty, and keeps writers and mappings of a file away meanwhile: each
clone has the file's bytes of one moment, whatever goes on.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cowfs.system import directories, ondisk, syscalls
from cowfs.trees import removal
from cowfs.trees.scan import CHANGED

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what was a file a moment ago may be a fifo now.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# A tick of the slowest clock that stamps files (CONFIG_HZ=100), twice: nanoseconds.
_COARSE = 20_000_000


class Entry(NamedTuple):
    """What tells one state of an entry from the next. Of a directory in another one only what it
    is: it has its own state in its own listing."""

    kind: int  # S_IFMT, or ondisk.WHITEOUT
    ino: int = 0
    nlink: int = 0
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    # Another one at each look while the clock cannot tell.
    serial: int = 0

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG


class Listing(NamedTuple):
    """A directory as it was at one moment, and its entries."""

    own: Entry
    entries: dict[bytes, Entry]
    subdirectories: list[bytes]
    linked: list[bytes]  # those with several names


# By the path of each directory, b"" for the root.
State = dict[bytes, Listing]


class Looker:
    """Looks at a tree below a descriptor, which stays the caller's.

    passed_over: inode numbers of files that do not count. fine: whether the clock tells all changes
    apart (`is_fine`).
    """

    def __init__(self, root_fd: int, *, fine: bool) -> None:
        self._root_fd = root_fd
        self._fine = fine
        self._serial = 0
        self.passed_over: set[int] = set()

    def look(self) -> State:
        """All of it. OSError."""
        state: State = {}
        self._fill(state, [b""], {})
        return state

    def again(self, before: State, hot: set[bytes]) -> State:
        """The same, but that only these directories are looked at, with what is new in them."""
        state = {path: listing for path, listing in before.items() if path not in hot}
        self._fill(state, [path for path in hot if path in before], before)
        return _reachable(state)

    def _fill(self, state: State, pending: list[bytes], before: State) -> None:
        while pending:
            path = pending.pop()
            if (listing := self._listing(path)) is None:
                continue
            state[path] = listing
            for name in listing.subdirectories:
                below = path_of(path, name)
                if below not in state or not _same_directory(before, path, name, listing):
                    pending.append(below)

    def _listing(self, path: bytes) -> Listing | None:
        """None: it is gone, or something else by now."""
        try:
            fd = syscalls.open_below(self._root_fd, path, _DIRECTORY)
        except OSError as error:
            if path and error.errno in CHANGED:
                return None
            raise
        try:
            own = self._entry(os.fstat(fd))
            entries = {}
            with directories.entries(fd) as found:
                for one in found:
                    try:
                        st = one.stat(follow_symlinks=False)
                    except FileNotFoundError:  # the directory has another ctime by now, too
                        continue
                    if st.st_ino in self.passed_over and not stat.S_ISDIR(st.st_mode):
                        continue
                    entries[os.fsencode(one.name)] = self._of_name(st)
            below = [name for name, entry in entries.items() if entry.kind == stat.S_IFDIR]
            linked = [name for name, entry in entries.items() if entry.nlink > 1]
            return Listing(own, entries, below, linked)
        finally:
            os.close(fd)

    def _of_name(self, st: os.stat_result) -> Entry:
        kind = ondisk.kind_of(st)
        if kind == stat.S_IFDIR:
            return Entry(kind, st.st_ino)
        if kind == ondisk.WHITEOUT:  # overlayfs makes hard links of one, whose ctime says nothing
            return Entry(kind)
        return self._entry(st)

    def _entry(self, st: os.stat_result) -> Entry:
        serial = 0
        # One that is later than now is of a clock that was set back, and no change of just now.
        if not self._fine and abs(time.time_ns() - st.st_ctime_ns) < _COARSE:
            self._serial += 1
            serial = self._serial
        return Entry(
            stat.S_IFMT(st.st_mode),
            *(st.st_ino, st.st_nlink, st.st_size, st.st_mtime_ns, st.st_ctime_ns, serial),
        )


def is_fine(dir_fd: int) -> bool:
    """Whether two changes of a file of this filesystem never get the same ctime, if somebody has
    looked at it in between. OSError."""
    fd = syscalls.open_tmpfile(dir_fd, 0o600)
    try:
        times = set()
        for turn in range(8):
            os.fchmod(fd, 0o600 + turn % 2 * 0o40)
            times.add(os.fstat(fd).st_ctime_ns)
        return len(times) == 8
    finally:
        os.close(fd)


def path_of(directory: bytes, name: bytes) -> bytes:
    """The path of an entry below the root."""
    return directory + b"/" + name if directory else name


def differing(before: State, after: State) -> dict[bytes, set[bytes]]:
    """The directories that are not the same in both, and the names in them that are not.

    The names are none where only the directory itself is another.
    """
    found = {}
    for path in before.keys() | after.keys():
        one, other = before.get(path), after.get(path)
        if one == other:
            continue
        names = (one.entries if one else {}).items() ^ (other.entries if other else {}).items()
        found[path] = {name for name, _ in names}
    return found


def only_data(before: State, after: State) -> list[bytes] | None:
    """The files that were written to between two looks, if nothing else has happened; else None."""
    paths = []
    for directory, names in differing(before, after).items():
        one, other = before.get(directory), after.get(directory)
        if one is None or other is None or one.own != other.own:
            return None
        for name in names:
            first, second = one.entries.get(name), other.entries.get(name)
            if first is None or second is None or not first.is_file or not second.is_file:
                return None
            if (first.ino, first.nlink) != (second.ino, second.nlink):
                return None
            paths.append(path_of(directory, name))
    return paths


class Mirror:
    """The tree of clones. Its root is an empty directory at first; both descriptors stay the
    caller's. advance is told how many entries were made.

    What goes from it is moved into the trash (removal.trash), whose descriptor is given.
    """

    def __init__(
        self,
        source_fd: int,
        target_fd: int,
        trash_fd: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._trash_fd = trash_fd
        self._advance = advance
        # What each entry was made from.
        self._made: dict[bytes, dict[bytes, Entry]] = {b"": {}}
        self._own: dict[bytes, Entry] = {}
        # All names that a file with several was made with.
        self._groups: dict[int, list[bytes]] = {}

    def follow(self, state: State) -> None:
        """Make it what was looked at, as far as that is there yet: `shows` tells whether it was.
        OSError names the entry."""
        groups = _groups(state)
        linked = {path for paths in groups.values() for path in paths}
        for path in sorted(state):  # a directory comes before what is in it
            if not self._has_made(path, state[path]):
                self._own.pop(path, None)
                self._follow_names(path, state[path], linked)
        self._link(groups, state)
        for path in state.keys() & self._made.keys() - self._own.keys():
            self._finish(path, state[path])

    def shows(self, state: State) -> bool:
        """Whether it was made from just this."""
        return state.keys() == self._made.keys() and all(
            self._has_made(path, listing) for path, listing in state.items()
        )

    def _has_made(self, path: bytes, listing: Listing) -> bool:
        return self._made.get(path) == listing.entries and self._own.get(path) == listing.own

    def _follow_names(self, path: bytes, listing: Listing, linked: set[bytes]) -> None:
        made = self._made.get(path)
        if made is None:  # its parent could not be made, or has another entry there by now
            return
        with _opened(self._target_fd, path) as target:
            for name, entry in list(made.items()):
                if listing.entries.get(name) != entry:
                    self._drop(target, path, name)
            missing = [
                name
                for name in listing.entries
                if name not in made and path_of(path, name) not in linked
            ]
            if missing:
                with _opened_if_there(self._source_fd, path) as source:
                    for name in missing if source is not None else []:
                        self._make(source, target, path, name, listing.entries[name])

    def _drop(self, target: int, path: bytes, name: bytes) -> None:
        self._own.pop(path, None)
        if self._made[path].pop(name).kind != stat.S_IFDIR:
            os.unlink(name, dir_fd=target)
            return
        removal.remove(self._trash_fd, removal.trash(target, os.fsdecode(name), self._trash_fd))
        gone = path_of(path, name)
        for below in [one for one in self._made if one == gone or one.startswith(gone + b"/")]:
            del self._made[below]
            self._own.pop(below, None)

    def _make(
        self, source: int | None, target: int, path: bytes, name: bytes, entry: Entry
    ) -> bool:
        """Whether it is there now; not what became another one since it was looked at."""
        self._own.pop(path, None)
        where = path_of(path, name)
        try:
            if source is None:
                return False
            if entry.kind == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=target)
                self._made[where] = {}
            elif entry.kind == ondisk.WHITEOUT:
                ondisk.make_whiteout(target, name)
            elif not _clone(source, target, name, entry):
                return False
        except OSError as error:
            if error.errno in CHANGED:
                return False
            raise OSError(error.errno, error.strerror, os.fsdecode(where)) from None
        self._made[path][name] = entry
        self._advance(1)
        return True

    def _link(self, groups: dict[int, list[bytes]], state: State) -> None:
        """Make files with several names, each once, with all of them."""
        for ino, paths in groups.items():
            if self._groups.get(ino) != paths or not all(map(self._has, paths)):
                self._make_group(paths, state)
        self._groups = groups

    def _has(self, path: bytes) -> bool:
        directory, _, name = path.rpartition(b"/")
        return name in self._made.get(directory, {})

    def _make_group(self, paths: list[bytes], state: State) -> None:
        places = [path.rpartition(b"/")[::2] for path in paths]
        first: tuple[bytes, bytes] | None = None
        for directory, name in places:
            if directory not in self._made:
                continue
            entry = state[directory].entries[name]
            with _opened(self._target_fd, directory) as target:
                if name in self._made[directory]:
                    self._drop(target, directory, name)
                if first is None:
                    with _opened_if_there(self._source_fd, directory) as source:
                        if self._make(source, target, directory, name, entry):
                            first = directory, name
                    continue
                with _opened(self._target_fd, first[0]) as beside:
                    os.link(
                        *(first[1], name),
                        src_dir_fd=beside,
                        dst_dir_fd=target,
                        follow_symlinks=False,
                    )
            self._own.pop(directory, None)
            self._made[directory][name] = entry
            self._advance(1)

    def _finish(self, path: bytes, listing: Listing) -> None:
        """Give a directory its attributes, and its times last."""
        with _opened_if_there(self._source_fd, path) as source:
            if source is None:
                return
            st = os.fstat(source)
            if st.st_ino != listing.own.ino:
                return
            with _opened(self._target_fd, path) as target:
                _give_attributes(source, target, st)
                os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
            self._own[path] = listing.own


@contextmanager
def _opened(root_fd: int, path: bytes) -> Iterator[int]:
    fd = syscalls.open_below(root_fd, path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened_if_there(root_fd: int, path: bytes) -> Iterator[int | None]:
    """The same of the tree that others change: None when the directory is gone."""
    try:
        fd = syscalls.open_below(root_fd, path, _DIRECTORY)
    except OSError as error:
        if error.errno not in CHANGED or not path:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _reachable(state: State) -> State:
    """Without what is below directories that are not there any more."""
    found = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        if path in state:
            found[path] = state[path]
            pending += [path_of(path, name) for name in state[path].subdirectories]
    return found


def _same_directory(before: State, path: bytes, name: bytes, listing: Listing) -> bool:
    known = before.get(path)
    return known is not None and known.entries.get(name) == listing.entries[name]


def _groups(state: State) -> dict[int, list[bytes]]:
    """The paths of all entries that have several names, by inode number; one that has no other name
    in the tree is as any other."""
    found: dict[int, list[bytes]] = {}
    for path, listing in state.items():
        for name in listing.linked:
            found.setdefault(listing.entries[name].ino, []).append(path_of(path, name))
    return {ino: sorted(paths) for ino, paths in found.items() if len(paths) > 1}


def _clone(source_dir: int, target_dir: int, name: bytes, entry: Entry) -> bool:
    """Make one entry that is no directory with all its attributes; False: it is another by now.

    The data first: a time that is later than they are does no harm, while an earlier one would say
    that a file has not been written to since it was noted to share data with the template's.
    """
    if not entry.is_file:
        return _make_special(source_dir, target_dir, name, entry)
    source = os.open(name, _FILE, dir_fd=source_dir)
    try:
        if not _is(source, entry):
            return False
        target = os.open(name, _NEW, 0o600, dir_fd=target_dir)
        try:
            try:
                if os.fstat(source).st_size:
                    syscalls.ficlone(target, source)
                st = os.fstat(source)
                _give_attributes(source, target, st)
                os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
            except BaseException:
                os.unlink(name, dir_fd=target_dir)
                raise
        finally:
            os.close(target)
    finally:
        os.close(source)
    return True


def _make_special(source_dir: int, target_dir: int, name: bytes, entry: Entry) -> bool:
    source = os.open(name, _LOOK, dir_fd=source_dir)
    try:
        if not _is(source, entry):
            return False
        st = os.fstat(source)
        if entry.kind == stat.S_IFLNK:
            os.symlink(os.readlink(b"", dir_fd=source), name, dir_fd=target_dir)
        else:
            os.mknod(name, entry.kind | 0o600, st.st_rdev, dir_fd=target_dir)
        target = os.open(name, _LOOK, dir_fd=target_dir)
        try:
            _give_attributes(ondisk.proc_path(source), ondisk.proc_path(target), st)
        finally:
            os.close(target)
        times = (st.st_atime_ns, st.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target_dir, follow_symlinks=False)
    finally:
        os.close(source)
    return True


def _is(fd: int, entry: Entry) -> bool:
    st = os.fstat(fd)
    return stat.S_IFMT(st.st_mode) == entry.kind and st.st_ino == entry.ino


def _give_attributes(source: int | bytes, target: int | bytes, st: os.stat_result) -> None:
    """Owner, extended attributes (all marks, too, and no others) and mode, in this order: chown(2)
    clears capabilities and set-id bits, and an access ACL sets the group's bits."""
    # A path of /proc leads to the file itself, a symlink too.
    os.chown(target, st.st_uid, st.st_gid)
    kept = set(ondisk.list_xattrs(source))
    for name in ondisk.list_xattrs(target):
        if name not in kept and (not name.startswith(b"system.") or name in ondisk.ACLS):
            ondisk.remove_xattr(target, name)
    ondisk.copy_xattrs(source, target, skip_internal=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(target, stat.S_IMODE(st.st_mode))
