"""All names of a file at once: the hard links of one that is copied up."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from cowfs.overlay.namespace import UnfinishedGroup, alone
from cowfs.overlay.parents import ensure_upper, keeping_times
from cowfs.system import ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.overlay.inodes import Directory, Node
    from cowfs.overlay.namespace import Namespace
    from cowfs.overlay.pieces import Pieces

# Names that a file is given in one piece of work: about a millisecond.
LINKED = 16


def link_all(
    namespace: Namespace, node: Node, fd: int, names: Sequence[tuple[Directory, bytes]]
) -> Pieces[None]:
    """Link the file *fd*, which is to be the node's, into the upper layer under each name, or
    under none.

    A crash in between would leave two files where there was one; the link in work/ says that
    the names are to be taken back (`copies.recover`).  So the removal of that link is what
    makes them last: as long as it has not succeeded nobody may write to the file.  Nobody sees
    some of the names meanwhile.
    """
    if namespace.unfinished:
        take_back(namespace)
    if len(names) == 1:
        _link(namespace, fd, *names[0])
    if len(names) <= 1:
        return
    group = UnfinishedGroup(namespace.work.new_name(ondisk.UNFINISHED_GROUP), [])
    namespace.rising.add(node.nodeid)
    try:
        syscalls.link_fd(fd, namespace.work.fd, group.mark)
        for parent, name in names:
            _link(namespace, fd, parent, name)
            group.names.append((parent, name))
            if len(group.names) % LINKED == 0:
                yield
        os.unlink(group.mark, dir_fd=namespace.work.fd)
    except OSError:
        for parent, _name in group.names:
            parent.lookups += 1  # it stays in the table until the name is taken back
        namespace.unfinished.append(group)
        namespace.rising.discard(node.nodeid)
        with suppress(OSError):
            take_back(namespace)
        raise
    namespace.rising.discard(node.nodeid)


@alone
def take_back(namespace: Namespace) -> None:
    """Take the names of the groups away that could not be finished.

    As long as the disk refuses that, nothing is looked up, so that nobody comes to the files.
    """
    while namespace.unfinished:
        group = namespace.unfinished[-1]
        while group.names:
            parent, name = group.names[-1]
            with keeping_times(namespace, parent) as parent_fd, suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent_fd)
            group.names.pop()
            parent.lookups -= 1
        namespace.unfinished.pop()
        namespace.work.discard(group.mark)


@alone
def _link(namespace: Namespace, fd: int, parent: Directory, name: bytes) -> None:
    ensure_upper(namespace, parent)
    with keeping_times(namespace, parent) as parent_fd:
        syscalls.link_fd(fd, parent_fd, name)
