"""The files behind a mounted copy: where on its volume the data lies that a name of it shows.

The kernel clones between files of one filesystem only, and a mount is another one than its volume.
So `cowfs clone` takes names and attributes from the mount, and clones the file behind it: that of
the upper layer, if there is one under the name, else the template's. Root alone reaches these.

The copy is in use meanwhile. A directory of the mount and those of the two layers that show through
it are opened together, and stay together whatever they are called later; that the mount still has
under the name what was opened is looked at afterwards. What does not fit is looked up again, and a
file of the template counts only with the size and mtime that the mount shows: a change gives the
copy a file of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from cowfs.store import copies, runtime, templates
from cowfs.store.directory import StoreDirectory, open_directory
from cowfs.system import mountinfo, ondisk, syscalls, writeback
from cowfs.system.errors import CowfsError
from cowfs.trees.cloning import Cloner, Pair
from cowfs.trees.scan import CHANGED, Directory, SourceChanged, changed_or_located

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT = 64  # directories, of three descriptors at most
_TRIES = 10  # for a file that others replace again and again
_NOTHING = -1
# Of a name, or of a damaged redirect (which counts as one that leads to nothing).
_NO_SUCH_PATH = CHANGED | {errno.EXDEV, errno.ENAMETOOLONG}


class Layers(NamedTuple):
    """A directory of the mount, and what shows through it: descriptors, or _NOTHING."""

    mount: int
    upper: int
    lower: int

    def close(self) -> None:
        """Close them."""
        for fd in self:
            if fd != _NOTHING:
                os.close(fd)


class File(NamedTuple):
    """A regular file: descriptors of its entry in the mount (O_PATH) and of the file behind it, and
    the state in which the mount showed it before that was opened."""

    entry: int
    data: int
    st: os.stat_result


class Behind:
    """What is behind one directory of a mounted copy, and all below it. `close` ends it."""

    def __init__(self, root: Layers, top: Layers, mountpoint: str, flushes: bool) -> None:
        """Takes over the descriptors; those of `root` are of the directory, of `top` of the mount.

        flushes: what programs change through mappings may be in the page cache of the mount alone.
        """
        self._root = root
        self._top = top
        self._mountpoint = mountpoint
        self._flushes = flushes
        self._kept: OrderedDict[Directory, Layers] = OrderedDict()
        self._beside: tuple[str, Layers] | None = None  # the last directory that a link led to

    @classmethod
    def below(cls, path: str) -> Behind | None:
        """Behind the directory of this canonical path; None where it is not to be had: it is in no
        copy, or the copy is out of sight (for who is not root, in a container). OSError."""
        mount = mountinfo.holding(path)
        if not mount.is_cowfs or mount.root != "/":
            return None
        for record in runtime.all():
            if (record.device, record.mountpoint) == (mount.device, mount.mountpoint):
                with contextlib.suppress(CowfsError, FileNotFoundError, PermissionError):
                    return cls._of(record, os.path.relpath(path, mount.mountpoint))
        return None

    @classmethod
    def _of(cls, record: runtime.Record, path: str) -> Behind | None:
        store = StoreDirectory(record.store, open_directory(record.store, create=False)[0])
        with contextlib.closing(store), contextlib.ExitStack() as opened:
            if copies.read(store, record.copy).template != record.template:
                return None  # another store is there by now

            def part(name: str, dir_fd: int | None = None) -> int:
                fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
                opened.callback(os.close, fd)
                return fd

            tree = part(os.path.join(record.template, templates.TREE), store.templates_fd)
            upper = part(os.path.join(record.copy, copies.UPPER), store.copies_fd)
            mounted = part(record.mountpoint)
            device = os.fstat(mounted).st_dev
            if f"{os.major(device)}:{os.minor(device)}" != record.device:
                return None
            top = Layers(mounted, upper, tree)
            root = _descend(top, path)
            opened.pop_all()
            return cls(root, top, record.mountpoint, flushes=record.engine == "fuse")

    def close(self) -> None:
        """Close everything that is open."""
        self.forget()
        self._root.close()
        self._top.close()

    def forget(self) -> None:
        """Let go of directories that were opened on the way: they may have other names by now."""
        if self._beside is not None:
            self._beside[1].close()
            self._beside = None
        for layers in self._kept.values():
            layers.close()
        self._kept.clear()

    def layers(self, directory: Directory) -> Layers:
        """The layers of a directory below, good until the next call. OSError."""
        missing = []
        step = directory
        while step.parent is not None and step not in self._kept:
            missing.append(step)
            step = step.parent
        found = self._root
        if step.parent is not None:
            found = self._kept[step]
            self._kept.move_to_end(step)
        for step in reversed(missing):
            found = self._kept[step] = _step(found, os.fsencode(step.name), self._top.lower)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)[1].close()
        return found

    def file(self, directory: Directory, name: str) -> AbstractContextManager[File]:
        """A regular file, open as long as the context lasts. SourceChanged, OSError."""
        return self._file(lambda: self.layers(directory), name, directory.path_of(name))

    def linked(self, entry: int, link: str) -> AbstractContextManager[File] | None:
        """The same of the file that a link leads to, open already (O_PATH), anywhere in the mount;
        None when it is elsewhere. SourceChanged names the link. OSError."""
        st = os.fstat(entry)
        if st.st_dev != os.fstat(self._top.mount).st_dev:
            return None
        path = os.path.relpath(os.fsdecode(os.readlink(ondisk.proc_path(entry))), self._mountpoint)
        if path == ".." or path.startswith("../"):  # by another place of the same mount
            return None
        directory, name = os.path.split(path)
        return self._file(lambda: self._beside_it(directory), name, link, st)

    def _beside_it(self, path: str) -> Layers:
        if self._beside is None or self._beside[0] != path:
            layers = _descend(self._top, path)
            if self._beside is not None:
                self._beside[1].close()
            self._beside = path, layers
        return self._beside[1]

    @contextlib.contextmanager
    def _file(
        self,
        find: Callable[[], Layers],
        name: str,
        shown: str,
        wanted: os.stat_result | None = None,
    ) -> Iterator[File]:
        for _ in range(_TRIES):
            with contextlib.ExitStack() as opened:
                layers = find()
                source = os.open(name, _LOOK, dir_fd=layers.mount)
                opened.callback(os.close, source)
                st = os.fstat(source)
                if not stat.S_ISREG(st.st_mode) or not os.path.samestat(wanted or st, st):
                    break
                data = self._data(layers, name, source, st)
                if data is not None:
                    opened.callback(os.close, data)
                    if _is_still(layers.mount, name, st):
                        yield File(source, data, st)
                        return
            self.forget()
        raise SourceChanged(shown)

    def _data(self, layers: Layers, name: str, source: int, st: os.stat_result) -> int | None:
        """The file behind an entry, open; None when what is there does not fit. OSError."""
        if layers.upper != _NOTHING:
            with contextlib.suppress(FileNotFoundError):
                return self._private(layers.upper, name, source)
        if layers.lower == _NOTHING:
            return None
        fd = _opened(layers.lower, name)
        if fd is not None:
            shared = os.fstat(fd)
            if (shared.st_size, shared.st_mtime_ns) == (st.st_size, st.st_mtime_ns):
                return fd
            os.close(fd)
        return None

    def _private(self, upper: int, name: str, source: int) -> int | None:
        """A file of the upper layer, with all that was written to it. FileNotFoundError: none."""
        fd = _opened(upper, name, missing_ok=False)
        if fd is None or not self._flushes:
            return fd
        try:
            writeback.write_out(source)
        except OSError as error:
            os.close(fd)
            if error.errno in CHANGED:  # the mount has another file there by now
                return None
            raise
        return fd


class MountedPair(Pair):
    """A directory of a mounted copy, with its counterpart in another tree."""

    def __init__(self, cloner: Cloner, directory: Directory, behind: Behind) -> None:
        super().__init__(cloner, directory)
        self._behind = behind
        try:
            self._check_together()
        except BaseException:
            os.close(self.source)
            os.close(self.target)
            raise

    def _check_together(self) -> None:
        """A name above may have been given to another directory since one of them was opened."""
        path = self._directory.path
        try:
            together = os.path.samestat(
                os.fstat(self.source), os.fstat(self._behind.layers(self._directory).mount)
            )
        except OSError as error:
            raise changed_or_located(error, path) from None
        if not together:
            raise SourceChanged(path)

    def clone_file(self, name: str, immutable: bool) -> None:
        """As elsewhere, but that data and attributes come from two places."""
        with contextlib.ExitStack() as opened:
            file = self._opened(opened, name)
            if file is None:
                super().clone_file(name, immutable)
                return
            target = self.create(name, file.st)
            try:
                if file.st.st_size:
                    self._cloner.copy_data(target, file.data, file.st)
                self.give_attributes(ondisk.proc_path(file.entry), target, file.st)
            finally:
                os.close(target)

    def _opened(self, opened: contextlib.ExitStack, name: str) -> File | None:
        """A file of the directory, or what a link in it becomes; None when that is elsewhere."""
        if name not in self._directory.followed:
            return opened.enter_context(self._behind.file(self._directory, name))
        for tries in range(_TRIES, 0, -1):
            try:
                linked = self._linked(name)
                return None if linked is None else opened.enter_context(linked)
            except (SourceChanged, OSError) as error:
                busy = isinstance(error, SourceChanged) or error.errno in CHANGED
                if not busy or tries == 1:
                    raise
                self._behind.forget()
        raise AssertionError

    def _linked(self, name: str) -> AbstractContextManager[File] | None:
        directory = self._directory
        entry = self._cloner.links.target(self.source, name, directory.depth)
        if entry is None:
            raise SourceChanged(directory.path_of(name))
        try:
            return self._behind.linked(entry, directory.path_of(name))
        finally:
            os.close(entry)


def _descend(top: Layers, path: str) -> Layers:
    """The layers of a directory by its path from the mount's root, to be closed. OSError."""
    layers = Layers(*(fd if fd == _NOTHING else os.dup(fd) for fd in top))
    for name in path.split("/") if path not in ("", ".") else []:
        try:
            below = _step(layers, os.fsencode(name), top.lower)
        finally:
            layers.close()
        layers = below
    return layers


def _step(above: Layers, name: bytes, template: int) -> Layers:
    """The layers of a directory in another one. OSError: ESTALE when it is just being changed."""
    with contextlib.ExitStack() as opened:

        def directory(dir_fd: int, path: bytes) -> int:
            if dir_fd == _NOTHING:
                return _NOTHING
            try:
                fd = syscalls.open_below(dir_fd, path, _DIRECTORY)
            except OSError as error:
                if error.errno in _NO_SUCH_PATH:
                    return _NOTHING
                raise
            opened.callback(os.close, fd)
            return fd

        mount = os.open(name, _DIRECTORY, dir_fd=above.mount)
        opened.callback(os.close, mount)
        upper = directory(above.upper, name)
        if upper == _NOTHING:
            lower = directory(above.lower, name)
        elif ondisk.is_opaque(where := ondisk.proc_path(upper)):
            lower = _NOTHING
        elif (redirect := ondisk.get_redirect(where)) and redirect.startswith(b"/"):
            lower = directory(template, redirect.strip(b"/"))
        else:
            lower = directory(above.lower, redirect or name)
        if not _is_still(above.mount, name, os.fstat(mount)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        opened.pop_all()
        return Layers(mount, upper, lower)


def _opened(dir_fd: int, name: str, *, missing_ok: bool = True) -> int | None:
    """A regular file, open for reading; None when there is something else. OSError."""
    try:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in CHANGED and (missing_ok or error.errno != errno.ENOENT):
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _is_still(dir_fd: int, name: str | bytes, st: os.stat_result) -> bool:
    """Whether an entry is what it was."""
    try:
        return os.path.samestat(st, os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False
