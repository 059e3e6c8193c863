"""What backs an open, and the states of a file that it follows from.

The kernel fixes one backing file for an inode while a passthrough descriptor of it is open, and
passes the file's own pages; so which file serves a node is decided at its first open and kept until
the last release.  Where a node's data are is one of four states, told by the disk and by the node:

============  =============================================  ==================================
state         on the disk                                    node
============  =============================================  ==================================
shared        the template's file alone                      not `upper`
touched       the copy's own file, marked as having the      `upper`, and `Overlay.open_shared`
              template's data: attributes or names changed   finds the template's file
private       the copy's own file, without that mark         `upper`, `written`
replaced      the copy's own file, which shows its own       `replaced`: its `successor` is the
              number; readers have the template's            private node of that file
============  =============================================  ==================================

What an open is backed by:

============  ========  =========================================================================
state         open      backed by
============  ========  =========================================================================
shared or     reading   passthrough to the template's file, if that is large or the mount read-only
touched                 the template's file through the channel, if it is smaller than `share_min`
                        clone first, then as private, if programs change it in place
                        (`inplace.py`) or the mount says clone=open
..            writing   clone first, or take the mark away, then as private
private       any       passthrough to the copy's own file
replaced      any       ESTALE; the kernel looks the name up again and opens the successor.  Who
                        comes again has no name to look up: the template's file as long as readers
                        have it (writing: ETXTBSY), and after that the copy's own
============  ========  =========================================================================

The steps from state to state; each is one change on the disk, so there is nothing between them for
a kill to leave, and each is made with `lock_of(node)` held:

- shared to touched (`make_upper`) and shared to private (`make_private`): the link that gives the
  clone its name.
- touched to private (`make_private`): the mark goes before the first byte changes.
- shared or touched to replaced (`_replace`), when a writer finds passthrough readers of the
  template's file, which cannot share their node with it: first private as above, then the mark of
  the template's number goes, and the writer is told ESTALE.

No step leads back: a private file stays private, and is never replaced.

Without passthrough every open goes through the channel, and readers of the template's file are
switched to the clone: nothing is replaced.  FUSE keeps pages of its own then, for each copy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from cowfs.channel import BYPASS, CACHED, PASSTHROUGH, PRIVATE, SHARED
from cowfs.overlay.copyup import QUICK_BYTES
from cowfs.overlay.inodes import Directory
from cowfs.overlay.inplace import HEAD_SIZE
from cowfs.overlay.pieces import at_once
from cowfs.overlay.turns import Turns, lock_of, taking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cowfs.overlay.caller import Caller
    from cowfs.overlay.inodes import Node
    from cowfs.overlay.inplace import CloneMode, InPlace
    from cowfs.overlay.overlay import Overlay
    from cowfs.overlay.priming import Priming
    from cowfs.overlay.touching import Touching

# Searches for the names of a group of hard links before no directory may be moved meanwhile.
TRIES = 3

# Callers that are remembered until they come again; the kernel sends them back at once.
SENT_BACK = 1024


class Channel(Protocol):
    """What this file needs of `cowfs.channel.Channel`."""

    def open(self, nodeid: int, writing: bool, uid: int) -> bool: ...
    def unopen(self, nodeid: int, writing: bool) -> None: ...
    def attach(
        self, nodeid: int, fd: int, kind: int, reading: int, writing: bool, uid: int
    ) -> None: ...
    def is_scarce(self) -> bool: ...
    def require_room(self, uid: int) -> None: ...
    def hold(self, nodeid: int, uid: int) -> None: ...
    def let(self, nodeid: int) -> None: ...
    def switch(self, nodeid: int, fd: int) -> bool: ...
    def revoke(self, nodeid: int) -> tuple[int, int, int, bool] | None: ...
    def is_shared(self, nodeid: int) -> bool: ...
    def writers(self, nodeid: int) -> int: ...
    def is_volatile(self, nodeid: int) -> bool: ...
    def mark_mappable(self, nodeid: int) -> None: ...
    def backing_fd(self, nodeid: int) -> int: ...
    def invalidate_entry(self, parent: int, name: bytes) -> None: ...
    def invalidate_attr(self, nodeid: int) -> None: ...
    def invalidate_listing(self, nodeid: int) -> None: ...
    def count_copy_up(self, took_ns: int, /) -> None: ...


class Backing:
    """Decides for one mount.

    *share_min*: bytes from which a shared file is passed through on a writable mount.
    *clone*: when a shared file is cloned, before its first writer ("write"), its first reader
    ("open"), or that reader if it is a file *in_place* ("auto").
    *synchronous*: the mount has the flag MS_SYNCHRONOUS.
    """

    def __init__(
        self,
        overlay: Overlay,
        channel: Channel,
        priming: Priming,
        touching: Touching,
        *,
        passthrough: bool,
        share_min: int,
        read_only: bool,
        clone: CloneMode,
        in_place: InPlace,
        synchronous: bool,
    ) -> None:
        self._overlay = overlay
        self._channel = channel
        self._priming = priming
        self._touching = touching
        self._passthrough = passthrough
        self._share_min = share_min
        self._read_only = read_only
        self._clone: CloneMode = "write" if read_only else clone
        self._in_place = in_place
        # Callers that were told ESTALE for a replaced node, and have not come again:
        # (node id, thread).
        self._sent_back: OrderedDict[tuple[int, int], bool] = OrderedDict()
        self._synchronous = synchronous
        self.turns = Turns()
        # Held while a directory is moved; and by a search for names by their paths, once
        # directories were moved during it again and again.
        self.moving = trio.Lock()

    def is_volatile(self, node: Node) -> bool:
        """Whether the file's attributes change behind the daemon, so that none may be cached."""
        channel, before = self._channel, node.predecessor
        if not node.upper or channel.is_volatile(node.nodeid):
            return node.upper
        # The same file may be changed through the node that was replaced.
        return before is not None and (
            channel.is_volatile(before.nodeid) or channel.writers(before.nodeid) > 0
        )

    @contextmanager
    def until_reply(self, node: Node, access: int) -> Iterator[None]:
        """What is done between an open of the node, of access mode *access*, and the reply.

        The open has been counted in the channel: should this fail, nobody hears of it, and nobody
        would ever close it.
        """
        try:
            yield
        except BaseException:
            self._channel.unopen(node.nodeid, access != os.O_RDONLY)
            raise

    def has_old_readers(self, node: Node) -> bool:
        """Whether a replaced node is open with the bytes that it had before."""
        return node.replaced and self._channel.is_shared(node.nodeid)

    async def open_reading(self, node: Node, caller: Caller) -> None:
        """Count one more reader.

        Errors: ESTALE when the kernel has to look the name up again, ENFILE when the caller holds
        enough, those of open(2).
        """
        # No await up to here since the node was taken from the table, and none before the return:
        # a writer either has not begun, or holds the lock and has taken the backing away.
        if not node.replaced and self._channel.open(node.nodeid, False, caller.uid):
            return
        async with lock_of(node):
            if node.replaced:
                await self._open_replaced(node, os.O_RDONLY, caller, truncate=False)
                return
            if self._clone == "open":
                await self.make_private(node)
            if self._channel.open(node.nodeid, False, caller.uid):
                return
            self._channel.require_room(caller.uid)
            shared = self._overlay.open_shared(node)
            if shared is not None:
                reading = await self._reading_by_first(node, shared)
                if reading is not None:
                    self._channel.attach(node.nodeid, shared, SHARED, reading, False, caller.uid)
                    return
            flags = os.O_RDONLY if self._read_only else os.O_RDWR
            fd = self._overlay.layers.open(node, flags)
            self._attach_private(node, fd, caller, writing=False)

    async def open_changing(
        self, node: Node, access: int, caller: Caller, *, truncate: bool
    ) -> None:
        """Make the file private and count one more open of access mode *access* (O_RDONLY, ...).

        Errors: ESTALE when the kernel has to look the name up again, ENFILE when the caller holds
        enough, ENOSPC and others of the copy-up, ETXTBSY for a replaced node.
        """
        async with lock_of(node):
            if node.replaced:
                await self._open_replaced(node, access, caller, truncate=truncate)
                return
            self._channel.require_room(caller.uid)
            changed = truncate or not node.written
            fd = await self._prepare_change(node, keep_data=not truncate)
            if node.replaced:
                os.close(fd)
                self._send_back(node, caller)
            await self._open_private(node, fd, access, caller, truncate=truncate, changed=changed)

    async def truncate(self, node: Node, size: int, *, by_descriptor: bool) -> None:
        """Set the file's size in bytes; the caller holds the node's lock."""
        before = self._overlay.getattr(node).st_size
        fd = await self._prepare_change(node, keep_data=size > 0)
        try:
            # truncate(2) leaves the times when the size stays, and ftruncate(2) does not.  A clone
            # that was made empty has its new size already.
            if by_descriptor or size != before:
                await _truncate(fd, size)
        finally:
            os.close(fd)
        if node.successor is not None:
            self._channel.invalidate_attr(node.successor.nodeid)

    def created(self, node: Node, fd: int, access: int, caller: Caller) -> None:
        """Take over the descriptor of a file that was just made, and count its first open."""
        self._attach_private(node, fd, caller, writing=access != os.O_RDONLY)
        with self.until_reply(node, access):
            if access == os.O_RDWR:
                self._channel.mark_mappable(node.nodeid)

    def needs_to_know(self) -> bool:
        """Whether it matters who the caller is: few descriptors are left."""
        return self._channel.is_scarce()

    def require_room(self, caller: Caller) -> None:
        """Before a file is made that the caller has open.  OSError: ENFILE when he holds enough."""
        self._channel.require_room(caller.uid)

    @contextmanager
    def losing_a_name(self, node: Node, caller: Caller) -> Iterator[None]:
        """While a name of the node is removed: without one it is held by a descriptor, for the
        caller, until the kernel forgets it.  OSError: ENFILE when he holds enough.
        """
        self._channel.hold(node.nodeid, caller.uid)
        try:
            yield
        finally:
            self.given_a_name(node)

    def held(self, node: Node, caller: Caller) -> None:
        """A node was made without a name.  OSError: ENFILE when the caller holds enough."""
        self._channel.hold(node.nodeid, caller.uid)

    def given_a_name(self, node: Node) -> None:
        """The node may be reached by a name now, or by nobody, and need no descriptor."""
        if node.held_fd < 0:
            self._channel.let(node.nodeid)

    def removed(self, node: Node) -> None:
        """A name of the node was removed: nothing is kept open for a later opener."""
        self._channel.revoke(node.nodeid)

    def moved(self, node: Node) -> None:
        """The node is in another directory now: a listing that the kernel keeps of it says ".."."""
        if isinstance(node, Directory):
            self._channel.invalidate_listing(node.nodeid)

    async def make_upper(self, node: Node) -> None:
        """Copy-up for a change of attributes or names, if the copy has no file of its own yet; the
        caller holds the node's lock.

        The data stay the template's, and so do readers.
        """
        self._touching.take_back(node)
        if not node.upper:
            await self._copy_up(node, keep_data=True, to_write=False)

    async def make_private(self, node: Node, *, keep_data: bool = True) -> None:
        """Give the file data of its own, if it has none; the caller holds the node's lock.

        Changes nothing for descriptors that are open: what backs them has the same bytes.
        """
        self._touching.take_back(node)
        if not node.upper:
            await self._copy_up(node, keep_data=keep_data, to_write=True)
        else:
            self._overlay.mark_written(node)

    async def _copy_up(self, node: Node, *, keep_data: bool, to_write: bool) -> None:
        self._priming.take_back(node)
        overlay = self._overlay
        if not stat.S_ISREG(overlay.getattr(node).st_mode):
            async with self._all_names(node) as names:
                await self.turns.do(overlay.copy_up_special(node, names))
            return
        copy_up, source = overlay.begin_copy_up(node, keep_data=keep_data, to_write=to_write)
        try:
            if copy_up.is_quick:
                copy_up.clone()
            else:
                # Other requests go on meanwhile.  The lock keeps this node shared; its name may
                # move or go, and `publish` takes it as it then is.
                with self._touching.making_no_offers():
                    await trio.to_thread.run_sync(copy_up.clone)
            async with self._all_names(node) as names:
                await self.turns.do(overlay.publish(node, copy_up, names))
            self._channel.count_copy_up(copy_up.took_ns)
        finally:
            copy_up.close()
            os.close(source)

    @asynccontextmanager
    async def _all_names(self, node: Node) -> AsyncIterator[list[tuple[Directory, bytes]]]:
        """Every visible name of a shared node, for its copy-up.

        No await if it has one name.  A group of hard links has its turns with others; a handler
        that removes or renames one of its names waits for the lock of the node, which we hold.
        """
        overlay = self._overlay
        names: list[tuple[Directory, bytes]] = []
        with self._touching.making_no_offers():
            if node.parent is not None:
                names = await self._find_names(node)
            try:
                yield names
            finally:
                overlay.links.let_go(names)

    async def _find_names(self, node: Node) -> list[tuple[Directory, bytes]]:
        overlay = self._overlay
        for _ in range(TRIES):
            moved = overlay.directories_moved
            names = await self.turns.do(overlay.links.names_of(node))
            if overlay.directories_moved == moved:
                return names
            overlay.links.let_go(names)
        async with taking(self.moving):
            return await self.turns.do(overlay.links.names_of(node))

    async def _prepare_change(self, node: Node, *, keep_data: bool) -> int:
        """Make the file private, and every open of it too; gives an O_RDWR descriptor.

        The node is replaced afterwards when that could not be done for its readers.

        From the first line on the channel answers no open of this node by itself.  No await comes
        after the second look at who has it open, so that what it says stays true.
        """
        channel = self._channel
        state = None
        if not node.replaced:
            channel.revoke(node.nodeid)
            await self.make_private(node, keep_data=keep_data)
            state = channel.revoke(node.nodeid)
        if state is not None and state[0] == SHARED and state[3]:
            names = await self._names_to_replace(node)
            state = channel.revoke(node.nodeid)  # its readers may have left meanwhile
            if state is not None:
                self._replace(node, names)
                state = None
        fd = self._overlay.layers.open(self._overlay.current(node), os.O_RDWR)
        if state is not None and state[0] == SHARED:
            try:
                if channel.switch(node.nodeid, fd):
                    fd = self._overlay.layers.open(node, os.O_RDWR)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _reading(self, shared: int) -> int:
        """How the kernel reads a template's file, given its descriptor."""
        if not self._passthrough:
            return CACHED
        large = self._read_only or os.fstat(shared).st_size >= self._share_min
        return PASSTHROUGH if large else CACHED

    async def _is_changed_in_place(self, node: Node, shared: int, reading: int) -> bool:
        """Whether a reader would miss what programs write to the file: not when it is read through
        the channel, which is switched to the clone."""
        if self._clone != "auto" or self._read_only or reading != PASSTHROUGH:
            return False
        if self._in_place.is_known(node.name, b""):
            return True
        return self._in_place.is_known(node.name, await _head(shared))

    async def _reading_by_first(self, node: Node, shared: int) -> int | None:
        """How the first reader reads the template's file *shared*; None: not at all, the file was
        made private.  Then, and on errors, *shared* is closed.

        A file that is changed in place is made private before its first reader has it, if there is
        room for the clone; else the reader gets the template's file.
        """
        is_left = False
        try:
            reading = self._reading(shared)
            if not await self._is_changed_in_place(node, shared, reading):
                is_left = True
                return reading
            try:
                await self.make_private(node)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                is_left = True
                return reading
            return None
        finally:
            if not is_left:
                os.close(shared)

    async def _open_private(
        self,
        node: Node,
        fd: int,
        access: int,
        caller: Caller,
        *,
        truncate: bool,
        changed: bool,
    ) -> None:
        """Count an open of the copy's own file *fd*, which is taken over.

        *changed*: what the kernel was told of it before is not true any more.
        """
        writing = access != os.O_RDONLY
        try:
            if truncate:
                await _truncate(fd, 0)
            # No await from here to the reply.
            if not self._channel.open(node.nodeid, writing, caller.uid):
                changed = True  # an earlier daemon may have been killed before it could say so
                taken, fd = fd, -1
                self._attach_private(node, taken, caller, writing=writing)
        finally:
            if fd >= 0:
                os.close(fd)
        with self.until_reply(node, access):
            # A shared mapping may be made of a descriptor that reads and writes: it outlives the
            # descriptor, and changes the file unseen.
            if access == os.O_RDWR:
                self._channel.mark_mappable(node.nodeid)
            # What the kernel keeps of a file that is passed through is not to be believed from now
            # on. Elsewhere all changes go through the kernel, and a process that is told a size by
            # us might map more than the kernel knows of yet.
            if changed or self._channel.is_volatile(node.nodeid):
                self._channel.invalidate_attr(node.nodeid)
            if node.successor is not None:
                self._channel.invalidate_attr(node.successor.nodeid)

    async def _open_replaced(
        self, node: Node, access: int, caller: Caller, *, truncate: bool
    ) -> None:
        """Send a caller back to the name; serve one that comes again, and so has no name to go to.

        The root of a bind mount of one file cannot be looked up again, nor a link of /proc or a
        file handle: the kernel then asks for the same node a second time, at once and in the same
        thread.
        """
        if not self._sent_back.pop((node.nodeid, caller.pid), False):
            self._send_back(node, caller)
        successor = self._overlay.current(node)
        if self._channel.is_shared(node.nodeid):
            if access != os.O_RDONLY or truncate:
                raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))
            self._channel.open(node.nodeid, False, caller.uid)
            return
        fd = self._overlay.layers.open(successor, os.O_RDONLY if self._read_only else os.O_RDWR)
        await self._open_private(node, fd, access, caller, truncate=truncate, changed=True)

    def _send_back(self, node: Node, caller: Caller) -> NoReturn:
        self._sent_back[node.nodeid, caller.pid] = True
        if len(self._sent_back) > SENT_BACK:
            self._sent_back.popitem(last=False)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _attach_private(self, node: Node, fd: int, caller: Caller, *, writing: bool) -> None:
        """Back the node by the copy's own file *fd*, which is taken over, and count its first open.

        A write has to take setuid and setgid away.  The kernel leaves that to the server (we said
        HANDLE_KILLPRIV_V2: without it every write would ask for an attribute first), but tells the
        server of no write that it passes through; so a file with these bits is not.  Nor is any on
        a synchronous mount: for a write that is passed through the kernel asks the volume's mount.
        """
        try:
            privileged = os.fstat(fd).st_mode & (stat.S_ISUID | stat.S_ISGID)
        except BaseException:
            os.close(fd)
            raise
        passthrough = self._passthrough and not self._synchronous and not privileged
        # What is replaced has another node for the same file, whose pages FUSE caches apart.
        otherwise = BYPASS if node.replaced else CACHED
        reading = PASSTHROUGH if passthrough else otherwise
        self._channel.attach(node.nodeid, fd, PRIVATE, reading, writing, caller.uid)

    async def _names_to_replace(self, node: Node) -> list[tuple[int, bytes]]:
        """Every name of a node of the upper layer, as they are when this returns."""
        overlay = self._overlay
        changed = overlay.names_changed
        names = await self.turns.do(overlay.links.upper_names_of(node))
        if overlay.names_changed != changed:
            names = at_once(overlay.links.upper_names_of(node))
        return names

    def _replace(self, node: Node, names: list[tuple[int, bytes]]) -> None:
        """Let a new node take over the names; the old one keeps its readers and their bytes."""
        self._touching.take_back(node)  # it may have been offered again while names were looked for
        fd = self._channel.backing_fd(node.nodeid)
        try:
            self._overlay.hand_over(node, fd)
        finally:
            os.close(fd)
        for parent, name in names:
            self._channel.invalidate_entry(parent, name)


async def _head(fd: int) -> bytes:
    """The first bytes of a file; others do not wait while they come from the disk.

    None of them when they cannot be read, which the reader may find out.
    """
    head = bytearray(HEAD_SIZE)
    try:
        return bytes(head[: os.preadv(fd, [head], 0, os.RWF_NOWAIT)])
    except OSError:
        pass  # not in memory, or a filesystem without such reads
    try:
        return await trio.to_thread.run_sync(os.pread, fd, HEAD_SIZE, 0)
    except OSError:
        return b""


async def _truncate(fd: int, size: int) -> None:
    """ftruncate(2): giving back the blocks of a large file may take as long as cloning it."""
    if os.fstat(fd).st_blocks * 512 <= QUICK_BYTES:
        os.ftruncate(fd, size)
    else:
        await trio.to_thread.run_sync(os.ftruncate, fd, size)
