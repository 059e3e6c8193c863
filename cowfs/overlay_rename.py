"""rename(2): moving, and exchanging."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cowfs import copyup, directories, ondisk, syscalls
from cowfs.inodes import Directory
from cowfs.overlay_lookup import lookup
from cowfs.overlay_namespace import NAME_MAX, alone, failure
from cowfs.overlay_parents import ensure_upper
from cowfs.overlay_remove import departing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.inodes import Node
    from cowfs.overlay_namespace import Namespace


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
    exchange = flags == syscalls.RENAME_EXCHANGE
    if flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
        raise failure(errno.EINVAL)
    source, _st = lookup(namespace, old_parent, old_name)
    try:
        target: Node | None = lookup(namespace, new_parent, new_name)[0]
    except FileNotFoundError:
        target = None
    if target is None and exchange:
        raise failure(errno.ENOENT)
    if target is not None and flags == syscalls.RENAME_NOREPLACE:
        raise failure(errno.EEXIST)
    if source is target:
        return None
    for directory in (old_parent, new_parent):
        ensure_upper(namespace, directory)
    if isinstance(source, Directory):
        ensure_upper(namespace, source)
        _mark_moved(namespace, source, new_parent, new_name)
    if exchange:
        assert target is not None
        _exchange(namespace, source, old_parent, old_name, target, new_parent, new_name, request)
        return None
    if target is not None:
        _check_replaceable(namespace, source, target)
    _move(namespace, source, old_parent, old_name, target, new_parent, new_name)
    return target


def was_exchanged(
    namespace: Namespace, request: int | None, old_parent: Directory, old_name: bytes
) -> bool:
    """Whether an exchange that comes again has been done.  OSError as `lookup`."""
    begun = None if request is None else namespace.exchanges.begun(request)
    if begun is None:
        return False
    _source, target = begun
    return lookup(namespace, old_parent, old_name)[0].nodeid == target


def _check_replaceable(namespace: Namespace, source: Node, target: Node) -> None:
    if isinstance(source, Directory):
        if not isinstance(target, Directory):
            raise failure(errno.ENOTDIR)
        if not namespace.listings.of(target).is_empty():
            raise failure(errno.EEXIST)  # POSIX allows ENOTEMPTY too; XFS says this
    elif isinstance(target, Directory):
        raise failure(errno.EISDIR)


def _mark_moved(namespace: Namespace, source: Directory, parent: Directory, name: bytes) -> None:
    """Say on disk what a directory is merged with at its new place, before it gets there.

    At its old place the mark tells what was true anyway.
    """
    where = namespace.layers.path(source)
    if source.lower_path is not None:
        ondisk.set_redirect(where, b"/" + bytes(source.lower_path))
    elif namespace.layers.lower_entry(parent, name) is not None:
        ondisk.set_opaque(where)


def _exchange(
    namespace: Namespace,
    source: Node,
    old_parent: Directory,
    old_name: bytes,
    target: Node,
    new_parent: Directory,
    new_name: bytes,
    request: int | None,
) -> None:
    if isinstance(target, Directory):
        ensure_upper(namespace, target)
        _mark_moved(namespace, target, old_parent, old_name)
    if request is not None:
        # A file of its own: a service manager keeps no descriptor twice, whatever its name.
        fd = os.memfd_create("cowfs-exchange", os.MFD_CLOEXEC)
        namespace.exchanges.begin(request, source.nodeid, target.nodeid, fd)
        os.close(fd)
    syscalls.renameat2(
        namespace.layers.upper(old_parent),
        old_name,
        namespace.layers.upper(new_parent),
        new_name,
        syscalls.RENAME_EXCHANGE,
    )
    _moved(namespace, source, target)
    source.place(new_parent, new_name)
    target.place(old_parent, old_name)
    source_is_directory = isinstance(source, Directory)
    target_is_directory = isinstance(target, Directory)
    if source_is_directory != target_is_directory and old_parent is not new_parent:
        namespace.listings.removed(old_parent, old_name, is_directory=source_is_directory)
        namespace.listings.added(old_parent, old_name, is_directory=target_is_directory)
        namespace.listings.removed(new_parent, new_name, is_directory=target_is_directory)
        namespace.listings.added(new_parent, new_name, is_directory=source_is_directory)


def _move(
    namespace: Namespace,
    source: Node,
    old_parent: Directory,
    old_name: bytes,
    target: Node | None,
    new_parent: Directory,
    new_name: bytes,
) -> None:
    layers = namespace.layers
    is_directory = isinstance(source, Directory)
    leaves_whiteout = layers.lower_entry(old_parent, old_name) is not None
    raw = layers.upper_entry(new_parent, new_name)
    old_fd, new_fd = layers.upper(old_parent), layers.upper(new_parent)
    with (
        _replacing(namespace, target, new_parent, new_name),
        _emptied(namespace, target, new_fd, new_name),
    ):
        if is_directory and raw is not None and ondisk.is_whiteout(raw):
            # rename(2) puts no directory over a device: swap them, so the old place gets the
            # whiteout, which is right there too or does no harm until it is taken away.
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, syscalls.RENAME_EXCHANGE)
            if not leaves_whiteout:
                with suppress(OSError):
                    os.unlink(old_name, dir_fd=old_fd)
        else:
            flags = syscalls.RENAME_WHITEOUT if leaves_whiteout else 0
            syscalls.renameat2(old_fd, old_name, new_fd, new_name, flags)
    _moved(namespace, source)
    source.place(new_parent, new_name)
    namespace.listings.removed(old_parent, old_name, is_directory=is_directory)
    if target is None:
        namespace.listings.added(new_parent, new_name, is_directory=is_directory)
    elif isinstance(target, Directory):
        layers.close_directory(target)
        target.lower_path = None
        namespace.listings.drop(target)


def _moved(namespace: Namespace, *nodes: Node) -> None:
    for node in nodes:
        if isinstance(node, Directory):
            namespace.directories_moved += 1
        namespace.names_changed += 1


@contextmanager
def _replacing(
    namespace: Namespace, target: Node | None, parent: Directory, name: bytes
) -> Iterator[None]:
    if target is None:
        yield
    else:
        with departing(namespace, target, parent, name):
            yield


@contextmanager
def _emptied(
    namespace: Namespace, target: Node | None, parent_fd: int, name: bytes
) -> Iterator[None]:
    """Put an empty directory in the place of one that shows no entries but has whiteouts:
    rename(2) replaces no other.  Undone when the change fails.

    It is opaque, or it would show what the whiteouts cover.
    """
    if not isinstance(target, Directory) or not target.upper:
        yield
        return
    fd = namespace.layers.upper(target)
    if _is_empty(fd):
        yield
        return
    with namespace.work.temporary() as temporary:
        copyup.copy_up_directory(fd, temporary.dir_fd, temporary.name)
        ondisk.set_opaque(temporary.path)
        temporary.exchange(parent_fd, name)
        try:
            yield
        except OSError:
            temporary.exchange(parent_fd, name)
            raise
        namespace.work.left.append(temporary.keep())


def _is_empty(fd: int) -> bool:
    with directories.entries(fd) as entries:
        return next(iter(entries), None) is None
