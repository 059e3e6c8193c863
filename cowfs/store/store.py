"""The store: which copy a mount gets, on which template, and what may be removed.

These are the rules, and nothing else: a kept copy is resumed, follows its source while nothing was
written to it, and is never dropped unasked; an ephemeral one goes.
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
from typing import NamedTuple

from cowfs.store import copies, directory, garbage, lowers, runtime, seal, templates
from cowfs.store.copies import Copy, CopyInfo, CopyRecord
from cowfs.store.directory import STORE_NAME, StoreDirectory, volume_of
from cowfs.store.names import check_name, default_name
from cowfs.store.templates import Template
from cowfs.system import directories, mountinfo, processes
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.trees import removal

__all__ = [
    "STORE_NAME",
    "Collected",
    "Copy",
    "CopyInfo",
    "Store",
    "Template",
    "default_name",
    "volume_of",
]

_CLONING_FILESYSTEMS = frozenset({"xfs", "btrfs", "bcachefs"})


class Collected(NamedTuple):
    """What `Store.collect` has removed."""

    templates: list[str]  # ids
    copies: list[str]  # names of ephemeral copies that a crash had left


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
                "was made of (cowfs list shows it)"
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
        try:
            with _translated(path):
                return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def discover() -> list[Store]:
        """The stores of all mounted volumes, and those of running mounts; each once."""
        paths = [
            os.path.join(mount.mountpoint, STORE_NAME)
            for mount in mountinfo.read()
            if mount.fstype in _CLONING_FILESYSTEMS
        ]
        paths += [record.store for record in runtime.all()]
        found: dict[tuple[int, int], Store] = {}
        for path in dict.fromkeys(paths):
            if not os.path.lexists(path):
                continue
            try:
                store = Store.open(path)
            except UsageError:
                raise
            except CowfsError as error:  # one that is not to be trusted hides no other
                _log(str(error))
                continue
            if store.identity in found:
                store.close()
            else:
                found[store.identity] = store
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
                        private_bytes=copies.private_bytes(self, name),
                        mounted=copies.is_locked(self, name),
                    )
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except MountFailure as error:
                _log(str(error))
        return found

    def acquire(
        self,
        name: str,
        source: str,
        *,
        persistent: bool,
        prepare: Callable[[], Template],
        warn: Callable[[str], None] = _log,
    ) -> Copy:
        """Take the copy of this name for a mount of `source`, and make it if need be.

        `prepare` seals the source, or finds the template of its present state; it is called when
        one is needed. `warn` hears that a copy with changes does not show the source's present
        state. CowfsError: UsageError for an impossible name, MountFailure when the copy is in use,
        is another source's, is damaged, or when an ephemeral one would take a kept one's place.
        """
        check_name(name)
        source = os.path.realpath(source)
        with _translated(self.path):
            self.trash_leftovers()
            self._trash_stale()
            while True:
                lock_fd = self._lock(name)
                if lock_fd is None:
                    record = CopyRecord(name, source, "", persistent, time.time())
                    copy = self._make(record, prepare(), replace=False)
                else:
                    try:
                        copy = self._take(lock_fd, name, source, persistent, prepare, warn)
                    except BaseException:
                        os.close(lock_fd)
                        raise
                    if copy is None or copy.lock_fd != lock_fd:
                        os.close(lock_fd)
                if copy is not None:
                    return copy

    def remove(self, name: str) -> None:
        """Discard a copy that is not mounted, and what was written to it. CowfsError."""
        check_name(name)
        with _translated(self.path):
            lock_fd = self._lock(name)
            if lock_fd is None:
                raise MountFailure(
                    f"there is no copy {name} in {self.path}: cowfs list shows those that are"
                )
            try:
                rubbish = self._drop(name)
            finally:
                os.close(lock_fd)
            removal.remove(self.trash_fd, rubbish)

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

    def collect(self) -> Collected:
        """Remove what nobody needs any more, and what crashes have left. CowfsError.

        A template that no copy is based on goes when its source has gone or has another state
        now; while the source is as it was, the next mount of it will want that template.
        """
        with _translated(self.path):
            dropped = self._trash_stale()
            needed = copies.references(self)
            unused = [
                template
                for template in self.templates()
                if needed is not None and template.id not in needed
            ]
            present: dict[str, str] = {}
            for source in {template.source for template in unused}:
                with contextlib.suppress(CowfsError):
                    present[source] = seal.fingerprint(self, source)
            trashed = garbage.trash_unused(
                self,
                [template.id for template in unused if present.get(template.source) != template.id],
            )
            lowers.trash_orphans(self)
            self.remove_rubbish()
        return Collected(trashed, dropped)

    def _take(
        self,
        lock_fd: int,
        name: str,
        source: str,
        persistent: bool,
        prepare: Callable[[], Template],
        warn: Callable[[str], None],
    ) -> Copy | None:
        """Take an existing copy whose lock we have; None when it was dropped, or to try again.

        The lock is the copy's when that has this `lock_fd`, else it stays the caller's.
        """
        record = copies.read(self, name)
        if not record.persistent:  # its daemon was killed
            self._drop(name)
            return None
        if record.source != source:
            raise MountFailure(
                f"the copy {name} is one of {record.source}, not of {source}: choose another name "
                f"with -o copy=NAME, or discard it with: cowfs rm {name}"
            )
        copy = Copy(self, record, copies.template_of(self, record), lock_fd)
        changed = copy.has_changes()
        if not persistent:
            if changed:
                raise MountFailure(
                    f"the copy {name} is kept and was written to, and an ephemeral mount would "
                    "discard that: mount it without -o ephemeral, choose another name with -o "
                    f"copy=NAME, or discard it with: cowfs rm {name}"
                )
            self._drop(name)
            return None
        if not changed:
            template = prepare()
            if template.id != record.template:
                return self._make(record, template, replace=True)
        else:
            self._compare(copy, warn)
        copies.recover(self, name)
        return copy

    def _make(self, record: CopyRecord, template: Template, *, replace: bool) -> Copy | None:
        fresh = CopyRecord(**{**vars(record), "template": template.id})
        return copies.make(self, fresh, template, replace=replace)

    def _compare(self, copy: Copy, warn: Callable[[str], None]) -> None:
        """Say so when a copy with changes is not based on the source's present state."""
        if not os.path.lexists(copy.source):
            warn(f"the copy {copy.name} goes on without its source {copy.source}, which is gone")
            return
        try:
            moved_on = seal.fingerprint(self, copy.source) != copy.template.id
        except CowfsError as error:
            warn(f"the copy {copy.name} goes on, but its source cannot be compared: {error}")
            return
        if moved_on:
            made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(copy.template.created))
            warn(
                f"the copy {copy.name} has changes and stays with the state that its source "
                f"{copy.source} had at {made}; the source has moved on since"
            )

    def _drop(self, name: str) -> str:
        """Discard a copy whose lock we have; returns its name in the trash."""
        return self.trash(self.copies_fd, name)

    def _trash_stale(self) -> list[str]:
        """Discard ephemeral copies that nobody serves: their daemons were killed."""
        discarded = []
        for name in copies.names(self):
            try:
                if copies.read(self, name).persistent or copies.is_locked(self, name):
                    continue
                lock_fd = copies.lock(self, name)
            except (FileNotFoundError, NotADirectoryError, MountFailure, copies.Busy):
                continue  # gone, no copy, damaged (its users get the error), or served after all
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
            if record.copy == name and self._is(record.store):
                where = runtime.place(record) or f"at {record.mountpoint}"
                raise MountFailure(
                    f"the copy {name} is in use: it is mounted {where} (daemon "
                    f"{record.daemon_pid}); unmount that, or choose another name with -o copy=NAME"
                )
        raise MountFailure(
            f"the copy {name} is in use: {self._used(name)}, or choose another name with -o "
            "copy=NAME"
        )

    def _used(self, name: str) -> str:
        """Who uses a copy that is mounted nowhere that we see, and what to do about it."""
        for record in runtime.elsewhere():
            if record.copy != name or not self._is(record.store):
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

    def _is(self, path: str) -> bool:
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
                f"no space left on the volume {volume_of(path)} for the store {path}: free some, "
                "for instance with: cowfs rm COPY, cowfs gc"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(f"no permission to use the store {path}: run cowfs as root") from None
        named = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise MountFailure(
            f"the store {path} cannot be used: {error.strerror}{named}; see dmesg if that is the "
            "disk's fault"
        ) from None
