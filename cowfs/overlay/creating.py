"""New entries, and new names of old ones."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cowfs.overlay import copyup
from cowfs.overlay.inodes import Directory, Node
from cowfs.overlay.looking import note_name
from cowfs.overlay.namespace import NAME_MAX, alone, failure
from cowfs.overlay.parents import ensure_upper
from cowfs.system import ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowfs.overlay.namespace import Namespace


@alone
def create_file(
    namespace: Namespace,
    parent: Directory,
    name: bytes,
    mode: int,
    umask: int,
    owner: tuple[int, int],
) -> tuple[Node, int]:
    """Create a regular file that belongs to *owner* (uid, gid); gives its node and an O_RDWR
    descriptor.

    It is made without a name in the directory itself, so that default ACLs and setgid
    directories act as the volume's filesystem has them.
    """
    covered = _free_name(namespace, parent, name)
    layers = namespace.layers
    parent_fd = layers.upper(parent)
    fd = _open_new(parent_fd, mode, umask, owner)
    try:
        _link_new(namespace, fd, parent_fd, name, covered=covered)
    except BaseException:
        os.close(fd)
        raise
    return _created(namespace, parent, name, Node(os.fstat(fd).st_ino)), fd


def create_unnamed(
    namespace: Namespace, parent: Directory, mode: int, umask: int, owner: tuple[int, int]
) -> tuple[Node, int]:
    """The same for a file without a name (O_TMPFILE); `link` may give it one."""
    if parent.is_unlinked:
        raise failure(errno.ENOENT)
    ensure_upper(namespace, parent)
    fd = _open_new(namespace.layers.upper(parent), mode, umask, owner)
    try:
        node = Node(os.fstat(fd).st_ino)
        namespace.layers.hold_by(node, os.dup(fd), upper=True)
    except BaseException:
        os.close(fd)
        raise
    node.upper = node.written = True
    namespace.nodes.add(node)
    return node, fd


@alone
def create_directory(
    namespace: Namespace,
    parent: Directory,
    name: bytes,
    mode: int,
    umask: int,
    owner: tuple[int, int],
) -> Node:
    """mkdir(2) for *owner*."""

    def make(dir_fd: int, at: bytes) -> None:
        with _umask(umask):
            os.mkdir(at, stat.S_IMODE(mode), dir_fd=dir_fd)

    _make(namespace, parent, name, make, owner)
    st = os.stat(name, dir_fd=namespace.layers.upper(parent), follow_symlinks=False)
    return _created(namespace, parent, name, Directory(st.st_ino, None))


@alone
def create_special(
    namespace: Namespace,
    parent: Directory,
    name: bytes,
    mode: int,
    umask: int,
    rdev: int,
    owner: tuple[int, int],
) -> Node:
    """mknod(2) of anything but a regular file; a device 0:0 would be a whiteout: EPERM."""
    if stat.S_ISCHR(mode) and rdev == 0:
        raise failure(errno.EPERM)

    def make(dir_fd: int, at: bytes) -> None:
        with _umask(umask):
            os.mknod(at, mode, rdev, dir_fd=dir_fd)

    _make(namespace, parent, name, make, owner)
    return _created_from_disk(namespace, parent, name)


@alone
def create_symlink(
    namespace: Namespace, parent: Directory, name: bytes, target: bytes, owner: tuple[int, int]
) -> Node:
    """symlink(2) for *owner*."""

    def make(dir_fd: int, at: bytes) -> None:
        os.symlink(target, at, dir_fd=dir_fd)

    _make(namespace, parent, name, make, owner)
    return _created_from_disk(namespace, parent, name)


@alone
def link(namespace: Namespace, node: Node, parent: Directory, name: bytes) -> None:
    """link(2) of a node that is in the upper layer already."""
    covered = _free_name(namespace, parent, name)
    layers = namespace.layers
    parent_fd = layers.upper(parent)
    fd = layers.open_path(node)
    try:
        _link_new(namespace, fd, parent_fd, name, covered=covered)
    finally:
        os.close(fd)
    note_name(namespace, node, parent, name, None)
    namespace.names_changed += 1
    namespace.listings.added(parent, name, is_directory=False)


def _link_new(namespace: Namespace, fd: int, parent_fd: int, name: bytes, *, covered: bool) -> None:
    """Give a file a name in an upper directory, in the place of a whiteout if it is covered."""
    if not covered:
        syscalls.link_fd(fd, parent_fd, name)
        return
    with namespace.work.temporary() as temporary:
        syscalls.link_fd(fd, temporary.dir_fd, temporary.name)
        temporary.move_to(parent_fd, name)


def _open_new(parent_fd: int, mode: int, umask: int, owner: tuple[int, int]) -> int:
    """A new file without a name, made in a directory as that hands things down."""
    owner = _owner_in(os.fstat(parent_fd), owner)
    with _umask(umask):
        fd = syscalls.open_tmpfile(parent_fd, stat.S_IMODE(mode))
    try:
        _give(ondisk.proc_path(fd), os.fstat(fd), owner, follow=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _free_name(namespace: Namespace, parent: Directory, name: bytes) -> bool:
    """Prepare *parent* for a new name; true when a whiteout is in its place.

    Errors: EEXIST, ENAMETOOLONG, and those of the copy-up of *parent*.
    """
    if len(name) > NAME_MAX:
        raise failure(errno.ENAMETOOLONG)
    if parent.is_unlinked:
        raise failure(errno.ENOENT)
    ensure_upper(namespace, parent)
    st = namespace.layers.upper_entry(parent, name)
    if st is not None:
        if ondisk.is_whiteout(st):
            return True
        raise failure(errno.EEXIST)
    if namespace.layers.lower_entry(parent, name) is not None:
        raise failure(errno.EEXIST)
    return False


def _make(
    namespace: Namespace,
    parent: Directory,
    name: bytes,
    make: Callable[[int, bytes], None],
    owner: tuple[int, int],
) -> None:
    """Let *make* create an entry, give it to *owner*, and put it in its place in one step."""
    covered = _free_name(namespace, parent, name)
    layers = namespace.layers
    parent_fd = layers.upper(parent)
    parent_st = os.fstat(parent_fd)
    if not covered and owner == (os.geteuid(), os.getegid()):
        make(parent_fd, name)  # the owner is right from the start, setgid directories included
        return
    owner = _owner_in(parent_st, owner)
    with (
        _stage(namespace, parent_fd, parent_st) as stage_fd,
        namespace.work.temporary(stage_fd) as temporary,
    ):
        make(stage_fd, temporary.name)
        st = temporary.stat()
        _give(temporary.path, st, owner, follow=False)
        if covered and stat.S_ISDIR(st.st_mode):
            ondisk.set_opaque(temporary.path)
            temporary.exchange(parent_fd, name)  # and the whiteout is discarded
        else:
            temporary.move_to(parent_fd, name)


@contextmanager
def _stage(namespace: Namespace, parent_fd: int, parent_st: os.stat_result) -> Iterator[int]:
    """A directory in which entries come to life as they would in the parent.

    work/ itself, unless the parent hands something down: its group (setgid) or a default ACL.
    """
    parent = ondisk.proc_path(parent_fd)
    inherits = parent_st.st_mode & stat.S_ISGID or (
        b"system.posix_acl_default" in ondisk.list_xattrs(parent)
    )
    if not inherits:
        yield namespace.work.fd
        return
    with namespace.work.temporary() as stage:
        copyup.copy_up_directory(parent_fd, stage.dir_fd, stage.name)
        fd = stage.open()
        try:
            yield fd
        finally:
            os.close(fd)


def _created(namespace: Namespace, parent: Directory, name: bytes, node: Node) -> Node:
    node.upper = node.written = True
    namespace.nodes.add(node)
    node.place(parent, name)
    namespace.listings.added(parent, name, is_directory=isinstance(node, Directory))
    return node


def _created_from_disk(namespace: Namespace, parent: Directory, name: bytes) -> Node:
    st = os.stat(name, dir_fd=namespace.layers.upper(parent), follow_symlinks=False)
    return _created(namespace, parent, name, Node(st.st_ino))


def _owner_in(parent_st: os.stat_result, owner: tuple[int, int]) -> tuple[int, int]:
    """The owner of a new entry: a setgid directory hands its group down (inode(7))."""
    return (owner[0], parent_st.st_gid) if parent_st.st_mode & stat.S_ISGID else owner


def _give(where: bytes, st: os.stat_result, owner: tuple[int, int], *, follow: bool) -> None:
    """Give a new entry with lstat *st* to its owner."""
    if (st.st_uid, st.st_gid) != owner:
        os.chown(where, *owner, follow_symlinks=follow)
        if st.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(st.st_mode):
            os.chmod(where, stat.S_IMODE(st.st_mode))  # chown took the bits away


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    """The caller's umask: the volume's filesystem knows when a default ACL takes its place.

    The umask belongs to the process; no other thread of the daemon creates files by mode.
    """
    os.umask(mask)
    try:
        yield
    finally:
        os.umask(0)
