"""A source that is a copy itself: by its name, as `copy:NAME`, or by its mountpoint.

`copy:NAME` is understood wherever there is no directory of that name. A mountpoint that nothing is
mounted on now is understood as the copy that belongs to it where it is an empty directory, or none
at all: no one would mount a copy of that.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from cowfs.mount import preflight
from cowfs.store import names
from cowfs.system import mountinfo, remedy
from cowfs.system.errors import CowfsError, MountFailure, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.mount.options import Options
    from cowfs.store.store import Store

PREFIX = "copy:"


class Origin(NamedTuple):
    """The copy that is to be copied. source: as it is said, canonical if it is a path; store: the
    path of its store."""

    source: str
    store: str
    name: str


def named(source: str) -> str | None:
    """The name of a copy that is meant by it; None: it is a path. UsageError: an impossible one."""
    if not source.startswith(PREFIX) or os.path.lexists(source):
        return None
    name = source.removeprefix(PREFIX)
    names.check_name(name)
    return name


def find(source: str, mountpoint: str, options: Options) -> Origin | None:
    """Which copy a mount is to be made of, at this canonical mountpoint; None: it is a directory.

    CowfsError.
    """
    preflight.require_name("source", source)
    name = named(source)
    if name is not None:
        return Origin(source, _store_of(name, mountpoint, options), name)
    path = os.path.realpath(source)
    mount = mountinfo.holding(path)
    if not mount.is_cowfs:
        return _unmounted(path, options)
    # before any look into it: its daemon may be dead or hang
    if mount.mountpoint != path or mount.root != "/":
        clone = remedy.command("cowfs clone")
        raise MountFailure(
            f"source {source} is a part of the copy mounted at {mount.mountpoint}, and only all "
            f"of a copy can be copied: mount that, or make a directory of the part with {clone}, "
            "and mount that"
        )
    from cowfs.store import runtime
    from cowfs.store.store import Store

    record = runtime.of(mount)
    if record is None:
        shown = remedy.command("cowfs list", store=options.store)
        raise MountFailure(
            f"nobody says which copy {source} is, as its daemon was killed, or is in another "
            f"container: name it as {PREFIX}NAME, with its name from {shown}"
        )
    if options.store is not None:
        with contextlib.closing(Store.open(record.store)) as store:
            if not store.is_at(options.store):
                raise MountFailure(
                    f"source {source} is a copy in the store {record.store}, and its copies are "
                    "there, too: leave out store="
                )
    return Origin(path, record.store, record.copy)


def _store_of(name: str, mountpoint: str, options: Options) -> str:
    """The one that has this copy, or at least the copy of it that is to go on. CowfsError."""
    stores = list(_stores(options))
    try:
        found = [store for store in stores if store.has(name)]
        if not found:
            found = [store for store in stores if _goes_on(store, name, mountpoint, options)]
        if not found:
            shown = remedy.command("cowfs list", store=options.store)
            raise MountFailure(f"there is no copy {name}: {shown} shows those that are")
        if len(found) > 1:
            ways = " or ".join(remedy.quoted(f"store={store.path}") for store in found)
            raise UsageError(f"several stores have a copy {name}: say which with -o {ways}")
        return found[0].path
    finally:
        for store in stores:
            store.close()


def _goes_on(store: Store, origin: str, mountpoint: str, options: Options) -> bool:
    name = options.copy or store.copy_of(mountpoint)
    record = store.read(name) if name is not None else None
    return record is not None and record.copied_from == origin


def _unmounted(path: str, options: Options) -> Origin | None:
    """The copy that belongs to a mountpoint, where there is nothing else."""
    try:
        with os.scandir(path) as entries:
            if next(entries, None) is not None:
                return None
    except FileNotFoundError:
        pass
    except OSError:  # whoever wants to mount it says so
        return None
    found = None
    for store in _stores(options):
        with contextlib.closing(store), contextlib.suppress(CowfsError):
            name = store.copy_of(path)
            record = None if name is None else store.read(name)
            if found is None and record is not None and record.persistent:
                found = Origin(path, store.path, record.name)
    return found


def _stores(options: Options) -> Iterator[Store]:
    from cowfs.store.store import Store

    if options.store is None:
        yield from Store.discover()
    elif os.path.lexists(options.store):
        yield Store.open(options.store)
