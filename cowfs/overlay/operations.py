"""The handlers that pyfuse3 calls: requests in, attributes and errno out.

A handler turns ids into nodes, takes the locks that the change needs, calls the overlay, and tells
the kernel how long it may keep the answer.  Nothing is decided here about names or copies, and no
file data passes through: READ, WRITE, RELEASE, FSYNC and the like are answered by the channel.

Names and attributes of a copy change only through its mount, so the kernel may keep what it was
told for as long as it likes.  The exception is a file that is open for writing with passthrough:
the kernel writes to it without asking, so its attributes are never kept (`Backing.is_volatile`).

Concurrency: everything runs in one thread, so whatever has no await in it is atomic.  What awaits
(copy-up, fsync) holds `lock_of(node)` and looks again at what it needs afterwards.  A handler holds
at most one such lock, or, in rename, takes them one after the other and lets go in between.

A request that the kernel has sent again (`AGAIN`) may have been done, and is then answered so.  The
kernel still holds the locks of the directories, and every change comes from it: a name is there
only if it was there when the request was made, or was made by it.

This is the only place where OSError becomes FUSEError.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import struct
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, StatvfsData

from cowfs.channel import (
    AGAIN,
    ATTRIBUTE_AGAIN,
    EXCHANGE_NUMBER,
    FOREVER,
    STATX,
    TAKES_SETGID,
    UNNAMED,
    lost_privileges,
)
from cowfs.overlay.backing import Backing
from cowfs.overlay.caller import UNSAID, Caller, is_in_group, uid_of
from cowfs.overlay.inodes import Directory, Node, NotYetFound
from cowfs.overlay.listing import LAST_COOKIE, Listing
from cowfs.overlay.namespace import NAME_MAX, failure
from cowfs.overlay.overlay import Overlay
from cowfs.overlay.priming import Priming
from cowfs.overlay.touching import Touching
from cowfs.overlay.turns import lock_of, taking
from cowfs.system import ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Between two lines about what one handler did not foresee, in seconds; and how much of what it was
# asked is in such a line, in characters: a FORGET may be long.
LOGGED_S = 60.0
LOGGED = 1000

# Entries of a listing in one reply: some milliseconds.
LISTED = 256

_FIELDS = ("update_size", "update_mode", "update_uid", "update_gid", "update_atime", "update_mtime")

# struct fuse_statx_out: how long the attributes are valid (seconds, nanoseconds), flags, two words
# of reserve; struct fuse_statx: mask, blksize, attributes, nlink, uid, gid, mode, ino (the channel
# writes it), size, blocks, attributes_mask; atime, btime, ctime, mtime (seconds, nanoseconds, four
# bytes of reserve); rdev and dev (major, minor each), fourteen words of reserve.
_STATX_OUT = struct.Struct("=QII16xIIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800


class _Rarely:
    """Logs what a handler did not foresee, with its stack, once in `LOGGED_S` seconds."""

    def __init__(self, handler: str) -> None:
        self._handler = handler
        self._next = 0.0
        self._left_out = 0

    def exception(self, arguments: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        more = f" (and {self._left_out} times since the last line)" if self._left_out else ""
        log.exception("%s%s%s", self._handler, repr(arguments)[:LOGGED], more)
        self._next, self._left_out = now + LOGGED_S, 0


def handler(
    method: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make errors of a handler errnos; what nobody foresaw is logged and becomes EIO.

    Users may be able to cause it as often as they like, so one line a minute has to do.

    Before the handler begins it learns what the channel has changed, see touching.py.  It begins
    anew once a node was found that an earlier daemon knew.
    """
    log_rarely = _Rarely(method.__name__)

    @functools.wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        operations: Any = args[0]
        try:
            while True:
                operations.touching.take()
                try:
                    return await method(*args, **kwargs)
                except NotYetFound as node:
                    await operations.look_for(node)
        except FUSEError:
            raise
        except OSError as error:
            if error.errno in (None, errno.EBADF, errno.EFAULT):  # can only be our own mistake
                log_rarely.exception(args[1:])
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log_rarely.exception(args[1:])
            raise FUSEError(errno.EIO) from None

    return guarded


class _Rename(NamedTuple):
    """What a RENAME asks for.

    *number* is that of an exchange, by which it is known when it comes *again*.
    """

    old_parent: Directory
    old_name: bytes
    new_parent: Directory
    new_name: bytes
    flags: int
    number: int | None
    again: bool

    @classmethod
    def read(
        cls,
        old_parent: Directory,
        old_name: bytes,
        new_parent: Directory,
        new_name: bytes,
        flags: int,
    ) -> _Rename:
        """From a request, whose names may be marked."""
        number = None
        if flags & syscalls.RENAME_EXCHANGE:
            number, old_name = _numbered(old_name)
        new_name, again = _unmark(new_name)
        if again:
            old_name, _ = _unmark(old_name)
        return cls(old_parent, old_name, new_parent, new_name, flags, number, again)

    @property
    def is_exchange(self) -> bool:
        return bool(self.flags & syscalls.RENAME_EXCHANGE)


class Operations(pyfuse3.Operations):
    """One mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        overlay: Overlay,
        backing: Backing,
        priming: Priming,
        touching: Touching,
        *,
        read_only: bool,
        on_forgotten: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._overlay = overlay
        self._nodes = overlay.nodes
        self._backing = backing
        self._priming = priming
        self.touching = touching
        self._read_only = read_only
        self._on_forgotten = on_forgotten
        # Held over a search for a node of an earlier daemon, which mostly finds others, too.
        self._searching = trio.Lock()

    async def look_for(self, node: NotYetFound) -> None:
        """Find a node of an earlier daemon; ESTALE when no name leads to it."""
        async with taking(self._searching):
            found = await self._backing.turns.do(node.search)
        if not found:
            raise failure(errno.ESTALE)

    # ---------------------------------------------------------------- names

    @handler
    async def lookup(self, parent_inode: int, name: bytes, _ctx: RequestContext) -> EntryAttributes:
        parent = self._nodes.directory(parent_inode)
        try:
            node, st = self._overlay.lookup(parent, name)
        except FileNotFoundError:
            missing = EntryAttributes()
            missing.st_ino = 0  # the kernel keeps that there is no such name
            missing.entry_timeout = FOREVER
            return missing
        self._priming.looked_up(parent)
        if self._overlay.lacks_count(node, st):
            st = await self._stat(node)
        return self._entry(node, st)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        with suppress(FUSEError):  # it has no reply, so there is nobody to tell
            await self._forget(inode_list)

    @handler
    async def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for nodeid, count in inode_list:
            for dropped in self._overlay.forget(nodeid, count):
                self._on_forgotten(dropped)

    @handler
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """fh is the directory's node id: the channel has put it there."""
        directory = self._nodes.directory(fh)
        if start_id <= 0 and not self._reply_dot(token, b".", directory, 1):
            return
        if start_id <= 1 and not self._reply_dot(token, b"..", directory.parent or directory, 2):
            return
        # The kernel holds the directory's lock while it reads, and a change of it waits: the
        # listing does not change under this loop.
        overlay = self._overlay
        listing = await self._listing(directory)
        # A larger cookie is from a daemon of an older version, from which this one took over.
        after = listing.after if start_id <= LAST_COOKIE else listing.after_as_before
        # From the first entry to the reply there is no await: the kernel would keep for ever what a
        # directory was before a change that it has heard of meanwhile.
        for count, (place, name) in enumerate(after(max(0, start_id - 2))):
            if count == LISTED:
                return  # it asks for the others, and everybody has a turn before
            try:
                node, st = overlay.lookup(directory, name)
                if overlay.lacks_count(node, st):
                    if count and not self._lists_at_once(node):
                        self._prune_unasked(node)
                        return
                    st = await self._stat(node)
            except OSError:
                # What cannot be read has its name in the listing, and the error when it is used.
                if not self._reply_name(token, name, place + 3):
                    return
                continue
            if not pyfuse3.readdir_reply(token, name, self._attributes(node, st), place + 3):
                self._prune_unasked(node)
                return
            node.lookups += 1

    def _lists_at_once(self, directory: Directory) -> bool:
        """Whether the listing is made by the first piece of the work, as that of most is."""
        for _ in self._overlay.listings.made(directory):
            return False
        return True

    def _prune_unasked(self, node: Node) -> None:
        """Drop a node that was not replied, unless the kernel has it."""
        if node.lookups == 0:
            self._overlay.prune(node)

    @staticmethod
    def _reply_name(token: Any, name: bytes, next_id: int) -> bool:
        """A name without a node: the kernel asks for that when somebody uses the name."""
        attributes = EntryAttributes()
        attributes.st_ino = 0  # a number for the listing comes from the channel
        return bool(pyfuse3.readdir_reply(token, name, attributes, next_id))

    @staticmethod
    def _reply_dot(token: Any, name: bytes, node: Node, next_id: int) -> bool:
        attributes = EntryAttributes()
        attributes.st_ino = node.nodeid
        attributes.st_mode = stat.S_IFDIR
        return bool(pyfuse3.readdir_reply(token, name, attributes, next_id))

    @handler
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._writable_directory(parent_inode)
        name, again = _unmark(name)
        if again and (made := self._find(parent, name)) is not None:
            return self._entry(made)
        node = self._overlay.create_directory(parent, name, mode, ctx.umask, (ctx.uid, ctx.gid))
        return self._entry(node)

    @handler
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._writable_directory(parent_inode)
        name, again = _unmark(name)
        if again and (made := self._find(parent, name)) is not None:
            return self._entry(made)
        owner = (ctx.uid, ctx.gid)
        if stat.S_ISREG(mode):
            node, fd = self._overlay.create_file(parent, name, mode, ctx.umask, owner)
            os.close(fd)
        else:
            node = self._overlay.create_special(parent, name, mode, ctx.umask, rdev, owner)
        return self._entry(node)

    @handler
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._writable_directory(parent_inode)
        name, again = _unmark(name)
        if again and (made := self._find(parent, name)) is not None:
            return self._entry(made)
        return self._entry(self._overlay.create_symlink(parent, name, target, (ctx.uid, ctx.gid)))

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._writable_directory(parent_inode)
        owner, access = (ctx.uid, ctx.gid), flags & os.O_ACCMODE
        self._backing.require_room(self._caller(ctx))
        if name == UNNAMED:
            # Done twice, it leaves the first one behind, empty, until the mount ends.
            node, fd = self._overlay.create_unnamed(parent, mode, ctx.umask, owner)
        else:
            name, again = _unmark(name)
            if again and (made := self._find(parent, name)) is not None:
                await self._backing.open_changing(made, access, self._caller(ctx), truncate=False)
                with self._backing.until_reply(made, access):
                    return FileInfo(fh=made.nodeid), self._entry(made)
            node, fd = self._overlay.create_file(parent, name, mode, ctx.umask, owner)
        try:
            self._backing.created(node, fd, access, self._caller(ctx))
            with self._backing.until_reply(node, access):
                if node.held_fd >= 0:
                    self._backing.held(node, self._caller(ctx))
                return FileInfo(fh=node.nodeid), self._entry(node)
        except BaseException:
            self._overlay.prune(node)  # nobody was told of it, and nobody will forget it
            self._backing.given_a_name(node)
            raise

    @handler
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, _ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._writable_directory(new_parent_inode)
        node = self._overlay.current(self._nodes.get(inode))
        new_name, again = _unmark(new_name)
        if again and self._find(parent, new_name) is node:
            return self._entry(node)
        node = await self._in_upper(node)
        self.touching.take_back(node)
        self._overlay.link(node, parent, new_name)
        self._backing.given_a_name(node)
        return self._entry(node)

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self._writable_directory(parent_inode)
        name, again = _unmark(name)
        if again and self._find(parent, name) is None:
            return
        node = self._held(parent, name)
        if self._overlay.links.is_grouped(node):
            await self._in_upper(node)  # its other names count as links from now on
        self._priming.take_back(node)
        self.touching.take_back(node)
        with self._backing.losing_a_name(node, self._caller(ctx)):
            self._overlay.unlink(parent, name)
        self._backing.removed(node)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self._writable_directory(parent_inode)
        name, again = _unmark(name)
        if again and self._find(parent, name) is None:
            return
        node = self._held(parent, name)
        if isinstance(node, Directory):
            await self._listing(node)  # is it empty?
        self.touching.take_back(node)
        with self._backing.losing_a_name(node, self._caller(ctx)):
            self._overlay.rmdir(parent, name)
        await self._clear_away()

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        asked = _Rename.read(
            self._writable_directory(parent_inode_old),
            name_old,
            self._writable_directory(parent_inode_new),
            name_new,
            flags,
        )
        if asked.again and self._was_renamed(asked):
            source, target = self._where_renamed(asked)
            self._tell_moved(asked, source, target)
            return
        # The kernel holds the locks of both directories: the names stay what they are over the
        # awaits.
        source = await self._ready_to_move(asked)
        target = await self._ready_to_give_way(asked, source)
        replaced = await self._rename(asked, source, target, ctx)
        if replaced is not None:
            self._backing.removed(replaced)
        self._tell_moved(asked, source, target)
        await self._clear_away()

    async def _ready_to_move(self, asked: _Rename) -> Node:
        """What is renamed, which takes its file along."""
        source = self._held(asked.old_parent, asked.old_name)
        if not isinstance(source, Directory):
            await self._in_upper(source)
        return source

    async def _ready_to_give_way(self, asked: _Rename, source: Node) -> Node | None:
        """What has the new name: it loses that, or takes the old one."""
        target = self._find(asked.new_parent, asked.new_name)
        if target is None:
            return None
        target = self._nodes.get(target.nodeid)
        moves = asked.is_exchange and not isinstance(target, Directory)
        if moves or self._overlay.links.is_grouped(target):
            await self._in_upper(target)
        if isinstance(target, Directory) and isinstance(source, Directory) and not asked.flags:
            await self._listing(target)  # is it empty?
        self._priming.take_back(target)
        return target

    async def _rename(
        self, asked: _Rename, source: Node, target: Node | None, ctx: RequestContext
    ) -> Node | None:
        """The rename itself; gives what was replaced."""
        moves_directory = isinstance(source, Directory) or isinstance(target, Directory)
        # The node that may have no name afterwards: the target, unless they are exchanged.
        loses = None if target is None or asked.flags else target
        async with taking(self._backing.moving) if moves_directory else nullcontext():
            # Not before: while somebody else moves a directory, they may be offered again.
            self.touching.take_back(source)
            if target is not None:
                self.touching.take_back(target)
            with (
                nullcontext()
                if loses is None
                else self._backing.losing_a_name(loses, self._caller(ctx))
            ):
                return self._overlay.rename(
                    asked.old_parent,
                    asked.old_name,
                    asked.new_parent,
                    asked.new_name,
                    asked.flags,
                    asked.number,
                )

    def _tell_moved(self, asked: _Rename, source: Node, target: Node | None) -> None:
        """Let the kernel forget what it keeps of what came to another directory."""
        if asked.old_parent is not asked.new_parent:
            self._backing.moved(source)
            if asked.is_exchange:
                assert target is not None
                self._backing.moved(target)

    def _was_renamed(self, asked: _Rename) -> bool:
        """Whether a rename that comes again has been done."""
        if asked.is_exchange:
            return self._overlay.was_exchanged(asked.number, asked.old_parent, asked.old_name)
        gone = self._find(asked.old_parent, asked.old_name) is None
        return gone and self._find(asked.new_parent, asked.new_name) is not None

    def _where_renamed(self, asked: _Rename) -> tuple[Node, Node | None]:
        """What has the new name, and the old one, after a rename."""
        source, _st = self._overlay.lookup(asked.new_parent, asked.new_name)
        if not asked.is_exchange:
            return source, None
        return source, self._overlay.lookup(asked.old_parent, asked.old_name)[0]

    async def _clear_away(self) -> None:
        """Remove the whiteouts of a directory that was removed just now.  Nobody sees them any
        more, and only the caller that removed the directory waits."""
        work = self._overlay.work
        if work.left:
            left, work.left = work.left, []
            await trio.to_thread.run_sync(work.clear_away, left)

    @handler
    async def readlink(self, inode: int, _ctx: RequestContext) -> bytes:
        return self._overlay.readlink(self._nodes.get(inode))

    # ---------------------------------------------------------------- attributes

    @handler
    async def getattr(self, inode: int, _ctx: RequestContext) -> EntryAttributes:
        node = self._nodes.get(inode)
        return self._attributes(node, await self._stat(node))

    @handler
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._refuse_read_only()
        overlay = self._overlay
        node = self._nodes.get(inode)
        if fields.update_size:
            async with lock_of(node):
                await self._backing.truncate(node, attr.st_size, by_descriptor=fh is not None)
            self._drop_privileges(overlay.current(node), ctx)
        node = await self._in_upper(node)
        if not any(getattr(fields, name) for name in _FIELDS):
            self._change_nothing(node, ctx)
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            self._drop_privileges(node, ctx)
            overlay.set_owner(node, uid, gid)
        if fields.update_mode:
            overlay.set_mode(node, attr.st_mode)
        if fields.update_atime or fields.update_mtime:
            overlay.set_times(
                node,
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )
        if fields.update_mode or fields.update_uid or fields.update_gid:
            self.touching.changed(node)
        shown = self._nodes.get(inode)  # not the one that has taken over its name
        return self._attributes(shown, await self._stat(shown))

    @handler
    async def statfs(self, _ctx: RequestContext) -> StatvfsData:
        volume = os.statvfs(ondisk.proc_path(self._overlay.layers.upper_root_fd))
        reply = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail"):
            setattr(reply, field, getattr(volume, field))
        for field in ("f_files", "f_ffree", "f_favail"):
            setattr(reply, field, getattr(volume, field))
        reply.f_namemax = NAME_MAX
        return reply

    @handler
    async def access(self, _inode: int, _mode: int, _ctx: RequestContext) -> bool:
        return True  # default_permissions: the kernel has checked

    # ---------------------------------------------------------------- extended attributes

    @handler
    async def getxattr(self, inode: int, name: bytes, _ctx: RequestContext) -> bytes:
        if name == STATX:
            return await self._statx(self._nodes.get(inode))
        if ondisk.is_internal(name):
            raise failure(errno.ENODATA)
        node = self._overlay.current(self._nodes.get(inode))
        return ondisk.get_xattr(self._overlay.layers.path(node), name)

    @handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        node = self._overlay.current(self._nodes.get(inode))
        names = ondisk.list_xattrs(self._overlay.layers.path(node))
        # xattr(7): only the privileged see trusted attributes; the volume's filesystem shows them
        # to the daemon.
        hidden = (b"trusted.",) if uid_of(ctx) != 0 else ondisk.INTERNAL
        return [name for name in names if not name.startswith(hidden)]

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, _ctx: RequestContext) -> None:
        name, again = _unmark(name, ATTRIBUTE_AGAIN)
        takes_setgid = name.startswith(TAKES_SETGID)
        name = name.removeprefix(TAKES_SETGID)
        self._refuse_internal(name)
        node = await self._in_upper(self._nodes.get(inode))
        path = self._overlay.layers.path(node)
        try:
            ondisk.set_xattr(path, name, value, os.XATTR_CREATE if again else 0)
        except FileExistsError:
            if ondisk.get_xattr(path, name) != value:
                raise
        if takes_setgid:
            mode = self._overlay.getattr(node).st_mode
            self._overlay.set_mode(node, mode & ~stat.S_ISGID)

    @handler
    async def removexattr(self, inode: int, name: bytes, _ctx: RequestContext) -> None:
        name, again = _unmark(name, ATTRIBUTE_AGAIN)
        self._refuse_internal(name)
        node = self._overlay.current(self._nodes.get(inode))
        try:
            ondisk.get_xattr(self._overlay.layers.path(node), name)
        except OSError as error:
            if error.errno == errno.ENODATA and (again or name in ondisk.ACLS):
                return  # no ACL but the mode is what there is then, too
            raise  # and nothing is copied up
        node = await self._in_upper(node)
        ondisk.remove_xattr(self._overlay.layers.path(node), name)

    # ---------------------------------------------------------------- open files

    @handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self._nodes.get(inode)
        access = flags & os.O_ACCMODE
        truncate = bool(flags & os.O_TRUNC)
        if access == os.O_RDONLY and not truncate:
            await self._backing.open_reading(node, self._caller(ctx))
        else:
            self._refuse_read_only()
            await self._backing.open_changing(node, access, self._caller(ctx), truncate=truncate)
        with self._backing.until_reply(node, access):
            if truncate:
                self._drop_privileges(self._overlay.current(node), ctx)
            return FileInfo(fh=inode)

    @handler
    async def opendir(self, inode: int, _ctx: RequestContext) -> int:
        return self._nodes.directory(inode).nodeid

    @handler
    async def releasedir(self, _fh: int) -> None:
        return

    @handler
    async def fsync(self, fh: int, _datasync: bool) -> None:
        """Of a file that is open as the template's: its attributes may be the copy's own by now.

        fh is the node id; the channel answers for every other file.
        """
        node = self._overlay.current(self._nodes.get(fh))
        if not node.upper:
            return
        fd = self._overlay.layers.open(node, os.O_RDONLY)
        try:
            await trio.to_thread.run_sync(os.fsync, fd)
        finally:
            os.close(fd)

    @handler
    async def fsyncdir(self, fh: int, _datasync: bool) -> None:
        """fh is the directory's node id; one that never changed has nothing to write."""
        directory = self._nodes.directory(fh)
        if not directory.upper or directory.is_unlinked:
            return
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(b".", flags, dir_fd=self._overlay.layers.upper(directory))
        try:
            await trio.to_thread.run_sync(syscalls.fsync_directory, fd)
        finally:
            os.close(fd)

    # ---------------------------------------------------------------- helpers

    def _caller(self, ctx: RequestContext) -> Caller:
        uid = ctx.uid
        if uid == UNSAID and self._backing.needs_to_know():
            uid = uid_of(ctx)
        return Caller(ctx.pid, uid)

    def _refuse_read_only(self) -> None:
        # The kernel refuses by itself, until somebody remounts the mount read-write.
        if self._read_only:
            raise failure(errno.EROFS)

    def _refuse_internal(self, name: bytes) -> None:
        self._refuse_read_only()
        if ondisk.is_internal(name):
            raise failure(errno.EPERM)

    def _writable_directory(self, nodeid: int) -> Directory:
        self._refuse_read_only()
        return self._nodes.directory(nodeid)

    def _find(self, parent: Directory, name: bytes) -> Node | None:
        """What has that name now."""
        try:
            return self._overlay.lookup(parent, name)[0]
        except FileNotFoundError:
            return None

    def _held(self, parent: Directory, name: bytes) -> Node:
        """The node of a name that the kernel has looked up, so that it holds the node.

        OSError as `Overlay.lookup`.
        """
        return self._nodes.get(self._overlay.lookup(parent, name)[0].nodeid)

    async def _in_upper(self, node: Node) -> Node:
        """The node that stands for the same file today, copied up for a change of attributes."""
        node = self._overlay.current(node)
        if isinstance(node, Directory):
            if not node.upper:
                self._overlay.ensure_upper(node)
        elif not node.upper:
            async with lock_of(node):
                await self._backing.make_upper(node)
            node = self._overlay.current(node)  # it may have been replaced while we waited
        return node

    async def _stat(self, node: Node) -> os.stat_result:
        """`Overlay.getattr`; a directory has the listing from which its links are counted."""
        st = self._overlay.getattr(node)
        if self._overlay.lacks_count(node, st):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                await self._listing(node)
            st = self._overlay.getattr(node)
        return st

    async def _listing(self, directory: Directory) -> Listing:
        """No await if it is kept; until the next one it is, and no change is missing."""
        directory.children += 1  # it stays in the table meanwhile
        try:
            return await self._backing.turns.do(self._overlay.listings.made(directory))
        finally:
            directory.children -= 1

    def _change_nothing(self, node: Node, ctx: RequestContext) -> None:
        """A change without a field: chown(2) with -1 for both ids, which takes setuid and setgid.

        The kernel sends the same before a fallocate(2) or copy_file_range(2) of a file with these
        bits, whoever calls; the channel takes them away then.
        """
        st = self._overlay.getattr(node)
        if uid_of(ctx) in (0, st.st_uid):
            self._drop_privileges(node, ctx)
            self._overlay.set_owner(node, -1, -1)

    def _drop_privileges(self, node: Node, ctx: RequestContext) -> None:
        """What a change of data or owner does to setuid and setgid without CAP_FSETID: inode(7).

        The daemon has it, so the volume's filesystem does not do it by itself.
        """
        st = self._overlay.getattr(node)
        special = st.st_mode & (stat.S_ISUID | stat.S_ISGID)
        if not special or stat.S_ISDIR(st.st_mode) or uid_of(ctx) == 0:
            return
        lost = lost_privileges(st.st_mode, is_in_group(ctx, st.st_gid))
        if lost:
            self._overlay.set_mode(node, st.st_mode & ~lost)

    def _entry(self, node: Node, st: os.stat_result | None = None) -> EntryAttributes:
        """The answer that hands a node to the kernel: one more lookup."""
        attributes = self._attributes(node, st or self._overlay.getattr(node))
        node.lookups += 1
        return attributes

    async def _statx(self, node: Node) -> bytes:
        """What `_attributes` says, and when the file was made."""
        entry = self._attributes(node, await self._stat(node))
        born = self._overlay.birth_time(node)
        mask = _STATX_BASIC_STATS | (0 if born is None else _STATX_BTIME)
        times = (entry.st_atime_ns, born or 0, entry.st_ctime_ns, entry.st_mtime_ns)
        return _STATX_OUT.pack(
            *(int(entry.attr_timeout), 0, 0),
            *(mask, entry.st_blksize, 0),
            *(entry.st_nlink, entry.st_uid, entry.st_gid, entry.st_mode),
            *(0, entry.st_size, entry.st_blocks, 0),
            *(part for time in times for part in divmod(time, 1_000_000_000)),
            *(os.major(entry.st_rdev), os.minor(entry.st_rdev), 0, 0),
        )

    def _attributes(self, node: Node, st: os.stat_result) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = node.nodeid
        entry.entry_timeout = FOREVER
        entry.attr_timeout = 0 if self._backing.is_volatile(node) else FOREVER
        entry.st_mode = st.st_mode
        entry.st_nlink = self._overlay.nlink(self._overlay.current(node), st)
        entry.st_uid = st.st_uid
        entry.st_gid = st.st_gid
        entry.st_rdev = st.st_rdev
        entry.st_size = st.st_size
        entry.st_blksize = st.st_blksize
        entry.st_blocks = st.st_blocks
        entry.st_atime_ns = st.st_atime_ns
        entry.st_mtime_ns = st.st_mtime_ns
        entry.st_ctime_ns = st.st_ctime_ns
        if node.replaced:
            entry.attr_timeout = 0  # the file changes through another node
        if self._backing.has_old_readers(node):
            # They keep bytes and size, and with them the times; all else is that of the file.
            assert node.origin is not None
            opened = node.origin
            entry.st_size, entry.st_blocks = opened.st_size, opened.st_blocks
            entry.st_atime_ns, entry.st_mtime_ns = opened.st_atime_ns, opened.st_mtime_ns
            entry.st_ctime_ns = opened.st_ctime_ns
        return entry


def _unmark(name: bytes, mark: bytes = AGAIN) -> tuple[bytes, bool]:
    """The name itself, and whether it says that the request has come again."""
    return name.removeprefix(mark), name.startswith(mark)


def _numbered(name: bytes) -> tuple[int | None, bytes]:
    """The number of an exchange, and the old name."""
    if not name.startswith(EXCHANGE_NUMBER):
        return None, name
    number, _, name = name.removeprefix(EXCHANGE_NUMBER).partition(b"/")
    return int(number), name
