"""What backs an open: the table of the design, and the way from shared to private.

The kernel fixes one backing file for an inode while a passthrough descriptor of it is open, and
passes the file's own pages; so which file serves a node is decided at its first open and kept until
the last release.

======================================  =========  ===============================================
state of the file                       open       backed by
======================================  =========  ===============================================
private                                 any        passthrough to the copy's own file
shared, large or read-only mount        reading    passthrough to the template's file
shared, smaller than `share_min`        reading    the template's file through the channel
shared                                  writing    clone first, then as private
======================================  =========  ===============================================

A writer that finds passthrough readers of the template's file cannot share their node: it is
replaced, and the caller is told ESTALE.  The kernel then looks the name up again, opens the new
node, and nobody sees an error; the readers keep the bytes that they opened.

Without passthrough every open goes through the channel, and nothing else changes.  A large shared
file is then read past FUSE's pages: whoever reads a model once needs no second set of them, and one
copy of the bytes less.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol

import trio

from cowfs.inodes import Directory

if TYPE_CHECKING:
    from cowfs.inodes import Node
    from cowfs.overlay import Overlay
    from cowfs.priming import Priming

SHARED = 0
PRIVATE = 1
# How the kernel reads a file, see the channel's `attach`.
CACHED = 0
PASSTHROUGH = 1
BYPASS = 2


class Channel(Protocol):
    """What this file needs of `cowfs.channel.Channel`."""

    def open(self, nodeid: int, writing: bool) -> bool: ...
    def attach(self, nodeid: int, fd: int, kind: int, reading: int, writing: bool) -> None: ...
    def switch(self, nodeid: int, fd: int) -> bool: ...
    def revoke(self, nodeid: int) -> tuple[int, int, int, bool] | None: ...
    def is_volatile(self, nodeid: int) -> bool: ...
    def mark_mappable(self, nodeid: int) -> None: ...
    def backing_fd(self, nodeid: int) -> int: ...
    def invalidate_entry(self, parent: int, name: bytes) -> None: ...
    def invalidate_attr(self, nodeid: int) -> None: ...
    def invalidate_listing(self, nodeid: int) -> None: ...


class Backing:
    """Decides for one mount.

    *share_min*: bytes from which a shared file is passed through on a writable mount.
    *clone_on_open*: every open of a shared file clones it first.
    """

    def __init__(
        self,
        overlay: Overlay,
        channel: Channel,
        priming: Priming,
        *,
        passthrough: bool,
        share_min: int,
        read_only: bool,
        clone_on_open: bool,
    ) -> None:
        self._overlay = overlay
        self._channel = channel
        self._priming = priming
        self._passthrough = passthrough
        self._share_min = share_min
        self._read_only = read_only
        self._clone_on_open = clone_on_open and not read_only

    def is_volatile(self, node: Node) -> bool:
        """Whether the file's attributes change behind the daemon, so that none may be cached."""
        return node.upper and self._channel.is_volatile(node.nodeid)

    async def open_reading(self, node: Node) -> None:
        """Count one more reader.  Errors: ESTALE for a replaced node, those of open(2)."""
        # No await up to here since the node was taken from the table, and none before the return:
        # a writer either has not begun, or holds the lock and has taken the backing away.
        if not node.replaced and self._channel.open(node.nodeid, False):
            return
        async with lock_of(node):
            _refuse_replaced(node)
            if self._clone_on_open:
                await self.make_private(node)
            if self._channel.open(node.nodeid, False):
                return
            if node.upper:
                flags = os.O_RDONLY if self._read_only else os.O_RDWR
                fd = self._overlay.layers.open(node, flags)
                self._attach_private(node, fd, writing=False)
                return
            fd = self._overlay.layers.open(node, os.O_RDONLY)
            large = os.fstat(fd).st_size >= self._share_min
            if self._passthrough and (large or self._read_only):
                reading = PASSTHROUGH
            else:
                reading = BYPASS if large else CACHED
            self._channel.attach(node.nodeid, fd, SHARED, reading, False)

    async def open_changing(self, node: Node, access: int, *, truncate: bool) -> None:
        """Make the file private and count one more open, of access mode *access* (O_RDONLY, ...).

        Errors: ESTALE when the kernel has to look the name up again, ENOSPC and others of the
        copy-up.
        """
        writing = access != os.O_RDONLY
        async with lock_of(node):
            _refuse_replaced(node)
            changed = truncate or not node.upper
            fd = await self._prepare_change(node, keep_data=not truncate)
            try:
                if truncate:
                    os.ftruncate(fd, 0)
                if not self._channel.open(node.nodeid, writing):
                    changed = True  # by the daemon before, perhaps, who did not come to say so
                    taken, fd = fd, -1
                    self._attach_private(node, taken, writing=writing)
            finally:
                if fd >= 0:
                    os.close(fd)
            # A shared mapping may be made of a descriptor that reads and writes: it outlives the
            # descriptor, and changes the file unseen.
            if access == os.O_RDWR:
                self._channel.mark_mappable(node.nodeid)
            # What the kernel was told before is not to be believed from now on. But it is where all
            # changes go through the kernel: who is told a size by us may map more than it has yet.
            if changed or self._channel.is_volatile(node.nodeid):
                self._channel.invalidate_attr(node.nodeid)

    async def truncate(self, node: Node, size: int, *, by_descriptor: bool) -> None:
        """Set the file's size in bytes; the caller holds the node's lock."""
        before = self._overlay.getattr(node).st_size
        fd = await self._prepare_change(node, keep_data=size > 0)
        try:
            # truncate(2) leaves the times when the size stays, and ftruncate(2) does not.  A clone
            # that was made empty has its new size already.
            if by_descriptor or size != before:
                os.ftruncate(fd, size)
        finally:
            os.close(fd)

    async def before_link(self, node: Node) -> None:
        """Make the file private before it gets another name; the caller holds the node's lock.

        Readers of the template's file keep their node to themselves from now on.  Were it replaced
        later, the kernel would not know under how many names.
        """
        await self.make_private(node)
        state = self._channel.revoke(node.nodeid)
        if state is not None and state[0] == SHARED and state[3]:
            self._replace(node)

    def created(self, node: Node, fd: int, access: int) -> None:
        """Take over the descriptor of a file that was just made, and count its first open."""
        writing = access != os.O_RDONLY
        self._attach_private(node, fd, writing=writing)
        if access == os.O_RDWR:
            self._channel.mark_mappable(node.nodeid)

    def removed(self, node: Node) -> None:
        """A name of the node was removed: nothing is kept open for a later opener."""
        self._channel.revoke(node.nodeid)

    def moved(self, node: Node) -> None:
        """The node is in another directory now: a listing that the kernel keeps of it says ".."."""
        if isinstance(node, Directory):
            self._channel.invalidate_listing(node.nodeid)

    async def make_private(self, node: Node, *, keep_data: bool = True) -> None:
        """Copy-up, if it has not been done; the caller holds the node's lock.

        Changes nothing for descriptors that are open: what backs them has the same bytes.
        """
        if node.upper:
            return
        self._priming.take_back(node)
        overlay = self._overlay
        if not stat.S_ISREG(overlay.getattr(node).st_mode):
            overlay.copy_up_special(node)
            return
        copy_up, source = overlay.begin_copy_up(node, keep_data=keep_data)
        try:
            if copy_up.is_quick:
                copy_up.clone()
            else:
                # Other requests go on meanwhile.  The lock keeps this node shared; its name may
                # move or go, and `publish` takes it as it then is.
                await trio.to_thread.run_sync(copy_up.clone)
            overlay.publish(node, copy_up)
        finally:
            copy_up.close()
            os.close(source)

    async def _prepare_change(self, node: Node, *, keep_data: bool) -> int:
        """Make the node private, and every open of it too; gives an O_RDWR descriptor.

        From the first line on the channel answers no open of this node by itself.  No await comes
        after the second look at who has it open, so that what it says stays true.
        """
        channel = self._channel
        channel.revoke(node.nodeid)
        await self.make_private(node, keep_data=keep_data)
        state = channel.revoke(node.nodeid)
        if state is not None and state[0] == SHARED and state[3]:
            self._replace(node)
            raise _stale()
        fd = self._overlay.layers.open(node, os.O_RDWR)
        if state is not None and state[0] == SHARED:
            try:
                if channel.switch(node.nodeid, fd):
                    fd = self._overlay.layers.open(node, os.O_RDWR)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _attach_private(self, node: Node, fd: int, *, writing: bool) -> None:
        """Back the node by the copy's own file, and count its first open.

        A write has to take setuid and setgid away.  The kernel leaves that to the server (we said
        HANDLE_KILLPRIV_V2: without it every write would ask for an attribute first), but tells the
        server of no write that it passes through; so a file with these bits is not.
        """
        passthrough = self._passthrough and not os.fstat(fd).st_mode & (stat.S_ISUID | stat.S_ISGID)
        reading = PASSTHROUGH if passthrough else CACHED
        self._channel.attach(node.nodeid, fd, PRIVATE, reading, writing)

    def _replace(self, node: Node) -> None:
        """Let a new node take over the name; the old one keeps its readers and their bytes."""
        fd = self._channel.backing_fd(node.nodeid)
        try:
            names = self._overlay.hand_over(node, fd)
        finally:
            os.close(fd)
        for parent, name in names:
            self._channel.invalidate_entry(parent, name)


def lock_of(node: Node) -> trio.Lock:
    """The lock that guards what spans an await in the life of *node*."""
    if node.lock is None:
        node.lock = trio.Lock()
    return node.lock


def _refuse_replaced(node: Node) -> None:
    if node.replaced:
        raise _stale()


def _stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
