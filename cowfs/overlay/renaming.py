"""rename(2): a move, in the place of another entry if there is one, or an exchange.

Either is made in four steps:

- `check`: refuse what the names do not allow; nothing is changed yet.
- `prepare`: what takes part comes into the upper layer.  A directory is marked with what it is
  merged with at its new place, which is true at the old one, too: users see no difference.
- `apply`: one rename on the disk.  When it fails all is as before.
- `commit`: nodes and listings follow.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from cowfs.overlay import copyup
from cowfs.overlay.inodes import Directory
from cowfs.overlay.looking import lookup
from cowfs.overlay.namespace import NAME_MAX, alone, failure
from cowfs.overlay.parents import ensure_upper
from cowfs.overlay.removing import departing
from cowfs.system import directories, ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from cowfs.overlay.inodes import Node
    from cowfs.overlay.namespace import Namespace


@alone
def rename(
    namespace: Namespace,
    old_parent: Directory,
    old_name: bytes,
    new_parent: Directory,
    new_name: bytes,
    flags: int,
    request: int | None = None,
) -> Node | None:
    """rename(2), with RENAME_NOREPLACE or RENAME_EXCHANGE.

    Files that take part must be in the upper layer already.  Gives the node that was replaced.
    *request* is the number by which an exchange is known again (`was_exchanged`).
    Errors: ENOENT, EEXIST, EISDIR, ENOTDIR, EINVAL for other flags.
    """
    if len(new_name) > NAME_MAX:
        raise failure(errno.ENAMETOOLONG)
    if flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
        raise failure(errno.EINVAL)
    source, _st = lookup(namespace, old_parent, old_name)
    try:
        target: Node | None = lookup(namespace, new_parent, new_name)[0]
    except FileNotFoundError:
        target = None
    if source is target and not flags & syscalls.RENAME_NOREPLACE:
        return None  # two names of one file: both stay
    kind = _Exchange if flags == syscalls.RENAME_EXCHANGE else _Move
    change = kind(namespace, source, old_parent, old_name, target, new_parent, new_name)
    change.check(flags)
    change.prepare(request)
    change.apply()
    change.commit()
    return None if flags == syscalls.RENAME_EXCHANGE else target


def was_exchanged(
    namespace: Namespace, request: int | None, old_parent: Directory, old_name: bytes
) -> bool:
    """Whether an exchange that comes again has been done.  OSError as `lookup`."""
    begun = None if request is None else namespace.exchanges.begun(request)
    if begun is None:
        return False
    _source, target = begun
    return lookup(namespace, old_parent, old_name)[0].nodeid == target


class _Rename:
    """What both kinds have in common: *source* comes to another place."""

    def __init__(
        self,
        namespace: Namespace,
        source: Node,
        old_parent: Directory,
        old_name: bytes,
        target: Node | None,
        new_parent: Directory,
        new_name: bytes,
    ) -> None:
        self.namespace = namespace
        self.source = source
        self.old_parent = old_parent
        self.old_name = old_name
        self.target = target
        self.new_parent = new_parent
        self.new_name = new_name

    def check(self, flags: int) -> None:
        raise NotImplementedError

    def prepare(self, _request: int | None) -> None:
        ensure_upper(self.namespace, self.old_parent)
        ensure_upper(self.namespace, self.new_parent)
        if isinstance(self.source, Directory):
            self._mark_moved(self.source, self.new_parent, self.new_name)

    def apply(self) -> None:
        raise NotImplementedError

    def commit(self) -> None:
        self._came_to(self.source, self.new_parent, self.new_name)

    def _mark_moved(self, directory: Directory, parent: Directory, name: bytes) -> None:
        """Say on disk what a directory is merged with at its new place, before it gets there."""
        ensure_upper(self.namespace, directory)
        where = self.namespace.layers.path(directory)
        if directory.lower_path is not None:
            ondisk.set_redirect(where, b"/" + bytes(directory.lower_path))
        elif self.namespace.layers.lower_entry(parent, name) is not None:
            ondisk.set_opaque(where)

    def _came_to(self, node: Node, parent: Directory, name: bytes) -> None:
        if isinstance(node, Directory):
            self.namespace.directories_moved += 1
        self.namespace.names_changed += 1
        node.place(parent, name)


class _Exchange(_Rename):
    """*source* and *target* change places."""

    def check(self, _flags: int) -> None:
        if self.target is None:
            raise failure(errno.ENOENT)

    def prepare(self, request: int | None) -> None:
        _Rename.prepare(self, request)
        assert self.target is not None
        if isinstance(self.target, Directory):
            self._mark_moved(self.target, self.old_parent, self.old_name)
        if request is not None:
            # A file of its own: a service manager keeps no descriptor twice, whatever its name.
            fd = os.memfd_create("cowfs-exchange", os.MFD_CLOEXEC)
            self.namespace.exchanges.begin(request, self.source.nodeid, self.target.nodeid, fd)
            os.close(fd)

    def apply(self) -> None:
        layers = self.namespace.layers
        old_fd, new_fd = layers.upper(self.old_parent), layers.upper(self.new_parent)
        flags = syscalls.RENAME_EXCHANGE
        syscalls.renameat2(old_fd, self.old_name, new_fd, self.new_name, flags)

    def commit(self) -> None:
        _Rename.commit(self)
        assert self.target is not None
        self._came_to(self.target, self.old_parent, self.old_name)
        is_directory = isinstance(self.source, Directory)
        if is_directory != isinstance(self.target, Directory):
            self._exchange_listed(is_directory=is_directory)

    def _exchange_listed(self, *, is_directory: bool) -> None:
        """A directory and something else have changed places; *is_directory*: of the source."""
        listings = self.namespace.listings
        listings.removed(self.old_parent, self.old_name, is_directory=is_directory)
        listings.added(self.old_parent, self.old_name, is_directory=not is_directory)
        listings.removed(self.new_parent, self.new_name, is_directory=not is_directory)
        listings.added(self.new_parent, self.new_name, is_directory=is_directory)


class _Move(_Rename):
    """*source* comes to its new name, in the place of *target* if there is one."""

    def check(self, flags: int) -> None:
        if self.target is None:
            return
        if flags == syscalls.RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if isinstance(self.source, Directory):
            if not isinstance(self.target, Directory):
                raise failure(errno.ENOTDIR)
            if not self.namespace.listings.of(self.target).is_empty():
                raise failure(errno.EEXIST)  # POSIX allows ENOTEMPTY too; XFS says this
        elif isinstance(self.target, Directory):
            raise failure(errno.EISDIR)

    def apply(self) -> None:
        layers = self.namespace.layers
        leaves_whiteout = layers.lower_entry(self.old_parent, self.old_name) is not None
        there = layers.upper_entry(self.new_parent, self.new_name)
        old_fd, new_fd = layers.upper(self.old_parent), layers.upper(self.new_parent)
        is_covered = there is not None and ondisk.is_whiteout(there)
        with self._leaving(), self._emptied(new_fd):
            if is_covered and isinstance(self.source, Directory):
                self._swap_with_whiteout(old_fd, new_fd, stays=leaves_whiteout)
            else:
                flags = syscalls.RENAME_WHITEOUT if leaves_whiteout else 0
                syscalls.renameat2(old_fd, self.old_name, new_fd, self.new_name, flags)

    def commit(self) -> None:
        _Rename.commit(self)
        layers, listings = self.namespace.layers, self.namespace.listings
        is_directory = isinstance(self.source, Directory)
        listings.removed(self.old_parent, self.old_name, is_directory=is_directory)
        if self.target is not None:
            listings.removed(self.new_parent, self.new_name, is_directory=is_directory)
        listings.added(self.new_parent, self.new_name, is_directory=is_directory)
        if isinstance(self.target, Directory):
            layers.close_directory(self.target)
            self.target.lower_path = None
            listings.drop(self.target)

    def _swap_with_whiteout(self, old_fd: int, new_fd: int, *, stays: bool) -> None:
        """rename(2) puts no directory over a device: swap them, so the old place gets the whiteout,
        which is right there too, if it *stays*, or does no harm until it is taken away."""
        flags = syscalls.RENAME_EXCHANGE
        syscalls.renameat2(old_fd, self.old_name, new_fd, self.new_name, flags)
        if not stays:
            with suppress(OSError):
                os.unlink(self.old_name, dir_fd=old_fd)

    def _leaving(self) -> AbstractContextManager[None]:
        """Keep the target for those who have it open."""
        if self.target is None:
            return nullcontext()
        return departing(self.namespace, self.target, self.new_parent, self.new_name)

    def _emptied(self, new_fd: int) -> AbstractContextManager[None]:
        """Let the target be empty on the disk, too: rename(2) replaces no directory that shows no
        entries but has whiteouts.  Undone when the change fails."""
        if not isinstance(self.target, Directory) or not self.target.upper:
            return nullcontext()
        fd = self.namespace.layers.upper(self.target)
        with directories.entries(fd) as entries:
            is_empty = next(iter(entries), None) is None
        return nullcontext() if is_empty else self._without_whiteouts(fd, new_fd)

    @contextmanager
    def _without_whiteouts(self, fd: int, new_fd: int) -> Iterator[None]:
        """An empty directory in the place of the target, whose descriptor is *fd*.

        It is opaque, or it would show what the whiteouts cover.
        """
        work = self.namespace.work
        with work.temporary() as temporary:
            copyup.copy_up_directory(fd, temporary.dir_fd, temporary.name)
            ondisk.set_opaque(temporary.path)
            temporary.exchange(new_fd, self.new_name)
            try:
                yield
            except OSError:
                temporary.exchange(new_fd, self.new_name)
                raise
            work.left.append(temporary.keep())
