"""`cowfs store`: where templates and copies are kept, and how one such place goes for good."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cowfs.commands import columns, removing, report
from cowfs.commands.columns import Column
from cowfs.commands.listing import said
from cowfs.store import copies, directory, ending, registry, space
from cowfs.store.store import Store
from cowfs.system import directories, remedy
from cowfs.system.errors import MountFailure, UsageError

if TYPE_CHECKING:
    from cowfs.store.ending import Contents
    from cowfs.store.registry import Entry

Row = dict[str, Any]

_COLUMNS = (
    Column("STORE", columns.at_the_left),
    Column("VOLUME", columns.at_the_left),
    Column("COPIES"),
    Column("TEMPLATES"),
    Column("HOLDS"),
    Column("STATE"),
)


def rows(stores: Sequence[Store]) -> list[Row]:
    """Every store as `cowfs store --json` shows it, by path."""
    found = [_row(store) for store in stores]
    known = {os.path.realpath(store.path) for store in stores}
    found += [_absent(entry) for entry in registry.entries() if entry.path not in known]
    return sorted(found, key=lambda row: str(row["path"]))


def show(found: Sequence[Row]) -> None:
    """Print them for people."""
    columns.table(_COLUMNS, [_cells(row) for row in found])


def remove(path: str, *, yes: bool) -> Iterator[str]:
    """Remove a store for good, or what an earlier call has left of it; lines that say so.
    CowfsError."""
    absolute = os.path.normpath(os.path.join(os.getcwd(), path))
    if not os.path.lexists(absolute):
        real = os.path.realpath(absolute)
        was_known = _forget(path, real)
        was_there = False
        for store in ending.left_of(real):
            was_there = True
            yield _removed(store, yes=yes)
        if was_known and not was_there:
            yield f"forgot the store {path}, which is not there; what its volume has stays as it is"
        elif not was_there:
            shown = remedy.command("cowfs store")
            raise UsageError(f"there is no store {path}: {shown} shows those that are")
        return
    try:
        store = Store.open(absolute)
    except directory.NoStore:
        if registry.forget(os.path.realpath(absolute)):
            yield f"forgot the store {path}: something else is there"
            return
        raise
    with contextlib.closing(store):
        yield _removed(store, yes=yes)


def _forget(path: str, real: str) -> bool:
    """Remember a store that is not there no more; whether it was remembered."""
    try:
        return registry.forget(real)
    except OSError as error:
        raise UsageError(f"{path} cannot be forgotten: {error.strerror}") from None


def _removed(store: Store, *, yes: bool) -> str:
    try:
        return _remove(store, yes=yes)
    except OSError as error:
        named = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        raise MountFailure(
            f"the store {store.path} cannot be removed: {error.strerror}{named}; try again when "
            "that is mended, nothing but it was touched"
        ) from None


def _remove(store: Store, *, yes: bool) -> str:
    found = ending.contents(store)
    if found.kept and not yes:
        what = f"the store {store.path} with {_said(found)}"
        if not removing.is_somebody_there():
            raise UsageError(f"{what} is left alone: say --yes to remove it for good")
        if not removing.agreed(f"remove {what} for good?"):
            return f"the store {store.path} is kept"
    weight = space.Scales(store, space.AT_LEISURE).everything()
    ending.remove(store)
    return f"removed the store {store.path} with {_said(found)}: frees {said(weight)}"


def _said(found: Contents) -> str:
    changed = f" ({found.changed} with changes)" if found.changed else ""
    return (
        f"{report.count(found.kept, 'kept copy', 'kept copies')}{changed} and "
        f"{report.count(found.templates, 'template')}"
    )


def _row(store: Store) -> Row:
    weight = space.Scales(store).everything()
    names = copies.names(store)
    mounted = sum(copies.is_locked(store, name) for name in names)
    return {
        "path": os.path.realpath(store.path),
        "volume": directory.volume_of(store.path),
        "copies": len(names),
        "mounted": mounted,
        "templates": len(directories.names(store.templates_fd)),
        "bytes": weight.bytes,
        "bytes_exact": weight.exact,
        "state": f"{mounted} mounted" if mounted else "idle",
    }


def _absent(entry: Entry) -> Row:
    """A store that is remembered, and that is not there or not to be trusted."""
    is_there = os.path.lexists(entry.path)
    return {
        **dict.fromkeys(("copies", "mounted", "templates", "bytes", "bytes_exact")),
        "path": entry.path,
        "volume": entry.volume,
        "state": "unusable" if is_there else "volume not mounted",
    }


def _cells(row: Row) -> tuple[str, ...]:
    if row["copies"] is None:
        return (row["path"], row["volume"], "-", "-", "-", row["state"])
    holds = ("" if row["bytes_exact"] else ">") + report.compact_size(row["bytes"])
    numbers = (str(row["copies"]), str(row["templates"]))
    return (row["path"], row["volume"], *numbers, holds, row["state"])
