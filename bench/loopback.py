"""A plain loopback filesystem on stock pyfuse3: what cowfs would cost without its channel.

In the spirit of pyfuse3's example passthroughfs, but every inode is held by an O_PATH descriptor
instead of its path, so renames of directories, hard links and unlinked files keep working. Handlers
do what the system call of their name does and no more; caching is what pyfuse3 and libfuse do when
nobody asks for anything else (names and attributes for one second, no data over an open).

Run as `python -m bench.loopback SOURCE MOUNTPOINT`; stays in the foreground.
"""

# ruff: noqa: ARG002 - handlers have the parameters that pyfuse3 passes

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

TIMEOUT_SECONDS = 1.0  # libfuse's default for entry_timeout and attr_timeout


@contextmanager
def errors_to_kernel() -> Iterator[None]:
    """Answer with the errno of the system call that failed."""
    try:
        yield
    except OSError as error:
        raise FUSEError(error.errno or errno.EIO) from None


class Node:
    """An inode that the kernel knows: a descriptor that pins it, and how often it was looked up."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lookups = 0

    @property
    def path(self) -> str:
        """A name through which calls that take no O_PATH descriptor reach the inode."""
        return f"/proc/self/fd/{self.fd}"


class Loopback(pyfuse3.Operations):
    """Shows one directory. Everything runs in one thread and never awaits: no locks."""

    def __init__(self, source: str) -> None:
        super().__init__()
        root = Node(os.open(source, os.O_PATH | os.O_DIRECTORY))
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self._root_ino = os.fstat(root.fd).st_ino
        self._listings: dict[int, list[str]] = {}

    # -- names

    def _node(self, parent: int, name: bytes) -> EntryAttributes:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._nodes[parent].fd)
        found = os.fstat(fd)
        inode = pyfuse3.ROOT_INODE if found.st_ino == self._root_ino else found.st_ino
        known = self._nodes.get(inode)
        if known is None:
            known = self._nodes[inode] = Node(fd)
        else:
            os.close(fd)
        known.lookups += 1
        return attributes(found)

    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        with errors_to_kernel():
            return self._node(parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            node = self._nodes.get(inode)
            if node is None or inode == pyfuse3.ROOT_INODE:
                continue
            node.lookups -= count
            if node.lookups <= 0:
                os.close(self._nodes.pop(inode).fd)

    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        with errors_to_kernel():
            parent = self._nodes[parent_inode].fd
            os.mknod(name, mode & ~ctx.umask, rdev, dir_fd=parent)
            os.chown(name, ctx.uid, ctx.gid, dir_fd=parent, follow_symlinks=False)
            return self._node(parent_inode, name)

    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        with errors_to_kernel():
            parent = self._nodes[parent_inode].fd
            os.mkdir(name, mode & ~ctx.umask, dir_fd=parent)
            os.chown(name, ctx.uid, ctx.gid, dir_fd=parent, follow_symlinks=False)
            return self._node(parent_inode, name)

    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        with errors_to_kernel():
            parent = self._nodes[parent_inode].fd
            os.symlink(target, name, dir_fd=parent)
            os.chown(name, ctx.uid, ctx.gid, dir_fd=parent, follow_symlinks=False)
            return self._node(parent_inode, name)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        with errors_to_kernel():
            parent = self._nodes[new_parent_inode].fd
            os.link(self._nodes[inode].path, new_name, dst_dir_fd=parent, follow_symlinks=True)
            return self._node(new_parent_inode, new_name)

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        with errors_to_kernel():
            os.unlink(name, dir_fd=self._nodes[parent_inode].fd)

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        with errors_to_kernel():
            os.rmdir(name, dir_fd=self._nodes[parent_inode].fd)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        with errors_to_kernel():
            os.rename(
                name_old,
                name_new,
                src_dir_fd=self._nodes[parent_inode_old].fd,
                dst_dir_fd=self._nodes[parent_inode_new].fd,
            )

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        with errors_to_kernel():
            return os.readlink(b"", dir_fd=self._nodes[inode].fd)

    # -- attributes

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        with errors_to_kernel():
            return attributes(os.fstat(self._nodes[inode].fd))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        with errors_to_kernel():
            if fields.update_size:
                os.truncate(node.path if fh is None else fh, attr.st_size)
            if fields.update_mode:
                os.chmod(node.path, stat.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                os.chown(b"", uid, gid, dir_fd=node.fd, follow_symlinks=False)
            if fields.update_atime or fields.update_mtime:
                now = os.fstat(node.fd)
                atime = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                mtime = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                os.utime(node.path, ns=(atime, mtime))
            return attributes(os.fstat(node.fd))

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with errors_to_kernel():
            found = os.fstatvfs(self._nodes[pyfuse3.ROOT_INODE].fd)
        answer = StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"):
            setattr(answer, f"f_{name}", getattr(found, f"f_{name}"))
        answer.f_namemax = found.f_namemax
        return answer

    # -- directories: the listing of a handle stays as it was when it was opened or rewound

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        with errors_to_kernel():
            return FileHandleT(os.open(self._nodes[inode].path, os.O_RDONLY | os.O_DIRECTORY))

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        with errors_to_kernel():
            if start_id == 0 or fh not in self._listings:
                self._listings[fh] = os.listdir(fh)
        names = self._listings[fh]
        parent = self._parent_of(fh)
        for position in range(start_id, len(names)):
            name = os.fsencode(names[position])
            try:
                entry = self._node(parent, name)
            except FileNotFoundError:
                continue
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                await self.forget([(entry.st_ino, 1)])
                break

    def _parent_of(self, fh: int) -> int:
        ino = os.fstat(fh).st_ino
        return pyfuse3.ROOT_INODE if ino == self._root_ino else ino

    async def releasedir(self, fh: FileHandleT) -> None:
        self._listings.pop(fh, None)
        os.close(fh)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        with errors_to_kernel():
            os.fsync(fh)

    # -- data

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        with errors_to_kernel():
            # the kernel seeks to the end itself before it sends a write of an O_APPEND descriptor
            fd = os.open(self._nodes[inode].path, flags & ~(os.O_APPEND | os.O_NOFOLLOW))
        return FileInfo(fh=FileHandleT(fd))

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        with errors_to_kernel():
            parent = self._nodes[parent_inode].fd
            flags = flags & ~os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            fd = os.open(name, flags, mode & ~ctx.umask, dir_fd=parent)
            os.chown(fd, ctx.uid, ctx.gid)
            return FileInfo(fh=FileHandleT(fd)), self._node(parent_inode, name)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        with errors_to_kernel():
            return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        with errors_to_kernel():
            return os.pwrite(fh, buf, off)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        with errors_to_kernel():
            (os.fdatasync if datasync else os.fsync)(fh)

    async def release(self, fh: FileHandleT) -> None:
        os.close(fh)


def attributes(found: os.stat_result) -> EntryAttributes:
    """What the kernel is told about an inode."""
    entry = EntryAttributes()
    entry.st_ino = found.st_ino
    entry.st_mode = found.st_mode
    entry.st_nlink = found.st_nlink
    entry.st_uid = found.st_uid
    entry.st_gid = found.st_gid
    entry.st_rdev = found.st_rdev
    entry.st_size = found.st_size
    entry.st_blksize = found.st_blksize
    entry.st_blocks = found.st_blocks
    entry.st_atime_ns = found.st_atime_ns
    entry.st_mtime_ns = found.st_mtime_ns
    entry.st_ctime_ns = found.st_ctime_ns
    entry.entry_timeout = TIMEOUT_SECONDS
    entry.attr_timeout = TIMEOUT_SECONDS
    return entry


def main(source: str, mountpoint: str) -> None:
    """Serve until unmounted."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options = set(pyfuse3.default_options)
    options.add("fsname=cowfs-bench-loopback")
    pyfuse3.init(Loopback(source), mountpoint, options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
