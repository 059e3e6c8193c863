"""Changes of mode and owner that the channel makes by itself.

Who changes every file of a copy (chgrp -R, chmod -R, the kubelet with its fsGroup) makes two
requests for each, and each of them takes twice as long through pyfuse3 as the change itself.  So
once a few files of one directory were changed, the channel is offered all files that the template
has there: it copies them up and changes them alone, and says afterwards which they were (`take`).

Nothing is changed before it is asked for; the channel only has a few clones ready that nobody sees.
It looks at the disk before it touches a file, so an offer may be wrong about it.  But it must touch
nothing while a file is copied up here over an await, nor go on afterwards where names have changed:
`take_back` comes before either.  Changes of directories of the upper layer are made `with` this
object: nothing is touched in between.

A handler sees every change that the kernel was told of before its request came, because it begins
with `take`.  While one is under way the kernel holds the lock of the inode, which a removal, a
rename and a change of attributes need, too.  An open, a lookup or a stat may come in between; what
they say of the file as it was before is thrown away by the kernel (by `attr_version`, see
fuse_change_attributes() there).
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from cowfs.overlay.inodes import Directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.overlay.inodes import Node
    from cowfs.overlay.overlay import Overlay

# Changes in one directory before its files are offered, and in further ones while a walk goes on.
PATIENCE = 2
WALKING = 1
# How long a walk is taken to go on after it came to its last directory, in seconds.
WALK_S = 5.0
# A larger directory, in bytes, takes too long to read while others wait: some 20,000 names.
LARGEST = 1 << 20


class Channel(Protocol):
    """What this file needs of `cowfs.channel.Channel`."""

    def offer(
        self,
        directory: int,
        upper_fd: int,
        tree_fd: int,
        work_fd: int,
        path: bytes,
        listing: bytes,
    ) -> int: ...
    def withdraw(self, nodeid: int) -> None: ...
    def take_touched(self) -> list[tuple[int, bool]] | None: ...
    def hold_touches(self) -> None: ...
    def let_touches(self) -> None: ...


class Touching:
    """What the channel may change, and has changed, of one mount."""

    def __init__(self, overlay: Overlay, channel: Channel) -> None:
        self._overlay = overlay
        self._channel = channel
        self._walk_until = 0.0
        # Copy-ups that await: their files must not be offered meanwhile.
        self._under_way = 0

    def take(self) -> None:
        """Learn what the channel has copied up."""
        touched = self._channel.take_touched()
        if touched is None:
            return
        for nodeid, unprimed in touched:
            node = self._overlay.nodes.by_ino(nodeid)
            if node is not None:
                node.upper = True
                if unprimed:
                    node.lookups -= 1
                    node.primed = False

    def take_back(self, node: Node) -> None:
        """Before the node is changed here: from now on the channel touches neither it nor, if it is
        a directory, what is in it.  `node.upper` is right afterwards."""
        self._channel.withdraw(node.nodeid)
        self.take()

    @contextmanager
    def making_no_offers(self) -> Iterator[None]:
        """While a copy-up awaits."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def changed(self, node: Node) -> None:
        """Mode or owner of the node was changed here: more of the kind may follow."""
        directory = node.parent
        if isinstance(node, Directory) or directory is None or self._under_way:
            return
        if not directory.upper or directory.lower_path is None:
            return
        directory.touched += 1
        # Where a directory has many files that are always changed here, its offer is renewed ever
        # more seldom.
        if directory.touched & (directory.touched - 1):
            return
        now = time.monotonic()
        if directory.touched >= (WALKING if now < self._walk_until else PATIENCE):
            self._walk_until = now + WALK_S
            self._offer(directory, bytes(directory.lower_path))

    def _offer(self, directory: Directory, path: bytes) -> None:
        layers = self._overlay.layers
        try:
            upper, lower = layers.upper(directory), layers.lower(directory)
            if os.fstat(lower).st_size > LARGEST:
                return
            # A program that goes through the directory in its order has read it just now.
            listing = self._overlay.listings.kept(directory)
            self._channel.offer(
                *(directory.nodeid, upper, layers.tree_fd, self._overlay.work.fd),
                *(path, b"" if listing is None else listing.joined()),
            )
        except OSError:
            pass  # whoever comes next will meet the same error

    def __enter__(self) -> None:
        self._channel.hold_touches()

    def __exit__(self, *_: object) -> None:
        self._channel.let_touches()
