"""Trees as they are shown: a template, a copy as its two layers make it, a source as it is now.

A node is an entry of such a tree. The layers are read as docs/on-disk-format.md describes them: a
damaged mark counts as no mark. What a copy has not changed is known by its path in the template, so
two trees of one template need not be compared where neither has anything of its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from cowfs.system import directories, ondisk, syscalls
from cowfs.trees.scan import Directory, Scan, Scanner
from cowfs.trees.treewalk import Tree

_LOWER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KEPT = 64  # descriptors


class Node:
    """An entry. private: the copy has one of its own. lower: which of the template's it is, or, of
    a private directory, is merged with. stands_in: for what another mount hides in a source."""

    __slots__ = ("directory", "lower", "name", "parent", "private", "st", "stands_in")

    def __init__(
        self,
        name: bytes,
        parent: Node | None,
        st: os.stat_result,
        *,
        private: bool = False,
        lower: bytes | None = None,
    ) -> None:
        self.name = name
        self.parent = parent
        self.st = st
        self.private = private
        self.lower = lower
        self.stands_in = False
        self.directory: Directory | None = None  # of a source

    @property
    def kind(self) -> int:
        """S_IFMT of its mode."""
        return stat.S_IFMT(self.st.st_mode)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def path(self) -> bytes:
        """Below the root, which is b""."""
        names = []
        step: Node = self
        while step.parent is not None:
            names.append(step.name)
            step = step.parent
        return b"/".join(reversed(names))


class Shown(Protocol):
    """A tree. base: the id of the template that `lower` is in, empty when there is none. sync: its
    files may be written meanwhile."""

    base: str
    sync: bool

    @property
    def root(self) -> Node: ...

    def names(self, node: Node) -> set[bytes]:
        """What a directory shows, and perhaps names that show nothing. OSError."""

    def private_names(self, node: Node) -> set[bytes]:
        """Those that may differ from the template's. OSError."""

    def child(self, node: Node, name: bytes) -> Node | None:
        """An entry of a directory. OSError."""

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """The extended attributes that users see. OSError."""

    def ino(self, node: Node) -> int:
        """What the file is known by, whatever its name is. OSError."""

    def target(self, node: Node) -> bytes:
        """Where a symlink leads. OSError."""

    def open(self, node: Node) -> int:
        """A regular file, for the caller to close. OSError."""


def children(tree: Shown, node: Node) -> Iterator[Node]:
    """All entries of a directory, by name. OSError."""
    for name in sorted(tree.names(node)):
        found = tree.child(node, name)
        if found is not None:
            yield found


def find(tree: Shown, path: bytes) -> Node | None:
    """What is there under a path; b"" is the root. OSError."""
    node: Node | None = tree.root
    for name in path.split(b"/") if path else []:
        if node is None or not node.is_directory:
            return None
        node = tree.child(node, name)
    return node


class Layered:
    """A template, or a copy of it. The descriptors stay the caller's; `close` ends it.

    unfinished: inode numbers of files in the upper layer that count as not there yet
    (`copies.unfinished`).
    """

    def __init__(
        self,
        base: str,
        lower_fd: int,
        upper_fd: int | None = None,
        unfinished: frozenset[int] = frozenset(),
    ) -> None:
        self.base = base
        self.sync = upper_fd is not None
        self._lower_fd = lower_fd
        self._upper = None if upper_fd is None else Tree(upper_fd)
        self._unfinished = unfinished
        self._lowers: OrderedDict[bytes, int] = OrderedDict()
        st = os.fstat(lower_fd if upper_fd is None else upper_fd)
        self._root = Node(b"", None, st, private=upper_fd is not None, lower=b"")

    def close(self) -> None:
        """Close what was opened."""
        if self._upper is not None:
            self._upper.close()
        for fd in self._lowers.values():
            os.close(fd)
        self._lowers.clear()

    @property
    def root(self) -> Node:
        return self._root

    def names(self, node: Node) -> set[bytes]:
        found = self.private_names(node)
        if node.lower is not None:
            found.update(map(os.fsencode, directories.names(self._lower(node.lower))))
        return found

    def private_names(self, node: Node) -> set[bytes]:
        if not node.private:
            return set()
        return set(map(os.fsencode, directories.names(self.upper(node))))

    def child(self, node: Node, name: bytes) -> Node | None:
        if node.private:
            fd = self.upper(node)
            with contextlib.suppress(FileNotFoundError):
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(st.st_mode) or st.st_ino not in self._unfinished:
                    return self._private(node, name, fd, st)
        if node.lower is None:
            return None
        try:
            st = os.stat(name, dir_fd=self._lower(node.lower), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Node(name, node, st, lower=_joined(node.lower, name))

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        return _xattrs(self._where(node))

    def _where(self, node: Node) -> bytes:
        return ondisk.proc_path(*self._at(node))

    def ino(self, node: Node) -> int:
        if node.private and not node.is_directory:
            return ondisk.shown_ino(self._where(node), node.st.st_ino)
        return node.st.st_ino

    def target(self, node: Node) -> bytes:
        fd, name = self._at(node)
        return os.readlink(name, dir_fd=fd)

    def open(self, node: Node) -> int:
        fd, name = self._at(node)
        return os.open(name, _FILE, dir_fd=fd)

    def open_directory(self, node: Node, *, private: bool) -> int:
        """One of the layers' directories of a node, for the caller to close. OSError."""
        found = self.upper(node) if private else self._lower(node.lower or b"")
        return os.open(b".", _LOWER, dir_fd=found)

    def upper(self, node: Node) -> int:
        """The upper layer's directory of a private one, good for the next few calls. OSError."""
        assert self._upper is not None
        return self._upper.open(node)

    def _private(self, node: Node, name: bytes, fd: int, st: os.stat_result) -> Node | None:
        kind = ondisk.kind_of(st)
        if kind == ondisk.WHITEOUT:
            return None
        lower = None
        if kind == stat.S_IFDIR:
            path = ondisk.template_path(ondisk.proc_path(fd, name), name, node.lower)
            if path and b"\0" not in path:
                with contextlib.suppress(OSError):  # leads nowhere: nothing shows through
                    self._lower(path)
                    lower = path
        return Node(name, node, st, private=True, lower=lower)

    def _at(self, node: Node) -> tuple[int, bytes]:
        if node.parent is None:
            return (self.upper(node) if node.private else self._lower_fd), b"."
        if node.private:
            return self.upper(node.parent), node.name
        assert node.lower is not None
        directory, _, name = node.lower.rpartition(b"/")
        return self._lower(directory), name

    def _lower(self, path: bytes) -> int:
        if not path:
            return self._lower_fd
        fd = self._lowers.get(path)
        if fd is None:
            fd = self._lowers[path] = syscalls.open_below(self._lower_fd, path, _LOWER)
            if len(self._lowers) > _KEPT:
                os.close(self._lowers.popitem(last=False)[1])
        else:
            self._lowers.move_to_end(path)
        return fd


class Live:
    """A source as it is now, as far as a template would have it. The scanner stays the caller's."""

    base = ""
    sync = True

    def __init__(self, scanner: Scanner, found: Scan) -> None:
        self._links = scanner.links
        self._tree = Tree(scanner.fd, syscalls.RESOLVE_NO_XDEV)
        self._linked: dict[Directory, set[bytes]] = {}
        for places in found.links:
            for place in places:
                self._linked.setdefault(place.directory, set()).add(os.fsencode(place.name))
        self._below = {
            (directory.parent, os.fsencode(directory.name)): directory
            for directory in found.directories
            if directory.parent is not None
        }
        self._root = Node(b"", None, os.fstat(scanner.fd))
        self._root.directory = found.directories[0]
        self._last: tuple[Directory, set[bytes]] | None = None  # the last one asked for

    def close(self) -> None:
        """Close what was opened."""
        self._tree.close()

    @property
    def root(self) -> Node:
        return self._root

    def names(self, node: Node) -> set[bytes]:
        directory = _directory(node)
        found = {*directory.files, *directory.special, *directory.subdirectories}
        found.update(name for name, _ in directory.mounted)
        return set(map(os.fsencode, found)) | self._linked.get(directory, set())

    def private_names(self, node: Node) -> set[bytes]:
        return self.names(node)

    def child(self, node: Node, name: bytes) -> Node | None:
        directory = _directory(node)
        if self._last is None or self._last[0] is not directory:
            self._last = directory, self.names(node)
        if name not in self._last[1]:
            return None
        fd = self._tree.open(directory)
        text = os.fsdecode(name)
        if text in directory.followed:
            with self._followed(directory, text) as behind:
                return Node(name, node, os.fstat(behind))
        found = Node(name, node, os.stat(name, dir_fd=fd, follow_symlinks=False))
        found.directory = self._below.get((directory, name))
        found.stands_in = any(name == os.fsencode(hidden) for hidden, _ in directory.mounted)
        return found

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        if self._is_followed(node):
            with contextlib.closing(os.fdopen(self.open(node), "rb")) as behind:
                return _xattrs(behind.fileno())
        return _xattrs(self._where(node))

    def _where(self, node: Node) -> bytes:
        if node.parent is None:
            return ondisk.proc_path(self._tree.open(_directory(node)))
        return ondisk.proc_path(self._tree.open(_directory(node.parent)), node.name)

    def _is_followed(self, node: Node) -> bool:
        parent = node.parent
        return parent is not None and os.fsdecode(node.name) in _directory(parent).followed

    def ino(self, node: Node) -> int:
        return node.st.st_ino

    def target(self, node: Node) -> bytes:
        return os.readlink(self._where(node))

    def open(self, node: Node) -> int:
        assert node.parent is not None
        directory = _directory(node.parent)
        if self._is_followed(node):
            with self._followed(directory, os.fsdecode(node.name)) as behind:
                return os.dup(behind)
        return os.open(node.name, _FILE, dir_fd=self._tree.open(directory))

    @contextlib.contextmanager
    def _followed(self, directory: Directory, name: str) -> Iterator[int]:
        fd = self._links.open(self._tree.open(directory), name, directory.depth)
        if fd is None:
            raise FileNotFoundError(2, os.strerror(2), directory.path_of(name))
        try:
            yield fd
        finally:
            os.close(fd)


def _directory(node: Node) -> Directory:
    assert node.directory is not None
    return node.directory


def _xattrs(where: int | bytes) -> dict[bytes, bytes]:
    return {
        name: ondisk.get_xattr(where, name)
        for name in ondisk.list_xattrs(where)
        if not ondisk.is_internal(name)
    }


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
