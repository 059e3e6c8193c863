"""The merged namespace of one copy: what a name means, and how it changes.

The template's tree is the lower layer and is never written; `upper/` holds what changed, as
overlayfs keeps it (Documentation/filesystems/overlayfs.rst): a whiteout hides a lower name, an
opaque directory hides all lower names of its own, a redirect says which lower directory a moved
directory is merged with.  Every change becomes visible by one rename or link, so that after a crash
either all of it is there or nothing.

This file knows nodes and layers.  It does not know the kernel's protocol, who asks, or what backs
an open file.  Everything in it is synchronous and runs in the event loop's thread; a caller that
awaits in between looks again at what it holds.  Errors are OSError with the errno that the caller
of the system call should see.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec, TypeVar

from cowfs import directories, ondisk, syscalls
from cowfs.copyup import RegularCopyUp, copy_up_directory, copy_up_special
from cowfs.inodes import ROOT_ID, Directory, LowerPath, Node, NodeTable
from cowfs.layers import Layers
from cowfs.links import LinkGroups
from cowfs.listing import Listings
from cowfs.overlay_upper import UpperEntry, classify_upper
from cowfs.overlay_work import WorkDirectory
from cowfs.vault import Exchanges, NullVault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cowfs.pieces import Pieces
    from cowfs.vault import Vault

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

NAME_MAX = 255
MOST_TOLD = 100  # damaged entries that are logged

# Names that a file is given in one piece of work: about a millisecond.
LINKED = 16


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def alone(
    method: Callable[Concatenate[Overlay, P], R],
) -> Callable[Concatenate[Overlay, P], R]:
    """A method that changes directories of the upper layer, in several steps or not by itself.

    What it holds is the channel's lock, which may be taken again; nothing is touched meanwhile.
    """

    @functools.wraps(method)
    def guarded(self: Overlay, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.alone:
            return method(self, *args, **kwargs)

    return guarded


class _Group(NamedTuple):
    """Names of one file that are to be there together: those that are, and the link in work/ that
    marks them."""

    mark: bytes
    names: list[tuple[Directory, bytes]]


class Overlay:
    """One copy.

    *tree_fd* is the template's tree, *upper_fd* and *work_fd* the copy's directories (work None:
    read-only), all three taken over; *hard_links* the template's groups of paths that name one
    inode; *vault* keeps what a daemon to come cannot read from the disk.
    """

    def __init__(
        self,
        tree_fd: int,
        upper_fd: int,
        work_fd: int | None,
        hard_links: Sequence[Sequence[bytes]],
        vault: Vault | None = None,
    ) -> None:
        vault = vault or NullVault()
        self.layers = Layers(tree_fd, upper_fd, vault)
        self.work = WorkDirectory(work_fd)
        self.exchanges = Exchanges(vault)
        # Keeps others, who copy files up too, out of the upper layer's directories while it is
        # entered; it may be entered again meanwhile.
        self.alone: AbstractContextManager[None] = nullcontext()
        root = Directory(ROOT_ID, LowerPath(None, b""))
        root.upper = True
        root.upper_fd = self.layers.upper_root_fd
        root.lower_fd = self.layers.tree_fd
        self.nodes = NodeTable(root, os.fstat(self.layers.tree_fd).st_ino)
        self.listings = Listings(self.layers)
        self.links = LinkGroups(self, hard_links)
        # How often a directory was moved; how often anything was, or was given one more name.
        self.directories_moved = 0
        self.names_changed = 0
        # Shared nodes whose clone is being given its names, one by one: until it has all of them,
        # what each name shows is the template's file.
        self._rising: set[int] = set()
        self._unfinished: list[_Group] = []
        self._told: set[tuple[bytes, bytes]] = set()

    def close(self) -> None:
        self.layers.close(iter(self.nodes))
        self.work.close()

    # ---------------------------------------------------------------- looking

    def lookup(self, parent: Directory, name: bytes) -> tuple[Node, os.stat_result]:
        """The node of a name and its lstat (of the layer: st_ino is not the one to show).

        The node is in the table afterwards, with no lookup counted.  Errors: ENOENT, ENAMETOOLONG.
        """
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        if self._unfinished:
            self._take_back()
        layers = self.layers
        if parent.upper:
            st = layers.upper_entry(parent, name)
            if st is not None:
                entry = self._classify(parent, name, st)
                if entry is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                # Else it is one of several names that are not all there yet.
                if entry.ino not in self._rising:
                    node = self._upper_node(parent, name, st, entry)
                    return node, self.getattr(node) if isinstance(node, Directory) else st
        st = layers.lower_entry(parent, name)
        if st is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._lower_node(parent, name, st), st

    def _classify(self, parent: Directory, name: bytes, st: os.stat_result) -> UpperEntry | None:
        kind = ondisk.kind_of(st)
        parent_path = parent.template_path if kind == stat.S_IFDIR else None
        where = ondisk.proc_path(self.layers.upper(parent), name)
        return classify_upper(self.layers, where, name, kind, st.st_ino, parent_path)

    def _lower_node(self, parent: Directory, name: bytes, st: os.stat_result) -> Node:
        node = self.nodes.by_ino(st.st_ino)
        lower_path = None
        if stat.S_ISDIR(st.st_mode):
            assert parent.lower_path is not None
            lower_path = LowerPath(parent.lower_path, name)
        if node is not None and isinstance(node, Directory) != (lower_path is not None):
            raise failure(errno.EIO)  # a file of the upper layer has its number, by a damaged mark
        if node is None:
            node = Node(st.st_ino) if lower_path is None else Directory(st.st_ino, lower_path)
            self.nodes.add(node)
        self._place(node, parent, name, lower_path)
        return node

    def _place(
        self, node: Node, parent: Directory, name: bytes, lower_path: LowerPath | None
    ) -> None:
        """A name was found that leads to the node; *lower_path* is what a directory is merged with.

        The node may have been taken for one without a name: its removal was about to be done when
        an earlier daemon ended.
        """
        node.place(parent, name)
        if node.held_fd >= 0:
            if isinstance(node, Directory):
                node.lower_path = lower_path
            self.layers.release(node)

    def _upper_node(
        self, parent: Directory, name: bytes, st: os.stat_result, entry: UpperEntry
    ) -> Node:
        if stat.S_ISDIR(st.st_mode):
            node, lower_path = self._upper_directory(parent, name, st, entry)
        else:
            node, lower_path = self._upper_file(parent, name, st, entry), None
        node.upper = True
        self._place(node, parent, name, lower_path)
        return node

    def _upper_directory(
        self, parent: Directory, name: bytes, st: os.stat_result, entry: UpperEntry
    ) -> tuple[Node, LowerPath | None]:
        """The node of a directory of the upper layer, and what it is merged with."""
        ino, lower_path = entry.ino, None
        if entry.template_path is not None:
            at_home = entry.template_path == parent.template_path_of(name)
            lower_path = (
                LowerPath(parent.lower_path, name)
                if at_home
                else LowerPath(None, entry.template_path)
            )
        node = self.nodes.by_ino(ino)
        moves = isinstance(node, Directory) and node.parent is not parent
        if moves and _is_within(parent, node):
            self._damaged(ondisk.REDIRECT, parent, name)
            ino, lower_path = st.st_ino, None
            node = self.nodes.by_ino(ino)
        if node is None:
            node = Directory(ino, lower_path)
            self.nodes.add(node)
        return node, lower_path

    def _upper_file(
        self, parent: Directory, name: bytes, st: os.stat_result, entry: UpperEntry
    ) -> Node:
        ino = entry.ino
        node = self.nodes.by_ino(ino)
        if entry.is_damaged or isinstance(node, Directory):
            self._damaged(ondisk.INO, parent, name)
            ino = st.st_ino
            node = self.nodes.by_ino(ino)
        if node is None:
            node = Node(ino)
            self.nodes.add(node)
        return node

    def getattr(self, node: Node) -> os.stat_result:
        """lstat of a node, in the layer that has it; of a replaced one: of its successor.

        Of a directory it is never the moment in between, when a copy-up has changed its times and
        not set them back yet: the kernel would keep that.
        """
        node = self.current(node)
        if isinstance(node, Directory) and node.upper:
            with self.alone:
                return self.layers.stat(node)
        return self.layers.stat(node)

    def birth_time(self, node: Node) -> int | None:
        """When the file was made, in nanoseconds since the epoch; None: not known."""
        node, layers = self.current(node), self.layers
        where, follow = layers.path(node), layers.follows(node)
        try:
            return ondisk.birth_time(where, follow=follow)
        except ondisk.DamagedMark:
            self._damaged(ondisk.BTIME, node.parent, node.name)
            return syscalls.birth_time(where, follow=follow)

    def _damaged(self, mark: bytes, parent: Directory | None, name: bytes) -> None:
        """Say once that an entry is shown as if it had no such mark."""
        steps = [name]
        while parent is not None:
            steps.append(parent.name)
            parent = parent.parent
        place = (mark, b"/".join(reversed(steps)))
        if place not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(place)
            log.warning(
                "%s has a damaged mark (%s), and is shown as if it had none: see cowfs check",
                *(os.fsdecode(part) for part in reversed(place)),
            )

    def current(self, node: Node) -> Node:
        """The node that has taken over the name of a replaced one; else the node itself."""
        return node.successor or node

    def nlink(self, node: Node, st: os.stat_result) -> int:
        """The link count to show for a node with lstat *st*."""
        if node.is_unlinked:
            # Its last known name is gone.  A file of the upper layer counts its other names itself.
            return st.st_nlink if node.upper and not isinstance(node, Directory) else 0
        if (
            isinstance(node, Directory)
            and node.upper
            and node.lower_path is not None
            and st.st_nlink > 1  # btrfs counts no subdirectories: 1
        ):
            return 2 + self.listings.of(node).subdirectories
        return st.st_nlink

    def readlink(self, node: Node) -> bytes:
        """The target of a symbolic link."""
        return self.layers.readlink(node)

    def forget(self, nodeid: int, count: int) -> list[int]:
        """Take back lookups; gives the node ids that are not in the table any more."""
        if nodeid not in self.nodes:
            return [nodeid]  # of an earlier daemon, and nobody has asked for it since
        return self._dropped(self.nodes.forget(nodeid, count))

    def prune(self, node: Node) -> None:
        """Drop a node that was looked up for our own purposes only."""
        self._dropped(self.nodes.prune(node))

    def _dropped(self, nodes: Iterator[Node]) -> list[int]:
        dropped = []
        for node in nodes:
            self.layers.close_node(node)
            if isinstance(node, Directory):
                self.layers.close_directory(node)
                self.listings.drop(node)
            dropped.append(node.nodeid)
        return dropped

    # ---------------------------------------------------------------- copy-up

    @alone
    def ensure_upper(self, directory: Directory) -> None:
        """Give a directory, and before it its parents, a place in the upper layer."""
        if directory.is_unlinked and not directory.upper:
            self._copy_up_removed(directory)
            return
        missing: list[Directory] = []
        step: Directory | None = directory
        while step is not None and not step.upper:
            missing.append(step)
            step = step.parent
        if step is None:
            raise failure(errno.ENOENT)
        layers = self.layers
        for child in reversed(missing):
            assert child.parent is not None
            with self.work.temporary() as temporary:
                copy_up_directory(layers.lower(child), temporary.dir_fd, temporary.name)
                with self._keeping_times(child.parent) as parent_fd:
                    temporary.move_to(parent_fd, child.name)
                    child.upper = True

    def begin_copy_up(
        self, node: Node, *, keep_data: bool, to_write: bool
    ) -> tuple[RegularCopyUp, int]:
        """Start the copy-up of a shared regular file.

        Gives the copy-up, whose `clone` is to be called next (in a thread if it is not quick), and
        the descriptor of the source, to be closed when it is done.  Unless it is made *to_write*
        to, the file is marked to be read from the template for as long as nobody does.
        """
        shared_path = None
        if not to_write and node.parent is not None:
            shared_path = node.parent.template_path_of(node.name)
        source = self.layers.open(node, os.O_RDONLY)
        try:
            copy_up = RegularCopyUp(
                source,
                self.work.fd,
                node.nodeid,
                keep_data=keep_data,
                shared_path=shared_path,
            )
        except BaseException:
            os.close(source)
            raise
        return copy_up, source

    def shared_path(self, node: Node) -> bytes | None:
        """Where the template has the file that has the node's data; None: they are its own.

        Of a file of the upper layer it has them as long as its attributes alone were changed.
        """
        if not node.upper:
            assert node.parent is not None
            return node.parent.template_path_of(node.name)
        if node.written:
            return None
        noted = ondisk.get_shared_data(self.layers.path(node))
        st = self.layers.stat(node)
        if noted is not None and noted[0] == st.st_mtime_ns:
            lower_st = self.layers.lower_stat(noted[1])
            here = (node.nodeid, st.st_size)
            # Else it is of another template, in a store that was restored from a backup.
            if lower_st is not None and (lower_st.st_ino, lower_st.st_size) == here:
                return noted[1]
        node.written = True
        return None

    def open_shared(self, node: Node) -> int | None:
        """Open the template's file that has the node's data, for reading; None: there is none.

        OSError of open(2).
        """
        if not node.upper:
            return self.layers.open(node, os.O_RDONLY)  # it may have lost its name
        path = self.shared_path(node)
        if path is None:
            return None
        return self.layers.open_lower(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)

    def mark_written(self, node: Node) -> None:
        """Before the first change of the data of a file of the upper layer.  OSError: ENOSPC."""
        if not node.written:
            ondisk.remove_shared_data(self.layers.path(node))
            node.written = True

    def publish(
        self, node: Node, copy_up: RegularCopyUp, names: Sequence[tuple[Directory, bytes]]
    ) -> Pieces[None]:
        """Put a finished clone under every visible name of its node (`LinkGroups.names_of`).

        On an error no name has it.  A node that lost its last name meanwhile lives on in the
        unnamed file.
        """
        yield from self._link_all(node, copy_up.fd, names)
        if node.held_fd >= 0 or node.is_unlinked:
            self.layers.hold_by(node, os.dup(copy_up.fd), upper=True)
        node.upper = True
        node.written = copy_up.shared_path is None

    def _copy_up_removed(self, node: Node) -> None:
        """The same for what has no name any more, but is open: it may not change the template."""
        with self.work.temporary() as temporary:
            work_fd, name = temporary.dir_fd, temporary.name
            if isinstance(node, Directory):
                copy_up_directory(node.held_fd, work_fd, name)
            else:
                copy_up_special(node.held_fd, None, work_fd, name, node.nodeid)
            fd = temporary.open()
        self.layers.hold_by(node, fd, upper=True)
        node.upper = True

    def _link_all(
        self, node: Node, fd: int, names: Sequence[tuple[Directory, bytes]]
    ) -> Pieces[None]:
        """Link the file *fd*, which is to be the node's, into the upper layer under each name, or
        under none.

        A crash in between would leave two files where there was one; the link in work/ says that
        the names are to be taken back (`copies.recover`).  So the removal of that link is what
        makes them last: as long as it has not succeeded nobody may write to the file.  Nobody sees
        some of the names meanwhile.
        """
        if self._unfinished:
            self._take_back()
        if len(names) == 1:
            self._link(fd, *names[0])
        if len(names) <= 1:
            return
        group = _Group(self.work.new_name(ondisk.UNFINISHED_GROUP), [])
        self._rising.add(node.nodeid)
        try:
            syscalls.link_fd(fd, self.work.fd, group.mark)
            for parent, name in names:
                self._link(fd, parent, name)
                group.names.append((parent, name))
                if len(group.names) % LINKED == 0:
                    yield
            os.unlink(group.mark, dir_fd=self.work.fd)
        except OSError:
            for parent, _name in group.names:
                parent.lookups += 1  # it stays in the table until the name is taken back
            self._unfinished.append(group)
            self._rising.discard(node.nodeid)
            with suppress(OSError):
                self._take_back()
            raise
        self._rising.discard(node.nodeid)

    @alone
    def _take_back(self) -> None:
        """Take the names of the groups away that could not be finished.

        As long as the disk refuses that, nothing is looked up, so that nobody comes to the files.
        """
        while self._unfinished:
            group = self._unfinished[-1]
            while group.names:
                parent, name = group.names[-1]
                with self._keeping_times(parent) as parent_fd, suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent_fd)
                group.names.pop()
                parent.lookups -= 1
            self._unfinished.pop()
            self.work.discard(group.mark)

    @alone
    def _link(self, fd: int, parent: Directory, name: bytes) -> None:
        self.ensure_upper(parent)
        with self._keeping_times(parent) as parent_fd:
            syscalls.link_fd(fd, parent_fd, name)

    def hand_over(self, node: Node, readers_fd: int) -> None:
        """Let a new node stand for the file of *node*, which was copied up under its readers.

        *readers_fd* is the file that these have open.  All names of the file lead to the new node
        from now on.  It shows the number of the copy's own file: taking the mark of the other one
        away is the step by which a daemon to come sees that the node was replaced.
        """
        origin = os.fstat(readers_fd)
        layers = self.layers
        fd = layers.open_path(node)
        try:
            successor = Node(os.fstat(fd).st_ino)
            successor.upper, successor.written = True, node.written
            layers.keep_replaced(node, successor, readers_fd, fd)
            try:
                ondisk.remove_ino(ondisk.proc_path(fd))
            except BaseException:
                layers.drop_replaced(node, successor)
                raise
            node.origin = origin
            self.nodes.replace(node, successor)
            layers.pass_on(node, successor)
        finally:
            os.close(fd)

    def copy_up_special(self, node: Node, names: Sequence[tuple[Directory, bytes]]) -> Pieces[None]:
        """Copy-up of a symbolic link, fifo, socket or device, which gets each of its names."""
        if node.upper:
            return
        if node.parent is None:
            self._copy_up_removed(node)
            return
        lower_fd = self.layers.lower(node.parent)
        with self.work.temporary() as temporary:
            copy_up_special(lower_fd, node.name, temporary.dir_fd, temporary.name, node.nodeid)
            fd = temporary.open()
            try:
                yield from self._link_all(node, fd, names)
            finally:
                os.close(fd)
        node.upper = True

    # ---------------------------------------------------------------- creating

    @alone
    def create_file(
        self, parent: Directory, name: bytes, mode: int, umask: int, owner: tuple[int, int]
    ) -> tuple[Node, int]:
        """Create a regular file that belongs to *owner* (uid, gid); gives its node and an O_RDWR
        descriptor.

        It is made without a name in the directory itself, so that default ACLs and setgid
        directories act as the volume's filesystem has them.
        """
        covered = self._free_name(parent, name)
        layers = self.layers
        parent_fd = layers.upper(parent)
        fd = self._open_new(parent_fd, mode, umask, owner)
        try:
            self._link_new(fd, parent_fd, name, covered=covered)
        except BaseException:
            os.close(fd)
            raise
        return self._created(parent, name, Node(os.fstat(fd).st_ino)), fd

    def create_unnamed(
        self, parent: Directory, mode: int, umask: int, owner: tuple[int, int]
    ) -> tuple[Node, int]:
        """The same for a file without a name (O_TMPFILE); `link` may give it one."""
        if parent.is_unlinked:
            raise failure(errno.ENOENT)
        self.ensure_upper(parent)
        fd = self._open_new(self.layers.upper(parent), mode, umask, owner)
        try:
            node = Node(os.fstat(fd).st_ino)
            self.layers.hold_by(node, os.dup(fd), upper=True)
        except BaseException:
            os.close(fd)
            raise
        node.upper = node.written = True
        self.nodes.add(node)
        return node, fd

    @staticmethod
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

    @alone
    def create_directory(
        self, parent: Directory, name: bytes, mode: int, umask: int, owner: tuple[int, int]
    ) -> Node:
        """mkdir(2) for *owner*."""

        def make(dir_fd: int, at: bytes) -> None:
            with _umask(umask):
                os.mkdir(at, stat.S_IMODE(mode), dir_fd=dir_fd)

        self._make(parent, name, make, owner)
        st = os.stat(name, dir_fd=self.layers.upper(parent), follow_symlinks=False)
        return self._created(parent, name, Directory(st.st_ino, None))

    @alone
    def create_special(
        self,
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

        self._make(parent, name, make, owner)
        return self._created_from_disk(parent, name)

    @alone
    def create_symlink(
        self, parent: Directory, name: bytes, target: bytes, owner: tuple[int, int]
    ) -> Node:
        """symlink(2) for *owner*."""

        def make(dir_fd: int, at: bytes) -> None:
            os.symlink(target, at, dir_fd=dir_fd)

        self._make(parent, name, make, owner)
        return self._created_from_disk(parent, name)

    @alone
    def link(self, node: Node, parent: Directory, name: bytes) -> None:
        """link(2) of a node that is in the upper layer already."""
        covered = self._free_name(parent, name)
        layers = self.layers
        parent_fd = layers.upper(parent)
        fd = layers.open_path(node)
        try:
            self._link_new(fd, parent_fd, name, covered=covered)
        finally:
            os.close(fd)
        self._place(node, parent, name, None)
        self.names_changed += 1
        self.listings.added(parent, name, is_directory=False)

    def _link_new(self, fd: int, parent_fd: int, name: bytes, *, covered: bool) -> None:
        """Give a file a name in an upper directory, in the place of a whiteout if it is covered."""
        if not covered:
            syscalls.link_fd(fd, parent_fd, name)
            return
        with self.work.temporary() as temporary:
            syscalls.link_fd(fd, temporary.dir_fd, temporary.name)
            temporary.move_to(parent_fd, name)

    def _free_name(self, parent: Directory, name: bytes) -> bool:
        """Prepare *parent* for a new name; true when a whiteout is in its place.

        Errors: EEXIST, ENAMETOOLONG, and those of the copy-up of *parent*.
        """
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        if parent.is_unlinked:
            raise failure(errno.ENOENT)
        self.ensure_upper(parent)
        st = self.layers.upper_entry(parent, name)
        if st is not None:
            if ondisk.is_whiteout(st):
                return True
            raise failure(errno.EEXIST)
        if self.layers.lower_entry(parent, name) is not None:
            raise failure(errno.EEXIST)
        return False

    def _make(
        self,
        parent: Directory,
        name: bytes,
        make: Callable[[int, bytes], None],
        owner: tuple[int, int],
    ) -> None:
        """Let *make* create an entry, give it to *owner*, and put it in its place in one step."""
        covered = self._free_name(parent, name)
        layers = self.layers
        parent_fd = layers.upper(parent)
        parent_st = os.fstat(parent_fd)
        if not covered and owner == (os.geteuid(), os.getegid()):
            make(parent_fd, name)  # the owner is right from the start, setgid directories included
            return
        owner = _owner_in(parent_st, owner)
        with (
            self._stage(parent_fd, parent_st) as stage_fd,
            self.work.temporary(stage_fd) as temporary,
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
    def _stage(self, parent_fd: int, parent_st: os.stat_result) -> Iterator[int]:
        """A directory in which entries come to life as they would in the parent.

        work/ itself, unless the parent hands something down: its group (setgid) or a default ACL.
        """
        parent = ondisk.proc_path(parent_fd)
        inherits = parent_st.st_mode & stat.S_ISGID or (
            b"system.posix_acl_default" in ondisk.list_xattrs(parent)
        )
        if not inherits:
            yield self.work.fd
            return
        with self.work.temporary() as stage:
            copy_up_directory(parent_fd, stage.dir_fd, stage.name)
            fd = stage.open()
            try:
                yield fd
            finally:
                os.close(fd)

    def _created(self, parent: Directory, name: bytes, node: Node) -> Node:
        node.upper = node.written = True
        self.nodes.add(node)
        node.place(parent, name)
        self.listings.added(parent, name, is_directory=isinstance(node, Directory))
        return node

    def _created_from_disk(self, parent: Directory, name: bytes) -> Node:
        st = os.stat(name, dir_fd=self.layers.upper(parent), follow_symlinks=False)
        return self._created(parent, name, Node(st.st_ino))

    # ---------------------------------------------------------------- removing

    @alone
    def unlink(self, parent: Directory, name: bytes) -> Node:
        """unlink(2); the file of a group of hard links must be in the upper layer already.

        Gives the node, which lives on for whoever has it open.  Errors: ENOENT, EISDIR.
        """
        node, _st = self.lookup(parent, name)
        if isinstance(node, Directory):
            raise failure(errno.EISDIR)
        with self._departing(node, parent, name):
            self.ensure_upper(parent)
            if self.layers.lower_entry(parent, name) is None:
                os.unlink(name, dir_fd=self.layers.upper(parent))
            else:
                self._cover(parent, name)
        self.listings.removed(parent, name, is_directory=False)
        return node

    @alone
    def rmdir(self, parent: Directory, name: bytes) -> None:
        """rmdir(2).  Errors: ENOENT, ENOTDIR, ENOTEMPTY."""
        node, _st = self.lookup(parent, name)
        if not isinstance(node, Directory):
            raise failure(errno.ENOTDIR)
        if not self.listings.of(node).is_empty():
            raise failure(errno.ENOTEMPTY)
        layers = self.layers
        taken = None
        with self._departing(node, parent, name):
            self.ensure_upper(parent)
            parent_fd = layers.upper(parent)
            covers = layers.lower_entry(parent, name) is not None
            if node.upper:
                taken = self._take_out(parent_fd, name, covers=covers)
            else:
                ondisk.make_whiteout(parent_fd, name)
        layers.close_directory(node)
        node.lower_path = None
        self.listings.drop(node)
        self.listings.removed(parent, name, is_directory=True)
        if taken is not None:
            self.work.take_apart(taken)

    def _take_out(self, parent_fd: int, name: bytes, *, covers: bool) -> bytes:
        """Move a directory to work/ in one step, since it may be full of whiteouts, with a whiteout
        in its place if it covers one of the template; gives its name there."""
        with self.work.temporary() as temporary:
            if covers:
                ondisk.make_whiteout(temporary.dir_fd, temporary.name)
                temporary.exchange(parent_fd, name)
            else:
                temporary.take(parent_fd, name)
            return temporary.keep()

    def _cover(self, parent: Directory, name: bytes) -> None:
        """Put a whiteout in the place of *name*, over a file of the upper layer if there is one."""
        layers = self.layers
        parent_fd = layers.upper(parent)
        if layers.upper_entry(parent, name) is None:
            ondisk.make_whiteout(parent_fd, name)
            return
        with self.work.temporary() as temporary:
            ondisk.make_whiteout(temporary.dir_fd, temporary.name)
            temporary.move_to(parent_fd, name)

    @contextmanager
    def _departing(self, node: Node, parent: Directory, name: bytes) -> Iterator[None]:
        """Keep a node reachable that is about to lose a name; undone when the change fails."""
        if node.parent is not parent or node.name != name:
            yield
            return
        was_held = node.held_fd >= 0
        self.layers.hold(node)
        try:
            yield
        except BaseException:
            if not was_held:
                self.layers.release(node)
            raise
        node.displace()

    # ---------------------------------------------------------------- renaming

    @alone
    def rename(
        self,
        old_parent: Directory,
        old_name: bytes,
        new_parent: Directory,
        new_name: bytes,
        flags: int,
        request: int | None = None,
    ) -> Node | None:
        """rename(2), with RENAME_NOREPLACE or RENAME_EXCHANGE.

        Files that take part must be in the upper layer already.  Gives the node that was replaced.
        *request* is the number by which an exchange is known again (`was_exchanged`).
        Errors: ENOENT, EEXIST, EISDIR, ENOTDIR, EINVAL for other flags.
        """
        if len(new_name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        exchange = flags == syscalls.RENAME_EXCHANGE
        if flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        source, _st = self.lookup(old_parent, old_name)
        try:
            target: Node | None = self.lookup(new_parent, new_name)[0]
        except FileNotFoundError:
            target = None
        if target is None and exchange:
            raise failure(errno.ENOENT)
        if target is not None and flags == syscalls.RENAME_NOREPLACE:
            raise failure(errno.EEXIST)
        if source is target:
            return None
        for directory in (old_parent, new_parent):
            self.ensure_upper(directory)
        if isinstance(source, Directory):
            self.ensure_upper(source)
            self._mark_moved(source, new_parent, new_name)
        if exchange:
            assert target is not None
            self._exchange(source, old_parent, old_name, target, new_parent, new_name, request)
            return None
        if target is not None:
            self._check_replaceable(source, target)
        self._move(source, old_parent, old_name, target, new_parent, new_name)
        return target

    def was_exchanged(self, request: int | None, old_parent: Directory, old_name: bytes) -> bool:
        """Whether an exchange that comes again has been done.  OSError as `lookup`."""
        begun = None if request is None else self.exchanges.begun(request)
        if begun is None:
            return False
        _source, target = begun
        return self.lookup(old_parent, old_name)[0].nodeid == target

    def _check_replaceable(self, source: Node, target: Node) -> None:
        if isinstance(source, Directory):
            if not isinstance(target, Directory):
                raise failure(errno.ENOTDIR)
            if not self.listings.of(target).is_empty():
                raise failure(errno.EEXIST)  # POSIX allows ENOTEMPTY too; XFS says this
        elif isinstance(target, Directory):
            raise failure(errno.EISDIR)

    def _mark_moved(self, source: Directory, parent: Directory, name: bytes) -> None:
        """Say on disk what a directory is merged with at its new place, before it gets there.

        At its old place the mark tells what was true anyway.
        """
        where = self.layers.path(source)
        if source.lower_path is not None:
            ondisk.set_redirect(where, b"/" + bytes(source.lower_path))
        elif self.layers.lower_entry(parent, name) is not None:
            ondisk.set_opaque(where)

    def _exchange(
        self,
        source: Node,
        old_parent: Directory,
        old_name: bytes,
        target: Node,
        new_parent: Directory,
        new_name: bytes,
        request: int | None,
    ) -> None:
        if isinstance(target, Directory):
            self.ensure_upper(target)
            self._mark_moved(target, old_parent, old_name)
        if request is not None:
            # A file of its own: a service manager keeps no descriptor twice, whatever its name.
            fd = os.memfd_create("cowfs-exchange", os.MFD_CLOEXEC)
            self.exchanges.begin(request, source.nodeid, target.nodeid, fd)
            os.close(fd)
        syscalls.renameat2(
            self.layers.upper(old_parent),
            old_name,
            self.layers.upper(new_parent),
            new_name,
            syscalls.RENAME_EXCHANGE,
        )
        self._moved(source, target)
        source.place(new_parent, new_name)
        target.place(old_parent, old_name)
        source_is_directory = isinstance(source, Directory)
        target_is_directory = isinstance(target, Directory)
        if source_is_directory != target_is_directory and old_parent is not new_parent:
            self.listings.removed(old_parent, old_name, is_directory=source_is_directory)
            self.listings.added(old_parent, old_name, is_directory=target_is_directory)
            self.listings.removed(new_parent, new_name, is_directory=target_is_directory)
            self.listings.added(new_parent, new_name, is_directory=source_is_directory)

    def _move(
        self,
        source: Node,
        old_parent: Directory,
        old_name: bytes,
        target: Node | None,
        new_parent: Directory,
        new_name: bytes,
    ) -> None:
        layers = self.layers
        is_directory = isinstance(source, Directory)
        leaves_whiteout = layers.lower_entry(old_parent, old_name) is not None
        raw = layers.upper_entry(new_parent, new_name)
        old_fd, new_fd = layers.upper(old_parent), layers.upper(new_parent)
        with (
            self._replacing(target, new_parent, new_name),
            self._emptied(target, new_fd, new_name),
        ):
            if is_directory and raw is not None and ondisk.is_whiteout(raw):
                # rename(2) puts no directory over a device: swap them, so the old place gets the
                # whiteout, which is right there too or does no harm until it is taken away.
                syscalls.renameat2(old_fd, old_name, new_fd, new_name, syscalls.RENAME_EXCHANGE)
                if not leaves_whiteout:
                    with suppress(OSError):
                        os.unlink(old_name, dir_fd=old_fd)
            else:
                flags = syscalls.RENAME_WHITEOUT if leaves_whiteout else 0
                syscalls.renameat2(old_fd, old_name, new_fd, new_name, flags)
        self._moved(source)
        source.place(new_parent, new_name)
        self.listings.removed(old_parent, old_name, is_directory=is_directory)
        if target is None:
            self.listings.added(new_parent, new_name, is_directory=is_directory)
        elif isinstance(target, Directory):
            layers.close_directory(target)
            target.lower_path = None
            self.listings.drop(target)

    def _moved(self, *nodes: Node) -> None:
        for node in nodes:
            if isinstance(node, Directory):
                self.directories_moved += 1
            self.names_changed += 1

    @contextmanager
    def _replacing(self, target: Node | None, parent: Directory, name: bytes) -> Iterator[None]:
        if target is None:
            yield
        else:
            with self._departing(target, parent, name):
                yield

    @contextmanager
    def _emptied(self, target: Node | None, parent_fd: int, name: bytes) -> Iterator[None]:
        """Put an empty directory in the place of one that shows no entries but has whiteouts:
        rename(2) replaces no other.  Undone when the change fails.

        It is opaque, or it would show what the whiteouts cover.
        """
        if not isinstance(target, Directory) or not target.upper:
            yield
            return
        fd = self.layers.upper(target)
        if _is_empty(fd):
            yield
            return
        with self.work.temporary() as temporary:
            copy_up_directory(fd, temporary.dir_fd, temporary.name)
            ondisk.set_opaque(temporary.path)
            temporary.exchange(parent_fd, name)
            try:
                yield
            except OSError:
                temporary.exchange(parent_fd, name)
                raise
            self.work.left.append(temporary.keep())

    # ---------------------------------------------------------------- attributes

    def set_mode(self, node: Node, mode: int) -> None:
        """chmod(2).  The kernel refuses it for symbolic links before it asks; so do we, since
        os.chmod would follow one out of the tree."""
        if stat.S_ISLNK(self.layers.stat(node).st_mode):
            raise failure(errno.EOPNOTSUPP)
        os.chmod(self.layers.path(node), stat.S_IMODE(mode))

    def set_owner(self, node: Node, uid: int, gid: int) -> None:
        """chown(2): -1 leaves an id as it is; setuid, setgid and capabilities go as there."""
        layers = self.layers
        os.chown(layers.path(node), uid, gid, follow_symlinks=layers.follows(node))

    @alone
    def set_times(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """utimensat(2) in nanoseconds; None leaves a time as it is."""
        layers = self.layers
        if mtime_ns is not None and node.upper and not node.written:
            # Killed in between, the file counts as written, which costs pages and no data.
            noted = ondisk.get_shared_data(layers.path(node))
            if not ondisk.can_note(mtime_ns):
                self.mark_written(node)
            elif noted is not None and noted[0] == layers.stat(node).st_mtime_ns:
                ondisk.set_shared_data(layers.path(node), mtime_ns, noted[1])
        if atime_ns is None or mtime_ns is None:
            st = layers.stat(node)
            atime_ns = st.st_atime_ns if atime_ns is None else atime_ns
            mtime_ns = st.st_mtime_ns if mtime_ns is None else mtime_ns
        os.utime(layers.path(node), ns=(atime_ns, mtime_ns), follow_symlinks=layers.follows(node))

    # ---------------------------------------------------------------- on disk

    @contextmanager
    def _keeping_times(self, directory: Directory) -> Iterator[int]:
        """The directory's upper descriptor; a copy-up inside is no change that users made."""
        fd = self.layers.upper(directory)
        st = os.fstat(fd)
        yield fd
        os.utime(ondisk.proc_path(fd), ns=(st.st_atime_ns, st.st_mtime_ns))


def _is_empty(fd: int) -> bool:
    with directories.entries(fd) as entries:
        return next(iter(entries), None) is None


def _is_within(directory: Directory, other: Node | None) -> bool:
    """Whether a directory is another one, or is reached through it."""
    step: Directory | None = directory
    while step is not None and step is not other:
        step = step.parent
    return step is not None


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
