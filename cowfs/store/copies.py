"""Copies: what is on disk for each, their locks, and what one holds of its own.

    <store>/copies/<name>/upper/      what changed, an overlayfs upper layer
    <store>/copies/<name>/work/       on the same filesystem, for what is not finished
    <store>/copies/<name>/copy.json   whose copy it is
    <store>/copies/<name>/lock        locked (flock) while the copy is served; its mtime is when
                                      that began or ended
    <store>/copies/<name>/overlayfs   there while overlayfs may have it, locked or not

Whether a copy may be taken, followed or dropped is decided in store.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cowfs.store import overlayfs, remedies, templates
from cowfs.store.directory import StoreDirectory, lock_directory
from cowfs.store.templates import Template
from cowfs.system import directories, jsonfile, ondisk, syscalls
from cowfs.system.errors import MountFailure
from cowfs.trees import removal
from cowfs.trees.walk import Found, walk

FORMAT = 1
RECORD = "copy.json"
LOCK = "lock"
NOTE = "overlayfs"
UPPER = "upper"
WORK = "work"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A process that only looks whether a lock is free holds it for a moment.
_LOCK_TRIES = 5
_LOCK_PAUSE = 0.01  # seconds

_NOT_PRIVATE = syscalls.FIEMAP_EXTENT_SHARED


# How long a filesystem may take to end after its end was reported: seconds.
_END_PATIENCE = 30.0


class Busy(Exception):  # noqa: N818 -- says what the copy is
    """The lock of a copy is taken, or overlayfs has it: it is mounted, or about to be."""


@dataclass(frozen=True)
class CopyRecord:
    """What copy.json holds. `created` in seconds since the epoch.

    named_after: the mountpoint that gave it its name, empty when a user chose that; None for a copy
    of an earlier version, which did not write it down. See naming.py. copied_from: the name of the
    copy that it was made as a copy of, in the same store, if it was.
    """

    name: str
    source: str
    template: str
    persistent: bool
    created: float
    named_after: str | None = None
    copied_from: str | None = None

    def write(self, dir_fd: int) -> None:
        """Write it into the copy's directory, as a whole. OSError."""
        value: dict[str, Any] = {"format": FORMAT, **vars(self)}
        if self.copied_from is None:
            del value["copied_from"]
        jsonfile.write(dir_fd, RECORD, value)


@dataclass(frozen=True)
class CopyInfo:
    """A copy as a list shows it. `created` and `last_mounted` in seconds since the epoch."""

    name: str
    source: str
    template: str
    persistent: bool
    created: float
    mounted: bool
    last_mounted: float
    named_after: str | None = None
    copied_from: str | None = None


class Copy:
    """A copy whose lock is held through `lock_fd`. is_new: it was made just now, under a new name.
    copied_from: as in CopyRecord.

    The lock belongs to the open file description: whoever has a duplicate of the descriptor has the
    lock too, and it is free when the last one is closed.
    """

    def __init__(
        self, store: StoreDirectory, record: CopyRecord, template: Template, lock_fd: int
    ) -> None:
        """Takes over `lock_fd`."""
        self._store = store
        self.name = record.name
        self.path = path_of(store, record.name)
        self.upper = os.path.join(self.path, UPPER)
        self.work = os.path.join(self.path, WORK)
        self.template = template
        self.source = record.source
        self.persistent = record.persistent
        self.created = record.created
        self.copied_from = record.copied_from
        self.lock_fd = lock_fd
        self.is_new = False

    @classmethod
    def adopt(cls, store: StoreDirectory, name: str, lock_fd: int) -> Copy:
        """The copy whose lock another process has taken and handed over. MountFailure."""
        if not _is_lock(store, name, lock_fd):
            raise MountFailure(
                f"the copy {name} in {store.path} is not the one whose lock is held: the store was "
                "moved, or something else is mounted there now"
            )
        record = read(store, name)
        return cls(store, record, template_of(store, record), lock_fd)

    def open(self) -> int:
        """A descriptor of the copy's own directory, for the caller. OSError."""
        return os.open(self.name, _DIRECTORY, dir_fd=self._store.copies_fd)

    def note_source(self, source: str) -> None:
        """Let it be a copy of this directory from now on, or not at all. OSError."""
        record = dataclasses.replace(read(self._store, self.name), source=source)
        with _opened(self._store.copies_fd, self.name) as copy:
            record.write(copy)
        self.source = source

    def note_overlayfs(self) -> None:
        """Before overlayfs gets the copy: it may outlive all who have the lock. OSError."""
        with _opened(self._store.copies_fd, self.name) as copy:
            os.close(os.open(NOTE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=copy))

    def put_away(self) -> bool:
        """After overlayfs: keep the copy, or discard an ephemeral one, and end this object.

        False if overlayfs has not let go of it: then the note stays, and so does an ephemeral copy,
        for the next mount or gc. OSError.
        """
        with _opened(self._store.copies_fd, self.name) as copy:
            try:
                has_ended = overlayfs.wait_for_end(self._store, copy, _END_PATIENCE)
            except OSError:
                has_ended = False
            if not self.persistent and has_ended:
                self.discard()
                return True
            if has_ended:
                recover(self._store, self.name)
                _forget(copy)
        self.release()
        return has_ended

    def directories(self) -> tuple[int, int, int]:
        """Descriptors (O_PATH) of the template's tree, of upper/ and of work/, for the caller.

        They come from those of the store, whatever its path leads to by now.  OSError.
        """
        fds: list[int] = []
        try:
            for part_fd, name, inner in (
                (self._store.templates_fd, self.template.id, templates.TREE),
                (self._store.copies_fd, self.name, UPPER),
                (self._store.copies_fd, self.name, WORK),
            ):
                with _opened(part_fd, name) as outer:
                    fds.append(os.open(inner, _DIRECTORY | os.O_PATH, dir_fd=outer))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        tree, upper, work = fds
        return tree, upper, work

    def has_changes(self) -> bool:
        """Whether it differs from its template: anything in upper/, or the root's attributes.

        Access times do not count, nor do the marks of cowfs and overlayfs.
        """
        with _opened(self._store.copies_fd, self.name) as copy, _opened(copy, UPPER) as upper:
            if directories.names(upper):
                return True
            with (
                _opened(self._store.templates_fd, self.template.id) as template,
                _opened(template, templates.TREE) as tree,
            ):
                return _root_attributes(upper) != _root_attributes(tree)

    def is_untouched(self) -> bool:
        """Whether nothing was written to it since it was made. OSError.

        Of a copy of a copy the times tell: it has those of the other one, which are earlier.
        """
        if self.copied_from is None:
            return not self.has_changes()
        made = int(self.created * 1e9)
        with _opened(self._store.copies_fd, self.name) as copy, _opened(copy, UPPER) as upper:
            return os.fstat(upper).st_mtime_ns <= made and all(
                found.entry.stat(follow_symlinks=False).st_mtime_ns <= made for found in walk(upper)
            )

    def discard(self) -> None:
        """Remove the copy and all that is in it, and end this object. OSError."""
        try:
            rubbish = self._store.trash(self._store.copies_fd, self.name)
        finally:
            self.release()
        removal.remove(self._store.trash_fd, rubbish)

    def note_use(self) -> None:
        """Note that the copy is in use, or was until now: `last_mounted`."""
        with contextlib.suppress(OSError):  # a list would show an earlier time
            os.utime(self.lock_fd)
        templates.note_use(self._store, self.template.id)

    def release(self) -> None:
        """Close our descriptor of the lock, and end this object. The copy stays."""
        self.note_use()
        os.close(self.lock_fd)


def path_of(store: StoreDirectory, name: str) -> str:
    """Where a copy of this name is, or would be."""
    return os.path.join(store.path, "copies", name)


def names(store: StoreDirectory) -> list[str]:
    """The names of all copies, whatever their state."""
    return sorted(directories.names(store.copies_fd))


def read(store: StoreDirectory, name: str) -> CopyRecord:
    """What copy.json of a copy holds. FileNotFoundError: no copy; MountFailure: damaged."""
    with _opened(store.copies_fd, name) as dir_fd:
        try:
            value = jsonfile.read(dir_fd, RECORD)
            if value["format"] != FORMAT:
                raise ValueError(f"its format is {value['format']}, this cowfs reads {FORMAT}")
            if not isinstance(value["persistent"], bool):
                raise ValueError("persistent is neither true nor false")
            named_after, copied_from = value.get("named_after"), value.get("copied_from")
            return CopyRecord(
                name=name,
                source=str(value["source"]),
                template=str(value["template"]),
                persistent=value["persistent"],
                created=float(value["created"]),
                named_after=None if named_after is None else str(named_after),
                copied_from=None if copied_from is None else str(copied_from),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = path_of(store, name)
            raise MountFailure(
                f"the copy {name} is damaged ({RECORD}: {error}): what was written to it is in "
                f"{os.path.join(path, UPPER)}; take from there what you need and discard it with: "
                f"{remedies.of_copy('cowfs rm', store.path, name)}"
            ) from None


def template_of(store: StoreDirectory, record: CopyRecord) -> Template:
    """The template that a copy is based on. MountFailure when it is not there."""
    template = templates.read(store, record.template)
    if template is None:
        missing = templates.path_of(store, record.template)
        upper = os.path.join(path_of(store, record.name), UPPER)
        raise MountFailure(
            f"the copy {record.name} needs the template {missing}, which is not there: put it "
            f"back, or take what you need from {upper} and discard the copy with: "
            f"{remedies.of_copy('cowfs rm', store.path, record.name)}"
        )
    return template


def references(store: StoreDirectory) -> set[str] | None:
    """The ids of all templates that copies are based on; None when that is not known for one."""
    found = set()
    for name in names(store):
        try:
            found.add(read(store, name).template)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except MountFailure:
            return None
    return found


def lock(store: StoreDirectory, name: str) -> int | None:
    """Take the lock of a copy; None when there is no such copy.

    Busy when another has it, or an overlayfs whose attendant was killed. OSError.
    """
    tries = 0
    while True:
        try:
            with _opened(store.copies_fd, name) as dir_fd:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(LOCK, flags, 0o600, dir_fd=dir_fd)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have discarded or exchanged the copy in between.
            if _is_lock(store, name, fd):
                with _opened(store.copies_fd, name) as dir_fd:
                    if _is_overlaid(store, dir_fd):
                        raise Busy
                    _forget(dir_fd)
                return fd
        except BlockingIOError:
            tries += 1
            if tries == _LOCK_TRIES:
                os.close(fd)
                raise Busy from None
            time.sleep(_LOCK_PAUSE)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_locked(store: StoreDirectory, name: str) -> bool:
    """Whether somebody has the lock of a copy, or overlayfs the copy. OSError."""
    try:
        with _opened(store.copies_fd, name) as dir_fd:
            fd = os.open(LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    try:
        with _opened(store.copies_fd, name) as dir_fd:
            return _is_overlaid(store, dir_fd)
    except FileNotFoundError:
        return False


def is_overlaid_by_hand(store: StoreDirectory, name: str) -> bool:
    """Whether overlayfs has a copy that no cowfs has given to it. OSError."""
    with _opened(store.copies_fd, name) as dir_fd:
        return not _has(dir_fd, NOTE) and _is_overlaid(store, dir_fd)


def _is_overlaid(store: StoreDirectory, dir_fd: int) -> bool:
    """Whether overlayfs has the copy in this directory, or nobody can tell. OSError.

    It leaves something in work/ wherever somebody mounts it by hand.
    """
    if not any(_has(dir_fd, name) for name in (NOTE, os.path.join(WORK, overlayfs.WORK))):
        return False
    try:
        return overlayfs.in_use(store, dir_fd)
    except OSError:  # no capability for it, or no room
        return True


def _has(dir_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _forget(dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NOTE, dir_fd=dir_fd)


def make(
    store: StoreDirectory,
    record: CopyRecord,
    template: Template,
    *,
    replace: bool,
    make_upper: Callable[[int, int], None] | None = None,
    created_then: bool = False,
) -> Copy | None:
    """Make a copy, locked; with `replace` in the place of the one that is there.

    make_upper: makes upper/ in an open directory, for a template that is open; without it there is
    nothing in that. created_then: the copy is as old as what that has made.

    None when there is nothing to be done that way any more: the name has been taken, or the
    template is gone. OSError.
    """
    # While this lock is held nobody removes the template (garbage.py); afterwards copy.json does
    # the same.
    in_use = lock_directory(store.templates_fd, template.id, fcntl.LOCK_SH)
    if in_use is None:
        return None
    try:
        building = f"copy-{os.urandom(8).hex()}"
        with store.partial(building) as dir_fd:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            lock_fd = os.open(LOCK, flags, 0o600, dir_fd=dir_fd)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX)
                (make_upper or _make_upper)(dir_fd, in_use)
                if created_then:
                    record = dataclasses.replace(record, created=time.time())
                os.mkdir(WORK, 0o700, dir_fd=dir_fd)
                record.write(dir_fd)
                syscalls.renameat2(
                    store.partial_fd,
                    os.fsencode(building),
                    store.copies_fd,
                    os.fsencode(record.name),
                    syscalls.RENAME_EXCHANGE if replace else syscalls.RENAME_NOREPLACE,
                )
            except FileExistsError:
                os.close(lock_fd)
                return None
            except BaseException:
                os.close(lock_fd)
                raise
            if replace:
                # Another process that clears `partial` may be quicker.
                with contextlib.suppress(FileNotFoundError):
                    store.trash(store.partial_fd, building)
        copy = Copy(store, record, template, lock_fd)
        copy.is_new = not replace
        return copy
    finally:
        os.close(in_use)


def rename(store: StoreDirectory, record: CopyRecord, new: str) -> None:
    """Give a copy whose lock we have another name, that a user has chosen. OSError: EEXIST.

    The directory's name counts: a crash may leave the old one in copy.json, where nobody reads it.
    """
    fd = store.copies_fd
    old, wanted = os.fsencode(record.name), os.fsencode(new)
    syscalls.renameat2(fd, old, fd, wanted, syscalls.RENAME_NOREPLACE)
    with _opened(fd, new) as copy:
        dataclasses.replace(record, name=new, named_after="").write(copy)


def recover(store: StoreDirectory, name: str) -> None:
    """Undo what a crash has left half done in a copy whose lock we have. OSError."""
    with _opened(store.copies_fd, name) as copy:
        with contextlib.suppress(FileExistsError):
            os.mkdir(WORK, 0o700, dir_fd=copy)
        with _opened(copy, WORK) as work, _opened(copy, UPPER) as upper:
            _undo_unfinished_groups(work, upper)
            removal.empty(work, store.trash_fd)


def unfinished(work_fd: int) -> set[int]:
    """The inode numbers of files whose names `recover` will take back, by what is in work/."""
    names = [
        name
        for name in directories.names(work_fd)
        if os.fsencode(name).startswith(ondisk.UNFINISHED_GROUP)
    ]
    return {os.stat(name, dir_fd=work_fd, follow_symlinks=False).st_ino for name in names}


def _undo_unfinished_groups(work: int, upper: int) -> None:
    """Take back the names of a group of hard links whose copy-up was cut short.

    Nobody has written to such a file: only when all of its names were there was it opened.
    """
    inodes = unfinished(work)
    if not inodes:
        return
    for found in walk(upper):
        if found.entry.inode() in inodes:
            st = os.fstat(found.directory_fd)
            os.unlink(found.name, dir_fd=found.directory_fd)
            os.utime(found.directory_fd, ns=(st.st_atime_ns, st.st_mtime_ns))


def changes(store: StoreDirectory, name: str) -> tuple[int, int]:
    """How many changed or new files, and how many deleted names, the upper layer of a copy holds.

    FileNotFoundError: there is no such copy.
    """
    files = deleted = 0
    for found in _upper_entries(store, name):
        if ondisk.kind_of_listed(found.entry) == ondisk.WHITEOUT:
            deleted += 1
        else:
            files += 1
    return files, deleted


def counted(store: StoreDirectory, name: str) -> tuple[int, int] | None:
    """The same; None for a copy whose upper layer cannot be read."""
    try:
        return changes(store, name)
    except OSError:
        return None


def last_mounted(store: StoreDirectory, name: str) -> float:
    """When it was last mounted or unmounted; when it was made, if it was neither. OSError."""
    with _opened(store.copies_fd, name) as copy:
        try:
            return os.stat(LOCK, dir_fd=copy, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return os.fstat(copy).st_mtime


def private_bytes(store: StoreDirectory, name: str) -> int:
    """Bytes on the disk that a copy has for itself alone (FIEMAP). It may be in use meanwhile."""
    total = 0
    seen: set[int] = set()
    for found in _upper_entries(store, name):
        entry = found.entry
        if entry.is_file(follow_symlinks=False) and entry.inode() not in seen:
            seen.add(entry.inode())
            total += _private_bytes_of(found.directory_fd, entry.name)
    return total


def _upper_entries(store: StoreDirectory, name: str) -> Iterator[Found]:
    """All that is no directory in the upper layer of a copy."""
    with _opened(store.copies_fd, name) as copy, _opened(copy, UPPER) as upper:
        for found in walk(upper):
            if not found.entry.is_dir(follow_symlinks=False):
                yield found


def _private_bytes_of(dir_fd: int, name: str) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return 0
    try:
        return sum(
            extent.length
            for extent in syscalls.fiemap(fd, sync=False)
            if not extent.flags & _NOT_PRIVATE
        )
    finally:
        os.close(fd)


def _make_upper(dir_fd: int, template_fd: int) -> None:
    """Make upper/ with the attributes of the template's root, the inode number included."""
    os.mkdir(UPPER, 0o700, dir_fd=dir_fd)
    with _opened(dir_fd, UPPER) as upper, _opened(template_fd, templates.TREE) as tree:
        st = os.fstat(tree)
        os.fchown(upper, st.st_uid, st.st_gid)
        ondisk.copy_xattrs(tree, upper)
        ondisk.set_ino(upper, st.st_ino)
        born = syscalls.birth_time(ondisk.proc_path(tree), follow=True)
        ondisk.set_birth_time(upper, born)
        os.fchmod(upper, stat.S_IMODE(st.st_mode))
        os.utime(upper, ns=(st.st_atime_ns, st.st_mtime_ns))


def _root_attributes(fd: int) -> tuple[int, int, int, int, dict[bytes, bytes]]:
    st = os.fstat(fd)
    attributes = {
        name: ondisk.get_xattr(fd, name)
        for name in ondisk.list_xattrs(fd)
        if not ondisk.is_internal(name)
    }
    return st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, attributes


def _is_lock(store: StoreDirectory, name: str, fd: int) -> bool:
    try:
        with _opened(store.copies_fd, name) as dir_fd:
            st = os.stat(LOCK, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), st)


@contextlib.contextmanager
def _opened(dir_fd: int, name: str) -> Iterator[int]:
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
