"""`cowfs rm` and `cowfs gc`: what goes, what that frees, and the question before it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cowfs.commands import report
from cowfs.commands.listing import said
from cowfs.store import copies

if TYPE_CHECKING:
    from cowfs.store.store import Collected, Removed, Store


def remove(store: Store, name: str, *, yes: bool) -> str:
    """Discard a copy, after a question where somebody can answer it; a line that says what became
    of it. CowfsError."""
    if not yes and is_somebody_there():
        found = copies.counted(store, name)
        changed = found != (0, 0) and name in copies.names(store)
        if changed and not agreed(f"discard the copy {name} with {_counts(found)}?"):
            return f"the copy {name} is kept"
    return _removed(name, store.remove(name))


def collected(store: Store, removed: Collected) -> str:
    """What `cowfs gc` has removed from a store."""
    line = (
        f"{store.path}: removed {report.count(len(removed.templates), 'template')} and "
        f"{report.count(len(removed.copies), 'ephemeral copy', 'ephemeral copies')}"
    )
    if removed.templates or removed.copies or removed.freed.bytes:
        line += f", which frees {said(removed.freed)}"
    if removed.kept:
        line += f"; kept for unchanged sources: {report.count(removed.kept, 'template')}"
    return line


def is_somebody_there() -> bool:
    """Whether a question would be read and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str, ask: Callable[..., bool] = click.confirm) -> bool:
    """Ask, on stderr; no answer is a no."""
    return ask(report.printable(question), err=True)


def _removed(name: str, removed: Removed) -> str:
    line = f"discarded copy {name} ({_counts(removed.counts)})"
    if removed.template:
        line += " and its template, which no other copy needs"
    line += f": frees {said(removed.freed)}"
    if removed.others:
        others = report.count(removed.others, "other copy needs", "other copies need")
        line += f"; its template stays, {others} it"
    return line


def _counts(found: tuple[int, int] | None) -> str:
    if found is None:
        return "whatever is in it, it is damaged"
    files, deleted = found
    if not files and not deleted:
        return "no changed files"
    counts = report.count(files, "file")
    return counts + (f", {report.count(deleted, 'deletion')}" if deleted else "")
