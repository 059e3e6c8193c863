"""A file that was copied up under its readers becomes two nodes: the readers keep theirs, and a
new one has the names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cowfs.overlay.inodes import Node
from cowfs.system import ondisk

if TYPE_CHECKING:
    from cowfs.overlay.namespace import Namespace


def hand_over(namespace: Namespace, node: Node, readers_fd: int) -> None:
    """Let a new node stand for the file of *node*, which was copied up under its readers.

    *readers_fd* is the file that these have open.  All names of the file lead to the new node
    from now on.  It shows the number of the copy's own file: taking the mark of the other one
    away is the step by which a daemon to come sees that the node was replaced.
    """
    origin = os.fstat(readers_fd)
    layers = namespace.layers
    fd = layers.open_path(node)
    try:
        successor = Node(os.fstat(fd).st_ino)
        successor.upper, successor.written = True, node.written
        layers.keep_replaced(node, successor, readers_fd, fd)
        try:
            ondisk.remove_ino(ondisk.proc_path(fd))
        except BaseException:
            layers.drop_replaced(node, successor)
            raise
        node.origin = origin
        namespace.nodes.replace(node, successor)
        layers.pass_on(node, successor)
    finally:
        os.close(fd)
