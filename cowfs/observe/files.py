"""Which file of which copy an inode is.

A file of a template belongs to every copy of it: which of them is read through, the inode does not
tell. One of an upper directory belongs to one copy. The trees are walked when an inode is asked for
that may be theirs: a template's once, and an upper directory's once in a round, so that files are
known by the names that they have now; one that takes long is walked less often.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from cowfs.observe.kernelsums import device_of
from cowfs.store import templates
from cowfs.store.copies import UPPER
from cowfs.system import ondisk
from cowfs.trees.walk import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowfs.store.runtime import Record

# A walk takes at most so small a part of our time.
_PART = 10

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class File(NamedTuple):
    """path: in the copy, of a template's file in the template. mounts: the copies that have it,
    more than one for a template's."""

    path: bytes
    mounts: tuple[Record, ...]


class _Tree:
    """Regular files of a template, or of an upper directory, by inode number."""

    def __init__(self, path: str, *, upper: bool) -> None:
        """OSError."""
        self._fd = os.open(path, _DIRECTORY)
        self.device = device_of(os.fstat(self._fd).st_dev)
        self._upper = upper
        self._walked = False
        self._again_at = 0.0
        self.paths: dict[int, bytes] = {}
        # The same by the number that users see, which is the node id.
        self.shown: dict[int, bytes] = {}

    def close(self) -> None:
        os.close(self._fd)

    def begin(self) -> None:
        """A new round: an upper directory may have other files by now."""
        if self._upper and time.monotonic() >= self._again_at:
            self._walked = False

    def walk(self, note_size: Callable[[int, int, int], None]) -> None:
        """Read it, once in a round; what cannot be read is left out."""
        if self._walked:
            return
        self._walked = True
        started = time.monotonic()
        paths: dict[int, bytes] = {}
        shown = paths if not self._upper else {}
        with contextlib.suppress(OSError):
            for found in walk(self._fd, one_mount=True, failed=lambda _path, _error: None):
                with contextlib.suppress(OSError):
                    if not found.entry.is_file(follow_symlinks=False):
                        continue
                    st = found.entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(st.st_mode):
                        continue
                    paths[st.st_ino] = found.path
                    if self._upper:
                        where = ondisk.proc_path(found.directory_fd, found.name)
                        shown[ondisk.shown_ino(where, st.st_ino)] = found.path
                        note_size(self.device, st.st_ino, st.st_size)
        self.paths, self.shown = paths, shown
        took = time.monotonic() - started
        self._again_at = started + _PART * took


class Files:
    """The files of some mounts, which may become others."""

    def __init__(self, note_size: Callable[[int, int, int], None]) -> None:
        """note_size: is told device, inode number and size of each file in an upper directory."""
        self._note_size = note_size
        self._trees: dict[str, _Tree] = {}
        self._mounted: list[Record] = []

    def close(self) -> None:
        for tree in self._trees.values():
            tree.close()
        self._trees.clear()

    def begin(self, mounts: Iterable[Record], mounted: Iterable[Record]) -> None:
        """A new round: these mounts are looked at, of all that are mounted now."""
        mounts, self._mounted = list(mounts), list(mounted)
        wanted = {path for record in mounts for path in _paths(record)}
        for path in set(self._trees) - wanted:
            self._trees.pop(path).close()
        for record in mounts:
            lower, upper = _paths(record)
            for path in (lower, upper):
                if path not in self._trees:
                    with contextlib.suppress(OSError):  # its copy has just gone
                        self._trees[path] = _Tree(path, upper=path == upper)
        for tree in self._trees.values():
            tree.begin()

    def devices(self) -> set[int]:
        """Where the files are."""
        return {tree.device for tree in self._trees.values()}

    def find(self, device: int, inode: int) -> File | None:
        """The file behind copies of this number; None: none of these copies has it."""
        for path, tree in self._trees.items():
            if tree.device != device:
                continue
            tree.walk(self._note_size)
            if inode in tree.paths:
                mounts = [record for record in self._mounted if path in _paths(record)]
                return File(tree.paths[inode], tuple(mounts))
        return None

    def of_node(self, record: Record, nodeid: int) -> File | None:
        """The file that a mount shows by this inode number."""
        for path in reversed(_paths(record)):  # what the copy has itself is shown
            tree = self._trees.get(path)
            if tree is None:
                continue
            tree.walk(self._note_size)
            if nodeid in tree.shown:
                return File(tree.shown[nodeid], (record,))
        return None


def _paths(record: Record) -> tuple[str, str]:
    """Of the template's tree and of the upper directory."""
    part = "templates" if record.engine == "fuse" else "lowers"
    return (
        os.path.join(record.store, part, record.template, templates.TREE),
        os.path.join(record.store, "copies", record.copy, UPPER),
    )
