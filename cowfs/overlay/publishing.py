"""Copy-up of what is no directory: from the file in the template to its names in the upper layer.

How a file is made that is like another one is the subject of `copyup.py`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cowfs.overlay import copyup
from cowfs.overlay.groups import link_all
from cowfs.overlay.parents import copy_up_unlinked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.overlay.inodes import Directory, Node
    from cowfs.overlay.namespace import Namespace
    from cowfs.overlay.pieces import Pieces


def begin_copy_up(
    namespace: Namespace, node: Node, *, keep_data: bool, to_write: bool
) -> tuple[copyup.RegularCopyUp, int]:
    """Start the copy-up of a shared regular file.

    Gives the copy-up, whose `clone` is to be called next (in a thread if it is not quick), and
    the descriptor of the source, to be closed when it is done.  Unless it is made *to_write*
    to, the file is marked to be read from the template for as long as nobody does.
    """
    shared_path = None
    if not to_write and node.parent is not None:
        shared_path = node.parent.template_path_of(node.name)
    source = namespace.layers.open(node, os.O_RDONLY)
    try:
        copy_up = copyup.RegularCopyUp(
            source,
            namespace.work.fd,
            node.nodeid,
            keep_data=keep_data,
            shared_path=shared_path,
        )
    except BaseException:
        os.close(source)
        raise
    return copy_up, source


def publish(
    namespace: Namespace,
    node: Node,
    copy_up: copyup.RegularCopyUp,
    names: Sequence[tuple[Directory, bytes]],
) -> Pieces[None]:
    """Put a finished clone under every visible name of its node (`LinkGroups.names_of`).

    On an error no name has it.  A node that lost its last name meanwhile lives on in the
    unnamed file.
    """
    yield from link_all(namespace, node, copy_up.fd, names)
    if node.held_fd >= 0 or node.is_unlinked:
        namespace.layers.hold_by(node, os.dup(copy_up.fd), upper=True)
    node.upper = True
    node.written = copy_up.shared_path is None


def copy_up_special(
    namespace: Namespace, node: Node, names: Sequence[tuple[Directory, bytes]]
) -> Pieces[None]:
    """Copy-up of a symbolic link, fifo, socket or device, which gets each of its names."""
    if node.upper:
        return
    if node.parent is None:
        copy_up_unlinked(namespace, node)
        return
    lower_fd = namespace.layers.lower(node.parent)
    with namespace.work.temporary() as temporary:
        copyup.copy_up_special(lower_fd, node.name, temporary.dir_fd, temporary.name, node.nodeid)
        fd = temporary.open()
        try:
            yield from link_all(namespace, node, fd, names)
        finally:
            os.close(fd)
    node.upper = True
