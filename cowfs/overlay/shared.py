"""Whether a file has the template's data still, and where these are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cowfs.system import ondisk

if TYPE_CHECKING:
    from cowfs.overlay.inodes import Node
    from cowfs.overlay.namespace import Namespace


def shared_path(namespace: Namespace, node: Node) -> bytes | None:
    """Where the template has the file that has the node's data; None: they are its own.

    Of a file of the upper layer it has them as long as its attributes alone were changed.
    """
    if not node.upper:
        assert node.parent is not None
        return node.parent.template_path_of(node.name)
    if node.written:
        return None
    noted = ondisk.get_shared_data(namespace.layers.path(node))
    st = namespace.layers.stat(node)
    if noted is not None and noted[0] == st.st_mtime_ns:
        lower_st = namespace.layers.lower_stat(noted[1])
        here = (node.nodeid, st.st_size)
        # Else it is of another template, in a store that was restored from a backup.
        if lower_st is not None and (lower_st.st_ino, lower_st.st_size) == here:
            return noted[1]
    node.written = True
    return None


def open_shared(namespace: Namespace, node: Node) -> int | None:
    """Open the template's file that has the node's data, for reading; None: there is none.

    OSError of open(2).
    """
    if not node.upper:
        return namespace.layers.open(node, os.O_RDONLY)  # it may have lost its name
    path = shared_path(namespace, node)
    if path is None:
        return None
    return namespace.layers.open_lower(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)


def mark_written(namespace: Namespace, node: Node) -> None:
    """Before the first change of the data of a file of the upper layer.  OSError: ENOSPC."""
    if not node.written:
        ondisk.remove_shared_data(namespace.layers.path(node))
        node.written = True
