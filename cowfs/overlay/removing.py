"""Names that go, with a whiteout in their place if the template has them."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowfs.overlay.inodes import Directory
from cowfs.overlay.looking import lookup
from cowfs.overlay.namespace import alone, failure
from cowfs.overlay.parents import ensure_upper
from cowfs.system import ondisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay.inodes import Node
    from cowfs.overlay.namespace import Namespace


@alone
def unlink(namespace: Namespace, parent: Directory, name: bytes) -> Node:
    """unlink(2); the file of a group of hard links must be in the upper layer already.

    Gives the node, which lives on for those who have it open.  Errors: ENOENT, EISDIR.
    """
    node, _st = lookup(namespace, parent, name)
    if isinstance(node, Directory):
        raise failure(errno.EISDIR)
    with departing(namespace, node, parent, name):
        ensure_upper(namespace, parent)
        if namespace.layers.lower_entry(parent, name) is None:
            os.unlink(name, dir_fd=namespace.layers.upper(parent))
        else:
            _cover(namespace, parent, name)
    namespace.listings.removed(parent, name, is_directory=False)
    return node


@alone
def rmdir(namespace: Namespace, parent: Directory, name: bytes) -> None:
    """rmdir(2).  Errors: ENOENT, ENOTDIR, ENOTEMPTY."""
    node, _st = lookup(namespace, parent, name)
    if not isinstance(node, Directory):
        raise failure(errno.ENOTDIR)
    if not namespace.listings.of(node).is_empty():
        raise failure(errno.ENOTEMPTY)
    layers = namespace.layers
    taken = None
    with departing(namespace, node, parent, name):
        ensure_upper(namespace, parent)
        parent_fd = layers.upper(parent)
        covers = layers.lower_entry(parent, name) is not None
        if node.upper:
            taken = _take_out(namespace, parent_fd, name, covers=covers)
        else:
            ondisk.make_whiteout(parent_fd, name)
    layers.close_directory(node)
    node.lower_path = None
    namespace.listings.drop(node)
    namespace.listings.removed(parent, name, is_directory=True)
    if taken is not None:
        namespace.work.take_apart(taken)


def _take_out(namespace: Namespace, parent_fd: int, name: bytes, *, covers: bool) -> bytes:
    """Move a directory to work/ in one step, since it may be full of whiteouts, with a whiteout
    in its place if it covers one of the template; gives its name there."""
    with namespace.work.temporary() as temporary:
        if covers:
            ondisk.make_whiteout(temporary.dir_fd, temporary.name)
            temporary.exchange(parent_fd, name)
        else:
            temporary.take(parent_fd, name)
        return temporary.keep()


def _cover(namespace: Namespace, parent: Directory, name: bytes) -> None:
    """Put a whiteout in the place of *name*, over a file of the upper layer if there is one."""
    layers = namespace.layers
    parent_fd = layers.upper(parent)
    if layers.upper_entry(parent, name) is None:
        ondisk.make_whiteout(parent_fd, name)
        return
    with namespace.work.temporary() as temporary:
        ondisk.make_whiteout(temporary.dir_fd, temporary.name)
        temporary.move_to(parent_fd, name)


@contextmanager
def departing(namespace: Namespace, node: Node, parent: Directory, name: bytes) -> Iterator[None]:
    """Keep a node reachable that is about to lose a name; undone when the change fails."""
    if node.parent is not parent or node.name != name:
        yield
        return
    was_held = node.held_fd >= 0
    namespace.layers.hold(node)
    try:
        yield
    except BaseException:
        if not was_held:
            namespace.layers.release(node)
        raise
    node.displace()
