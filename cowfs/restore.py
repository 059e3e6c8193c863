"""What a daemon finds again that takes a live mount over from one that was killed.

The kernel goes on with the node ids that it has.  They say by themselves what they stand for (see
`inodes.py`), so a node that is not in the table is looked for on the disk when it is first asked
for: one walk over both layers tells under which name each inode number shows, and the way down to
it goes through `Overlay.lookup`, as that of any name.  What the disk does not tell comes from the
vault, and is entered before any request.

All else that a daemon has in memory is made again, or may be lost:

- `parent`, `name`, `upper`, `lower`, the descriptors of directories: by the lookup.
- `lookups`: one, since the kernel holds what it asks for; its FORGET takes back more, which is
  harmless.  A FORGET that was meant for a failed lookup alone may drop a node that the kernel has,
  and it is found again.
- `children`, `lock`, link counts, listings (their order follows from the names), `asked`: from the
  nodes and the disk.
- `primed`: the answers were lost with the channel's table of them; nobody was given a lookup.
- `origin`: what the readers of a replaced node have open (``old-``).  `successor`:
  ``successor-``; whether the node was replaced is seen by the number that this file shows.
- `written`: a mark on the disk.
- Nodes without a name: ``gone-``.  A FORGET that came twice drops them early: ESTALE then.
- Where the files of a group of hard links are: the manifest before their copy-up, the upper layer
  after it.
- A copy-up under way: its unnamed file is gone, links in work/ have been taken back before
  (`copies.recover`), and the request comes again.
- Notifications: those about attributes and listings go out before the answer, so the request comes
  again and with it the notification.  Those about names are queued: `stale_names` has them.

What stays behind until the mount ends, once for each kill at that very instruction: a descriptor of
an O_TMPFILE that nobody was told about; that of a successor that nobody has looked up; that of an
empty directory which was about to be replaced by another one.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from cowfs import directories, ondisk, syscalls, vault
from cowfs.inodes import Directory, Node
from cowfs.pieces import at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay import Overlay

_NAME = re.compile(r"(gone-upper|gone-lower|old|successor)-(\d+)|exchange-(\d+)-(\d+)-(\d+)")
_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME


class Restoration:
    """The nodes of an earlier daemon, for the table of *overlay*, which must be new.

    *held* is what the vault has; the descriptors are taken over.  OSError of fstat(2).
    """

    def __init__(self, overlay: Overlay, held: dict[str, int]) -> None:
        self._overlay = overlay
        self._places: Places | None = None
        self._enter(held)
        overlay.nodes.missing = self.resolve

    def resolve(self, nodeid: int) -> Node | None:
        """Enter the node of an id that the kernel uses; None when no name leads to it.

        OSError when a layer cannot be read.
        """
        if self._places is not None and (node := self._find(nodeid)) is not None:
            return node
        # The first time, or what leads there was renamed and forgotten since.
        self._places = Places(shown(self._overlay))
        return self._find(nodeid)

    def stale_names(self) -> Iterator[tuple[int, bytes]]:
        """The names that a replaced node may still have in the kernel, with the node ids of their
        directories; they lead to its successor, and the kernel is to forget them."""
        links = self._overlay.links
        for node in [node for node in self._overlay.nodes if node.predecessor is not None]:
            yield from at_once(links.upper_names_of(node))

    # ---------------------------------------------------------------- from the vault

    def _enter(self, held: dict[str, int]) -> None:
        kinds = ("old", "successor", "gone-upper", "gone-lower")
        found: dict[str, dict[int, int]] = {kind: {} for kind in kinds}
        for name, fd in held.items():
            match = _NAME.fullmatch(name)
            if match is None:
                raise ValueError(f"the vault has something unknown: {name}")
            if match[1]:
                found[match[1]][int(match[2])] = fd
            else:
                os.close(fd)
                self._overlay.exchanges.restore(*(int(part) for part in match.groups()[2:]))
        for nodeid, fd in found["successor"].items():
            self._enter_replaced(nodeid, found["old"].pop(nodeid, -1), fd)
        for nodeid, fd in found["old"].items():
            self._discard(vault.old(nodeid), fd)  # the other half was not kept yet
        for nodeid, fd in found["gone-upper"].items():
            self._enter_gone(nodeid, fd, upper=True)
        for nodeid, fd in found["gone-lower"].items():
            if nodeid in found["gone-upper"]:  # it had been copied up
                self._discard(vault.gone(nodeid, upper=False), fd)
            else:
                self._enter_gone(nodeid, fd, upper=False)

    def _enter_replaced(self, nodeid: int, old_fd: int, fd: int) -> None:
        """The node *nodeid*, whose readers have *old_fd* open, and its successor, whose file is
        *fd*."""
        number = _number(fd)
        if number == nodeid or old_fd < 0:
            # It was about to be replaced, and nobody was told: the request comes again.
            if old_fd >= 0:
                self._discard(vault.old(nodeid), old_fd)
            self._discard(vault.successor(nodeid), fd)
            return
        successor = Node(number)
        successor.upper = True
        # until its name is looked up, if it has one
        self._overlay.layers.hold_restored(successor, fd)
        node = Node(nodeid)
        node.upper = True
        node.origin = os.fstat(old_fd)
        os.close(old_fd)
        self._overlay.nodes.restore_replaced(node, successor)

    def _enter_gone(self, nodeid: int, fd: int, *, upper: bool) -> None:
        name = vault.gone(nodeid, upper=upper)
        nodes = self._overlay.nodes
        if upper and stat.S_ISREG(os.fstat(fd).st_mode) and _number(fd) != nodeid:
            self._discard(name, fd)  # it was replaced, or about to be
            return
        if nodeid in nodes:
            # the successor of a replaced node
            self._overlay.layers.hold_restored(nodes.get(nodeid), fd, name)
            return
        node = Directory(nodeid, None) if stat.S_ISDIR(os.fstat(fd).st_mode) else Node(nodeid)
        node.upper = upper
        self._overlay.layers.hold_restored(node, fd, name)
        nodes.restore(node)

    def _discard(self, name: str, fd: int) -> None:
        os.close(fd)
        self._overlay.layers.vault.drop(name)

    # ---------------------------------------------------------------- from the disk

    def _find(self, ino: int) -> Node | None:
        assert self._places is not None
        for parent_ino, name in self._places.of(ino):
            parent = self._directory(parent_ino)
            node = None if parent is None else self._child(parent, name, ino)
            if node is not None:
                return node
        return None

    def _directory(self, ino: int) -> Directory | None:
        """The directory with that number, found by way of those that are in the table."""
        assert self._places is not None
        nodes = self._overlay.nodes
        way: list[tuple[bytes, int]] = []
        step = ino
        while True:
            # One that is in the table may have been moved since the walk.
            known = nodes.root if step == nodes.root_ino else nodes.by_ino(step)
            if known is not None:
                break
            place = next(self._places.of(step), None)
            if place is None:
                return None
            way.append((place[1], step))
            step = place[0]
        found: Node | None = known
        for name, number in reversed(way):
            if not isinstance(found, Directory):
                return None
            found = self._child(found, name, number)
        return found if isinstance(found, Directory) else None

    def _child(self, parent: Directory, name: bytes, ino: int) -> Node | None:
        """The node under that name, if it still has the number *ino*."""
        overlay = self._overlay
        try:
            node, _st = overlay.lookup(parent, name)
        except FileNotFoundError:
            overlay.prune(parent)
            return None
        if node.nodeid != ino:
            overlay.prune(node)
            return None
        return node


def _number(fd: int) -> int:
    """The inode number that users see of a file of the upper layer."""
    return ondisk.shown_ino(ondisk.proc_path(fd), os.fstat(fd).st_ino)


class Places:
    """Under which names each inode number shows: 24 bytes and the name for each entry."""

    def __init__(self, entries: Iterator[tuple[int, int, bytes]]) -> None:
        inos, parents, starts, names = array("Q"), array("Q"), array("Q"), bytearray()
        for ino, parent, name in entries:
            inos.append(ino)
            parents.append(parent)
            starts.append(len(names))
            names += name
            names.append(0)
        order = sorted(range(len(inos)), key=inos.__getitem__)
        self._inos = array("Q", map(inos.__getitem__, order))
        self._parents = array("Q", map(parents.__getitem__, order))
        self._starts = array("Q", map(starts.__getitem__, order))
        self._names = bytes(names)

    def __len__(self) -> int:
        return len(self._inos)

    def of(self, ino: int) -> Iterator[tuple[int, bytes]]:
        """(inode number of the directory, name) of every name."""
        at = bisect_left(self._inos, ino)
        while at < len(self._inos) and self._inos[at] == ino:
            start = self._starts[at]
            yield self._parents[at], self._names[start : self._names.index(0, start)]
            at += 1


def shown(overlay: Overlay) -> Iterator[tuple[int, int, bytes]]:
    """(inode number, that of its directory, name) of everything that the copy shows.

    The numbers are those that users see.  OSError when a layer cannot be read; an entry of which
    only the marks cannot be read is left out.
    """
    layers = overlay.layers
    # The number, the path in the upper layer, which is that in the copy, and the path in the lower.
    pending: list[tuple[int, bytes | None, bytes | None]] = [(overlay.nodes.root_ino, b"", b"")]
    while pending:
        directory, upper, lower = pending.pop()
        covered: set[bytes] = set()
        if upper is not None:
            fd = syscalls.open_below(layers.upper_root_fd, upper, _READ_DIRECTORY)
            try:
                with directories.entries(fd, os.O_NOATIME) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        covered.add(name)
                        try:
                            found = _upper_entry(overlay, fd, entry, name, lower)
                        except OSError:
                            continue
                        if found is None:
                            continue
                        ino, child_lower = found
                        yield ino, directory, name
                        if entry.is_dir(follow_symlinks=False):
                            path = upper + b"/" + name if upper else name
                            pending.append((ino, path, child_lower))
            finally:
                os.close(fd)
        if lower is not None:
            fd = syscalls.open_below(layers.tree_fd, lower, _READ_DIRECTORY)
            try:
                with directories.entries(fd, os.O_NOATIME) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if name in covered:
                            continue
                        ino = entry.inode()
                        yield ino, directory, name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((ino, None, lower + b"/" + name if lower else name))
            finally:
                os.close(fd)


def _upper_entry(
    overlay: Overlay, fd: int, entry: os.DirEntry[str], name: bytes, lower: bytes | None
) -> tuple[int, bytes | None] | None:
    """The number shown for an entry of the upper directory *fd*, and what it is merged with.

    None: it is a whiteout.  *lower* is what the directory itself is merged with.
    """
    where = ondisk.proc_path(fd, name)
    if entry.is_dir(follow_symlinks=False):
        merged = overlay.merged_with(lower, name, where)
        return (entry.inode(), None) if merged is None else (merged[1], merged[0])
    if not (entry.is_file(follow_symlinks=False) or entry.is_symlink()) and ondisk.is_whiteout(
        entry.stat(follow_symlinks=False)
    ):
        return None
    return ondisk.shown_ino(where, entry.inode()), None
