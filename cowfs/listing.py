"""The merged listing of one directory, with cookies that stay valid while entries come and go.

readdir(2) may be interrupted at any entry and go on later, while names are created and removed, and
while this file gives the listing up and makes it again, or another daemon does.  So the place of a
name follows from the name alone: it is its hash.  A stream that goes on behind cookie *n* misses
nothing that was there all the time, and sees nothing twice.  The cookie of a name is its place plus
three: `.` and `..` come first.  Cookies have 31 bits, as XFS's have: that is what readdir(3) of a
32-bit program can hold, which without large-file support fails with EOVERFLOW for any more.

A listing is made by reading both layers once, and is then kept up to date by the operations
themselves, since nothing else changes a copy that is mounted.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING

from cowfs import directories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowfs.inodes import Directory
    from cowfs.layers import Layers

KEPT_LISTINGS = 64
KEPT_NAMES = 1 << 19

# Of n names some n**2 / 2**32 have the hash of another one.  The second in the order of their bytes
# has the next place that is free; what is created later, until the listing is made anew, takes the
# next one, too.  So a stream can miss or repeat a name if it was interrupted between two such names
# and one of them changed.  The last places are only for those that found theirs taken.
_HASHES = (1 << 31) - (1 << 16)

LAST_COOKIE = (1 << 31) - 1


def _whole_hash(name: bytes) -> int:
    """The same in every process."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _hash(name: bytes) -> int:
    return _whole_hash(name) % _HASHES


class Listing:
    """Names of one directory in the order of their cookies, and how many are directories.

    A name takes some 60 bytes beside its own: two arrays, one of them of numbers.
    """

    __slots__ = ("_displaced", "_names", "_places", "subdirectories")

    def __init__(self, entries: Iterator[tuple[bytes, bool]]) -> None:
        # Where those are whose place another name had.
        self._displaced: dict[bytes, int] = {}
        self.subdirectories = 0
        found = []
        for name, is_directory in entries:
            found.append((_hash(name), name))
            self.subdirectories += is_directory
        found.sort()
        self._places = array("I")
        self._names = [name for _place, name in found]
        last = -1
        for place, name in found:
            last = max(place, last + 1)
            self._places.append(last)
            if last != place:
                self._displaced[name] = last

    def __len__(self) -> int:
        return len(self._names)

    def _index(self, name: bytes) -> int | None:
        place = self._displaced.get(name)
        if place is None:
            place = _hash(name)
        at = bisect_left(self._places, place)
        return at if at < len(self._names) and self._names[at] == name else None

    def add(self, name: bytes, *, is_directory: bool) -> None:
        if self._index(name) is None:
            wanted = place = _hash(name)
            at = bisect_left(self._places, place)
            while at < len(self._places) and self._places[at] == place:
                at, place = at + 1, place + 1
            if place != wanted:
                self._displaced[name] = place
            self._places.insert(at, place)
            self._names.insert(at, name)
        self.subdirectories += is_directory

    def remove(self, name: bytes, *, is_directory: bool) -> None:
        at = self._index(name)
        if at is None:
            raise KeyError(name)
        self._displaced.pop(name, None)
        del self._places[at]
        del self._names[at]
        self.subdirectories -= is_directory

    def after(self, place: int) -> Iterator[tuple[int, bytes]]:
        """(place, name) of every name from *place* on."""
        for i in range(bisect_left(self._places, place), len(self._places)):
            yield self._places[i], self._names[i]

    def after_as_before(self, place: int) -> list[tuple[int, bytes]]:
        """The same in the order of 62-bit hashes: for who was served by a daemon that had those."""
        hashed = ((_whole_hash(name) & (1 << 62) - 1, name) for name in self._names)
        return sorted(found for found in hashed if found[0] >= place)

    def joined(self) -> bytes:
        """All names, with a NUL between two."""
        return b"\0".join(self._names)

    def is_empty(self) -> bool:
        return not self._names


class Listings:
    """Makes listings, and keeps those that were used last: `KEPT_LISTINGS` at most, with
    `KEPT_NAMES` in all; the last one whatever its size."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._kept: OrderedDict[Directory, Listing] = OrderedDict()

    def of(self, directory: Directory) -> Listing:
        """The listing of a directory; OSError when a layer cannot be read."""
        listing = directory.listing
        if listing is None:
            directory.listing = listing = Listing(self._merge(directory))
            self._kept[directory] = listing
            names = sum(len(kept) for kept in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > KEPT_LISTINGS or names > KEPT_NAMES):
                oldest, kept = next(iter(self._kept.items()))
                names -= len(kept)
                self.drop(oldest)
        self._kept.move_to_end(directory)
        return listing

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

    def _merge(self, directory: Directory) -> Iterator[tuple[bytes, bool]]:
        covered: set[bytes] = set()
        if directory.upper:
            for name, mode in _scan(self._layers.upper(directory)):
                if directory.lower_path is not None:
                    covered.add(name)
                if mode != _WHITEOUT:
                    yield name, stat.S_ISDIR(mode)
        if directory.lower_path is not None:
            for name, mode in _scan(self._layers.lower(directory)):
                if name not in covered:
                    yield name, stat.S_ISDIR(mode)


_WHITEOUT = 0


def _scan(fd: int) -> Iterator[tuple[bytes, int]]:
    """(name, file type) of every entry; the type of a whiteout is `_WHITEOUT`."""
    with directories.entries(fd, os.O_NOATIME) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                mode = stat.S_IFDIR
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                mode = stat.S_IFREG
            else:
                st = entry.stat(follow_symlinks=False)
                is_whiteout = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
                mode = _WHITEOUT if is_whiteout else stat.S_IFREG
            yield os.fsencode(entry.name), mode
