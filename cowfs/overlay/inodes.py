"""The node table: what the kernel knows of one mount, and by which number.

A node stands for one inode of the copy, and its node id is the inode number that users see: so a
node id explains itself and survives a restart.  The root alone has another one, `ROOT_ID`.

The number is that of the template's file, copy-up or not, unless the copy has made the file: both
layers are on one filesystem, so two files never share a number.  A file that is copied up under
readers who keep the bytes that they opened becomes two files: the readers' node keeps its number,
and the node that takes over the name, its successor, shows that of the copy's own file.

The table does not know the layers: it neither opens nor names anything.  All of it belongs to the
event loop's thread; no lock guards it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trio

    from cowfs.overlay.pieces import Pieces

ROOT_ID = 1


class NotYetFound(Exception):  # noqa: N818 -- nothing went wrong
    """A node of an earlier daemon, which has to be looked for before it is asked for again.

    `search` is the work, which says whether it was found.
    """

    def __init__(self, search: Pieces[bool]) -> None:
        super().__init__()
        self.search = search


class Node:
    """One inode of the copy that is no directory."""

    __slots__ = (
        "held_as",
        "held_fd",
        "lock",
        "lookups",
        "name",
        "nodeid",
        "origin",
        "parent",
        "predecessor",
        "primed",
        "successor",
        "upper",
        "written",
    )

    def __init__(self, nodeid: int) -> None:
        self.nodeid = nodeid
        # Where it can be reached: one of its names.  None: no known name is left.
        self.parent: Directory | None = None
        self.name = b""
        # Whether the copy has a file of its own for it; else it is shared with the template.
        self.upper = False
        # Of a regular file: known to have data of its own, for ever.  False says nothing: a file
        # of the upper layer whose attributes alone were changed has the template's data, and a mark
        # on the disk says which (`Overlay.open_shared`).
        self.written = False
        # A descriptor (O_PATH will do), once no name leads to it any more; else -1.  `Layers` alone
        # sets and closes it, as it does with what the vault has of it, under the name `held_as`.
        self.held_fd = -1
        self.held_as = ""
        # How many lookups the kernel has not taken back by FORGET.
        self.lookups = 0
        # Guards what spans an await: the way from shared to private, and the choice of a backing.
        # Made by the first handler that needs it.
        self.lock: trio.Lock | None = None
        # Of a replaced node: what the template's file looks like, which its readers have open.
        self.origin: os.stat_result | None = None
        # One of its lookups may still lie in the channel, as an answer to a LOOKUP to come.
        self.primed = False
        # The node that has taken over its name.  It stays in the table as long as this one, which
        # is its predecessor.  `NodeTable` alone sets both.
        self.successor: Node | None = None
        self.predecessor: Node | None = None

    @property
    def is_root(self) -> bool:
        return self.nodeid == ROOT_ID

    @property
    def is_unlinked(self) -> bool:
        """Whether no known name leads to it: the last one was removed, or it never had one."""
        return self.parent is None and self.nodeid != ROOT_ID

    @property
    def replaced(self) -> bool:
        """Whether another node has taken over its name."""
        return self.successor is not None

    def place(self, parent: Directory, name: bytes) -> None:
        """Make (*parent*, *name*) the name by which the node is reached."""
        if self.parent is not parent:
            if self.parent is not None:
                self.parent.children -= 1
            parent.children += 1
            self.parent = parent
        self.name = name

    def displace(self) -> None:
        """Forget the name: it was removed, or now belongs to another node."""
        if self.parent is not None:
            self.parent.children -= 1
            self.parent = None


class LowerPath:
    """Where a directory is inside the template's tree.

    It is made of a name and the path above, which others share: a deep tree costs no more than its
    names do.
    """

    __slots__ = ("above", "name")

    def __init__(self, above: LowerPath | None, name: bytes) -> None:
        self.above = above
        self.name = name

    def __bytes__(self) -> bytes:
        """The path, b"" for the root."""
        names = []
        step: LowerPath | None = self
        while step is not None:
            if step.name:
                names.append(step.name)
            step = step.above
        return b"/".join(reversed(names))


class Directory(Node):
    """A directory of the copy: of the template, of the upper layer, or merged of both."""

    __slots__ = ("asked", "children", "lower_fd", "lower_path", "touched", "upper_fd")

    def __init__(self, nodeid: int, lower_path: LowerPath | None) -> None:
        super().__init__(nodeid)
        # Its place in the template, wherever it may have been moved to; None when nothing of the
        # template shows through.
        self.lower_path = lower_path
        # O_PATH descriptors of the two layers' directories, opened and closed by `Layers`; or -1.
        self.upper_fd = -1
        self.lower_fd = -1
        # How many nodes of the table are reached through it: it stays in the table as long.
        self.children = 0
        # How many of its names were looked up one by one.
        self.asked = 0
        # How many files in it had their mode or owner changed, and not by the channel.
        self.touched = 0

    @property
    def template_path(self) -> bytes | None:
        """`lower_path` as bytes, made anew each time."""
        return None if self.lower_path is None else bytes(self.lower_path)

    def template_path_of(self, name: bytes) -> bytes | None:
        """Where the template would have what is shared with it under *name*."""
        return None if self.lower_path is None else bytes(LowerPath(self.lower_path, name))


class NodeTable:
    """All nodes that the kernel holds, by node id."""

    def __init__(self, root: Directory, root_ino: int) -> None:
        self.root = root
        self.root_ino = root_ino
        root.lookups = 1  # the kernel never looks the root up, and never forgets it
        self._nodes: dict[int, Node] = {ROOT_ID: root}
        # After a take-over: finds and enters a node that the kernel got from an earlier daemon, or
        # raises NotYetFound.
        self.missing: Callable[[int], Node] | None = None

    def __contains__(self, nodeid: int) -> bool:
        return nodeid in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, nodeid: int) -> Node:
        """A node that the kernel holds; OSError(ESTALE) for one that was forgotten; NotYetFound.

        A handler asks for it before it changes anything, since it may have to begin anew.
        """
        node = self._nodes.get(nodeid)
        if node is None and self.missing is not None:
            node = self.missing(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if node.lookups == 0:
            node.lookups = 1  # of an earlier daemon, at least: it stays until its FORGET
        return node

    def directory(self, nodeid: int) -> Directory:
        """The same for a directory; OSError(ENOTDIR) for anything else."""
        node = self.get(nodeid)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def by_ino(self, ino: int) -> Node | None:
        """The node of inode number *ino*, if it is in the table."""
        return self._nodes.get(ino)

    def add(self, node: Node) -> None:
        """Enter a node whose number is not in the table."""
        assert node.nodeid not in self._nodes, f"two nodes {node.nodeid}"
        self._nodes[node.nodeid] = node

    def restore(self, node: Node) -> None:
        """Enter a node that an earlier daemon has had under this very node id."""
        node.lookups = 1  # how many they are, nobody knows any more
        self._nodes[node.nodeid] = node

    def restore_replaced(self, old: Node, new: Node) -> None:
        """The same for both halves of a file that was copied up under its readers."""
        self._link(old, new)
        self.restore(new)
        self.restore(old)

    @staticmethod
    def _link(old: Node, new: Node) -> None:
        """From now on the one is the other's successor, until `prune` drops the first one."""
        old.successor, new.predecessor = new, old

    def replace(self, old: Node, new: Node) -> None:
        """*new* takes over the name of *old*, a file that was copied up under its readers."""
        self._link(old, new)
        self.add(new)
        if old.parent is not None:
            new.place(old.parent, old.name)
            old.displace()

    def forget(self, nodeid: int, count: int) -> Iterator[Node]:
        """Take back *count* lookups; yields every node that is dropped by it.

        A count that is too high (a lookup was lost with a daemon) is harmless.
        """
        node = self._nodes.get(nodeid)
        if node is None or node is self.root:
            return
        node.lookups = max(0, node.lookups - count)
        yield from self.prune(node)

    def prune(self, node: Node) -> Iterator[Node]:
        """Drop *node*, and its parents after it, as far as nobody needs them any more."""
        step: Node | None = node
        while step is not None and step.lookups == 0 and step is not self.root:
            if step.predecessor is not None or (isinstance(step, Directory) and step.children):
                return
            parent = step.parent
            step.displace()
            self._nodes.pop(step.nodeid, None)
            yield step
            if step.successor is not None:
                step.successor.predecessor = None
                yield from self.prune(step.successor)
            step = parent
