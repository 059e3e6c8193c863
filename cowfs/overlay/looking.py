"""What a name leads to: names become nodes, and nodes leave the table."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from cowfs.overlay.attributes import get_attributes
from cowfs.overlay.groups import take_back
from cowfs.overlay.inodes import Directory, LowerPath, Node
from cowfs.overlay.namespace import NAME_MAX, failure
from cowfs.overlay.upper import classify_upper
from cowfs.system import ondisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay.namespace import Namespace


def lookup(namespace: Namespace, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
    """The node of a name and its lstat (of the layer: st_ino is not the one to show).

    The node is in the table afterwards, with no lookup counted.  Errors: ENOENT, ENAMETOOLONG.
    """
    if len(name) > NAME_MAX:
        raise failure(errno.ENAMETOOLONG)
    if namespace.unfinished:
        take_back(namespace)
    layers = namespace.layers
    if parent.upper:
        st = layers.upper_entry(parent, name)
        if st is not None:
            kind = ondisk.kind_of(st)
            is_directory = kind == stat.S_IFDIR
            parent_path = parent.template_path if is_directory else None
            where = ondisk.proc_path(parent.upper_fd, name)  # it was opened just now
            found = classify_upper(layers, where, name, kind, st.st_ino, parent_path)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            ino, template_path, is_damaged = found
            # Else it is one of several names that are not all there yet.
            if ino not in namespace.rising:
                if is_directory:
                    node = _upper_directory(namespace, parent, name, st, ino, template_path)
                    return node, get_attributes(namespace, node)
                if is_damaged:
                    namespace.tell_damaged(ondisk.INO, parent, name)
                return _upper_file(namespace, parent, name, st, ino), st
    st = layers.lower_entry(parent, name)
    if st is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return _lower_node(namespace, parent, name, st), st


def _lower_node(namespace: Namespace, parent: Directory, name: bytes, st: os.stat_result) -> Node:
    node = namespace.nodes.by_ino(st.st_ino)
    lower_path = None
    if stat.S_ISDIR(st.st_mode):
        assert parent.lower_path is not None
        lower_path = LowerPath(parent.lower_path, name)
    if node is not None and isinstance(node, Directory) != (lower_path is not None):
        raise failure(errno.EIO)  # a file of the upper layer has its number, by a damaged mark
    if node is None:
        node = Node(st.st_ino) if lower_path is None else Directory(st.st_ino, lower_path)
        namespace.nodes.add(node)
    note_name(namespace, node, parent, name, lower_path)
    return node


def _upper_directory(
    namespace: Namespace,
    parent: Directory,
    name: bytes,
    st: os.stat_result,
    ino: int,
    template_path: bytes | None,
) -> Node:
    lower_path = None
    if template_path is not None:
        at_home = template_path == parent.template_path_of(name)
        lower_path = (
            LowerPath(parent.lower_path, name) if at_home else LowerPath(None, template_path)
        )
    node = namespace.nodes.by_ino(ino)
    moves = isinstance(node, Directory) and node.parent is not parent
    if moves and _is_within(parent, node):
        namespace.tell_damaged(ondisk.REDIRECT, parent, name)
        ino, lower_path = st.st_ino, None
        node = namespace.nodes.by_ino(ino)
    if node is None:
        node = Directory(ino, lower_path)
        namespace.nodes.add(node)
    node.upper = True
    note_name(namespace, node, parent, name, lower_path)
    return node


def _upper_file(
    namespace: Namespace, parent: Directory, name: bytes, st: os.stat_result, ino: int
) -> Node:
    node = namespace.nodes.by_ino(ino)
    if isinstance(node, Directory):
        namespace.tell_damaged(ondisk.INO, parent, name)
        ino = st.st_ino
        node = namespace.nodes.by_ino(ino)
    if node is None:
        node = Node(ino)
        namespace.nodes.add(node)
    node.upper = True
    note_name(namespace, node, parent, name, None)
    return node


def note_name(
    namespace: Namespace, node: Node, parent: Directory, name: bytes, lower_path: LowerPath | None
) -> None:
    """A name was found that leads to the node; *lower_path* is what a directory is merged with.

    The node may have been taken for one without a name: its removal was about to be done when
    an earlier daemon ended.
    """
    node.place(parent, name)
    if node.held_fd >= 0:
        if isinstance(node, Directory):
            node.lower_path = lower_path
        namespace.layers.release(node)


def forget(namespace: Namespace, nodeid: int, count: int) -> list[int]:
    """Take back lookups; gives the node ids that are not in the table any more."""
    if nodeid not in namespace.nodes:
        return [nodeid]  # of an earlier daemon, and nobody has asked for it since
    return _dropped(namespace, namespace.nodes.forget(nodeid, count))


def prune(namespace: Namespace, node: Node) -> None:
    """Drop a node that was looked up for our own purposes only."""
    _dropped(namespace, namespace.nodes.prune(node))


def _dropped(namespace: Namespace, nodes: Iterator[Node]) -> list[int]:
    dropped = []
    for node in nodes:
        namespace.layers.close_node(node)
        if isinstance(node, Directory):
            namespace.layers.close_directory(node)
            namespace.listings.drop(node)
        dropped.append(node.nodeid)
    return dropped


def _is_within(directory: Directory, other: Node | None) -> bool:
    """Whether a directory is another one, or is reached through it."""
    step: Directory | None = directory
    while step is not None and step is not other:
        step = step.parent
    return step is not None
