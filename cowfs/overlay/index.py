"""Where each inode number shows in a copy: one walk over both layers.

A daemon that takes over looks the kernel's node ids up in it, since these are the numbers
(`restore.py`).
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from bisect import bisect_left
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from cowfs.overlay.pieces import at_once
from cowfs.overlay.upper import classify_upper
from cowfs.system import directories, ondisk, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowfs.overlay.layers import Layers
    from cowfs.overlay.pieces import Pieces

_READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME


# Entries that are read in one piece, and that are put in order in one: some milliseconds.
READ = 128
RUN = 1 << 13


class InodeIndex:
    """Under which names each inode number shows: 24 bytes and the name for each entry."""

    def __init__(self, entries: Iterable[tuple[int, int, bytes]] = ()) -> None:
        self._runs: list[_Run] = []
        at_once(self.fill(entries))

    def fill(self, entries: Iterable[tuple[int, int, bytes]]) -> Pieces[None]:
        """Enter (inode number, that of the directory, name) of everything."""
        entries = iter(entries)
        run: list[tuple[int, int, bytes]] = []
        while read := list(islice(entries, READ)):
            run += read
            if len(run) >= RUN:
                self._runs.append(_Run(run))
                run = []
            if len(read) == READ:
                yield
        if run:
            self._runs.append(_Run(run))

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def names_of(self, ino: int) -> Iterator[tuple[int, bytes]]:
        """(inode number of the directory, name) of every name that leads to the number.

        The first one comes first that the walk came to.  Its directory was found before it was
        read, so the way up over first ones ends at the root, whatever was renamed meanwhile, and
        also where damaged marks show a directory below itself.
        """
        for run in self._runs:
            yield from run.names_of(ino)


class _Run:
    """Some of the entries in the order of their inode numbers; those of one in that of the walk."""

    __slots__ = ("_inos", "_names", "_parents", "_starts")

    def __init__(self, entries: list[tuple[int, int, bytes]]) -> None:
        entries.sort(key=itemgetter(0))
        names = bytearray()
        self._inos, self._parents, self._starts = array("Q"), array("Q"), array("Q")
        for ino, parent, name in entries:
            self._inos.append(ino)
            self._parents.append(parent)
            self._starts.append(len(names))
            names += name + b"\0"
        self._names = bytes(names)

    def __len__(self) -> int:
        return len(self._inos)

    def names_of(self, ino: int) -> Iterator[tuple[int, bytes]]:
        at = bisect_left(self._inos, ino)
        while at < len(self._inos) and self._inos[at] == ino:
            start = self._starts[at]
            yield self._parents[at], self._names[start : self._names.index(0, start)]
            at += 1


def shown(layers: Layers, root_ino: int) -> Iterator[tuple[int, int, bytes]]:
    """(inode number, that of its directory, name) of everything that the copy shows.

    The numbers are those that users see.  OSError when a layer cannot be read; an entry of which
    only the marks cannot be read is left out.  Names may change between two entries: what is below
    a directory that was renamed meanwhile may be left out, too.
    """
    pending = [_Directory(root_ino, b"", b"")]
    while pending:
        directory = pending.pop()
        covered: set[bytes] = set()
        try:
            if directory.upper_path is not None:
                yield from _upper_entries(layers, directory, directory.upper_path, covered, pending)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue  # it is not there any more
            raise
        if directory.template_path is not None:
            yield from _lower_entries(layers, directory, directory.template_path, covered, pending)


class _Directory(NamedTuple):
    """One that is to be read yet: its number, and its paths in the two layers that have it.

    That in the upper layer is the one in the copy.
    """

    ino: int
    upper_path: bytes | None
    template_path: bytes | None


def _upper_entries(
    layers: Layers,
    directory: _Directory,
    path: bytes,
    covered: set[bytes],
    pending: list[_Directory],
) -> Iterator[tuple[int, int, bytes]]:
    """What the upper layer's directory *path* shows; it has the names *covered*."""
    with _entries(layers.upper_root_fd, path) as (fd, entries):
        for entry in entries:
            name = os.fsencode(entry.name)
            covered.add(name)
            where = ondisk.proc_path(fd, name)
            try:
                kind = ondisk.kind_of_listed(entry)
                found = classify_upper(
                    layers, where, name, kind, entry.inode(), directory.template_path
                )
            except OSError:
                continue
            if found is None:
                continue
            ino, template_path, _is_damaged = found
            yield ino, directory.ino, name
            if kind == stat.S_IFDIR:
                pending.append(_Directory(ino, _join(path, name), template_path))


def _lower_entries(
    layers: Layers,
    directory: _Directory,
    path: bytes,
    covered: set[bytes],
    pending: list[_Directory],
) -> Iterator[tuple[int, int, bytes]]:
    """What of the template's directory *path* shows, where the upper layer has not *covered* it."""
    with _entries(layers.tree_fd, path) as (_fd, entries):
        for entry in entries:
            name = os.fsencode(entry.name)
            if name in covered:
                continue
            ino = entry.inode()
            yield ino, directory.ino, name
            if entry.is_dir(follow_symlinks=False):
                pending.append(_Directory(ino, None, _join(path, name)))


@contextmanager
def _entries(root_fd: int, path: bytes) -> Iterator[tuple[int, Iterator[os.DirEntry[str]]]]:
    """The descriptor of a directory, and what is in it."""
    fd = syscalls.open_below(root_fd, path, _READ_DIRECTORY)
    try:
        with directories.entries(fd) as entries:
            yield fd, entries
    finally:
        os.close(fd)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
