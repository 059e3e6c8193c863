"""`cowfs reset`: a copy becomes as its template again, all of it or some paths.

A new upper layer is made aside, without what is to go and with clones of all else, and takes the
place of the old one in one step. So a kill leaves one of the two, and the old one is as it was.

What has left a path that is reset, and is elsewhere in the copy now, would be there twice. A file
becomes one of its own then, under an inode number of its own. A directory that is merged with one
of the template cannot: the user is told to reset that, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from cowfs.changes import sides
from cowfs.changes.shown import Layered, Node, children, find
from cowfs.store import copies
from cowfs.store.store import Store
from cowfs.system import ondisk, syscalls
from cowfs.system.errors import MountFailure, UsageError
from cowfs.trees import cloning, workers
from cowfs.trees.cloning import Chunk, Cloner
from cowfs.trees.scan import Directory, Place, Scan, Scanner, SourceChanged

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Plan(NamedTuple):
    """drop: paths of upper/ that go. parted: paths of files that lose their inode number."""

    drop: list[bytes]
    parted: list[bytes]


class _UpperCloner(Cloner):
    """Clones an upper layer, marks and all."""

    seals = False
    drops_marks = False


def reset(store: Store, name: str, paths: Sequence[str]) -> int:
    """Reset these paths of a copy that is not mounted, or all of it without any; how many of them
    had changes. CowfsError."""
    wanted = [_normal(path) for path in paths]
    if not wanted or b"" in wanted:
        store.reset(name)
        return len(paths)
    done = 0

    def make_upper(copy_fd: int, template_fd: int) -> None:  # noqa: ARG001
        nonlocal done
        with sides.opened(store, name) as side:
            plan = _planned(name, side.tree, side.lower, wanted)
        done = len(plan.drop)
        if plan.drop:
            _make(store, name, copy_fd, plan)
        else:
            raise _NothingToDo

    try:
        with contextlib.suppress(_NothingToDo):
            store.reset(name, make_upper)
    except SourceChanged as change:
        raise MountFailure(
            f"the copy {name} is being changed ({change.path}) although it is not mounted: try "
            "again"
        ) from None
    return done


class _NothingToDo(Exception):  # noqa: N818 -- not an error
    """All paths are as in the template."""


def _normal(path: str) -> bytes:
    """A path relative to the copy's root, b"" for that. UsageError when it leaves the copy."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or not path:
        raise UsageError(
            f"{path!r} is no path in a copy: name one as seen from its top, without '..'"
        )
    return os.fsencode("/".join(parts))


# ----------------------------------------------------------------------- what has to be done


def _planned(name: str, tree: Layered, lower: Layered, paths: Iterable[bytes]) -> _Plan:
    """CowfsError, OSError."""
    drop: list[bytes] = []
    for path in sorted(set(paths)):
        if not any(_is_within(path, other) for other in drop) and _has_own(name, tree, lower, path):
            drop.append(path)
    if not drop:
        return _Plan([], [])
    keeping = _keeping(name, tree, drop)
    parted = [
        path
        for root in drop
        for ino in (_numbers(lower, root) if keeping else ())
        for path in keeping.get(ino, ())
    ]
    return _Plan(drop, parted)


def _has_own(name: str, tree: Layered, lower: Layered, path: bytes) -> bool:
    """Whether the upper layer has anything at or below this path. CowfsError when that cannot be
    taken away without more."""
    sealed = find(lower, path)
    *above, last = path.split(b"/")
    node = tree.root
    at = b""
    for step in above:
        at = at + b"/" + step if at else step
        child = tree.child(node, step)
        if child is not None and child.is_directory and not child.private and sealed is not None:
            return False
        if child is None or not child.is_directory:
            if find(lower, at) is None:
                raise _no_such(name, path)
            raise _first(name, path, at, "was removed or replaced")
        if child.lower != at and (sealed is not None or child.lower is not None):
            raise _first(name, path, at, "is another one than the template's")
        node = child
    if node.private and last in tree.private_names(node):
        return True
    if sealed is None:
        raise _no_such(name, path)
    return False


def _first(name: str, path: bytes, directory: bytes, why: str) -> UsageError:
    return UsageError(
        f"{_shown(path)} of the copy {name} cannot be reset alone, its directory "
        f"{_shown(directory)} {why}: reset that directory"
    )


def _no_such(name: str, path: bytes) -> UsageError:
    return UsageError(f"there is no {_shown(path)} in the copy {name}, nor in its template")


def _shown(path: bytes) -> str:
    return os.fsdecode(path)


def _keeping(name: str, tree: Layered, drop: list[bytes]) -> dict[int, list[bytes]]:
    """The files of the upper layer that keep an inode number of the template, but for those that
    go. UsageError: a directory would be there twice."""
    found: dict[int, list[bytes]] = {}
    pending = [tree.root]
    while pending:
        node = pending.pop()
        for entry in tree.private_names(node):
            child = tree.child(node, entry)
            if child is None or not child.private or child.path in drop:
                continue
            path = child.path
            if child.is_directory:
                if child.lower is not None and child.lower != path:
                    _require_with(name, drop, child.lower, path)
                pending.append(child)
            elif (ino := tree.ino(child)) != child.st.st_ino:
                found.setdefault(ino, []).append(path)
    return found


def _require_with(name: str, drop: list[bytes], lower: bytes, path: bytes) -> None:
    for root in drop:
        if _is_within(lower, root):
            raise UsageError(
                f"{_shown(root)} of the copy {name} cannot be reset alone, {_shown(lower)} was "
                f"renamed to {_shown(path)}: reset both"
            )


def _numbers(lower: Layered, path: bytes) -> Iterator[int]:
    """The inode numbers of all files of the template at and below a path. OSError."""
    root = find(lower, path)
    pending: list[Node] = [] if root is None else [root]
    while pending:
        node = pending.pop()
        if node.is_directory:
            pending += children(lower, node)
        else:
            yield node.st.st_ino


def _is_within(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


# ----------------------------------------------------------------------- doing it


def _make(store: Store, name: str, copy_fd: int, plan: _Plan) -> None:
    """Make the new upper layer in an open directory. SourceChanged, OSError."""
    path = os.path.join(os.path.realpath(store.path), "copies", name, copies.UPPER)
    os.mkdir(copies.UPPER, 0o700, dir_fd=copy_fd)
    upper_fd = os.open(copies.UPPER, _DIRECTORY, dir_fd=copy_fd)
    try:
        with Scanner(path, None, whiteouts=True) as scanner:
            # The path may lead elsewhere by now; the store's own descriptors do not.
            ours = os.stat(os.path.join(name, copies.UPPER), dir_fd=store.copies_fd)
            if not os.path.samestat(os.fstat(scanner.fd), ours):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
            found = _without(scanner, plan.drop)

            @contextlib.contextmanager
            def worker(umask: int) -> Iterator[Callable[[Chunk], None]]:
                with contextlib.closing(_UpperCloner(scanner.fd, upper_fd, umask)) as cloner:
                    yield cloner.clone_chunk

            def clone_all(pieces: list[Chunk], done: Callable[[Chunk], None]) -> None:
                count = workers.worth_starting(sum(piece.work() for piece in pieces))
                workers.do_all(count, worker, pieces, done, workers.cost_of)

            with contextlib.closing(_UpperCloner(scanner.fd, upper_fd, 0o777)) as cloner:
                cloning.fill(cloner, found, None, clone_all)
        _part(upper_fd, plan.parted)
    finally:
        os.close(upper_fd)


def _without(scanner: Scanner, drop: Iterable[bytes]) -> Scan:
    """What is in the upper layer, but for what goes. SourceChanged, OSError."""
    found = scanner.scan()
    gone = {os.fsdecode(path) for path in drop}
    dropped: set[Directory] = set()
    for directory in found.directories:  # each after its parent
        if directory.parent in dropped or (gone and directory.path in gone):
            dropped.add(directory)

    def stays(place: Place) -> bool:
        return place.directory not in dropped and place.path not in gone

    found.directories = [one for one in found.directories if one not in dropped]
    for directory in found.directories:
        for names in (directory.files, directory.special, directory.subdirectories):
            names[:] = [name for name in names if stays(Place(directory, name))]
    links = [list(filter(stays, places)) for places in found.links]
    found.links = [places for places in links if len(places) > 1]
    for place in (places[0] for places in links if len(places) == 1):
        path = os.fsencode(place.path)
        fd = _opened(scanner.fd, path)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        (place.directory.files if regular else place.directory.special).append(place.name)
    return found


def _part(upper_fd: int, paths: Iterable[bytes]) -> None:
    for path in paths:
        fd = _opened(upper_fd, path)
        try:
            where = ondisk.proc_path(fd)
            ondisk.remove_ino(where)
            ondisk.remove_shared_data(where)
        finally:
            os.close(fd)


def _opened(root_fd: int, path: bytes) -> int:
    return syscalls.open_below(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
