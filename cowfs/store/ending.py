"""Removing a store for good, with all that is in it.

Mounts may begin at any moment. So the store first gets another name: who comes later finds none and
makes a new one. Then all copies are locked, and whoever has got in before is found by that; the
store gets its name back, and nothing has been removed. A mount that has opened the store, and not
taken a copy yet, fails.

What a crash leaves under that other name is remembered as a store of its own (registry.py), and can
be removed as one; by the name that it had, too, as long as no other store is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import NamedTuple

from cowfs.store import copies, directory, emptying, registry, runtime
from cowfs.store.store import Store
from cowfs.system import directories, syscalls
from cowfs.system.errors import MountFailure

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Contents(NamedTuple):
    """What a store has: copies that are kept, those of them with changes, and templates."""

    kept: int
    changed: int
    templates: int


def contents(store: Store) -> Contents:
    """What would be lost. OSError."""
    kept = changed = 0
    for name in copies.names(store):
        try:
            persistent = copies.read(store, name).persistent
        except (FileNotFoundError, NotADirectoryError):
            continue
        except MountFailure:  # damaged: what a user wrote is there all the same
            persistent = True
        kept += persistent
        changed += persistent and copies.counted(store, name) != (0, 0)
    return Contents(kept, changed, len(directories.names(store.templates_fd)))


def remove(store: Store) -> None:
    """Remove a store in which no copy is mounted, and forget it. MountFailure, OSError.

    The store is of no use afterwards, but to be closed.
    """
    path = os.path.realpath(store.path)
    if strangers := set(directories.names(store.fd)) - {*directory.PARTS, directory.LOWERS}:
        raise MountFailure(
            f"{path} has something in it that is no part of a store: {min(strangers)}; move that "
            "elsewhere first"
        )
    with _all_locked(store):
        pass  # while one is mounted, the store keeps its name
    parent, name = os.path.split(path)
    parent_fd = os.open(parent, _DIRECTORY)
    try:
        leaving = _leaving(name) + os.urandom(4).hex()
        # Before it has that name: a kill may come at any moment.
        _remember(store, os.path.join(parent, leaving))
        with contextlib.ExitStack() as undo:
            _rename(parent_fd, name, leaving)
            undo.callback(_rename_back, parent_fd, leaving, name)
            if not _is(parent_fd, leaving, store):
                raise MountFailure(f"{path} is another directory by now: look at what it is")
            with _all_locked(store), _remembered(store, os.path.join(parent, leaving)):
                _empty(store)
                os.rmdir(leaving, dir_fd=parent_fd)
            undo.pop_all()
    finally:
        os.close(parent_fd)
    registry.forget(path)


def left_of(path: str) -> Iterator[Store]:
    """What is left of stores that were at this canonical path, and whose removal was cut short.

    Each is closed when the next one is asked for. CowfsError.
    """
    parent, name = os.path.split(path)
    for entry in registry.entries():
        there, other = os.path.split(entry.path)
        if there == parent and other.startswith(_leaving(name)):
            store = Store.remembered(entry)
            if store is not None:
                with contextlib.closing(store):
                    yield store


def _leaving(name: str) -> str:
    """How the names begin that a store of this name has while it is removed."""
    return f".{name.lstrip('.')}.removed-"


def _remember(store: Store, path: str) -> None:
    own, store.path = store.path, path
    try:
        with contextlib.suppress(OSError):
            registry.remember(store)
    finally:
        store.path = own


@contextlib.contextmanager
def _remembered(store: Store, path: str) -> Iterator[None]:
    """Remember it by its other name, until it is gone or has its own again."""
    _remember(store, path)  # again: who looked before it had that name found none, and forgot it
    own, store.path = store.path, path
    try:
        yield
    finally:
        store.path = own
    registry.forget(path)


def _empty(store: Store) -> None:
    parts = [part for part in directories.names(store.fd) if part != "trash"]
    for part in parts:
        part_fd = os.open(part, _DIRECTORY, dir_fd=store.fd)
        try:
            for name in directories.names(part_fd):
                store.trash(part_fd, name)
        finally:
            os.close(part_fd)
    while directories.names(store.trash_fd):  # another one may be emptying it, and moves things up
        emptying.empty(store.trash_fd)
    for part in (*parts, "trash"):
        os.rmdir(part, dir_fd=store.fd)


@contextlib.contextmanager
def _all_locked(store: Store) -> Iterator[None]:
    """Have the locks of all copies meanwhile, and of what a mount that begins has: templates, and
    what is being made. MountFailure: one is mounted, or about to be."""
    beginning = False
    with contextlib.ExitStack() as stack:
        for part_fd in (store.partial_fd, store.templates_fd):
            for name in directories.names(part_fd):
                lock_fd = directory.lock_directory(part_fd, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock_fd is not None:
                    stack.callback(os.close, lock_fd)
                else:
                    beginning = beginning or name in directories.names(part_fd)
        for name in copies.names(store):
            try:
                lock_fd = copies.lock(store, name)
            except NotADirectoryError:  # something else is there, and no mount of it
                continue
            except copies.Busy:
                raise MountFailure(f"{_where(store, name)}: unmount it first") from None
            if lock_fd is not None:
                stack.callback(os.close, lock_fd)
        if beginning:
            raise MountFailure("a mount is just being made: try again when it is there")
        yield


def _where(store: Store, name: str) -> str:
    for record in runtime.all():
        if record.copy == name and os.path.realpath(record.store) == os.path.realpath(store.path):
            return f"the copy {name} is mounted at {record.mountpoint}"
    return f"the copy {name} is in use"


def _rename_back(dir_fd: int, new: str, old: str) -> None:
    with contextlib.suppress(OSError):  # somebody has made another store there
        _rename(dir_fd, new, old)


def _rename(dir_fd: int, old: str, new: str) -> None:
    flags = syscalls.RENAME_NOREPLACE
    syscalls.renameat2(dir_fd, os.fsencode(old), dir_fd, os.fsencode(new), flags)


def _is(dir_fd: int, name: str, store: Store) -> bool:
    st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return (st.st_dev, st.st_ino) == store.identity
