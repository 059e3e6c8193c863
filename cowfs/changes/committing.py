"""`cowfs commit`: the present state of a copy as a plain directory of clones, or, of its changes
alone, a layer of an image.

A copy that is mounted is cloned through its mount, as `cowfs clone` does, and stays in use. Of one
that is not the two layers are put together here. Either appears under its name when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

from cowfs.changes import layer, sides
from cowfs.changes.shown import Layered, Node, children
from cowfs.store import directory as directories
from cowfs.store.store import Store
from cowfs.system.errors import CowfsError, UsageError
from cowfs.transfer import clone, origin, staging
from cowfs.transfer.staging import Staging
from cowfs.trees import cloning, workers
from cowfs.trees.cloning import Chunk, Cloner, Progress
from cowfs.trees.scan import CHANGED, Directory, Place, Scan, SourceChanged, warn_of_left_out

_DOING = "commit"
_LAYER = "layer"


class _Part(Directory):
    """A directory of the copy, with what one of the layers has of it.

    in_parts: there is one for either layer. Then the private one gives the attributes, and is the
    one that subdirectories are in.
    """

    __slots__ = ("node", "private")

    def __init__(self, node: Node, parent: Directory | None, *, private: bool) -> None:
        super().__init__(os.fsdecode(node.name), parent)
        self.node = node
        self.private = private


class _LayerCloner(Cloner):
    """Clones from the layers of a copy, and leaves out the marks that are in them."""

    seals = False

    def __init__(self, layers: Layered, source_fd: int, tree_fd: int, umask: int) -> None:
        super().__init__(source_fd, tree_fd, umask)
        self._layers = layers

    def open_source(self, directory: Directory) -> int:
        assert isinstance(directory, _Part)
        return self._layers.open_directory(directory.node, private=directory.private)

    def finish(self, directory: Directory) -> None:
        assert isinstance(directory, _Part)
        if directory.private or not directory.in_parts:
            super().finish(directory)


def commit(
    store: Store,
    name: str,
    destination: str,
    *,
    warn: Callable[[str], None],
    progress: Progress | None,
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Make a plain directory of what a copy shows. CowfsError.

    `warn`, `progress` and `interruptible` as in `clone.clone`.
    """
    _require_outside(store, destination)
    _require_same_volume(store, name, destination)
    mountpoint = sides.mounted_at(store, name)
    if mountpoint is not None:
        clone.clone(
            mountpoint,
            destination,
            reflink="always",
            links="keep",
            warn=warn,
            progress=progress,
            interruptible=interruptible,
            doing=_DOING,
        )
        return
    with (
        store.taken(name),
        sides.told(name),
        sides.opened(store, name) as side,
        _staged(store, name, destination) as place,
    ):
        with interruptible():
            place.empty()
            _fill(side, place, warn, progress)
        place.publish()


def commit_layer(
    store: Store,
    name: str,
    file: str,
    *,
    warn: Callable[[str], None],
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> layer.Written:
    """Write what a copy has changed as a layer of an OCI image, uncompressed. CowfsError."""
    _require_outside(store, file)
    mounted = sides.mounted_at(store, name) is not None
    with contextlib.ExitStack() as stack:
        if not mounted:
            stack.enter_context(store.taken(name))
        stack.enter_context(sides.told(name))
        side = stack.enter_context(sides.opened(store, name))
        place = stack.enter_context(_staged(store, name, file))
        with interruptible():
            place.empty()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(_LAYER, flags, 0o644, dir_fd=place.fd)
            try:
                written = layer.write(side.lower, side.tree, fd)
            finally:
                os.close(fd)
        place.publish(_LAYER)
    for path in written.sockets:
        warn(f"left out of the layer: the socket {path}, which belongs to a running program")
    return written


@contextmanager
def _staged(store: Store, name: str, destination: str) -> Iterator[Staging]:
    """The hidden directory beside a destination, which is gone afterwards. CowfsError."""
    try:
        with Staging(destination, _DOING, "/nowhere") as place:
            try:
                yield place
            finally:
                place.discard()
    except SourceChanged as change:
        raise CowfsError(
            f"{change.path} in the copy {name} was changed while it was copied: stop what writes "
            "to it, and try again"
        ) from None
    except OSError as error:
        if error.errno in CHANGED:  # of a copy that is in use
            raise CowfsError(
                f"the copy {name} was changed while it was copied{sides.where(error)}: try again"
            ) from None
        if error.errno in (errno.EXDEV, errno.EOPNOTSUPP):
            raise _elsewhere(store, name, destination) from None
        raise origin.failure(f"{name}:", destination, error) from None


def _fill(
    side: sides.Side, place: Staging, warn: Callable[[str], None], progress: Progress | None
) -> None:
    tree = side.tree
    found = _scan(tree)
    os.mkdir(staging.TREE, 0o700, dir_fd=place.fd)
    tree_fd = os.open(staging.TREE, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place.fd)
    source_fd = tree.open_directory(tree.root, private=True)
    try:

        @contextmanager
        def worker(umask: int) -> Iterator[Callable[[Chunk], None]]:
            with closing(_LayerCloner(tree, source_fd, tree_fd, umask)) as cloner:
                yield cloner.clone_chunk

        def clone_all(pieces: list[Chunk], done: Callable[[Chunk], None]) -> None:
            count = workers.worth_starting(sum(piece.work() for piece in pieces))
            workers.do_all(count, worker, pieces, done, workers.cost_of)

        with closing(_LayerCloner(tree, source_fd, tree_fd, 0o777)) as cloner:
            cloning.fill(cloner, found, progress, clone_all)
    finally:
        os.close(source_fd)
        os.close(tree_fd)
    warn_of_left_out(f"the copy {side.record.name}", found, warn)


def _scan(tree: Layered) -> Scan:
    """What there is to clone, sorted by the layer that has it. OSError."""
    found = Scan()
    linked: dict[tuple[int, int], list[tuple[Place, Node]]] = {}
    pending: list[tuple[Node, Directory | None]] = [(tree.root, None)]
    while pending:
        node, parent = pending.pop()
        whole = _Part(node, parent, private=node.private)
        shared = whole
        found.directories.append(whole)
        if node.private and node.lower is not None:
            shared = _Part(node, parent, private=False)
            whole.in_parts = shared.in_parts = True
            found.directories.append(shared)
        for child in children(tree, node):
            name = os.fsdecode(child.name)
            part = whole if child.private else shared
            if child.is_directory:
                whole.subdirectories.append(name)
                pending.append((child, whole))
            elif child.kind == stat.S_IFSOCK:
                found.sockets.append(Place(part, name))
            elif child.st.st_nlink > 1:
                file = child.st.st_dev, child.st.st_ino
                linked.setdefault(file, []).append((Place(part, name), child))
            else:
                _add(found, part, name, child)
    for places in linked.values():
        if len(places) > 1:
            found.links.append([place for place, _ in places])
        else:
            [(place, child)] = places
            assert isinstance(place.directory, _Part)
            _add(found, place.directory, place.name, child)
    return found


def _add(found: Scan, part: _Part, name: str, node: Node) -> None:
    if node.kind == stat.S_IFREG:
        part.files.append(name)
        found.bytes += node.st.st_size
    else:
        part.special.append(name)


def _require_outside(store: Store, path: str) -> None:
    parent = os.path.realpath(os.path.dirname(os.path.join(os.getcwd(), path)))
    if store.contains(parent):
        raise UsageError(f"{path} is in the store {store.path}: name a path outside of it")


def _require_same_volume(store: Store, name: str, destination: str) -> None:
    parent = os.path.dirname(os.path.join(os.getcwd(), destination))
    if directories.volume_of(parent) != directories.volume_of(store.path):
        raise _elsewhere(store, name, destination)


def _elsewhere(store: Store, name: str, destination: str) -> UsageError:
    return UsageError(
        f"{destination} is on another volume than the copy {name}, and clones cannot cross them: "
        f"name a path on {directories.volume_of(store.path)}"
    )
