"""What is to be copied of a scanned source, in pieces, and what an earlier try has left to keep.

A piece has at most a region's bytes and a few hundred files, so that the pieces can be shared out,
and an interruption loses little.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from cowfs.system import directories, ondisk, syscalls
from cowfs.transfer.filecopy import Piece, Region
from cowfs.transfer.journal import Journal
from cowfs.trees import removal, scan
from cowfs.trees.cloning import CHUNK, Chunk
from cowfs.trees.scan import Directory, Place, Scan
from cowfs.trees.treewalk import Tree


class Plan:
    """The work. `records` has every entry's record by its key (`scan.key_below`)."""

    def __init__(self, source_fd: int, found: Scan, region: int) -> None:
        self.found = found
        self._region = region
        self.records: dict[str, bytes] = {}
        self.small: list[Chunk] = []
        self.large: list[Place] = []
        self.unfinished: list[Directory] = []  # want their attributes when all else is done
        self.links: list[list[Place]] = []  # regular files: the first name is among the pieces
        self.special_links: list[list[Place]] = []
        more: dict[int, list[str]] = {}
        linked: set[int] = set()
        with Tree(source_fd, syscalls.RESOLVE_NO_XDEV) as source:
            for places in found.links:
                linked.update(id(place.directory) for place in places)
                if _is_regular(source, places[0]):
                    self.links.append(places)
                    more.setdefault(id(places[0].directory), []).append(places[0].name)
                else:
                    self.special_links.append(places)
        for directory in found.directories:
            self._add(directory, more.get(id(directory), []), id(directory) in linked)

    def size(self, key: str) -> int:
        """The bytes of a file when it was scanned."""
        return scan.size_and_mtime(self.records[key])[0]

    def regions(self, place: Place) -> list[Region]:
        """The parts of a large file."""
        directory, name = place
        end = self.size(place.key)
        return [
            Region(directory, name, start, min(start + self._region, end))
            for start in range(0, end, self._region)
        ]

    def bytes_of(self, piece: Piece) -> int:
        """What a piece adds to the progress."""
        if isinstance(piece, Region):
            return piece.end - piece.start
        return sum(self.size(piece.directory.key_of(name)) for name in piece.files)

    def _add(self, directory: Directory, more: list[str], linked: bool) -> None:
        for name, record in scan.records(directory):
            self.records[directory.key_of(name)] = record
        groups: list[list[str]] = [[]]
        size = 0
        whole = not linked
        for name in directory.files + more:
            length = self.size(directory.key_of(name))
            if length > self._region:
                self.large.append(Place(directory, name))
                whole = False
                continue
            if len(groups[-1]) == CHUNK or size + length > self._region:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += length
        whole = whole and len(groups) == 1
        self.small += [
            Chunk(directory, files, [] if index else directory.special, whole)
            for index, files in enumerate(groups)
        ]
        if not whole:
            self.unfinished.append(directory)


class Kept(NamedTuple):
    """What an earlier try has left that is good: keys, and the first bytes of regions."""

    files: set[str]
    regions: dict[str, set[int]]


def keep(plan: Plan, journal: Journal, tree_fd: int, trash_fd: int) -> Kept:
    """Find out what can be kept in the tree, and remove the rest. OSError."""
    kept = Kept(set(), {})
    with Tree(tree_fd) as tree:
        for directory in plan.found.directories:
            try:
                fd = tree.open(directory)
            except FileNotFoundError:
                continue
            os.fchmod(fd, 0o700)  # it may have its final attributes already
            for acl in set(ondisk.ACLS).intersection(ondisk.list_xattrs(fd)):
                ondisk.remove_xattr(fd, acl)
            subdirectories = set(directory.subdirectories)
            for name in directories.names(fd):
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if not (
                    name in subdirectories
                    if stat.S_ISDIR(st.st_mode)
                    else _is_good(plan, journal, directory.key_of(name), st, kept)
                ):
                    removal.remove(trash_fd, removal.trash(fd, name, trash_fd))
    return kept


def left(plan: Plan, kept: Kept) -> list[Chunk]:
    """The small files' pieces without the files that are kept."""
    return [
        piece._replace(
            files=[name for name in piece.files if piece.directory.key_of(name) not in kept.files]
        )
        for piece in plan.small
    ]


def _is_good(plan: Plan, journal: Journal, key: str, st: os.stat_result, kept: Kept) -> bool:
    """Whether an entry of the tree can stay; if so it is noted."""
    record = plan.records.get(key)
    if record is None or not stat.S_ISREG(st.st_mode):
        return False
    size, mtime_ns = scan.size_and_mtime(record)
    if st.st_size != size:
        return False
    if journal.files.get(key) == record and st.st_mtime_ns == mtime_ns:
        kept.files.add(key)
        return True
    known = journal.regions.get(key)
    if known is not None and known[0] == record:
        kept.regions[key] = known[1]
        return True
    return False


def _is_regular(source: Tree, place: Place) -> bool:
    try:
        fd = source.open(place.directory)
        mode = os.stat(place.name, dir_fd=fd, follow_symlinks=False).st_mode
    except OSError as error:
        raise scan.changed_or_located(error, place.path) from None
    return stat.S_ISREG(mode)
