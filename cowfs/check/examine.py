"""`cowfs check`: whether the copies and templates of a store are what they should be.

Goes through a store: its parts, what crashes have left, each copy under its lock with the template
that it is based on (copy.py, template.py). A copy that somebody uses changes meanwhile:
only its template and its copy.json are looked at. An error of the disk ends the examination of one
copy or template, not that of the others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from cowfs.check.copy import UpperCheck
from cowfs.check.findings import Finding, Report
from cowfs.check.lower import differences
from cowfs.check.template import Sealed, TemplateCheck
from cowfs.store import copies, lowers, overlayfs, remedies, runtime, templates
from cowfs.store.directory import LOWERS, OWNER, PARTS, StoreDirectory, lock_directory
from cowfs.system import directories, remedy
from cowfs.system.errors import MountFailure
from cowfs.trees import removal

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED = 3  # entries of work/ that one finding names
_COPY_ENTRIES = frozenset({copies.UPPER, copies.WORK, copies.RECORD, copies.LOCK, copies.NOTE})


class Progress(Protocol):
    """What hears how far the check has come."""

    def begin(self, files: int, size: int) -> None: ...
    def advance(self, files: int) -> None: ...


class _Examined(NamedTuple):
    """The template that was looked at last, with a descriptor of its tree."""

    id: str
    sealed: Sealed | None
    tree_fd: int


def check(
    store: StoreDirectory,
    names: Sequence[str] | None,
    *,
    repair: bool,
    progress: Progress | None,
    report: Report,
) -> None:
    """Examine these copies and their templates, or, with None, everything in the store.

    Adds to `report`.
    """
    checker = _Checker(store, repair, progress, report)
    try:
        checker.run(names)
    finally:
        checker.forget()


class _Checker:
    def __init__(
        self, store: StoreDirectory, repair: bool, progress: Progress | None, report: Report
    ) -> None:
        self._store = store
        self._repair = repair
        self._progress = progress
        self._report = report
        self._last: _Examined | None = None
        self._done: set[str] = set()
        self._locked: set[str] = set()  # copies whose lock is ours

    def run(self, names: Sequence[str] | None) -> None:
        store = self._store
        with self._failing(store.path):
            self._parts()
            self._leftovers()
        chosen = copies.names(store) if names is None else list(names)
        based = {name: self._template_of(name) for name in chosen}
        wanted = set(filter(None, based.values()))
        if names is None:
            wanted.update(directories.names(store.templates_fd))
        self._announce(wanted)
        # The copies of one template one after the other: it is examined once.
        for name in sorted(chosen, key=lambda name: (based[name] or "", name)):
            self._report.copies += 1
            with self._failing(copies.path_of(store, name)):
                self._copy(name, named=names is not None)
        for template_id in sorted(wanted - self._done):
            self._sealed(template_id)

    def _template_of(self, name: str) -> str | None:
        try:
            return copies.read(self._store, name).template
        except (MountFailure, OSError):
            return None

    def _announce(self, template_ids: set[str]) -> None:
        if self._progress is None:
            return
        entries = size = 0
        for template_id in template_ids:
            with contextlib.suppress(MountFailure, OSError):
                template = templates.read(self._store, template_id)
                if template is not None:
                    entries += template.entries
                    size += template.bytes
        self._progress.begin(entries, size)

    def _advance(self, entries: int) -> None:
        self._report.entries += entries
        if self._progress is not None:
            self._progress.advance(entries)

    # ---------------------------------------------------------------- the store

    def _parts(self) -> None:
        store = self._store
        for name in (*PARTS, *([LOWERS] if store.has_lowers() else [])):
            self._closed(store.fd, name, os.path.join(store.path, name))

    def _leftovers(self) -> None:
        """What a mount has removed by itself, and cowfs gc removes."""
        store = self._store
        found = [os.path.join("trash", name) for name in directories.names(store.trash_fd)]
        for name in directories.names(store.partial_fd):
            try:
                fd = lock_directory(store.partial_fd, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except NotADirectoryError:
                continue  # not made by us
            if fd is not None:  # else somebody is at work on it
                os.close(fd)
                found.append(os.path.join("partial", name))
        if self._repair and found:
            store.remove_rubbish()
        for name in sorted(found):
            self._tell(
                os.path.join(store.path, name),
                "leftover",
                "left by a crash, or being removed at this moment",
                "the next mount removes it",
                harmless=True,
                repaired=self._repair,
            )

    # ---------------------------------------------------------------- a copy

    def _copy(self, name: str, *, named: bool) -> None:
        store, path = self._store, copies.path_of(self._store, name)
        try:
            lock_fd = self._lock(name)
        except copies.Busy:
            self._in_use(name, named)
            return
        except NotADirectoryError:
            self._tell(path, "no-copy", "is no copy, not even a directory", "move it elsewhere")
            return
        if lock_fd is None:
            return  # discarded meanwhile
        self._locked.add(name)
        try:
            copy_fd = os.open(name, _DIRECTORY, dir_fd=store.copies_fd)
            try:
                self._locked_copy(name, path, copy_fd)
            finally:
                os.close(copy_fd)
        finally:
            self._locked.discard(name)
            os.close(lock_fd)

    def _lock(self, name: str) -> int | None:
        try:
            return copies.lock(self._store, name)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        # Nobody can write to a volume that is read-only, and no lock can be made on it.
        if copies.is_locked(self._store, name):
            raise copies.Busy
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _in_use(self, name: str, named: bool) -> None:
        where = [
            record.mountpoint
            for record in runtime.all()
            if record.copy == name and record.store == self._store.path
        ]
        shown = f"{name} (mounted at {where[0]})" if where else name
        self._report.in_use.append(shown)
        if named:
            self._report.unexamined.append(shown)
        template_id = self._template_of(name)
        if template_id is not None:
            self._sealed(template_id)

    def _locked_copy(self, name: str, path: str, copy_fd: int) -> None:
        self._closed(self._store.copies_fd, name, path)
        self._temporary_files(path, copy_fd)
        sealed = None
        try:
            record = copies.read(self._store, name)
            if not record.persistent:
                self._tell(
                    path,
                    "unserved",
                    "an ephemeral copy that nobody serves: its daemon was killed",
                    f"the next mount or {self._gc()} discards it",
                    harmless=True,
                )
            sealed = self._sealed(record.template)
            if sealed is None:
                copies.template_of(self._store, record)
        except MountFailure as error:
            self._tell(path, "damaged-copy", str(error), "")
        try:
            upper_fd = os.open(copies.UPPER, _DIRECTORY, dir_fd=copy_fd)
        except (FileNotFoundError, NotADirectoryError):
            self._tell(
                os.path.join(path, copies.UPPER),
                "no-upper",
                "the upper directory is missing, and all that was written to the copy with it",
                "put it back from a backup, or discard the copy with: "
                f"{remedies.of_copy('cowfs rm', self._store.path, name)}",
            )
            return
        try:
            unfinished = self._work(name, path, copy_fd)
            if sealed is not None:
                assert self._last is not None
                UpperCheck(
                    os.path.join(path, copies.UPPER),
                    upper_fd,
                    self._last.tree_fd,
                    sealed,
                    unfinished,
                    repair=self._repair,
                    note=self._report.findings.append,
                    progress=self._advance,
                ).examine()
        finally:
            os.close(upper_fd)

    def _temporary_files(self, path: str, copy_fd: int) -> None:
        for name in sorted(set(directories.names(copy_fd)) - _COPY_ENTRIES):
            if not name.startswith(f".{copies.RECORD}."):
                continue  # not ours to judge
            if self._repair:
                self._throw_away(copy_fd, name)
            self._tell(
                os.path.join(path, name),
                "leftover",
                f"a {copies.RECORD} that a crash has kept from being finished",
                "not used by anything",
                harmless=True,
                repaired=self._repair,
            )

    def _work(self, name: str, path: str, copy_fd: int) -> set[int]:
        """work/ is emptied by the next mount, in the same way as here.

        Gives the inode numbers of files whose names that mount will take away.
        """
        work = os.path.join(path, copies.WORK)
        try:
            work_fd = os.open(copies.WORK, _DIRECTORY, dir_fd=copy_fd)
        except FileNotFoundError:
            if self._repair:
                copies.recover(self._store, name)
            self._tell(
                work,
                "no-work",
                "the directory for what is not finished is missing",
                "the next mount makes it",
                harmless=True,
                repaired=self._repair,
            )
            return set()
        except OSError:
            if self._repair:
                self._throw_away(copy_fd, copies.WORK)
                copies.recover(self._store, name)
            self._tell(
                work,
                "no-work",
                "is no directory, and no mount can work like that",
                "a directory in its place, which holds nothing of users",
                repaired=self._repair,
            )
            return set()
        try:
            orphans = sorted(directories.names(work_fd))
            unfinished = copies.unfinished(work_fd)
            indexed = overlayfs.indexed(work_fd)
        finally:
            os.close(work_fd)
        self._closed(copy_fd, copies.WORK, work)
        if indexed:
            self._tell(
                os.path.join(work, overlayfs.INDEX),
                "index",
                "the index of an overlayfs that was mounted by hand with index=on: the next mount "
                "removes it, and then the names of changed files that nobody has used show the "
                f"template's data; changed files with several names: {indexed}",
                "mount it with overlayfs and index=on once more, copy these files aside, and write "
                "them into the copy anew",
            )
            return unfinished  # a repair would be that loss
        if orphans and self._repair:
            copies.recover(self._store, name)
        if left := [entry for entry in orphans if entry in (overlayfs.WORK, overlayfs.INDEX)]:
            orphans = [entry for entry in orphans if entry not in left]
            self._tell(
                work,
                "overlayfs",
                f"holds what the kernel's overlayfs has left, mounted by hand: {', '.join(left)}",
                "the next mount removes it",
                harmless=True,
                repaired=self._repair,
            )
        if orphans:
            more = f" and {len(orphans) - _NAMED} more" if len(orphans) > _NAMED else ""
            self._tell(
                work,
                "orphans",
                f"holds what a crash has kept from being finished: "
                f"{', '.join(orphans[:_NAMED])}{more}",
                "the next mount removes it",
                harmless=True,
                repaired=self._repair,
            )
        return set() if self._repair else unfinished

    def _throw_away(self, dir_fd: int, name: str) -> None:
        removal.remove(self._store.trash_fd, self._store.trash(dir_fd, name))

    # ---------------------------------------------------------------- a template

    def _sealed(self, template_id: str) -> Sealed | None:
        """What the examination of a template gave; done now, unless it was the last one."""
        if self._last is not None and self._last.id == template_id:
            return self._last.sealed
        self.forget()
        path = templates.path_of(self._store, template_id)
        with self._failing(path):
            # While it is locked nobody removes it (garbage.py).
            try:
                fd = lock_directory(self._store.templates_fd, template_id, fcntl.LOCK_SH)
            except NotADirectoryError:
                self._tell(path, "no-template", "is no template", "move it elsewhere")
                self._done.add(template_id)
                return None
            if fd is None:
                return None
            try:
                self._last = self._examined(template_id, path, fd)
            finally:
                os.close(fd)
        return None if self._last is None else self._last.sealed

    def _examined(self, template_id: str, path: str, fd: int) -> _Examined | None:
        first = template_id not in self._done
        self._done.add(template_id)
        self._report.templates += first

        def note(finding: Finding) -> None:
            if first:  # its copies may not come one after the other
                self._report.findings.append(finding)

        try:
            template = templates.read(self._store, template_id)
        except MountFailure as error:
            note(Finding(path, "damaged-template", str(error), ""))
            return None
        assert template is not None
        examination = TemplateCheck(
            template, fd, gc=self._gc(), repair=self._repair, note=note, progress=self._advance
        )
        sealed = examination.examine()
        if sealed is None:
            return None
        if first:
            self._lower(template_id, fd)
        self._closed(self._store.templates_fd, template_id, path)
        tree_fd = os.open(templates.TREE, _DIRECTORY, dir_fd=fd)
        return _Examined(template_id, sealed, tree_fd)

    def _lower(self, template_id: str, template_fd: int) -> None:
        """The tree that overlayfs has of the template, if there is one."""
        store = self._store
        if not store.has_lowers():
            return
        fd = lock_directory(store.lowers_fd, template_id, fcntl.LOCK_SH)
        if fd is None:
            return
        try:
            different = list(itertools.islice(differences(template_fd, fd), _NAMED + 1))
            self._closed(
                store.lowers_fd, template_id, os.path.join(store.path, "lowers", template_id)
            )
        finally:
            os.close(fd)
        if different:
            shown = ", ".join(os.fsdecode(path or b".") for path in different[:_NAMED])
            more = " and more" if len(different) > _NAMED else ""
            repaired = self._repair and self._drop_lower(template_id)
            self._tell(
                os.path.join(store.path, "lowers", template_id),
                "lower",
                f"the tree that overlayfs reads is not that of the template: {shown}{more}",
                "with its copies unmounted: the next mount with engine=overlay makes it anew",
                repaired=repaired,
            )

    def _drop_lower(self, template_id: str) -> bool:
        """Remove the tree; not while a copy may be mounted on it."""
        store = self._store

        def in_use() -> bool:
            return any(
                self._template_of(name) == template_id and self._is_used(name)
                for name in copies.names(store)
            )

        if not lowers.trash(store, template_id, unless=in_use):
            return False
        store.remove_rubbish()
        return True

    def _is_used(self, name: str) -> bool:
        try:
            return copies.is_locked(self._store, name) and name not in self._locked
        except OSError:
            return True

    def _gc(self) -> str:
        return remedies.of_store("cowfs gc", self._store.path)

    def forget(self) -> None:
        """Close what is kept of the last template."""
        if self._last is not None:
            os.close(self._last.tree_fd)
            self._last = None

    # ---------------------------------------------------------------- findings

    def _closed(self, dir_fd: int, name: str, path: str) -> None:
        """A directory that only root may enter: what is below has the modes that users gave."""
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
        try:
            st = os.fstat(fd)
            mode = stat.S_IMODE(st.st_mode)
            if (st.st_uid, mode) == (OWNER, 0o700):
                return
            if self._repair:
                os.fchown(fd, OWNER, -1)
                os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
        self._tell(
            path,
            "mode",
            f"belongs to uid {st.st_uid} with mode {mode:04o}",
            f"{remedy.command('chown root', path)}; {remedy.command('chmod 700', path)}",
            repaired=self._repair,
        )

    @contextlib.contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            named = f" ({os.fsdecode(error.filename)})" if error.filename else ""
            self._tell(
                path,
                "unreadable",
                f"could not be examined to the end: {error.strerror}{named}",
                "see dmesg if that is the disk's fault",
            )

    def _tell(
        self,
        path: str,
        problem: str,
        detail: str,
        remedy: str,
        *,
        harmless: bool = False,
        repaired: bool = False,
    ) -> None:
        self._report.findings.append(
            Finding(path, problem, detail, remedy, harmless=harmless, repaired=repaired)
        )
