"""What a daemon finds again that takes a live mount over from one that was killed.

The kernel goes on with the node ids that it has.  They say by themselves what they stand for (see
`inodes.py`), so a node that is not in the table is looked for on the disk when it is first asked
for: one walk over both layers tells under which name each inode number shows, and the way down to
it goes through `Overlay.lookup`, as that of any name.  Others have their turns during the walk, so
what they rename may be missed, and then there is another one.  What the disk does not tell comes
from the vault, and is entered before any request.

All else that a daemon has in memory is made again, or may be lost:

- `parent`, `name`, `upper`, `lower_path`, the descriptors of directories: by the lookup.
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
from typing import TYPE_CHECKING

from cowfs.overlay import vault
from cowfs.overlay.index import InodeIndex, shown
from cowfs.overlay.inodes import Directory, Node, NotYetFound
from cowfs.overlay.pieces import at_once
from cowfs.system import ondisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay.overlay import Overlay
    from cowfs.overlay.pieces import Pieces

_NAME = re.compile(r"(gone-upper|gone-lower|old|successor)-(\d+)|exchange-(\d+)-(\d+)-(\d+)")
# Walks for one node before one that lets nobody rename anything meanwhile.
WALKS = 2


class Restoration:
    """The nodes of an earlier daemon, for the table of *overlay*, which must be new.

    *held* is what the vault has; the descriptors are taken over.  OSError of fstat(2).
    """

    def __init__(self, overlay: Overlay, held: dict[str, int]) -> None:
        self._overlay = overlay
        self._index = InodeIndex()
        self._enter(held)
        overlay.nodes.missing = self.resolve

    def resolve(self, nodeid: int) -> Node:
        """Enter the node of an id that the kernel uses; NotYetFound; OSError."""
        node = self._find(nodeid)
        if node is None:
            raise NotYetFound(self._search(nodeid))
        return node

    def _search(self, nodeid: int) -> Pieces[bool]:
        """Look for a node until it is in the table, or no name leads to it.

        OSError when a layer cannot be read.
        """
        overlay = self._overlay
        if self._find(nodeid) is not None:  # by a walk that was for another one
            return True
        # It is the first walk, or what leads there was renamed and forgotten since the last one.
        for _ in range(WALKS):
            changed = overlay.names_changed
            index = InodeIndex()
            yield from index.fill(self._shown())
            self._index = index
            if self._find(nodeid) is not None:
                return True
            if overlay.names_changed == changed:
                return False
        self._index = InodeIndex(self._shown())
        return self._find(nodeid) is not None

    def _shown(self) -> Iterator[tuple[int, int, bytes]]:
        return shown(self._overlay.layers, self._overlay.nodes.root_ino)

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
        for parent_ino, name in self._index.names_of(ino):
            parent = self._directory(parent_ino)
            node = None if parent is None else self._child(parent, name, ino)
            if node is not None:
                return node
        return None

    def _directory(self, ino: int) -> Directory | None:
        """The directory with that number, found by way of those that are in the table."""
        nodes = self._overlay.nodes
        way: list[tuple[bytes, int]] = []
        step = ino
        while True:
            # One that is in the table may have been moved since the walk.
            known = nodes.root if step == nodes.root_ino else nodes.by_ino(step)
            if known is not None:
                break
            found_at = next(self._index.names_of(step), None)
            if found_at is None:
                return None
            parent_ino, name = found_at
            way.append((name, step))
            step = parent_ino
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
