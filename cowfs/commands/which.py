"""Which copy a person means: each has a name, and a place where it is mounted.

Where a name is expected a mountpoint is understood, and the other way round. A name has no slash in
it; what has one is a path. Of a word without a slash the more usual meaning is tried first: for
`rm` and `check` a name, for `umount` and `mount` what is there under this path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cowfs.commands import messages
from cowfs.mount import mountpoint as mountpoints
from cowfs.mount import origin, preflight
from cowfs.store.names import NAME_MAX, check_name
from cowfs.system import mountinfo, remedy
from cowfs.system.errors import UsageError

if TYPE_CHECKING:
    from cowfs.mount.options import Options
    from cowfs.store.runtime import Record
    from cowfs.store.store import Store


class Found(NamedTuple):
    """A copy, mounted or not."""

    store: Store
    name: str

    @property
    def record(self) -> Record | None:
        """Of its mount; None while it is not mounted. Looked up anew each time."""
        from cowfs.store import runtime

        records = (record for record in runtime.all() if record.copy == self.name)
        return next((record for record in records if self.store.is_at(record.store)), None)


def which(text: str, stores: Sequence[Store]) -> Found:
    """The copy of this name, or of this mountpoint, mounted or not. UsageError: none, or several.

    One that is not mounted is its mountpoint's only if it has its name from that (naming.py).
    """
    if not text:
        check_name(text)
    found = _named(text, stores) if _may_be_name(text) else []
    found = found or _of_mountpoint(text, stores)
    what = f"copy {text}" if _may_be_name(text) else f"copy for the mountpoint {text}"
    if not found:
        raise UsageError(f"there is no {what}: {remedy.command('cowfs list')} shows the copies")
    if len(found) > 1:
        options = " or ".join(f"--store {remedy.quoted(one.store.path)}" for one in found)
        raise UsageError(f"several stores have a {what}: say which with {options}")
    return found[0]


def alone(text: str, stores: Sequence[Store]) -> Found:
    """The same, and the other stores are closed: a command that takes long would keep their
    volumes busy, and nobody could unmount them."""
    found = which(text, stores)
    close_others(stores, [found.store])
    return found


def close_others(stores: Sequence[Store], meant: Sequence[Store]) -> None:
    """Close those that are not meant."""
    for store in stores:
        if store not in meant:
            store.close()


def mountpoint(text: str) -> str:
    """Where the copy of this name is mounted; what is a path already stays as it is. UsageError."""
    if not _may_be_name(text) or mountinfo.mounted_at(next(mountpoints.spellings(text), "")):
        return text
    from cowfs.store import runtime

    places = [record.mountpoint for record in runtime.all() if record.copy == text]
    if len(places) > 1:
        raise UsageError(f"copies {text} of several stores are mounted: name {' or '.join(places)}")
    return places[0] if places else text


def source(program: str, text: str, options: Options) -> tuple[str, Options]:
    """What to mount, and how: a directory, or, by its name, a copy that was kept. CowfsError."""
    if not _may_be_name(text) or os.path.lexists(text) or origin.named(text) is not None:
        return text, options
    preflight.require_privilege()
    messages.show_log(program)
    stores = _existing(options.store)
    try:
        kept = [store for store in stores if store.has(text)]
        if len(kept) > 1:
            ways = " or ".join(map(_store_option, kept))
            raise UsageError(f"several stores have a copy {text}: say which with {ways}")
        record = kept[0].read(text) if kept else None
        if record is None:  # whoever looks for the directory says what there is to say
            return text, options
        if options.copy not in (None, text):
            raise UsageError(
                f"{text} is a copy itself: leave out copy={options.copy}, or name a directory"
            )
        return record.source, replace(options, copy=text, store=kept[0].path)
    finally:
        for store in stores:
            store.close()


def _existing(path: str | None) -> list[Store]:
    from cowfs.store.store import Store

    if path is None:
        return Store.discover()
    return [Store.open(path)] if os.path.lexists(path) else []


def _store_option(store: Store) -> str:
    from cowfs.mount.options import join

    return f"-o {remedy.quoted(join([f'store={store.path}']))}"


def _may_be_name(text: str) -> bool:
    return "/" not in text and text not in ("", ".", "..") and len(os.fsencode(text)) <= NAME_MAX


def _named(name: str, stores: Sequence[Store]) -> list[Found]:
    return [Found(store, name) for store in stores if store.has(name)]


def _of_mountpoint(text: str, stores: Sequence[Store]) -> list[Found]:
    """What is mounted there, or else what would be: at most one copy of each store."""
    from cowfs.store import runtime

    for path in mountpoints.spellings(text):
        mount = mountinfo.mounted_at(path)
        record = runtime.of(mount) if mount is not None and mount.is_cowfs else None
        if record is not None:
            return [Found(store, record.copy) for store in stores if store.is_at(record.store)]
        kept = [(store, store.copy_of(path)) for store in stores]
        found = [Found(store, name) for store, name in kept if name]
        if found:
            return found
    return []
