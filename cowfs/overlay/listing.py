"""The merged listing of one directory, with cookies that stay valid while entries come and go.

readdir(2) may be interrupted at any entry and go on later, while names are created and removed, and
while this file gives the listing up and makes it again, or another daemon does.  So the place of a
name follows from the name alone: it is its hash.  A stream that goes on behind cookie *n* misses
nothing that was there all the time, and sees nothing twice.  The cookie of a name is its place plus
three: `.` and `..` come first.  Cookies have 31 bits, as XFS's have: that is what readdir(3) of a
32-bit program can hold, which without large-file support fails with EOVERFLOW for any more.

A listing is made by reading both layers once, and is then kept up to date by the operations
themselves, since nothing else changes a copy that is mounted.  A large directory is read and put in
order in pieces (`pieces.py`); what changes meanwhile is entered at the end.
"""

from __future__ import annotations

import hashlib
import os
import stat
from array import array
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from cowfs.overlay.pieces import at_once
from cowfs.system import directories, ondisk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowfs.overlay.inodes import Directory
    from cowfs.overlay.layers import Layers
    from cowfs.overlay.pieces import Pieces

# What is read of a directory: name, and whether it is one itself; None for what is not shown.
Entries: TypeAlias = "Iterable[tuple[bytes, bool] | None]"

KEPT_LISTINGS = 64
KEPT_NAMES = 1 << 19
# Listings of large directories that are made at once: each has two descriptors of a layer open.
MADE_AT_ONCE = 8

# Entries that are read or put in order, and changes that are entered, in one piece: about a
# millisecond.
READ = 512
ENTERED = 4

# Of n names some n**2 / 2**32 have the hash of another one.  The second in the order of their bytes
# has the next place that is free; what is created later, until the listing is made anew, takes the
# next one, too.  So a stream can miss or repeat a name if it was interrupted between two such names
# and one of them changed.  The last places are only for those that found theirs taken.
_HASHES = (1 << 31) - (1 << 16)

LAST_COOKIE = (1 << 31) - 1

# What is put in order at once are the names whose places have the same upper bits: a thousandth.
_GROUP_BITS = 21


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

    def __init__(self, entries: Entries = ()) -> None:
        # Where those are whose place another name had.
        self._displaced: dict[bytes, int] = {}
        self._places = array("I")
        self._names: list[bytes] = []
        self.subdirectories = 0
        at_once(self.fill(entries))

    def fill(self, entries: Entries) -> Pieces[None]:
        """Enter what a directory has into an empty listing, which is of no use before the end."""
        groups: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for count, entry in enumerate(entries, 1):
            if entry is not None:
                name, is_directory = entry
                place = _hash(name)
                groups[place >> _GROUP_BITS].append((place, name))
                self.subdirectories += is_directory
            if count % READ == 0:
                yield
        last, in_piece = -1, 0
        for group in sorted(groups):
            found = groups.pop(group)
            found.sort()
            for place, name in found:
                last = max(place, last + 1)
                self._places.append(last)
                self._names.append(name)
                if last != place:
                    self._displaced[name] = last
            in_piece += len(found)
            if in_piece > READ:
                in_piece = 0
                yield

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: bytes) -> bool:
        return self._index(name) is not None

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
        """The same in the order of 62-bit hashes: for readers of a daemon that had those."""
        hashed = ((_whole_hash(name) & (1 << 62) - 1, name) for name in self._names)
        return sorted(found for found in hashed if found[0] >= place)

    def joined(self) -> bytes:
        """All names, with a NUL between two."""
        return b"\0".join(self._names)

    def is_empty(self) -> bool:
        return not self._names


class _Making:
    """A listing that is half made.

    A handler that removes or creates a name meanwhile does not know whether it was read already, so
    `changes` has what was done with each last: whether it is a directory, or None when it is gone.
    """

    __slots__ = ("changes", "listing", "work")

    def __init__(self, entries: Entries) -> None:
        self.listing = Listing()
        self.changes: dict[bytes, bool | None] = {}
        self.work = self._make(entries)

    def _make(self, entries: Entries) -> Pieces[None]:
        listing = self.listing
        subdirectories: set[bytes] = set()

        def noted() -> Entries:
            for entry in entries:
                # A name that was removed and made anew may come twice: it is entered at the end.
                if entry is None or entry[0] in self.changes:
                    yield None
                    continue
                if entry[1]:
                    subdirectories.add(entry[0])
                yield entry

        yield from listing.fill(noted())
        # The kernel lets one change of a directory through at a time, so this comes to an end.
        while self.changes:
            for _ in range(min(ENTERED, len(self.changes))):
                name, is_directory = self.changes.popitem()
                if name in listing:
                    listing.remove(name, is_directory=name in subdirectories)
                subdirectories.discard(name)
                if is_directory is not None:
                    listing.add(name, is_directory=is_directory)
                    if is_directory:
                        subdirectories.add(name)
            if self.changes:
                yield


class Listings:
    """Makes listings, and keeps those that were used last: `KEPT_LISTINGS` at most, with
    `KEPT_NAMES` in all; the last one whatever its size."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._kept: OrderedDict[Directory, Listing] = OrderedDict()
        self._making: dict[Directory, _Making] = {}

    def kept(self, directory: Directory) -> Listing | None:
        """The listing, if it is kept."""
        return self._kept.get(directory)

    def of(self, directory: Directory) -> Listing:
        """The listing of a directory, while everybody waits.  OSError: a layer cannot be read."""
        return at_once(self.made(directory))

    def made(self, directory: Directory) -> Pieces[Listing]:
        """The same in pieces.

        A caller that wants one that is half made goes on with it, so it does not matter who began.
        The caller sees to it that the directory stays in the table meanwhile.
        """
        while (listing := self._kept.get(directory)) is None:
            if directory in self._making or len(self._making) < MADE_AT_ONCE:
                self._go_on_with(directory)
            else:
                with suppress(OSError):  # whoever wants that one will meet the same error
                    self._go_on_with(next(iter(self._making)))
            if directory not in self._kept:
                yield
        self._kept.move_to_end(directory)
        return listing

    def _go_on_with(self, directory: Directory) -> None:
        """Do a piece; after the last one the directory has its listing."""
        making = self._making.get(directory)
        if making is None:
            making = self._making[directory] = _Making(self._merge(directory))
        try:
            next(making.work)
        except StopIteration:
            del self._making[directory]
            self._keep(directory, making.listing)
        except BaseException:
            del self._making[directory]
            raise

    def _keep(self, directory: Directory, listing: Listing) -> None:
        self._kept[directory] = listing
        names = sum(len(kept) for kept in self._kept.values())
        while len(self._kept) > 1 and (len(self._kept) > KEPT_LISTINGS or names > KEPT_NAMES):
            oldest, kept = next(iter(self._kept.items()))
            names -= len(kept)
            self.drop(oldest)

    def drop(self, directory: Directory) -> None:
        self._kept.pop(directory, None)
        making = self._making.pop(directory, None)
        if making is not None:
            making.work.close()

    def added(self, directory: Directory, name: bytes, *, is_directory: bool) -> None:
        """A name was created in the directory."""
        listing = self._kept.get(directory)
        if listing is not None:
            listing.add(name, is_directory=is_directory)
        elif directory in self._making:
            self._making[directory].changes[name] = is_directory

    def removed(self, directory: Directory, name: bytes, *, is_directory: bool) -> None:
        """A name was removed from the directory."""
        listing = self._kept.get(directory)
        if listing is not None:
            listing.remove(name, is_directory=is_directory)
        elif directory in self._making:
            self._making[directory].changes[name] = None

    def _merge(self, directory: Directory) -> Entries:
        covered: set[bytes] = set()
        if directory.upper:
            for name, kind in _scan(self._layers.upper(directory)):
                if directory.lower_path is not None:
                    covered.add(name)
                yield None if kind == ondisk.WHITEOUT else (name, kind == stat.S_IFDIR)
        if directory.lower_path is not None:
            for name, kind in _scan(self._layers.lower(directory)):
                yield None if name in covered else (name, kind == stat.S_IFDIR)


def _scan(fd: int) -> Iterator[tuple[bytes, int]]:
    """(name, `ondisk.kind_of_listed`) of every entry."""
    with directories.entries(fd) as found:
        for entry in found:
            try:
                kind = ondisk.kind_of_listed(entry)
            except FileNotFoundError:
                continue  # it was read with others before it, and removed since
            yield os.fsencode(entry.name), kind
