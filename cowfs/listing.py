"""The merged listing of one directory, with cookies that stay valid while entries come and go.

readdir(2) may be interrupted at any entry and go on later, while names are created and removed.  A
listing gives every name a place that it keeps: removing a name leaves a gap, a new name goes to
the end.  So a stream that goes on behind cookie *n* misses nothing that was there all the time, and
sees nothing twice.  The cookie of a name is its place plus three: `.` and `..` come first.

A listing is made by reading both layers once, and is then kept up to date by the operations
themselves, since nothing else changes a copy that is mounted.  The names of the template come
first, in the template's own order and with a gap for each that is gone, so that they keep their
places even when a listing that was given up is made again.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.inodes import Directory
    from cowfs.layers import Layers

KEPT_LISTINGS = 1024


class Listing:
    """Names of one directory in a stable order, and how many of them are directories."""

    __slots__ = ("_names", "_places", "subdirectories")

    def __init__(self, entries: Iterator[tuple[bytes | None, bool]]) -> None:
        self._names: list[bytes | None] = []
        self._places: dict[bytes, int] | None = None  # made when the first name is removed
        self.subdirectories = 0
        for name, is_directory in entries:
            self._names.append(name)
            self.subdirectories += is_directory

    def add(self, name: bytes, *, is_directory: bool) -> None:
        if self._places is not None:
            self._places[name] = len(self._names)
        self._names.append(name)
        self.subdirectories += is_directory

    def remove(self, name: bytes, *, is_directory: bool) -> None:
        if self._places is None:
            self._places = {n: i for i, n in enumerate(self._names) if n is not None}
        self._names[self._places.pop(name)] = None
        self.subdirectories -= is_directory

    def after(self, place: int) -> Iterator[tuple[int, bytes]]:
        """(place, name) of every name from *place* on."""
        for i in range(place, len(self._names)):
            name = self._names[i]
            if name is not None:
                yield i, name

    def is_empty(self) -> bool:
        return next(self.after(0), None) is None


class Listings:
    """Makes listings, and keeps those that were used last."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._kept: OrderedDict[Directory, None] = OrderedDict()

    def of(self, directory: Directory) -> Listing:
        """The listing of a directory; OSError when a layer cannot be read."""
        if directory.listing is None:
            directory.listing = Listing(self._merge(directory))
            if len(self._kept) >= KEPT_LISTINGS:
                self.drop(next(iter(self._kept)))
        self._kept[directory] = None
        self._kept.move_to_end(directory)
        return directory.listing

    def drop(self, directory: Directory) -> None:
        directory.listing = None
        self._kept.pop(directory, None)

    @staticmethod
    def added(directory: Directory, name: bytes, *, is_directory: bool) -> None:
        """A name was created in the directory."""
        if directory.listing is not None:
            directory.listing.add(name, is_directory=is_directory)

    @staticmethod
    def removed(directory: Directory, name: bytes, *, is_directory: bool) -> None:
        """A name was removed from the directory."""
        if directory.listing is not None:
            directory.listing.remove(name, is_directory=is_directory)

    def _merge(self, directory: Directory) -> Iterator[tuple[bytes | None, bool]]:
        """(name, is a directory) in order of place; None for a gap."""
        upper = dict(_scan(self._layers.upper(directory))) if directory.upper else {}
        if directory.lower is not None:
            for name, lower_mode in _scan(self._layers.lower(directory)):
                mode = upper.pop(name, lower_mode)
                yield (None if mode == _WHITEOUT else name), stat.S_ISDIR(mode)
        for name, mode in upper.items():
            if mode != _WHITEOUT:
                yield name, stat.S_ISDIR(mode)


_WHITEOUT = 0


def _scan(fd: int) -> Iterator[tuple[bytes, int]]:
    """(name, file type) of every entry; the type of a whiteout is `_WHITEOUT`."""
    real = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOATIME, dir_fd=fd)
    try:
        with os.scandir(real) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    mode = stat.S_IFDIR
                elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    mode = stat.S_IFREG
                else:
                    st = entry.stat(follow_symlinks=False)
                    is_whiteout = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
                    mode = _WHITEOUT if is_whiteout else stat.S_IFREG
                yield os.fsencode(entry.name), mode
    finally:
        os.close(real)
