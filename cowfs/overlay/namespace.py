"""What all parts of the overlay work on: the layers, the nodes, the listings, work/.

Everything is synchronous and runs in the event loop's thread; a caller that awaits in between looks
again at what it holds.  Errors are OSError with the errno that the caller of the system call should
see.
"""

from __future__ import annotations

import functools
import logging
import os
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from cowfs.overlay.inodes import ROOT_ID, Directory, LowerPath, NodeTable
from cowfs.overlay.layers import Layers
from cowfs.overlay.listing import Listings
from cowfs.overlay.vault import Exchanges
from cowfs.overlay.work import WorkDirectory
from cowfs.system import ondisk, remedy

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cowfs.overlay.inodes import Node
    from cowfs.overlay.vault import Vault

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

NAME_MAX = 255
MOST_TOLD = 100  # damaged entries that are logged


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def alone(
    function: Callable[Concatenate[Namespace, P], R],
) -> Callable[Concatenate[Namespace, P], R]:
    """What changes directories of the upper layer, in several steps or not by itself.

    What it holds is the channel's lock, which may be taken again; nothing is touched meanwhile.
    """

    @functools.wraps(function)
    def guarded(namespace: Namespace, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with namespace.alone:
            return function(namespace, *args, **kwargs)

    return guarded


class UnfinishedGroup(NamedTuple):
    """Names of one file that are to be there together: those that are, and the link in work/ that
    marks them."""

    mark: bytes
    names: list[tuple[Directory, bytes]]


class Times(Protocol):
    """What sets a directory's times back after a copy-up has changed a name in it."""

    def keep_times(self, directory: int) -> None: ...
    def set_times_back(self, directory: int) -> None: ...


class OwnTimes:
    """`Times` without a channel, so that no other daemon would set back what this one has not."""

    def __init__(self) -> None:
        self._kept = (0, 0)

    def keep_times(self, directory: int) -> None:
        st = os.fstat(directory)
        self._kept = (st.st_atime_ns, st.st_mtime_ns)

    def set_times_back(self, directory: int) -> None:
        with suppress(OSError):
            os.utime(ondisk.proc_path(directory), ns=self._kept)


class Namespace:
    """The layers of one copy, and what is known of them.

    *tree_fd* is the template's tree, *upper_fd* and *work_fd* the copy's directories (work None:
    read-only), all three taken over; *vault* keeps what a daemon to come cannot read from the disk.
    """

    def __init__(self, tree_fd: int, upper_fd: int, work_fd: int | None, vault: Vault) -> None:
        self.layers = Layers(tree_fd, upper_fd, vault)
        self.work = WorkDirectory(work_fd)
        self.exchanges = Exchanges(vault)
        # Keeps others, who copy files up too, out of the upper layer's directories while it is
        # entered; it may be entered again meanwhile.
        self.alone: AbstractContextManager[None] = nullcontext()
        self.times: Times = OwnTimes()
        root = Directory(ROOT_ID, LowerPath(None, b""))
        root.upper = True
        root.upper_fd = self.layers.upper_root_fd
        root.lower_fd = self.layers.tree_fd
        self.nodes = NodeTable(root, os.fstat(self.layers.tree_fd).st_ino)
        self.listings = Listings(self.layers)
        # How often a directory was moved; how often anything was, or was given one more name.
        self.directories_moved = 0
        self.names_changed = 0
        # Shared nodes whose clone is being given its names, one by one: until it has all of them,
        # what each name shows is the template's file.
        self.rising: set[int] = set()
        self.unfinished: list[UnfinishedGroup] = []
        self._told: set[tuple[bytes, bytes]] = set()

    def close(self) -> None:
        self.layers.close(iter(self.nodes))
        self.work.close()

    @staticmethod
    def current(node: Node) -> Node:
        """The node that has taken over the name of a replaced one; else the node itself."""
        return node.successor or node

    def tell_damaged(self, mark: bytes, parent: Directory | None, name: bytes) -> None:
        """Say once that an entry is shown as if it had no such mark."""
        steps = [name]
        while parent is not None:
            steps.append(parent.name)
            parent = parent.parent
        place = (mark, b"/".join(reversed(steps)))
        if place not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(place)
            log.warning(
                "%s has a damaged mark (%s), and is shown as if it had none: see %s",
                *(os.fsdecode(part) for part in reversed(place)),
                remedy.command("cowfs check --help"),
            )
