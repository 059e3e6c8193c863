"""A copy and its source: whether that is there, has moved on, or is another directory.

copy.json names the source by its path, and the fingerprint that a template is known by has inode
numbers and ctimes in it. A directory that was moved, or whose volume is mounted elsewhere, has
another path, and its root another ctime. So it is compared with the template itself there: names,
sizes and mtimes of all entries, and which of them are directories.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence

from cowfs.store import copies, remedies, seal, templates
from cowfs.store.copies import Copy, CopyRecord
from cowfs.store.directory import StoreDirectory, volume_of
from cowfs.store.templates import Template
from cowfs.system import mountinfo, nearby, remedy, syscalls
from cowfs.system.errors import CowfsError, MountFailure
from cowfs.system.mountinfo import Mount
from cowfs.trees import scan
from cowfs.trees.scan import Directory, Scan, Scanner, SourceChanged


class Hidden(Exception):  # noqa: N818 -- says what the source is
    """Another filesystem is mounted over a source."""


def opened(store: StoreDirectory, source: str, mounts: Sequence[Mount]) -> int:
    """The directory of a source on the store's volume, for the caller, as the mount table has it.

    No other filesystem is asked, which may be a server's that does not answer. Hidden;
    FileNotFoundError: it is gone; another OSError: it cannot be told.
    """
    volume = mountinfo.reached(os.path.realpath(store.path), mounts)
    there = mountinfo.reached(source, mounts)
    if volume is None or there is None or there.device != volume.device:
        if any(
            volume is not None
            and mount.device == volume.device
            and mountinfo.is_within(source, mount.mountpoint)
            for mount in mounts
        ):
            raise Hidden
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = syscalls.open_below(root, os.fsencode(source).strip(b"/"), flags)
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source) from None
    finally:
        os.close(root)
    if syscalls.statx_mount_id(fd) != there.mount_id:  # mounted since
        os.close(fd)
        raise Hidden
    return fd


def missing(source: str, record: CopyRecord) -> str:
    """That there is no such source, for a copy of another one. Paths are canonical."""
    said = f"source {source} does not exist"
    meant = nearby.directory(source)
    if meant == record.source:
        return f"{said}: did you mean {meant}? The copy {record.name} is one of that"
    kept = f"the copy {record.name} is one of {record.source}"
    if meant is not None:
        return f"{said}: did you mean {meant}? But {kept}"
    return f"{said}, and {kept}: mount that to go on with it"


def another(store: StoreDirectory, copy: Copy, source: str) -> str:
    """That a copy is one of another source, what is in it, and the ways out."""
    if os.path.lexists(copy.source):
        way = f"mount {copy.source} to go on with it"
    else:
        command = remedies.of_copy("cowfs set-source", store.path, copy.name, source)
        way = (
            f"{copy.source} is gone, and if it has become {source}, say so with: {command}; or else"
        )
    return (
        f"the copy {copy.name} is one of {copy.source}, not of {source}, and has "
        f"{_contents(store, copy)}: {way}, choose another name with -o copy=NAME, or "
        f"discard it with: {remedies.of_copy('cowfs rm', store.path, copy.name)}"
    )


def no_copy_of(store: StoreDirectory, copy: Copy, origin: str) -> str:
    """That a copy is none of another copy, what is in it, and the ways out."""
    of = copy.source if copy.copied_from is None else f"the copy {copy.copied_from}"
    return (
        f"the copy {copy.name} is one of {of}, not of the copy {origin}, and has "
        f"{_contents(store, copy)}: mount {copy.name} to go on with it, choose another name with "
        f"-o copy=NAME, or discard it with: {remedies.of_copy('cowfs rm', store.path, copy.name)}"
    )


def elsewhere(store: StoreDirectory, record: CopyRecord, source: str) -> str:
    """That a directory cannot be the source of a copy, as it is on another volume."""
    place = os.path.join(volume_of(store.path), os.path.basename(source))
    command = remedy.command("cowfs import", source, place)
    return (
        f"{source} is on another volume than the copy {record.name} (its store is {store.path}), "
        f"and clones cannot cross them: bring it there first, for instance with: {command}"
    )


def require_the_same(store: StoreDirectory, copy: Copy, source: str) -> None:
    """MountFailure when a directory is not as a copy's template has it. CowfsError, OSError."""
    path = _difference(store, copy.template, source)
    if path is None:
        return
    command = remedies.of_copy("cowfs set-source --force", store.path, copy.name, source)
    raise MountFailure(
        f"{source} is not as {copy.template.source} was at {_sealed_at(copy.template)}, the state "
        f"that the copy {copy.name} is based on and goes on with: {path} differs; if it is the "
        f"right one all the same: {command}"
    )


def compare(store: StoreDirectory, copy: Copy, warn: Callable[[str], None]) -> None:
    """Say so when a copy that is mounted again is not based on its source's present state."""
    if not os.path.lexists(copy.source):
        warn(f"the copy {copy.name} goes on without its source {copy.source}, which is gone")
        return
    try:
        moved_on = has_moved_on(store, copy.template, copy.source)
    except CowfsError as error:
        warn(f"the copy {copy.name} goes on, but its source cannot be compared: {error}")
        return
    if moved_on:
        warn(
            f"the copy {copy.name} has changes and stays with the state that its source "
            f"{copy.template.source} had at {_sealed_at(copy.template)}; the source has moved on "
            "since"
        )


def has_moved_on(store: StoreDirectory, template: Template, source: str) -> bool:
    """Whether a source has another state by now than the template of a copy of it. CowfsError;
    OSError of the template."""
    if source == template.source:
        return seal.fingerprint(store, source, template.links) != template.id
    return _difference(store, template, source) is not None


def _contents(store: StoreDirectory, copy: Copy) -> str:
    """What a copy holds, in few words. OSError."""
    if not copy.has_changes():
        return "what is left of that" if copy.copied_from is None else "its state"
    files, deleted = copies.changes(store, copy.name)
    counts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((files, "file"), (deleted, "deletion"))
        if count
    ]
    return f"changes ({', '.join(counts) or 'of directories alone'})"


def _sealed_at(template: Template) -> str:
    """When a template was made, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(template.created))


def _difference(store: StoreDirectory, template: Template, source: str) -> str | None:
    """The path of an entry in which a directory, wherever it is, differs from a template; None when
    there is none. CowfsError; OSError of the template."""
    found = seal.scanned(store, source, template.links)
    if templates.id_of(template.source, found.digest) == template.id:
        return None
    return _first_unlike(_scanned(template), found)


def _scanned(template: Template) -> Scan:
    try:
        with Scanner(os.path.realpath(template.tree), None) as scanner:
            return scanner.scan()
    except SourceChanged as change:
        raise MountFailure(
            f"the template {template.path} is being changed ({change.path}): look at it with: "
            f"{remedy.command('cowfs check --all')}"
        ) from None


def _first_unlike(sealed: Scan, found: Scan) -> str | None:
    present = {directory.key: directory for directory in found.directories}
    # Not in the template, or only an empty place for it.
    left_out = {place.key for place in (*found.sockets, *found.whiteouts)}
    for directory in found.directories:
        left_out.update(directory.key_of(name) for name, _ in directory.mounted)
    for before in sealed.directories:
        if before.key in left_out:
            continue
        after = present.get(before.key)
        if after is None:
            return before.path
        known, seen = _entries(before), _entries(after)
        for name in sorted(known.keys() | seen.keys()):
            if known.get(name) != seen.get(name) and after.key_of(name) not in left_out:
                return after.path_of(name)
    return None


def _entries(directory: Directory) -> dict[str, tuple[int, ...]]:
    """What counts of each entry of a directory: of those that are directories, only that."""
    below = set(directory.subdirectories)
    return {
        name: () if name in below else scan.size_and_mtime(record)
        for name, record in scan.records(directory)
    }
