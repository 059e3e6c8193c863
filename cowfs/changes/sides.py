"""Opening what is compared: a copy, the template that it is based on, its source as it is now.

A copy may be in use meanwhile: what its mount still holds in memory is written out first, and each
of its files is taken as it is when its turn comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowfs.changes import diff
from cowfs.changes.diff import Difference
from cowfs.changes.shown import Layered, Live
from cowfs.store import copies, runtime, seal, templates
from cowfs.store.copies import CopyRecord
from cowfs.store.store import Store
from cowfs.store.templates import Template
from cowfs.system import syscalls
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.trees.scan import SourceChanged

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_TRIES = 10  # of a copy whose files come and go


class Side(NamedTuple):
    """A copy, open to be read."""

    record: CopyRecord
    template: Template
    tree: Layered
    lower: Layered  # its template


def difference(
    store: Store, name: str, *, times: bool = False, content: bool = False
) -> Difference:
    """What a copy has changed. CowfsError."""
    with told(name), opened(store, name) as side:
        groups = side.template.hard_links
        return _in_peace(
            lambda: diff.compare(side.lower, side.tree, times=times, content=content, groups=groups)
        )


def between(
    store: Store,
    name: str,
    other_store: Store,
    other: str,
    *,
    times: bool = False,
    content: bool = False,
) -> Difference:
    """What has to be done to the other copy to make it this one. CowfsError."""
    if store.identity[0] != other_store.identity[0]:  # the same place is another one there
        raise UsageError(
            f"the copies {name} and {other} are on different volumes, and have no blocks to "
            "compare: mount both, and compare them with diff -r"
        )
    with told(name), opened(store, name) as new, opened(other_store, other) as old:
        groups = new.template.hard_links
        return _in_peace(
            lambda: diff.compare(old.tree, new.tree, times=times, content=content, groups=groups)
        )


def from_source(
    store: Store, name: str, *, times: bool = False, content: bool = False
) -> Difference:
    """What has to be done to the source as it is now to make it the copy, and which of the two has
    moved. CowfsError."""
    with told(name), opened(store, name) as new:
        source = new.record.source
        if not os.path.isdir(source):
            raise UsageError(
                f"the source {source} of the copy {name} is gone: leave --source out, and it is "
                "compared with the state that it is based on"
            )
        groups = new.template.hard_links
        ours = _in_peace(lambda: diff.compare(new.lower, new.tree, times=times, groups=groups))
        try:
            with (
                seal.opened(store, source, new.template.links) as scanner,
                contextlib.closing(Live(scanner, scanner.scan())) as live,
            ):
                found = diff.compare(live, new.tree, times=times, content=content)
        except SourceChanged as change:
            raise MountFailure(
                f"source {os.path.join(source, change.path)} was changed while it was compared: "
                "try again"
            ) from None
    return found.with_origins(ours)


@contextlib.contextmanager
def opened(store: Store, name: str) -> Iterator[Side]:
    """A copy and its template, as they are on disk. CowfsError, OSError."""
    record = copies.read(store, name)
    template = copies.template_of(store, record)
    _write_out(store, name)
    with contextlib.ExitStack() as stack:

        def part(path: str, dir_fd: int) -> int:
            fd = os.open(path, _DIRECTORY, dir_fd=dir_fd)
            stack.callback(os.close, fd)
            return fd

        lower_fd = part(os.path.join(template.id, templates.TREE), store.templates_fd)
        copy_fd = part(name, store.copies_fd)
        upper_fd = part(copies.UPPER, copy_fd)
        unfinished: set[int] = set()
        with contextlib.suppress(FileNotFoundError):
            unfinished = copies.unfinished(part(copies.WORK, copy_fd))
        tree = Layered(template.id, lower_fd, upper_fd, frozenset(unfinished))
        stack.callback(tree.close)
        lower = Layered(template.id, lower_fd)
        stack.callback(lower.close)
        yield Side(record, template, tree, lower)


def mounted_at(store: Store, name: str) -> str | None:
    """Where a copy is mounted in this namespace, at a place of its own; None: nowhere."""
    record = _mounted(store, name)
    place = None if record is None else runtime.place(record)
    return None if place is None or place.namespace else place.mount.mountpoint


def _mounted(store: Store, name: str) -> runtime.Record | None:
    records = (record for record in runtime.all() if record.copy == name)
    return next((record for record in records if store.is_at(record.store)), None)


def _write_out(store: Store, name: str) -> None:
    """Have a mount write what programs have changed through mappings to the files behind it.

    overlayfs has no pages of its own, and would write out all of the volume.
    """
    record = _mounted(store, name)
    mountpoint = mounted_at(store, name)
    if record is None or record.engine != "fuse" or mountpoint is None:
        return
    with contextlib.suppress(OSError):  # unmounted meanwhile, or nobody serves it any more
        fd = os.open(mountpoint, _DIRECTORY)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)


def _in_peace(compare: Callable[[], Difference]) -> Difference:
    """Compare again when something went away in the middle. OSError."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return compare()
    return compare()


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Turn what the disk says into what the user is told."""
    try:
        yield
    except FileNotFoundError as error:
        raise MountFailure(
            f"the copy {name} was removed or changed while it was read{where(error)}: try again"
        ) from None
    except OSError as error:
        raise CowfsError(
            f"the copy {name} cannot be read: {error.strerror}{where(error)}; see dmesg if that "
            "is the disk's fault"
        ) from None


def where(error: OSError) -> str:
    """Which file it was at, for a message."""
    return f" ({os.fsdecode(error.filename)})" if error.filename else ""
