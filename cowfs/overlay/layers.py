"""The two directory trees of a copy, and the one place that turns a node into a descriptor.

Every access to the disk goes through an O_PATH descriptor of a directory and one name in it:
`Layers.upper` and `Layers.lower` give the descriptor, and keep a bounded number of them open, least
recently used closed first.  No path of a user is ever resolved: descriptors are opened one
component at a time without following links, or below the template with RESOLVE_BENEATH.

A call opens at most one descriptor that is kept, so one that was handed out is valid until
a dozen other ones were asked for, at least; what needs it longer, or in another thread, takes a
duplicate.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from typing import TYPE_CHECKING

from cowfs.overlay import vault
from cowfs.system import ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowfs.overlay.inodes import Directory, Node
    from cowfs.overlay.vault import Vault

# At most; and of all descriptors an eighth, as each may take one in either layer.
CACHED_DIRECTORIES = 1024
CACHED_SHARE = 16

# What openat2(2) says of a path that leads to nothing in the tree, or out of it.
_NO_SUCH_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG)

_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Layers:
    """Descriptors of one copy's template (`tree`) and `upper` directories.

    Takes over the descriptors of the two (O_PATH will do).  *kept* is told of every descriptor that
    stands for a node without a name.
    """

    def __init__(self, tree_fd: int, upper_fd: int, kept: Vault) -> None:
        self.vault = kept
        # Told the node id when a node needs no descriptor any more to be reached.
        self.on_release: Callable[[int], object] = lambda _nodeid: None
        self.tree_fd = tree_fd
        self.upper_root_fd = upper_fd
        self._cached: OrderedDict[Directory, None] = OrderedDict()
        limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = min(CACHED_DIRECTORIES, max(limit // CACHED_SHARE, 16))

    def upper(self, directory: Directory) -> int:
        """The directory's descriptor in the upper layer; OSError(ENOENT) when it has none."""
        if directory.upper_fd < 0:
            directory.upper_fd = self._open_upper(directory)
            self._remember(directory)
        self._touch(directory)
        return directory.upper_fd

    def lower(self, directory: Directory) -> int:
        """The directory's descriptor in the template; OSError(ENOENT) when it has none."""
        if directory.lower_fd < 0:
            directory.lower_fd = self._open_lower(directory)
            self._remember(directory)
        self._touch(directory)
        return directory.lower_fd

    def _open_upper(self, directory: Directory) -> int:
        """Walk down from the nearest parent that is open.

        What lies between is not kept: one call must never cost a descriptor that was handed out
        just before, however deep users nest their directories.
        """
        missing = []
        step: Directory = directory
        while step.upper_fd < 0:
            missing.append(step.name)
            if step.parent is None or not step.upper:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            step = step.parent
        return _open_down(step.upper_fd, missing)

    def _open_lower(self, directory: Directory) -> int:
        """The same, as long as the parents are in the template what they are in the copy."""
        missing = []
        step: Directory = directory
        while step.lower_fd < 0:
            path, parent = step.lower_path, step.parent
            if path is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if parent is None or path.above is None or path.above is not parent.lower_path:
                assert directory.lower_path is not None
                return self.open_lower(bytes(directory.lower_path), _OPEN_DIRECTORY)
            missing.append(path.name)
            step = parent
        return _open_down(step.lower_fd, missing)

    def open_lower(self, path: bytes, flags: int) -> int:
        """Open *path* inside the template, however long it is."""
        return syscalls.open_below(self.tree_fd, path, flags)

    def lower_stat(self, path: bytes) -> os.stat_result | None:
        """lstat of *path* inside the template; None when it leads to nothing there."""
        try:
            fd = self.open_lower(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _NO_SUCH_PATH:
                return None
            raise
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def lower_entry(self, parent: Directory, name: bytes) -> os.stat_result | None:
        """What the template has under that name, or None."""
        if parent.lower_path is None:
            return None
        try:
            return os.stat(name, dir_fd=self.lower(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def upper_entry(self, parent: Directory, name: bytes) -> os.stat_result | None:
        """What the upper layer has under that name (a whiteout is something), or None."""
        if not parent.upper:
            return None
        try:
            return os.stat(name, dir_fd=self.upper(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def path(self, node: Node) -> bytes:
        """A path in /proc that leads to the node's own inode, whichever layer has it.

        Only the last component may be a link, and must not be followed unless the node has no
        name (`follows`).
        """
        if node.held_fd >= 0:
            return ondisk.proc_path(node.held_fd)
        if node.is_root:
            return ondisk.proc_path(self.upper_root_fd)
        return ondisk.proc_path(*self.entry(node))

    @staticmethod
    def follows(node: Node) -> bool:
        """Whether `path` ends in a link of /proc, which must be followed to reach the node."""
        return node.held_fd >= 0 or node.is_root

    def stat(self, node: Node) -> os.stat_result:
        """lstat of the node in the layer that has it (st_ino is that of the layer)."""
        if node.held_fd >= 0:
            return os.fstat(node.held_fd)
        if node.is_root:
            return os.fstat(self.upper_root_fd)
        parent_fd, name = self.entry(node)
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)

    def entry(self, node: Node) -> tuple[int, bytes]:
        """Where the layer that has the node has it: its directory's descriptor, and its name there.

        OSError(ESTALE) for what has no name.
        """
        if node.parent is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return (self.upper if node.upper else self.lower)(node.parent), node.name

    def open(self, node: Node, flags: int) -> int:
        """Open the node's regular file in the layer that has it."""
        flags |= os.O_CLOEXEC | os.O_NOATIME
        if node.held_fd >= 0:
            return os.open(ondisk.proc_path(node.held_fd), flags)
        parent_fd, name = self.entry(node)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent_fd)

    def open_path(self, node: Node) -> int:
        """Open any node but the root without opening what it stands for (O_PATH)."""
        flags = os.O_PATH | os.O_CLOEXEC
        if node.held_fd >= 0:
            return os.open(ondisk.proc_path(node.held_fd), flags)
        parent_fd, name = self.entry(node)
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent_fd)

    def readlink(self, node: Node) -> bytes:
        """The target of a symbolic link."""
        if node.held_fd >= 0:
            return os.readlink(b"", dir_fd=node.held_fd)
        parent_fd, name = self.entry(node)
        return os.readlink(name, dir_fd=parent_fd)

    def hold(self, node: Node) -> None:
        """Keep the node reachable without a name; called before its name is removed."""
        if node.held_fd < 0 and node.parent is not None:
            self.hold_by(node, self.open_path(node), upper=node.upper)

    def hold_by(self, node: Node, fd: int, *, upper: bool) -> None:
        """Reach the node through *fd* from now on, which is taken over: its file in one layer."""
        held_as = vault.gone(node.nodeid, upper=upper)
        self.vault.put(held_as, fd)
        before = node.held_fd, node.held_as
        node.held_fd, node.held_as = fd, held_as
        if before[0] >= 0:
            os.close(before[0])
        if before[1] not in ("", held_as):
            self.vault.drop(before[1])

    def hold_restored(self, node: Node, fd: int, held_as: str = "") -> None:
        """Reach the node through *fd*, which an earlier daemon had and is taken over.

        *held_as* is what the vault has of it, "" if nothing.  A node that is held already, as the
        successor of a replaced one is, needs no second descriptor.
        """
        if node.held_fd < 0:
            node.held_fd = fd
        else:
            os.close(fd)
        node.held_as = held_as

    def release(self, node: Node) -> None:
        """A name leads to the node again, or it leaves the table."""
        if node.held_fd >= 0:
            os.close(node.held_fd)
            node.held_fd = -1
            self.on_release(node.nodeid)
        if node.held_as:
            self.vault.drop(node.held_as)
            node.held_as = ""

    def keep_replaced(self, node: Node, successor: Node, readers_fd: int, fd: int) -> None:
        """Keep what a daemon to come must know of a node that is about to be replaced.

        *readers_fd* is what the readers of the node have open, *fd* the file of the successor.
        """
        self.vault.put(vault.old(node.nodeid), readers_fd)
        self.vault.put(vault.successor(node.nodeid), fd)
        if node.held_fd >= 0:
            self.vault.put(vault.gone(successor.nodeid, upper=True), fd)

    def drop_replaced(self, node: Node, successor: Node) -> None:
        """It was not replaced after all, or leaves the table."""
        self.vault.drop(vault.old(node.nodeid))
        self.vault.drop(vault.successor(node.nodeid))
        if node.held_fd >= 0:
            self.vault.drop(vault.gone(successor.nodeid, upper=True))

    def pass_on(self, node: Node, successor: Node) -> None:
        """The node was replaced: what it was reached by without a name is the successor's."""
        if node.held_fd >= 0:
            successor.held_fd, node.held_fd = node.held_fd, -1
            successor.held_as = vault.gone(successor.nodeid, upper=True)
            self.release(node)

    def close_directory(self, directory: Directory) -> None:
        """Close the directory's descriptors: it was dropped, or has had its turn."""
        self._cached.pop(directory, None)
        if directory.upper_fd >= 0 and directory.upper_fd != self.upper_root_fd:
            os.close(directory.upper_fd)
            directory.upper_fd = -1
        if directory.lower_fd >= 0 and directory.lower_fd != self.tree_fd:
            os.close(directory.lower_fd)
            directory.lower_fd = -1

    def close_node(self, node: Node) -> None:
        """Close whatever is open for a node that leaves the table."""
        self.release(node)
        if node.successor is not None:
            self.drop_replaced(node, node.successor)

    def close(self, nodes: Iterator[Node]) -> None:
        """Close everything; *nodes* are all that are left in the table.

        The vault keeps what it has: another daemon may follow.
        """
        for node in nodes:
            if node.held_fd >= 0:
                os.close(node.held_fd)
                node.held_fd = -1
        for directory in list(self._cached):
            self.close_directory(directory)
        os.close(self.tree_fd)
        os.close(self.upper_root_fd)

    def _remember(self, directory: Directory) -> None:
        self._cached[directory] = None
        if len(self._cached) > self._room:
            self.close_directory(next(iter(self._cached)))

    def _touch(self, directory: Directory) -> None:
        if directory in self._cached:
            self._cached.move_to_end(directory)


def _open_down(start: int, names: list[bytes]) -> int:
    """The directory that these names lead to, the last one first; another one than *start*."""
    fd = start
    for name in reversed(names):
        try:
            child = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
        finally:
            if fd != start:
                os.close(fd)
        fd = child
    return fd
