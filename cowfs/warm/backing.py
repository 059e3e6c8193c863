"""Which files on disk hold the bytes that a path shows.

For a path in a copy those are the files of its template and of its upper layer: all copies of a
template share the pages of its files, and reading them there fills no cache of FUSE's. For any
other path they are the files themselves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cowfs.mount import options
from cowfs.overlay.inodes import Directory, Node
from cowfs.overlay.inplace import HEAD_SIZE, InPlace
from cowfs.overlay.overlay import Overlay
from cowfs.store import runtime, templates
from cowfs.store.copies import path_of
from cowfs.store.directory import StoreDirectory, open_directory
from cowfs.system import directories, mountinfo, ondisk, remedy, syscalls
from cowfs.system.errors import CowfsError, UsageError
from cowfs.trees import hub
from cowfs.trees.walk import walk

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class File:
    """A regular file: `path` below the directory `root_fd`. `shown` is its name for people.

    mapped: what is in memory of it is told by a mapping only, because FUSE may pass it through.
    """

    root_fd: int
    path: bytes
    shown: str
    mapped: bool = False

    def open(self) -> int:
        """A descriptor for reading, with which no access time changes if we may. OSError."""
        try:
            return syscalls.open_below(self.root_fd, self.path, os.O_RDONLY | os.O_NOATIME)
        except PermissionError:
            return syscalls.open_below(self.root_fd, self.path, os.O_RDONLY)


@dataclass
class Found:
    """The files of several paths, each once. Owns the descriptors that the files refer to."""

    files: list[File] = field(default_factory=list)
    failed: Callable[[str, OSError], None] = lambda _path, _error: None
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def add(self, path: str) -> None:
        """Add what is at or below a path. A link as its last part is followed, and below it those
        to the blobs of a Hugging Face cache; no other is.

        OSError when there is no such path, or it may not be looked at. UsageError when a copy was
        mounted there, and is no more.
        """
        real = os.path.realpath(path, strict=True)
        mount = mountinfo.holding(real)
        places = [(path, real), *((blob, blob) for blob in _blobs_behind(real, mount))]
        if mount.mountpoint != real and not mount.is_cowfs:
            _refuse_forgotten(path, real)
        if mount.is_cowfs and (record := _record(mount)) is not None:
            # The store may be out of sight, as in a container: then the mount is all we have.
            with contextlib.suppress(PermissionError, FileNotFoundError, CowfsError):
                self._add_copy(record, mount.mountpoint, places)
                return
        mapped = mount.fstype.startswith("fuse")
        self._add_plain(path, real, mapped=mapped)
        for blob, place in places[1:]:
            with contextlib.suppress(FileNotFoundError):  # removed since its link was read
                self._add_plain(blob, place, mapped=mapped)

    def _add_plain(self, shown: str, real: str, *, mapped: bool) -> None:
        st = os.stat(real)
        if stat.S_ISREG(st.st_mode):
            directory = self._keep(os.open(os.path.dirname(real), _DIRECTORY))
            self._add(File(directory, os.fsencode(os.path.basename(real)), shown, mapped), st)
        if not stat.S_ISDIR(st.st_mode):
            return
        root = self._keep(os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

        def failed(path: bytes, error: OSError) -> None:
            self.failed(_joined(shown, path), error)

        found = [
            (entry.path, entry.entry.stat(follow_symlinks=False))
            for entry in walk(root, one_mount=True, failed=failed)
            if entry.entry.is_file(follow_symlinks=False)
        ]
        for path, entry in sorted(found, key=lambda each: each[0]):
            self._add(File(root, path, _joined(shown, path), mapped), entry)

    def _add_copy(
        self, record: runtime.Record, mountpoint: str, places: list[tuple[str, str]]
    ) -> None:
        with contextlib.ExitStack() as opened:
            store = StoreDirectory(record.store, open_directory(record.store, create=False)[0])
            opened.callback(store.close)
            template = templates.read(store, record.template)
            if template is None:
                raise FileNotFoundError(record.template)
            upper = os.open(os.path.join(path_of(store, record.copy), "upper"), _DIRECTORY)
            # The files that the kernel reads there: overlayfs has clones of the template's.
            part = store.templates_fd if record.engine == "fuse" else store.lowers_fd
            tree = os.open(os.path.join(template.id, templates.TREE), _DIRECTORY, dir_fd=part)
            overlay = Overlay(os.dup(tree), os.dup(upper), None, template.hard_links)
            opened.callback(overlay.close)
            self._keep(upper)
            self._keep(tree)
            found = [
                (_joined(shown, os.path.relpath(name, path)), name, overlay.shared_path(node), st)
                for shown, real in places
                for path in [os.fsencode(os.path.relpath(real, mountpoint))]
                for name, node, st in _regular_files(overlay, path)
            ]
        mounted = self._keep(os.open(record.mountpoint, _DIRECTORY))
        cloned_at_open = _cloned_at_open(options.parse([record.options], sloppy=True))
        for title, name, lower, st in found:
            if lower is None:
                self._add(File(upper, name, title), st)
            elif record.engine == "fuse" and cloned_at_open(tree, lower, st):
                self._add(File(mounted, name, title, mapped=True), st)
            else:
                self._add(File(tree, lower, title), st)

    def _keep(self, fd: int) -> int:
        self._resources.callback(os.close, fd)
        return fd

    def _add(self, file: File, st: os.stat_result) -> None:
        if (st.st_dev, st.st_ino) not in self._seen:
            self._seen.add((st.st_dev, st.st_ino))
            self.files.append(file)


def _blobs_behind(real: str, mount: mountinfo.Mount) -> list[str]:
    """The blobs that the links below a path lead to, if it is in a Hugging Face cache."""
    if (place := hub.below_repository(real)) is None or not os.path.isdir(real):
        return []
    mounts = mountinfo.read()
    with contextlib.closing(hub.Repository(*place)) as repository:
        blobs = set(_blobs_of(real, repository))
    return sorted(blob for blob in blobs if mountinfo.holding(blob, mounts) == mount)


def _blobs_of(real: str, repository: hub.Repository) -> Iterator[str]:
    root = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # What cannot be read is told where the files are looked for.
        for found in walk(root, one_mount=True, failed=lambda _path, _error: None):
            if not found.entry.is_symlink():
                continue
            with contextlib.suppress(OSError):
                text = os.readlink(found.entry.name, dir_fd=found.directory_fd)
                if (blob := repository.open(text, found.path.count(b"/"))) is not None:
                    try:
                        yield os.fsdecode(os.readlink(ondisk.proc_path(blob)))
                    finally:
                        os.close(blob)
    finally:
        os.close(root)


def _refuse_forgotten(shown: str, real: str) -> None:
    """UsageError where nothing is mounted, and something was meant to be: nobody asks for nothing,
    or for what a mount has hidden, to be read."""
    for record in (*runtime.all(), *runtime.elsewhere()):
        if record.mountpoint == real and (place := runtime.place(record)):
            raise UsageError(
                f"no copy is mounted at {shown} any more, but the copy {record.copy} still is "
                f"{place}: name that"
            )
    try:
        fd = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        return
    try:
        is_empty = not directories.names(fd)
    finally:
        os.close(fd)
    if is_empty:
        raise UsageError(
            f"{shown} is an empty directory, and no copy is mounted there: mount it first; "
            f"{remedy.command('cowfs list')} shows what is kept"
        )


def _record(mount: mountinfo.Mount) -> runtime.Record | None:
    """The record of a mount whose backing files may be read in the place of its own.

    Not for a bind mount, whose root need not be that of the copy, nor with clone=open: there an
    open makes a clone with pages of its own, and those of the template are read by nobody.
    """
    for record in runtime.all():
        if mount.root != "/":
            return None
        if record.device == mount.device and record.mountpoint == mount.mountpoint:
            cloned = "clone=open" in options.split(record.options)
            return None if cloned else record
    return None


def _cloned_at_open(given: options.Options) -> Callable[[int, bytes, os.stat_result], bool]:
    """Tells of a file of the template (tree, path, its lstat) whether its first reader in the copy
    gets a clone: the pages to fill are that one's, and it is made by opening the file there."""
    in_place = InPlace(given.in_place)
    passed_through = given.passthrough != "off" and not given.read_only

    def tells(tree: int, path: bytes, st: os.stat_result) -> bool:
        if given.clone != "auto" or not passed_through or st.st_size < given.share_min:
            return False
        # Past the page cache: what is in it is counted afterwards.
        fd = syscalls.open_below(tree, path, os.O_RDONLY | os.O_NOATIME | os.O_DIRECT)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned, as O_DIRECT wants it
                read = os.preadv(fd, [page], 0)
                head = page[: min(read, HEAD_SIZE)]
            return in_place.is_known(os.path.basename(path), head)
        finally:
            os.close(fd)

    return tells


def _regular_files(overlay: Overlay, path: bytes) -> Iterator[tuple[bytes, Node, os.stat_result]]:
    """Path in the copy, node and lstat of every regular file at or below a path, by name."""
    node: Node = overlay.nodes.root
    st = overlay.getattr(node)
    name = b""
    for part in path.split(b"/") if path != b"." else []:
        assert isinstance(node, Directory)
        node, st = overlay.lookup(node, part)
        name = _below(name, part)
    pending = [(name, node, st)]
    while pending:
        name, node, st = pending.pop()
        if stat.S_ISREG(st.st_mode):
            yield name, node, st
        if not isinstance(node, Directory):
            continue
        for entry in sorted((each for _, each in overlay.listings.of(node).after(0)), reverse=True):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                pending.append((_below(name, entry), *overlay.lookup(node, entry)))


def _below(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _joined(shown: str, path: bytes) -> str:
    return shown if path in (b"", b".") else os.path.join(shown, os.fsdecode(path))
