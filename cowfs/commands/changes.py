"""`cowfs diff`, `commit`, `reset` and `rename`: what people are told of the life of a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cowfs.changes import committing, diff, resetting, sides
from cowfs.changes.diff import Change, Difference
from cowfs.commands import removing, report
from cowfs.store import copies
from cowfs.system import remedy
from cowfs.system.errors import DIFF_DIFFERENT, DIFF_SAME

if TYPE_CHECKING:
    from cowfs.commands.which import Found
    from cowfs.trees.cloning import Progress

_WIDTH = max(map(len, diff.KINDS))


def found(
    one: Found, other: Found | None, *, source: bool, times: bool, content: bool
) -> Difference:
    """What differs. CowfsError."""
    if source:
        return sides.from_source(one.store, one.name, times=times, content=content)
    if other is None:
        return sides.difference(one.store, one.name, times=times, content=content)
    return sides.between(one.store, one.name, other.store, other.name, times=times, content=content)


def code(difference: Difference) -> int:
    """The exit code of diff(1) for it."""
    return DIFF_DIFFERENT if difference.changes else DIFF_SAME


def lines(difference: Difference, *, stat: bool, name_only: bool) -> Iterator[str]:
    """A difference for people."""
    if stat:
        counts = [f"{difference.count(kind)} {kind}" for kind in diff.KINDS]
        yield f"{', '.join(counts)}: {_private(difference.private)}"
        return
    for change in difference.changes:
        yield change.path if name_only else _line(change)


def _line(change: Change) -> str:
    path = change.path + ("/" if change.type == "directory" else "")
    if change.old_path is not None:
        path = f"{change.old_path} -> {path}"
    told = list(change.what)
    if change.type not in ("file", "directory"):
        told.append(change.type)
    if change.size is not None:
        if change.old_size is not None and change.old_size != change.size:
            told.append(f"{report.human_size(change.old_size)} -> {report.human_size(change.size)}")
        else:
            told.append(report.human_size(change.size))
        if change.private:
            told.append(_private(change.private))
    elif change.old_size is not None:
        told.append(report.human_size(change.old_size))
    shown = f" ({', '.join(told)})" if told else ""
    moved = f" [{change.origin}]" if change.origin else ""
    return f"{change.kind:<{_WIDTH}} {path}{shown}{moved}"


def _private(amount: int) -> str:
    return f"{report.human_size(amount)} private"


def commit(
    one: Found,
    destination: str,
    *,
    warn: Callable[[str], None],
    progress: Progress | None,
    interruptible: Callable[[], AbstractContextManager[None]],
) -> str:
    """Make a plain directory of a copy; what was made. CowfsError."""
    committing.commit(
        one.store,
        one.name,
        destination,
        warn=warn,
        progress=progress,
        interruptible=interruptible,
    )
    return f"what the copy {one.name} shows is in {destination}"


def commit_layer(
    one: Found,
    file: str,
    *,
    warn: Callable[[str], None],
    interruptible: Callable[[], AbstractContextManager[None]],
) -> str:
    """Write the changes of a copy as a layer; what was written. CowfsError."""
    written = committing.commit_layer(
        one.store, one.name, file, warn=warn, interruptible=interruptible
    )
    entries = report.count(written.entries, "entry", "entries")
    removals = report.count(written.removals, "removal")
    size = report.human_size(written.bytes)
    return f"the changes of the copy {one.name} are in {file}: {entries}, {removals}, {size}"


def reset(one: Found, paths: Sequence[str], *, yes: bool) -> str:
    """Take changes back, after a question where somebody can answer it; what was done.
    CowfsError."""
    counted = copies.counted(one.store, one.name) if not paths else None
    if counted is not None and counted != (0, 0) and not yes and removing.is_somebody_there():
        files, deleted = counted
        question = (
            f"take back {report.count(files, 'changed file')} and "
            f"{report.count(deleted, 'deletion')} of the copy {one.name}?"
        )
        if not removing.agreed(question):
            return f"the copy {one.name} is as it was"
    done = resetting.reset(one.store, one.name, paths)
    if not paths:
        return f"the copy {one.name} is as its template"
    if not done:
        return f"nothing to take back: the copy {one.name} is as its template there"
    return f"{report.count(done, 'path')} of the copy {one.name} as in its template"


def rename(one: Found, new: str) -> str:
    """Give a copy another name; how it is mounted from now on. CowfsError."""
    before = one.store.rename(one.name, new)
    where = before.named_after or "MOUNTPOINT"
    return (
        f"the copy {one.name} is called {new}: mount it with: "
        f"{remedy.command('cowfs mount', new, where)}"
    )
