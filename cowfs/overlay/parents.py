"""How directories come into the upper layer: before anything in them does."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowfs.overlay import copyup
from cowfs.overlay.inodes import Directory
from cowfs.overlay.namespace import alone, failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay.inodes import Node
    from cowfs.overlay.namespace import Namespace


@alone
def ensure_upper(namespace: Namespace, directory: Directory) -> None:
    """Give a directory, and before it its parents, a place in the upper layer."""
    if directory.is_unlinked and not directory.upper:
        copy_up_unlinked(namespace, directory)
        return
    missing: list[Directory] = []
    step: Directory | None = directory
    while step is not None and not step.upper:
        missing.append(step)
        step = step.parent
    if step is None:
        raise failure(errno.ENOENT)
    layers = namespace.layers
    for child in reversed(missing):
        assert child.parent is not None
        with namespace.work.temporary() as temporary:
            copyup.copy_up_directory(layers.lower(child), temporary.dir_fd, temporary.name)
            with keeping_times(namespace, child.parent) as parent_fd:
                temporary.move_to(parent_fd, child.name)
                child.upper = True


def copy_up_unlinked(namespace: Namespace, node: Node) -> None:
    """The same for what has no name any more, but is open: it may not change the template."""
    with namespace.work.temporary() as temporary:
        work_fd, name = temporary.dir_fd, temporary.name
        if isinstance(node, Directory):
            copyup.copy_up_directory(node.held_fd, work_fd, name)
        else:
            copyup.copy_up_special(node.held_fd, None, work_fd, name, node.nodeid)
        fd = temporary.open()
    namespace.layers.hold_by(node, fd, upper=True)
    node.upper = True


@contextmanager
def keeping_times(namespace: Namespace, directory: Directory) -> Iterator[int]:
    """The directory's upper descriptor; a copy-up inside is no change that users made.

    The caller is `alone`. Should the daemon be killed inside, the next one sets the times back.
    """
    fd = namespace.layers.upper(directory)
    namespace.times.keep_times(fd)
    try:
        yield fd
    finally:
        namespace.times.set_times_back(fd)
