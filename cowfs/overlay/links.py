"""Hard links of the template.

The files of one inode are one file for users too, so when it is copied up, all of its names have
to come along before anything is written.  The manifest knows the names; this file finds out which
of them are still visible, and where: directories may have been moved, names removed.

A group may have as many names as a copy has files, so they are looked for in pieces (`pieces.py`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from cowfs.overlay.inodes import Directory, Node
from cowfs.overlay.looking import lookup, prune
from cowfs.system import ondisk
from cowfs.trees.walk import walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.overlay.namespace import Namespace
    from cowfs.overlay.pieces import Pieces

Names: TypeAlias = "list[tuple[Directory, bytes]]"


# Names that are looked up, and entries that are read, in one piece: about a millisecond.
LOOKED_UP = 16
READ = 512


class LinkGroups:
    """The template's groups of names that share an inode."""

    def __init__(self, namespace: Namespace, groups: Sequence[Sequence[bytes]]) -> None:
        self._namespace = namespace
        self._group_of = {path: group for group in groups for path in group}

    def names_of(self, node: Node) -> Pieces[Names]:
        """Every visible name of a shared node, the one that it is reached by first.

        The caller sees to it that none of them goes meanwhile, and that no directory is moved, or
        does it again (`Namespace.directories_moved`).  The names are true until `let_go`, wherever
        their directories are moved to.
        """
        assert node.parent is not None
        path = self._path(node)
        names = [(node.parent, node.name)]
        node.parent.children += 1
        try:
            moved = MovedDirectories(self._namespace.layers.upper_root_fd)
            for count, other in enumerate(self._group_of.get(path, ()), 1):
                if other != path:
                    found = yield from self._visible(other, node, moved)
                    if found is not None:
                        found[0].children += 1
                        names.append(found)
                if count % LOOKED_UP == 0:
                    yield
        except BaseException:
            self.let_go(names)
            raise
        return names

    def let_go(self, names: Names) -> None:
        """What `names_of` gave is not needed any more."""
        for directory, _name in names:
            directory.children -= 1
            prune(self._namespace, directory)

    def upper_names_of(self, node: Node) -> Pieces[list[tuple[int, bytes]]]:
        """Every name of a node of the upper layer that is no directory, as (node id of the
        directory, name).

        A file with several names is looked for in the whole layer; done in pieces, again if names
        were changed meanwhile (`Namespace.names_changed`).
        """
        st = self._namespace.layers.stat(node)
        if node.parent is not None and st.st_nlink == 1:
            return [(node.parent.nodeid, node.name)]
        names: list[tuple[int, bytes]] = []
        if st.st_nlink == 0:
            return names
        for count, found in enumerate(walk(self._namespace.layers.upper_root_fd), 1):
            if found.entry.inode() == st.st_ino:
                directory = self._walk(found.directory)
                if directory is not None:
                    names.append((directory.nodeid, found.name))
                    prune(self._namespace, directory)
            if count % READ == 0:
                yield
        return names

    @staticmethod
    def _path(node: Node) -> bytes:
        """Where the template has the node's name, if it has it; b"" if not."""
        path = None if node.parent is None else node.parent.template_path_of(node.name)
        return path or b""

    def is_grouped(self, node: Node) -> bool:
        """Whether a shared node has several names in the template."""
        return not node.upper and self._path(node) in self._group_of

    def _visible(
        self, path: bytes, node: Node, moved: MovedDirectories
    ) -> Pieces[tuple[Directory, bytes] | None]:
        """Where the template's *path* shows in the copy, if it still names *node* there."""
        directory_path, _, name = path.rpartition(b"/")
        directory = yield from self._directory(directory_path, moved)
        if directory is None:
            return None
        namespace = self._namespace
        try:
            found, _st = lookup(namespace, directory, name)
        except FileNotFoundError:
            prune(namespace, directory)
            return None
        if found is not node:
            prune(namespace, found)
            return None
        return directory, name

    def _directory(self, path: bytes, moved: MovedDirectories) -> Pieces[Directory | None]:
        """The visible directory that the template's directory *path* is merged into."""
        current = self._namespace.nodes.root
        if not path:
            return current
        done = b""
        for component in path.split(b"/"):
            done = done + b"/" + component if done else component
            child = self._child(current, component)
            if child is None or child.template_path != done:
                prune(self._namespace, child or current)  # before others come in
                path_now = yield from moved.path_of(done)
                child = None if path_now is None else self._walk(path_now)
                if child is None or child.template_path != done:
                    if child is not None:
                        prune(self._namespace, child)
                    return None
            current = child
        return current

    def _walk(self, path: bytes) -> Directory | None:
        """The directory at *path* of the copy as users see it."""
        current = self._namespace.nodes.root
        for component in path.split(b"/") if path else ():
            child = self._child(current, component)
            if child is None:
                prune(self._namespace, current)
                return None
            current = child
        return current

    def _child(self, directory: Directory, name: bytes) -> Directory | None:
        try:
            node, _st = lookup(self._namespace, directory, name)
        except FileNotFoundError:
            return None
        if isinstance(node, Directory):
            return node
        prune(self._namespace, node)
        return None


class MovedDirectories:
    """Where the directories of the template have gone, read from the upper layer when asked."""

    def __init__(self, upper_fd: int) -> None:
        self._upper_fd = upper_fd
        self._paths: dict[bytes, bytes] | None = None

    def path_of(self, template_path: bytes) -> Pieces[bytes | None]:
        """The path in the copy of the directory that has this path in the template."""
        if self._paths is None:
            paths: dict[bytes, bytes] = {}
            merged_with: dict[bytes, bytes | None] = {b"": b""}
            for count, found in enumerate(walk(self._upper_fd), 1):
                if found.entry.is_dir(follow_symlinks=False):
                    where = ondisk.proc_path(found.directory_fd, found.name)
                    merged_with[found.path] = merged = None
                    with suppress(FileNotFoundError):  # it was removed since it was listed
                        merged = ondisk.template_path(
                            where, found.name, merged_with[found.directory]
                        )
                        merged_with[found.path] = merged
                    if merged is not None:  # also at the same path, with a new directory above it
                        paths[merged] = found.path
                if count % READ == 0:
                    yield
            self._paths = paths
        return self._paths.get(template_path)
