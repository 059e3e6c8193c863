"""`cowfs rm` and `cowfs gc`: what goes, what that frees, and the question before it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cowfs.commands import report
from cowfs.commands.listing import said
from cowfs.mount.options import parse_size
from cowfs.store import copies, glance
from cowfs.store.collecting import Limits
from cowfs.system.errors import CowfsError, UsageError

if TYPE_CHECKING:
    from cowfs.store.collecting import Doomed
    from cowfs.store.store import Collected, Removed, Store

_CHOICE = " [y/N]: "  # what click adds to a question
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def remove(store: Store, name: str, *, yes: bool) -> str:
    """Discard a copy, after a question where somebody can answer it; a line that says what became
    of it. CowfsError."""
    if not yes and is_somebody_there():
        question = _question(store, name)
        if question is not None and not agreed(question):
            return f"the copy {name} is kept"
    return _removed(name, store.remove(name))


def collected(store: Store, removed: Collected, limits: Limits, *, pretend: bool) -> list[str]:
    """What `cowfs gc` has removed from a store, or with pretend would, in lines."""
    would = "would remove" if pretend else "removed"
    lines = [_doomed(doomed) for doomed in removed.removed] if pretend else []
    lines += [f"would remove the ephemeral copy {name}" for name in removed.copies if pretend]
    line = (
        f"{store.path}: {would} {report.count(len(removed.templates), 'template')} and "
        f"{report.count(len(removed.copies), 'ephemeral copy', 'ephemeral copies')}"
    )
    if removed.templates or removed.copies or removed.freed.bytes:
        line += f", which frees {said(removed.freed)}"
    if removed.kept:
        why = "" if limits.keep else " for unchanged sources"
        line += f"; kept{why}: {report.count(removed.kept, 'template')}"
    if removed.missing:
        line += (
            f"; {report.human_size(removed.missing)} more would have to be free for "
            f"--low-space {limits.low_space:g}, and copies that are needed hold it, or other files"
        )
    return [*lines, line]


def limits(keep: str | None, max_bytes: str | None, low_space: float | None) -> Limits:
    """What the options of `cowfs gc` ask for. UsageError."""
    return Limits(
        keep=0.0 if keep is None else _age("--keep-template", keep),
        max_bytes=None if max_bytes is None else parse_size("--max-bytes", max_bytes),
        low_space=low_space or 0.0,
    )


def _age(option: str, text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9})([smhdwy]?)", text)
    if match is None:
        raise UsageError(
            f"option {option}={text}: {text!r} is no age: write seconds, or a whole number with m, "
            f"h, d, w or y, such as {option}=12h, {option}=7d"
        )
    return float(match[1]) * _SECONDS[match[2]]


def _doomed(doomed: Doomed) -> str:
    template = doomed.template
    used = report.age(time.time() - doomed.last_used)
    return (
        f"would remove the template {template.id[:8]} of {template.source}, last used {used} ago, "
        f"with {said(doomed.weight)} of its own"
    )


def is_somebody_there() -> bool:
    """Whether a question would be read and answered."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str, ask: Callable[..., bool] = click.confirm) -> bool:
    """Ask, on stderr; no answer is a no."""
    columns = report.columns(sys.stderr)
    width = None if columns is None else columns - len(_CHOICE)
    return ask("\n".join(report.folded(report.printable(question), width)), err=True)


def _question(store: Store, name: str) -> str | None:
    """About a copy with what nobody can make again; None for another, or if there is none."""
    if not store.has(name):
        return None
    found = copies.counted(store, name)
    try:
        record = store.read(name)
    except CowfsError:  # damaged
        record = None
    if record is not None and (lacking := glance.lacking(store, record.source)):
        return (
            f"discard the copy {name} with {_counts(found)}? Its source {record.source} "
            f"is {lacking}, and the template may go with the copy"
        )
    return f"discard the copy {name} with {_counts(found)}?" if found != (0, 0) else None


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
