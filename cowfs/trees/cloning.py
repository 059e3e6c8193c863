"""Rebuilding entries of a source in another tree: clones, links, special files, attributes.

Knows how one entry is copied with all that lstat and listxattr tell of it, and no data read. It
does not know what there is to copy (scan.py) or who does it (workers.py).

The source's side of every call is a name in a descriptor that was opened without following a link,
and what was opened is looked at again before it is used: its owner may exchange it at any moment.
The other side lies where only root, or whoever runs the command, can go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cowfs import copying
from cowfs.system import ondisk, syscalls
from cowfs.trees.links import Links
from cowfs.trees.scan import Directory, Place, Scan, SourceChanged, changed_or_located
from cowfs.trees.treewalk import Tree

CHUNK = 256  # files of one directory that are one piece of work

# O_NONBLOCK: what was a file a moment ago may be a fifo now.
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP)


class Chunk(NamedTuple):
    """A piece of work: some files of one directory."""

    directory: Directory
    files: list[str]
    special: list[str]
    whole: bool  # nothing else is to be made in the directory: its own attributes can follow

    def work(self) -> int:
        """How many files it is."""
        return len(self.files) + len(self.special)


def chunks(scan: Scan) -> list[Chunk]:
    """All the work but the links, in pieces that are independent of each other."""
    linked = {id(place.directory) for places in scan.links for place in places}
    pieces = []
    for directory in scan.directories:
        files = directory.files
        whole = len(files) <= CHUNK and id(directory) not in linked and not directory.in_parts
        pieces.append(Chunk(directory, files[:CHUNK], directory.special, whole))
        pieces += [
            Chunk(directory, files[start : start + CHUNK], [], False)
            for start in range(CHUNK, len(files), CHUNK)
        ]
    return pieces


def unfinished(pieces: list[Chunk]) -> list[Directory]:
    """The directories that still want their attributes when all chunks are done."""
    found = {id(piece.directory): piece.directory for piece in pieces if not piece.whole}
    return list(found.values())


class Progress(Protocol):
    """What hears how far the work has come, in the process that was asked for it."""

    def begin(self, files: int, size: int) -> None:
        """*files* files, of *size* bytes, are ahead. Again when the source changed meanwhile."""

    def advance(self, files: int) -> None:
        """*files* more are done."""


class Cloner:
    """Copies entries from one source directory to one tree: a template, or a plain copy.

    `source_fd`, `tree_fd` and `links`, which opens the files behind links that become files, stay
    the caller's; `close` ends it. OSError names the entry, relative to the source.
    """

    #: What is copied is made immutable.
    seals = True
    #: It loses the marks of cowfs and overlayfs.
    drops_marks = True

    def __init__(
        self, source_fd: int, tree_fd: int, umask: int, links: Links | None = None
    ) -> None:
        self.links = links or Links()
        self.source = Tree(source_fd, syscalls.RESOLVE_NO_XDEV)
        self.tree = Tree(tree_fd)
        # Bits of a mode that creating a file may drop, by the umask or in the clone ioctl.
        self.dropped = 0o7000 | umask
        self.owner = (os.geteuid(), os.getegid())  # of what is made here

    def close(self) -> None:
        """Close what was opened below the two."""
        self.source.close()
        self.tree.close()

    def copy_data(self, target: int, source: int, st: os.stat_result) -> None:  # noqa: ARG002
        """Give a new file the data of the source's, which has some."""
        syscalls.ficlone(target, source)

    def clone_plain(self, source: int, target: int, names: list[str]) -> list[str]:
        """Make all of the files, of two open directories, that are quickly made; the names left."""
        return copying.clone_files(source, target, names, self.owner, self.dropped, self.seals)

    def open_source(self, directory: Directory) -> int:
        """A directory of the source, for the caller to close. SourceChanged, OSError."""
        return self.source.open_for_caller(directory)

    def pair(self, directory: Directory) -> Pair:
        """A directory of the source and its counterpart. SourceChanged, OSError."""
        return Pair(self, directory)

    def make_directories(self, directories: list[Directory]) -> None:
        """Make all directories, parents first, and what stands in for mounts."""
        for directory in directories:
            if directory.subdirectories or directory.mounted:
                fd = self.tree.open(directory)
                for name in directory.subdirectories:
                    with contextlib.suppress(FileExistsError):  # made before, and kept
                        os.mkdir(name, 0o700, dir_fd=fd)
                for name, is_directory in directory.mounted:
                    if is_directory:
                        os.mkdir(name, dir_fd=fd)
                        os.chmod(name, 0o755, dir_fd=fd)  # noqa: S103 -- whatever the umask is
                    else:
                        self._make_placeholder(fd, name)

    @staticmethod
    def _make_placeholder(dir_fd: int, name: str) -> None:
        fd = os.open(name, _NEW, 0o644, dir_fd=dir_fd)
        try:
            os.fchmod(fd, 0o644)
            _set_immutable(fd)
        finally:
            os.close(fd)

    def clone_chunk(self, chunk: Chunk) -> None:
        """Do one piece of work. SourceChanged, OSError."""
        with self.pair(chunk.directory) as pair:
            pair.clone_files(chunk.files)
            for name in chunk.special:
                pair.make_special(name)
            if chunk.whole:
                pair.finish()

    def finish(self, directory: Directory) -> None:
        """Give a directory its attributes, times included, once everything in it is made."""
        with self.pair(directory) as pair:
            pair.finish()

    def clone_links(self, places: list[Place]) -> None:
        """Make one file with all its names."""
        with self.pair(places[0].directory) as pair:
            regular = pair.make_linked(places[0].name)
            self.link(pair, places)
            if regular and self.seals:
                pair.seal(places[0].name)

    def link(self, pair: Pair, places: list[Place]) -> None:
        """Give a file that was made in the first place, of which `pair` is, its other names."""
        first, *others = places
        for other in others:
            os.link(
                first.name,
                other.name,
                src_dir_fd=pair.target,
                dst_dir_fd=self.tree.open(other.directory),
                follow_symlinks=False,
            )


def fill(
    cloner: Cloner,
    found: Scan,
    progress: Progress | None,
    clone_all: Callable[[list[Chunk], Callable[[Chunk], None]], None],
) -> None:
    """Make everything that a scan found; `clone_all` does the chunks. SourceChanged, OSError."""
    pieces = chunks(found)
    if progress is not None:
        links = sum(map(len, found.links))
        progress.begin(sum(piece.work() for piece in pieces) + links, found.bytes)
    cloner.make_directories(found.directories)

    def done(piece: Chunk) -> None:
        if progress is not None:
            progress.advance(piece.work())

    clone_all(pieces, done)
    for places in found.links:
        cloner.clone_links(places)
        if progress is not None:
            progress.advance(len(places))
    # Last, because making an entry sets the time of its directory.
    for directory in unfinished(pieces):
        cloner.finish(directory)


class Pair:
    """A directory of the source and its counterpart in the other tree, open."""

    def __init__(self, cloner: Cloner, directory: Directory) -> None:
        self._directory = directory
        self._cloner = cloner
        self._dropped = cloner.dropped
        try:
            self.source = cloner.open_source(directory)
        except OSError as error:
            raise changed_or_located(error, directory.path, also=errno.EXDEV) from None
        try:
            self.target = cloner.tree.open_for_caller(directory)
        except BaseException:
            os.close(self.source)
            raise

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.source)
        os.close(self.target)

    def clone_files(self, names: list[str]) -> None:
        """Make clones of regular files, sealed ones where the cloner seals."""
        behind = self._directory.followed
        plain = [name for name in names if name not in behind] if behind else names
        try:
            left = self._cloner.clone_plain(self.source, self.target, plain)
        except OSError as error:
            path = self._directory.path_of(os.fsdecode(error.filename))
            raise changed_or_located(error, path) from None
        if behind:
            left = left + [name for name in names if name in behind]
        seals = self._cloner.seals
        for name in left:
            try:
                self.clone_file(name, immutable=seals)
            except OSError as error:
                raise changed_or_located(error, self._directory.path_of(name)) from None

    def make_special(self, name: str) -> None:
        """Make a symlink, fifo or device."""
        try:
            source = os.open(name, _LOOK, dir_fd=self.source)
            try:
                self._make_special(name, source)
            finally:
                os.close(source)
        except OSError as error:
            raise changed_or_located(error, self._directory.path_of(name)) from None

    def make_linked(self, name: str) -> bool:
        """Make an entry of any kind, not sealed yet; whether it is a regular file."""
        try:
            st = os.stat(name, dir_fd=self.source, follow_symlinks=False)
            if not stat.S_ISREG(st.st_mode):
                self.make_special(name)
                return False
            self.clone_file(name, immutable=False)
        except OSError as error:
            raise changed_or_located(error, self._directory.path_of(name)) from None
        return True

    def seal(self, name: str) -> None:
        """Make a finished file immutable."""
        fd = os.open(name, _SOURCE, dir_fd=self.target)
        try:
            _set_immutable(fd)
        finally:
            os.close(fd)

    def finish(self) -> None:
        """Give the directory its owner, mode, attributes and times."""
        try:
            st = os.fstat(self.source)
            os.fchown(self.target, st.st_uid, st.st_gid)
            ondisk.copy_xattrs(self.source, self.target, self._cloner.drops_marks)
            os.fchmod(self.target, stat.S_IMODE(st.st_mode))
            os.utime(self.target, ns=(st.st_atime_ns, st.st_mtime_ns))
        except OSError as error:
            raise changed_or_located(error, self._directory.path) from None

    def clone_file(self, name: str, immutable: bool) -> None:
        """Make a clone of one regular file. SourceChanged, OSError.

        The way of files with attributes, and of those whose data needs more than one call.
        """
        source, st = self.open_source(name)
        try:
            target = self.create(name, st)
            try:
                if st.st_size:
                    self._cloner.copy_data(target, source, st)
                self.give_attributes(source, target, st)
                if immutable:
                    _set_immutable(target)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def open_source(self, name: str) -> tuple[int, os.stat_result]:
        """A regular file of the source, open for reading. SourceChanged, OSError."""
        directory = self._directory
        if name in directory.followed:
            behind = self._cloner.links.open(self.source, name, directory.depth)
            if behind is None:
                raise SourceChanged(directory.path_of(name))
            source = behind
        else:
            source = os.open(name, _SOURCE, dir_fd=self.source)
        try:
            st = os.fstat(source)
            if not stat.S_ISREG(st.st_mode):
                raise SourceChanged(directory.path_of(name))
        except BaseException:
            os.close(source)
            raise
        return source, st

    def create(self, name: str, st: os.stat_result) -> int:
        """Its counterpart: a new file, open for writing. OSError."""
        return os.open(name, _NEW, st.st_mode & 0o777, dir_fd=self.target)

    def give_attributes(self, source: int | bytes, target: int, st: os.stat_result) -> None:
        """Give a file that has its data everything else; `source` as for xattrs. OSError."""
        # After the data and in this order: chown(2) clears set-id bits and capabilities, an
        # access ACL sets the group's bits, and all of them set times.
        if (st.st_uid, st.st_gid) != self._cloner.owner:
            os.fchown(target, st.st_uid, st.st_gid)
        if ondisk.list_xattrs(source):
            ondisk.copy_xattrs(source, target, self._cloner.drops_marks)
        if st.st_mode & self._dropped:
            os.fchmod(target, stat.S_IMODE(st.st_mode))
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))

    def _make_special(self, name: str, source: int) -> None:
        st = os.fstat(source)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink("", dir_fd=source), name, dir_fd=self.target)
        elif kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            os.mknod(name, st.st_mode, st.st_rdev, dir_fd=self.target)
        else:
            raise SourceChanged(self._directory.path_of(name))
        os.chown(name, st.st_uid, st.st_gid, dir_fd=self.target, follow_symlinks=False)
        target = ondisk.proc_path(self.target, os.fsencode(name))
        ondisk.copy_xattrs(ondisk.proc_path(source), target, self._cloner.drops_marks)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(st.st_mode), dir_fd=self.target)
        times = (st.st_atime_ns, st.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=self.target, follow_symlinks=False)


def _set_immutable(fd: int) -> None:
    try:
        syscalls.set_immutable(fd, True)
    except OSError as error:
        if error.errno not in _NO_FLAGS:  # a safety net, and not every filesystem has it
            raise
