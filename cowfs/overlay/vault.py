"""What outlives the daemon: descriptors that the keeper holds, each under a name.

The node table is a function of the disk: a node id is the inode number that users see, so a daemon
that takes over finds an ordinary node by walking the two layers (`restore.py`).  What the disk does
not tell is kept here.

===========================  =====================================================================
name                         descriptor
===========================  =====================================================================
``gone-upper-<node id>``     a node without a name (removed but open, O_TMPFILE), in the upper layer
``gone-lower-<node id>``     the same while it is still the template's
``old-<node id>``            a replaced node: the template's file, which its readers have open
``successor-<node id>``      of the same: the file of the node that has taken over its name
``exchange-<u>-<s>-<t>``     request *u* is to exchange the names of the inodes *s* and *t*
===========================  =====================================================================

A descriptor is put here before the disk changes, and dropped after the node has a name again or
has left the table: so a kill at any instruction leaves too much, never too little.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

# Of what one daemon leaves to the next: here, in the order, and in the daemon's `Place`. It grows
# with every change that another version would misread. The ledger has a version of its own.
STATE_VERSION = 2

# Exchanges whose replies may still be on their way: as many as pyfuse3 handles at once, and some.
KEPT_EXCHANGES = 128


class Vault(Protocol):
    """Where descriptors are kept.  Neither call fails: without a keeper nothing is to be kept."""

    def put(self, name: str, fd: int) -> None:
        """Keep a duplicate of *fd* under *name*, in place of what was there."""

    def drop(self, name: str) -> None:
        """Close what is kept under *name*, if anything is."""


class NullVault:
    """For a copy that no daemon will take over."""

    def put(self, name: str, fd: int) -> None:
        pass

    def drop(self, name: str) -> None:
        pass


def gone(nodeid: int, *, upper: bool) -> str:
    return f"gone-{'upper' if upper else 'lower'}-{nodeid}"


def old(nodeid: int) -> str:
    return f"old-{nodeid}"


def successor(nodeid: int) -> str:
    return f"successor-{nodeid}"


class Exchanges:
    """Which renames with RENAME_EXCHANGE were begun.

    Whether one has been done is seen by who stands where, once it is known who stood where before:
    both directories are locked in the kernel until it is answered.  A request has one number, which
    never comes back, so what is left here of an older one says nothing about another.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._begun: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def begin(self, unique: int, source: int, target: int, fd: int) -> None:
        """Note that request *unique* is about to exchange two inodes; *fd* is anything open."""
        self._vault.put(self._name(unique, source, target), fd)
        self.restore(unique, source, target)

    def restore(self, unique: int, source: int, target: int) -> None:
        """Take up what an earlier daemon has noted."""
        self._begun[unique] = (source, target)
        while len(self._begun) > KEPT_EXCHANGES:
            oldest, inodes = self._begun.popitem(last=False)
            self._vault.drop(self._name(oldest, *inodes))

    def begun(self, unique: int) -> tuple[int, int] | None:
        """The inodes that stood at the old and at the new name before request *unique*."""
        return self._begun.get(unique)

    @staticmethod
    def _name(unique: int, source: int, target: int) -> str:
        return f"exchange-{unique}-{source}-{target}"
