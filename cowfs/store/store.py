"""The store: which copy a mount gets, on which template, and what may be removed.

These are the rules, and nothing else: a kept copy is resumed; while nothing was written to it, it
follows its source, or gives way to a copy of another; else it is never dropped unasked. An
ephemeral one goes.
What lies on disk is in directory.py, templates.py and copies.py; how a template is made in seal.py.

Locks, always taken in this order: a copy's `lock`, held as long as it is served; a template's
directory in `partial`, while it is made; a template's directory in `templates`, shared while a copy
of it is made, exclusive while it is removed (see garbage.py); its directory in `lowers`, shared
while a copy is mounted on it by overlayfs, exclusive while it is removed (lowers.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs.store import (
    collecting,
    copies,
    directory,
    emptying,
    garbage,
    lowers,
    naming,
    registry,
    remedies,
    runtime,
    snapshot,
    sources,
    space,
    templates,
)
from cowfs.store.collecting import Doomed, Limits
from cowfs.store.copies import Copy, CopyInfo, CopyRecord
from cowfs.store.directory import STORE_NAME, StoreDirectory, volume_of
from cowfs.store.names import check_name, default_names
from cowfs.store.registry import Entry
from cowfs.store.space import Weight
from cowfs.store.templates import Template
from cowfs.system import directories, mountinfo, processes, remedy
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.trees import removal

if TYPE_CHECKING:
    from cowfs.trees.cloning import Progress

__all__ = [
    "STORE_NAME",
    "Collected",
    "Copy",
    "CopyInfo",
    "Limits",
    "Removed",
    "Store",
    "Template",
    "volume_of",
]


NO_LIMITS = Limits()


class Collected(NamedTuple):
    """What `Store.collect` has removed, or would."""

    removed: list[Doomed]  # templates
    copies: list[str]  # names of ephemeral copies that a crash had left
    kept: int  # templates that no copy needs, and that stay
    freed: Weight
    missing: int  # bytes that the volume lacks still of what was asked for

    @property
    def templates(self) -> list[str]:
        """The ids of the templates."""
        return [doomed.template.id for doomed in self.removed]


class Removed(NamedTuple):
    """What `Store.remove` has removed. counts: its files and deletions; None: it was damaged.

    template: whether its template went with it. others: how many copies need that yet.
    """

    counts: tuple[int, int] | None
    freed: Weight
    template: bool
    others: int


def _log(message: str) -> None:
    # Imported for the one line that few mounts write: it costs as much as the rest of a mount's
    # imports.
    import logging

    logging.getLogger(__name__).warning("%s", message)


class Store(StoreDirectory):
    """An open store. OSError from the disk is a MountFailure here."""

    @classmethod
    def for_source(cls, source: str, store: str | None) -> Store:
        """The store for copies of a source: `store`, or the one of the source's volume.

        It is made when it is not there, but not for a source that is not there. CowfsError says
        what is wrong with it, or with the volume.
        """
        source = os.path.realpath(source)
        if store is None:
            path = os.path.join(volume_of(source), STORE_NAME)
        else:
            path = os.path.join(os.getcwd(), store)
        exists = os.path.isdir(source)
        if not exists and not os.path.lexists(path):
            raise MountFailure(f"source {source} is not a directory: name an existing directory")
        if mountinfo.is_within(source, os.path.realpath(path)):
            raise MountFailure(
                f"source {source} is in the store {path}: mount the directory that the template "
                f"was made of, which {remedies.of_store('cowfs list', path)} shows"
            )
        if exists and not _same_volume(source, path):
            raise MountFailure(
                f"source {source} and the store {path} are on different volumes, and clones "
                "cannot cross them: leave out -o store=, or name a store on the source's volume"
            )
        fd, made = directory.open_directory(path, create=exists)
        try:
            if made:
                directory.probe_clone(fd, path, source)
            with _translated(path):
                return cls(path, fd)
        except BaseException:
            os.close(fd)
            if made:
                with contextlib.suppress(OSError):  # another process may be using it by now
                    os.rmdir(path)
            raise

    @classmethod
    def open(cls, path: str) -> Store:
        """An existing store. CowfsError."""
        fd, _ = directory.open_directory(path, create=False)
        return cls._of(path, fd)

    @classmethod
    def _of(cls, path: str, fd: int) -> Store:
        """The store whose directory is open. Takes over `fd`. CowfsError."""
        try:
            with _translated(path):
                return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def remembered(cls, entry: Entry) -> Store | None:
        """One that is where it was; None when it is not. CowfsError."""
        fd = registry.opened(entry)
        return None if fd is None else cls._of(entry.path, fd)

    def remember(self, warn: Callable[[str], None] = _log) -> None:
        """See that commands find it later, wherever it is; `warn` hears that this cannot be."""
        try:
            registry.remember(self)
        except OSError as error:
            warn(
                f"the store {self.path} cannot be remembered in {registry.STATE_DIR}: "
                f"{error.strerror}; name it with --store DIR where a command does not find it"
            )

    @staticmethod
    def discover() -> list[Store]:
        """The stores of all mounted volumes, of running mounts, and those elsewhere that mounts
        have used; each once."""
        paths = directory.of_volumes() + [record.store for record in runtime.all()]
        found: dict[tuple[int, int], Store] = {}
        for path in dict.fromkeys(paths):
            if not os.path.lexists(path):
                continue
            try:
                store = Store.open(path)
            except directory.NoStore:  # something else is there by now
                continue
            except UsageError:
                raise
            except CowfsError as error:  # one that is not to be trusted hides no other
                _log(str(error))
                continue
            if store.identity in found:
                store.close()
            else:
                found[store.identity] = store
        for entry in registry.entries():
            try:
                known = Store.remembered(entry)
            except CowfsError as error:
                _log(str(error))
                continue
            if known is None:
                continue
            if known.identity in found:
                known.close()
            else:
                known.remember()
                found[known.identity] = known
        return list(found.values())

    def templates(self) -> list[Template]:
        """All templates; one that is damaged is left out, and logged."""
        found = []
        for template_id in sorted(directories.names(self.templates_fd)):
            try:
                template = templates.read(self, template_id)
            except MountFailure as error:
                _log(str(error))
                continue
            if template is not None:
                found.append(template)
        return found

    def copies(self) -> list[CopyInfo]:
        """All copies; one that is damaged is left out, and logged."""
        found = []
        for name in copies.names(self):
            try:
                record = copies.read(self, name)
                found.append(
                    CopyInfo(
                        **vars(record),
                        mounted=copies.is_locked(self, name),
                        last_mounted=copies.last_mounted(self, name),
                    )
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except MountFailure as error:
                _log(str(error))
        return found

    def has(self, name: str) -> bool:
        """Whether there is a copy of this name, damaged or not. CowfsError."""
        check_name(name)
        with _translated(self.path):
            try:
                os.stat(name, dir_fd=self.copies_fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
            return True

    def read(self, name: str) -> CopyRecord | None:
        """What copy.json of this copy holds; None when there is no such copy. CowfsError."""
        with _translated(self.path):
            try:
                return copies.read(self, name)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def copy_of(self, mountpoint: str) -> str | None:
        """The name of the copy that belongs to a canonical path; see naming.find. CowfsError."""
        with _translated(self.path):
            return naming.find(self, mountpoint)

    def acquire(
        self,
        name: str | None,
        source: str,
        *,
        mountpoint: str = "",
        persistent: bool,
        prepare: Callable[[], Template],
        warn: Callable[[str], None] = _log,
    ) -> Copy:
        """Take the copy of this name for a mount of `source`, and make it if need be; without a
        name the one that belongs to this mountpoint (naming.py).

        `prepare` seals the source, or finds the template of its present state; it is called when
        one is needed. `warn` hears that a copy with changes does not show the source's present
        state. CowfsError: UsageError for an impossible name, MountFailure when the copy is in use,
        is another source's, is damaged, or when an ephemeral one would take a kept one's place.
        """
        if name is not None:
            check_name(name)
        source = os.path.realpath(source)
        named_after = mountpoint if name is None else ""
        with _translated(self.path):
            self.trash_leftovers()
            self._trash_stale()
            while True:
                chosen = naming.choose(self, mountpoint) if name is None else name
                lock_fd = self._lock(chosen)
                if lock_fd is None:
                    record = CopyRecord(
                        chosen, source, "", persistent, time.time(), named_after=named_after
                    )
                    copy = self._make(record, prepare(), replace=False)
                else:
                    try:
                        copy = self._take(
                            lock_fd, chosen, source, named_after, persistent, prepare, warn
                        )
                    except BaseException:
                        os.close(lock_fd)
                        raise
                    if copy is None or copy.lock_fd != lock_fd:
                        os.close(lock_fd)
                if copy is not None:
                    copy.note_use()
                    self._say_unusual(copy, named_after, warn)
                    return copy

    def acquire_copy_of(
        self,
        origin: str,
        name: str | None,
        *,
        mountpoint: str = "",
        persistent: bool,
        progress: Callable[[], contextlib.AbstractContextManager[Progress | None]],
        warn: Callable[[str], None] = _log,
    ) -> Copy:
        """Take the copy of this name for a mount, and make it if need be: of another copy, as that
        is at this moment, mounted or not. Without a name the one that belongs to this mountpoint.

        One that was made in this way goes on as it is, and never follows the other one. `progress`
        is asked for when there is something to be cloned. CowfsError: as for `acquire`; and
        MountFailure when there is no such copy, or it is changed all the time (snapshot.py).
        """
        check_name(origin)
        if name is not None:
            check_name(name)
        named_after = mountpoint if name is None else ""
        with _translated(self.path):
            self.trash_leftovers()
            self._trash_stale()
            while True:
                chosen = naming.choose(self, mountpoint) if name is None else name
                if chosen == origin:
                    raise MountFailure(
                        f"the copy {origin} cannot be a copy of itself: choose another name with "
                        "-o copy=NAME, or go on with it: "
                        f"{remedy.command('cowfs mount', origin, mountpoint)}"
                    )
                lock_fd = self._lock(chosen)
                try:
                    copy = None
                    if lock_fd is not None:
                        copy = self._go_on(lock_fd, chosen, origin, persistent, warn)
                    if copy is None:
                        copy = self._make_copy_of(
                            origin, chosen, named_after, persistent, lock_fd, progress, warn
                        )
                except BaseException:
                    if lock_fd is not None:
                        os.close(lock_fd)
                    raise
                if lock_fd is not None and (copy is None or copy.lock_fd != lock_fd):
                    os.close(lock_fd)
                if copy is not None:
                    copy.note_use()
                    self._say_unusual(copy, named_after, warn)
                    return copy

    def _go_on(
        self,
        lock_fd: int,
        name: str,
        origin: str,
        persistent: bool,
        warn: Callable[[str], None],
    ) -> Copy | None:
        """Go on with a copy of that one, whose lock we have; None: it may be replaced.

        MountFailure when it is something else, with changes.
        """
        record = copies.read(self, name)
        if not record.persistent:  # its daemon was killed
            return None
        copy = Copy(self, record, copies.template_of(self, record), lock_fd)
        if record.copied_from != origin:
            if record.copied_from is None and not copy.has_changes():
                return None
            raise MountFailure(sources.no_copy_of(self, copy, origin))
        if not persistent:
            raise MountFailure(
                f"the copy {name} is kept, and an ephemeral mount would discard that: mount it "
                "without -o ephemeral, choose another name with -o copy=NAME, or discard it with: "
                f"{self._rm(name)}"
            )
        if not self.has(origin):
            warn(f"the copy {name} goes on without the copy {origin} that it was made of")
        copies.recover(self, name)
        return copy

    def _make_copy_of(
        self,
        origin: str,
        name: str,
        named_after: str,
        persistent: bool,
        lock_fd: int | None,
        progress: Callable[[], contextlib.AbstractContextManager[Progress | None]],
        warn: Callable[[str], None],
    ) -> Copy | None:
        """Make a copy of another one, in the place of the one whose lock we have, if any.

        None: to try again, as somebody else was quicker. MountFailure: there is no such copy.
        """
        try:
            theirs = copies.read(self, origin)
            template = copies.template_of(self, theirs)
        except (FileNotFoundError, NotADirectoryError):
            raise self._no_copy(origin) from None
        record = CopyRecord(
            *(name, theirs.source, template.id, persistent, time.time()),
            named_after=named_after if lock_fd is None else copies.read(self, name).named_after,
            copied_from=origin,
        )

        def make_upper(copy_fd: int, template_fd: int) -> None:  # noqa: ARG001
            with progress() as shown:
                snapshot.make_upper(self, origin, copy_fd, warn=warn, progress=shown)
            if copies.read(self, origin).template != template.id:
                raise snapshot.Gone  # it was exchanged before we opened it

        try:
            return copies.make(
                *(self, record, template),
                replace=lock_fd is not None,
                make_upper=make_upper,
                created_then=True,
            )
        except snapshot.Gone:
            return None

    def remove(self, name: str) -> Removed:
        """Discard a copy that is not mounted, what was written to it, and its template if no other
        copy needs that. CowfsError.

        A mount that begins just now with the same template has a lock on it, or finds it gone and
        seals it anew: garbage.py.
        """
        check_name(name)
        with _translated(self.path):
            lock_fd = self._lock(name)
            if lock_fd is None:
                raise self._no_copy(name)
            try:
                scales = space.Scales(self, space.AT_LEISURE)
                template, others = scales.template_of(name), scales.others(name)
                alone = scales.copy(name, None)
                both = alone if template is None else scales.copy(name, template)
                counts = copies.counted(self, name)
                rubbish = self._drop(name)
            finally:
                os.close(lock_fd)
            removal.remove(self.trash_fd, rubbish)
            gone = template is not None and bool(garbage.trash_unused(self, [template.id]))
            if gone:
                emptying.empty(self.trash_fd)
        return Removed(counts, both if gone else alone, gone, others)

    def set_source(self, name: str, source: str, *, force: bool) -> str:
        """Let a copy that is not mounted be one of this directory; which one it was of. CowfsError.

        The template stays what it is. A copy with changes is refused to a directory that is not as
        its template, unless `force`.
        """
        check_name(name)
        source = os.path.realpath(source)
        with _translated(self.path):
            lock_fd = self._lock(name)
            if lock_fd is None:
                raise self._no_copy(name)
            try:
                record = copies.read(self, name)
                if self.contains(source):
                    raise MountFailure(f"{source} is in the store {self.path}: name another one")
                if not _same_volume(source, self.path):
                    raise MountFailure(sources.elsewhere(self, record, source))
                copy = Copy(self, record, copies.template_of(self, record), lock_fd)
                if not force and copy.has_changes():
                    sources.require_the_same(self, copy, source)
                copy.note_source(source)
            finally:
                os.close(lock_fd)
        return record.source

    def rename(self, name: str, new: str) -> CopyRecord:
        """Give a kept copy that is not mounted another name; what it was. CowfsError."""
        check_name(name)
        check_name(new)
        with _translated(self.path), self.taken(name) as record:
            if not record.persistent:
                raise MountFailure(
                    f"the copy {name} is ephemeral, and only waits to be discarded: a copy that is "
                    "kept can be renamed"
                )
            try:
                copies.rename(self, record, new)
            except FileExistsError:
                raise UsageError(
                    f"there is a copy {new} in {self.path} already: choose another name, or "
                    f"discard that one with: {self._rm(new)}"
                ) from None
        return record

    def reset(self, name: str, make_upper: Callable[[int, int], None] | None = None) -> None:
        """Give a copy that is not mounted its template's state again, or, with `make_upper`
        (`copies.make`), another upper layer. In one step: a crash leaves one of the two.

        CowfsError; what `make_upper` raises.
        """
        check_name(name)
        with _translated(self.path), self.taken(name) as record:
            template = copies.template_of(self, record)
            self.trash_leftovers()
            made = copies.make(self, record, template, replace=True, make_upper=make_upper)
            if made is None:
                copies.template_of(self, record)  # says that it is gone
                raise MountFailure(f"the template of the copy {name} is being removed: try again")
            made.release()
            emptying.empty(self.trash_fd)

    @contextlib.contextmanager
    def taken(self, name: str) -> Iterator[CopyRecord]:
        """Have a copy that is not mounted for oneself, in the state that a mount would show.

        CowfsError: there is none, it is mounted (and where), it is damaged.
        """
        check_name(name)
        with _translated(self.path):
            lock_fd = self._lock(name)
            if lock_fd is None:
                raise self._no_copy(name)
        try:
            with _translated(self.path):
                record = copies.read(self, name)
                copies.recover(self, name)
            yield record
        finally:
            os.close(lock_fd)

    def settle(self, name: str) -> None:
        """Put a copy away that overlayfs has left, and whose attendant was killed. CowfsError.

        Nothing happens to one that is in use, or gone already.
        """
        with _translated(self.path):
            try:
                lock_fd = copies.lock(self, name)
            except copies.Busy:
                return
            if lock_fd is None:
                return
            try:
                if copies.read(self, name).persistent:
                    copies.recover(self, name)
                else:
                    removal.remove(self.trash_fd, self._drop(name))
            finally:
                os.close(lock_fd)

    def collect(self, limits: Limits = NO_LIMITS, *, pretend: bool = False) -> Collected:
        """Remove what nobody needs any more, and what crashes have left; with pretend only say what
        that would be. CowfsError.

        Which templates that are is decided in collecting.py.
        """
        with _translated(self.path):
            plan = collecting.plan(self, collecting.ephemeral(self), self.leftovers(), limits)
            if pretend:
                return Collected(
                    plan.templates, plan.ephemeral, plan.kept, plan.freed, plan.missing
                )
            dropped = self._trash_stale()
            ids = [doomed.template.id for doomed in plan.templates]
            trashed = set(garbage.trash_unused(self, ids))
            gone = [doomed for doomed in plan.templates if doomed.template.id in trashed]
            # A mount has just begun with one, or another gc was quicker.
            as_planned = len(gone) == len(ids) and dropped == plan.ephemeral
            freed = plan.freed if as_planned else Weight(0, exact=False)
            lowers.trash_orphans(self)
            self.remove_rubbish()
        kept = plan.kept + len(ids) - len(gone)
        return Collected(gone, dropped, kept, freed, plan.missing)

    def _take(
        self,
        lock_fd: int,
        name: str,
        source: str,
        mountpoint: str,
        persistent: bool,
        prepare: Callable[[], Template],
        warn: Callable[[str], None],
    ) -> Copy | None:
        """Take an existing copy whose lock we have; None when it was dropped, or to try again.

        One without changes follows its source, or gives way to a copy of another one.

        The lock is the copy's when that has this `lock_fd`, else it stays the caller's. With a
        `mountpoint` it has to be the copy of that.
        """
        record = copies.read(self, name)
        if mountpoint and not naming.belongs(record, mountpoint):
            return None  # it was exchanged just before it was locked
        if not record.persistent:  # its daemon was killed
            self._drop(name)
            return None
        if record.source != source and not os.path.lexists(source):
            raise MountFailure(sources.missing(source, record))
        copy = Copy(self, record, copies.template_of(self, record), lock_fd)
        # What a copy of a copy has it may have alone by now.
        changed = record.copied_from is not None or copy.has_changes()
        # Of a source that is gone a copy without changes is all that is left.
        if record.source != source and (changed or not os.path.lexists(record.source)):
            raise MountFailure(sources.another(self, copy, source))
        if changed:
            if not persistent:
                raise MountFailure(
                    f"the copy {name} is kept and was written to, and an ephemeral mount would "
                    "discard that: mount it without -o ephemeral, choose another name with -o "
                    f"copy=NAME, or discard it with: {self._rm(name)}"
                )
            sources.compare(self, copy, warn)
        elif persistent and not os.path.lexists(source):
            sources.compare(self, copy, warn)
        else:
            template = prepare()
            if (source, persistent, template.id) != (record.source, True, record.template):
                return self._renew(record, source, persistent, template, warn)
        copies.recover(self, name)
        return copy

    def _say_unusual(self, copy: Copy, mountpoint: str, warn: Callable[[str], None]) -> None:
        """Tell of a name that nobody would guess, once."""
        if not (copy.is_new and copy.persistent and mountpoint):
            return
        usual = default_names(mountpoint)[0]
        if copy.name != usual:
            warn(
                f"the copy is called {copy.name}, since {usual} is another one; -o copy=NAME "
                "gives it a name of your own"
            )

    def _renew(
        self,
        record: CopyRecord,
        source: str,
        persistent: bool,
        template: Template,
        warn: Callable[[str], None],
    ) -> Copy | None:
        """Make a new copy in the place of one without changes, whose lock we have.

        It gets its place in one step (copies.make): a crash leaves one of the two.
        """
        created = record.created if persistent and source == record.source else time.time()
        fresh = CopyRecord(
            record.name, source, "", persistent, created, named_after=record.named_after
        )
        made = self._make(fresh, template, replace=True)
        if made is not None and source != record.source:
            warn(
                f"the copy {record.name} of {record.source} had no changes, and is replaced by one "
                f"of {source}"
            )
        return made

    def _make(self, record: CopyRecord, template: Template, *, replace: bool) -> Copy | None:
        fresh = CopyRecord(**{**vars(record), "template": template.id})
        return copies.make(self, fresh, template, replace=replace)

    def _no_copy(self, name: str) -> MountFailure:
        shown = remedies.of_store("cowfs list", self.path)
        return MountFailure(f"there is no copy {name} in {self.path}: {shown} shows those that are")

    def _rm(self, name: str) -> str:
        return remedies.of_copy("cowfs rm", self.path, name)

    def _drop(self, name: str) -> str:
        """Discard a copy whose lock we have; returns its name in the trash."""
        return self.trash(self.copies_fd, name)

    def _trash_stale(self) -> list[str]:
        """Discard ephemeral copies that nobody serves: their daemons were killed."""
        discarded = []
        for name in collecting.ephemeral(self):
            try:
                lock_fd = copies.lock(self, name)
            except (FileNotFoundError, NotADirectoryError, copies.Busy):
                continue  # gone, no copy, or served after all
            if lock_fd is None:
                continue
            try:
                if not copies.read(self, name).persistent:  # still, now that it is locked
                    self._drop(name)
                    discarded.append(name)
            finally:
                os.close(lock_fd)
        return discarded

    def _lock(self, name: str) -> int | None:
        try:
            return copies.lock(self, name)
        except copies.Busy:
            pass
        for record in runtime.all():
            if record.copy == name and self.is_at(record.store):
                where = runtime.place(record) or f"at {record.mountpoint}"
                raise MountFailure(
                    f"the copy {name} is in use: it is mounted {where} (daemon "
                    f"{record.daemon_pid}); choose another name with -o copy=NAME, or unmount it "
                    f"with: {remedy.command('cowfs umount', record.mountpoint)}"
                )
        raise MountFailure(
            f"the copy {name} is in use: {self._used(name)}, or choose another name with -o "
            "copy=NAME"
        )

    def _used(self, name: str) -> str:
        """Who uses a copy that is mounted nowhere that we see, and what to do about it."""
        for record in runtime.elsewhere():
            if record.copy != name or not self.is_at(record.store):
                continue
            if place := next(iter(processes.places(record.device)), None):
                return f"it is still mounted {place}; unmount that, or end the container"
            if user := next(processes.users(record.device), None):
                return f"it was detached, and {user} has something of it open; end that"
        with contextlib.suppress(OSError):
            if copies.is_overlaid_by_hand(self, name):
                return "the kernel's overlayfs has it, mounted by hand; unmount that"
        path = os.path.join(copies.path_of(self, name), copies.LOCK)
        with contextlib.suppress(OSError):
            if process := next(processes.openers(path), None):
                return f"{process} is just making or ending a mount of it; try again"
        return "by a mount that is just being made or ended; try again"

    def is_at(self, path: str) -> bool:
        """Whether a path leads to this store."""
        try:
            st = os.stat(path)
        except OSError:
            return False
        return (st.st_dev, st.st_ino) == self.identity


def _same_volume(source: str, path: str) -> bool:
    """Whether clones are possible between a source and a store, that may not be there yet."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if os.stat(source).st_dev == os.lstat(path).st_dev:
        return True
    # Subvolumes of one btrfs have different st_dev.
    mounts = mountinfo.read()
    one, other = (
        mountinfo.holding(source, mounts),
        mountinfo.holding(os.path.realpath(path), mounts),
    )
    return one.fstype == other.fstype == "btrfs" and one.source == other.source


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn what the disk says into what the user is told. The edge where OSError ends."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MountFailure(
                f"no space left on the volume {volume_of(path)} for the store {path}: "
                f"{remedies.room(path)}"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(f"no permission to use the store {path}: run cowfs as root") from None
        named = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise MountFailure(
            f"the store {path} cannot be used: {error.strerror}{named}; see dmesg if that is the "
            "disk's fault"
        ) from None
