"""Sealing: from a source to a template that has its state and never changes again.

A source is scanned; when its template is there already,
that is all. Else every entry is cloned into a directory in `partial` that is locked under the
template's id, so two mounts of one source seal once; the scan is repeated, and only when nothing
has changed meanwhile does the tree get its name in `templates`.

Nothing is synced at the end. The manifest is on disk before the first clone, the clone ioctl writes
out the data of its source, and XFS and btrfs recover metadata in the order in which it changed: a
template that has its name after a power failure is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable

from cowfs.store import garbage, remedies, templates
from cowfs.store.directory import StoreDirectory
from cowfs.store.templates import Template
from cowfs.system import directories, mountinfo, syscalls
from cowfs.system.errors import CowfsError, MountFailure, UsageError
from cowfs.trees import cloning, removal, scan, workers
from cowfs.trees.cloning import Progress
from cowfs.trees.links import Policy
from cowfs.trees.scan import Scan, Scanner, SourceChanged

_TRIES = 5
_PAUSE = 0.1  # seconds before the second try; longer before each further one
# What a template costs for each entry: an inode, its name and the record of its blocks, about.
_BYTES_PER_ENTRY = 1024
_OPEN_TREE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def seal(
    store: StoreDirectory,
    source: str,
    *,
    progress: Progress | None,
    warn: Callable[[str], None],
    links: Policy = "auto",
) -> Template:
    """The template of the source's present state, sealed now if it is not there yet.

    `links` says what is done with links that lead out of the source.

    CowfsError says why there can be none; then nothing is left behind, as with every other
    exception that ends it early. `warn` gets one line for each kind of thing that is left out, and,
    when the source is sealed now, one for links out of it that stay links.
    """
    source = os.path.realpath(source)
    changed = ""
    for attempt in range(_TRIES):
        time.sleep(_PAUSE * attempt)
        try:
            with opened(store, source, links) as scanner:
                found = scanner.settled()
                template = templates.read(store, templates.id_of(source, found.digest))
                if template is None:
                    template = _build(store, scanner, found, progress)
                    scan.warn_of_links(scanner, found.symlinks, "-o links=follow", warn)
        except SourceChanged as change:
            changed = change.path
        except OSError as error:
            raise _failure(store, source, error) from None
        else:
            scan.warn_of_left_out(source, found, warn)
            return template
    raise MountFailure(
        f"source {source} keeps changing ({_join(source, changed)}): stop what writes to it, or "
        "mount a quiet copy of it made with: cp -a --reflink=always"
    )


def fingerprint(store: StoreDirectory, source: str, links: Policy = "auto") -> str:
    """The id that the template of the source's present state has or would have. CowfsError."""
    return templates.id_of(os.path.realpath(source), scanned(store, source, links).digest)


def scanned(store: StoreDirectory, source: str, links: Policy) -> Scan:
    """What is in the source at present, with what `links` makes of those out of it. CowfsError."""
    source = os.path.realpath(source)
    try:
        with opened(store, source, links) as scanner:
            return scanner.scan()
    except SourceChanged as change:
        raise MountFailure(f"source {_join(source, change.path)} is being changed") from None
    except OSError as error:
        raise _failure(store, source, error) from None


def opened(store: StoreDirectory, source: str, links: Policy) -> Scanner:
    """Of a canonical source. CowfsError."""
    if store.contains(source):
        raise MountFailure(
            f"source {source} is in the store {store.path}: mount the directory that the template "
            f"was made of, which {remedies.of_store('cowfs list', store.path)} shows"
        )
    try:
        return Scanner(source, store.identity, links=links)
    except OSError as error:
        if error.errno == errno.ENOENT:
            problem = "does not exist: name an existing directory"
        elif error.errno == errno.ENOTDIR:
            problem = "is not a directory: name the directory that holds the files"
        elif error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(f"no permission to read source {source}: run cowfs as root") from None
        else:
            problem = f"cannot be opened: {error.strerror}"
        raise MountFailure(f"source {source} {problem}") from None


def _build(
    store: StoreDirectory, scanner: Scanner, found: Scan, progress: Progress | None
) -> Template:
    """Make the template of what was found. SourceChanged, OSError; then nothing is left of it."""
    source = scanner.source
    template_id = templates.id_of(source, found.digest)
    name = f"template-{template_id}"
    with store.partial(name) as fd:
        existing = templates.read(store, template_id)
        if existing is not None:  # made by whoever had the lock before us
            return existing
        removal.clear(fd, store.trash_fd)
        template = Template(
            id=template_id,
            path=templates.path_of(store, template_id),
            source=source,
            created=time.time(),
            entries=found.entries,
            bytes=found.bytes,
            hard_links=[[os.fsencode(place.path) for place in places] for places in found.links],
            links=scanner.policy,
        )
        templates.write(fd, template)
        os.mkdir(templates.TREE, 0o700, dir_fd=fd)
        tree_fd = os.open(templates.TREE, _OPEN_TREE, dir_fd=fd)
        try:
            _fill(scanner, tree_fd, found, progress)
        finally:
            os.close(tree_fd)
        changed = scan.first_difference(found, scanner.scan())
        if changed is not None:
            raise SourceChanged(changed)
        syscalls.renameat2(
            store.partial_fd,
            os.fsencode(name),
            store.templates_fd,
            os.fsencode(template_id),
            syscalls.RENAME_NOREPLACE,
        )
    _trash_older(store, template)
    return template


def _fill(scanner: Scanner, tree_fd: int, found: Scan, progress: Progress | None) -> None:
    def clone_all(pieces: list[cloning.Chunk], done: Callable[[cloning.Chunk], None]) -> None:
        workers.clone_all(scanner.fd, tree_fd, pieces, done, scanner.links)

    cloner = cloning.Cloner(scanner.fd, tree_fd, 0o777, scanner.links)
    with contextlib.closing(cloner):
        cloning.fill(cloner, found, progress, clone_all)


def _is_older(store: StoreDirectory, template: Template, links: Policy) -> bool:
    """Whether a mount that wants the links of a template made anew, would not find this one."""
    if template.links == links:
        return True
    try:
        return fingerprint(store, template.source, template.links) != template.id
    except CowfsError:
        return False


def _trash_older(store: StoreDirectory, template: Template) -> None:
    """The source has moved on: no mount will ever look for its earlier templates again."""
    links = template.links
    older = []
    for other_id in directories.names(store.templates_fd):
        if other_id == template.id:
            continue
        try:
            other = templates.read(store, other_id)
        except CowfsError:  # damaged: its users will get the error, and it is not ours to remove
            continue
        if other is not None and other.source == template.source and _is_older(store, other, links):
            older.append(other_id)
    garbage.trash_unused(store, older)


def _failure(store: StoreDirectory, source: str, error: OSError) -> CowfsError:
    """What an error means to the user. Its filename is relative to the source, or in the store."""
    volume = mountinfo.holding(os.path.realpath(store.path)).mountpoint
    place = _join(source, os.fsdecode(error.filename or ""))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MountFailure(_no_space(store, source, volume, error))
    if error.errno == errno.EIO:
        return MountFailure(
            f"I/O error on the volume {volume} while sealing {place}: see dmesg, and check the "
            "disk and the filesystem (xfs_repair)"
        )
    if error.errno == errno.EXDEV:
        return MountFailure(
            f"source {source} and the store {store.path} are on different volumes, and clones "
            "cannot cross them: leave out -o store=, or name a store on the source's volume"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"no permission to seal {place}: run cowfs as root")
    return MountFailure(f"cannot seal {place}: {error.strerror}")


def _no_space(store: StoreDirectory, source: str, volume: str, error: OSError) -> str:
    space = os.fstatvfs(store.fd)
    free = space.f_bavail * space.f_frsize
    try:
        with Scanner(source, store.identity) as scanner:
            needed = scanner.scan().entries * _BYTES_PER_ENTRY
    except (OSError, SourceChanged):
        needed = 0
    quota = " (quota)" if error.errno == errno.EDQUOT else ""
    missing = max(needed - free, _BYTES_PER_ENTRY * 1024)
    return (
        f"no space left on the volume {volume}{quota} while sealing {source}: it needs about "
        f"{_mib(needed)} for names and inodes and has {_mib(free)}; free at least {_mib(missing)} "
        f"there: {remedies.room(store.path)}"
    )


def _mib(size: int) -> str:
    return f"{max(size / (1 << 20), 0.1):.1f} MiB"


def _join(source: str, path: str) -> str:
    return os.path.join(source, path) if path else source
