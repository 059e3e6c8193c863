"""Lookups that are answered before they come.

A program that goes through a directory name by name asks for each name once, and each answer takes
several times longer through pyfuse3 than in the channel.  So when a directory has been asked for a
few names, the channel is given the answers for all of its files that are shared with the template:
those never change by themselves, and are taken back before the copy changes them (`take_back`).

Files with several names are left out, since one of them may change through another.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

import trio

from cowfs.overlay.inodes import Node
from cowfs.overlay.turns import Turns

if TYPE_CHECKING:
    from cowfs.overlay.inodes import Directory
    from cowfs.overlay.overlay import Overlay

log = logging.getLogger(__name__)

# Lookups in one directory before its other names are prepared: by the size in bytes of the
# directory, since a large one is much work for perhaps few lookups more.
PATIENCE = {2: 16 << 10, 16: 4 << 20}
# Names that are prepared before other requests get their turn: well under a millisecond.
BATCH = 128


class Channel(Protocol):
    """What this file needs of `cowfs.channel.Channel`."""

    def prime(
        self, parent: int, dir_fd: int, names: list[bytes]
    ) -> tuple[list[tuple[bytes, int]], list[int]]: ...
    def unprime(self, parent: int, name: bytes) -> bool: ...


class Priming:
    """Primes the directories of one mount."""

    def __init__(self, overlay: Overlay, channel: Channel) -> None:
        self._overlay = overlay
        self._channel = channel

    def looked_up(self, directory: Directory) -> None:
        """A name of the directory was asked for, and the answer came from here."""
        directory.asked += 1
        limit = PATIENCE.get(directory.asked)
        if limit is not None and directory.lower_path is not None:
            trio.lowlevel.spawn_system_task(self._prime, directory, limit)

    def take_back(self, node: Node) -> None:
        """Before a shared file changes: what was to be said about it is not true any more."""
        if node.primed and node.parent is not None:
            node.primed = False
            if self._channel.unprime(node.parent.nodeid, node.name):
                node.lookups -= 1

    async def _prime(self, directory: Directory, limit: int) -> None:
        try:
            overlay = self._overlay
            if os.fstat(overlay.layers.lower(directory)).st_size > limit:
                return
            directory.asked = max(directory.asked, *PATIENCE)  # once is enough
            directory.children += 1  # it stays in the table meanwhile
            try:
                listing = await Turns().do(overlay.listings.made(directory))
            finally:
                directory.children -= 1
                overlay.prune(directory)
            names = [name for _place, name in listing.after(0)]
            for start in range(0, len(names), BATCH):
                # The directory may have been changed or removed since the last batch.
                if directory.is_unlinked:
                    return
                self._prime_batch(directory, names[start : start + BATCH])
                await trio.lowlevel.checkpoint()
        except OSError:
            pass  # whoever asks for a name will meet the same error
        except Exception:
            log.exception("priming a directory")

    def _prime_batch(self, directory: Directory, names: list[bytes]) -> None:
        """From the channel's first answer to the node in the table there is no await: nobody asks
        about a node that is not there yet."""
        overlay = self._overlay
        layers = overlay.layers
        if directory.upper:
            names = [name for name in names if layers.upper_entry(directory, name) is None]
        lower = layers.lower(directory)
        primed, given_up = self._channel.prime(directory.nodeid, lower, names)
        for name, ino in primed:
            node = overlay.nodes.by_ino(ino)
            if node is None:
                node = Node(ino)
                overlay.nodes.add(node)
                node.place(directory, name)
            node.lookups += 1
            node.primed = True
        for ino in given_up:
            self._give_up(ino)

    def _give_up(self, ino: int) -> None:
        """Nobody asks for it any more, and the answer made room for another one: its node goes, and
        with the last one its directory, unless the kernel holds them."""
        node = self._overlay.nodes.by_ino(ino)
        if node is not None and node.primed:
            node.primed = False
            node.lookups -= 1
            self._overlay.prune(node)
