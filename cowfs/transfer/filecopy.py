"""Copying the files of a source in pieces: many small ones at a time, large ones by regions.

Knows how a piece is copied and verified, in any process. What pieces there are says plan.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from cowfs.system import syscalls
from cowfs.transfer import verify
from cowfs.trees import filedata
from cowfs.trees.cloning import Chunk, Cloner, Pair
from cowfs.trees.filedata import LARGE, Failed, Mover, Part
from cowfs.trees.links import Links
from cowfs.trees.scan import Directory, changed_or_located

_TOGETHER = 64  # small files whose data is under way at once; each takes two descriptors
_OPEN_TARGET = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Region(NamedTuple):
    """A part of a large file, that is a piece of work of its own."""

    directory: Directory
    name: str
    start: int
    end: int

    @property
    def key(self) -> str:
        """The file's: see `scan.key_below`."""
        return self.directory.key_of(self.name)


Piece = Chunk | Region

#: The errno that says, among those of system calls, that a file is not what its source is.
DIFFERS = errno.EBADMSG


class Copier(Cloner):
    """Copies pieces from a source to a tree, from any filesystem to any other."""

    seals = False
    drops_marks = False

    def __init__(self, source_fd: int, tree_fd: int, umask: int, depth: int, links: Links) -> None:
        super().__init__(source_fd, tree_fd, umask, links)
        self._mover = Mover(depth)

    def copy(self, piece: Piece) -> None:
        """Do one piece. SourceChanged, OSError."""
        with Pair(self, piece.directory) as pair:
            if isinstance(piece, Region):
                self._copy_region(pair, piece)
                return
            for start in range(0, len(piece.files), _TOGETHER):
                self._copy_files(pair, piece.directory, piece.files[start : start + _TOGETHER])
            for name in piece.special:
                pair.make_special(name)
            if piece.whole:
                pair.finish()

    def verify(self, piece: Piece) -> None:
        """Compare one piece with its source. SourceChanged, OSError (DIFFERS)."""
        with Pair(self, piece.directory) as pair:
            if isinstance(piece, Region):
                self._compare(pair, piece.directory, piece.name, (piece.start, piece.end))
                return
            for name in piece.files:
                self._compare(pair, piece.directory, name, None)

    def begin_large(self, directory: Directory, name: str) -> bool:
        """Make a large file and give it its blocks; whether that is all: it was cloned."""
        with _located(directory, name), Pair(self, directory) as pair:
            source, st = pair.open_source(name)
            try:
                target = pair.create(name, st)
                try:
                    if self._mover.clone(target, source):
                        pair.give_attributes(source, target, st)
                        return True
                    os.ftruncate(target, st.st_size)
                    _preallocate(filedata.whole(target, source, st))
                    return False
                finally:
                    os.close(target)
            finally:
                os.close(source)

    def finish_large(self, directory: Directory, name: str) -> None:
        """Give a large file its attributes, once all its regions are there."""
        with _located(directory, name), Pair(self, directory) as pair:
            source, st = pair.open_source(name)
            try:
                target = os.open(name, os.O_WRONLY | _OPEN_TARGET, dir_fd=pair.target)
                try:
                    pair.give_attributes(source, target, st)
                finally:
                    os.close(target)
            finally:
                os.close(source)

    def _copy_region(self, pair: Pair, region: Region) -> None:
        with _located(region.directory, region.name):
            source, st = pair.open_source(region.name)
            try:
                target = os.open(region.name, os.O_WRONLY | _OPEN_TARGET, dir_fd=pair.target)
                try:
                    sparse = filedata.is_sparse(st)
                    self._mover.move([Part(target, source, region.start, region.end, sparse)])
                finally:
                    os.close(target)
            finally:
                os.close(source)

    def _copy_files(self, pair: Pair, directory: Directory, names: list[str]) -> None:
        with contextlib.ExitStack() as stack:
            opened = []
            parts: list[Part] = []
            owners: list[str] = []
            for name in names:
                with _located(directory, name):
                    source, st = pair.open_source(name)
                    stack.callback(os.close, source)
                    target = pair.create(name, st)
                    stack.callback(os.close, target)
                    opened.append((name, source, target, st))
                    if st.st_size and not self._mover.clone(target, source):
                        part = filedata.whole(target, source, st)
                        if st.st_size >= LARGE:
                            os.ftruncate(target, st.st_size)
                            _preallocate(part)
                        parts.append(part)
                        owners.append(name)
            try:
                self._mover.move(parts)
            except Failed as error:
                raise changed_or_located(error, directory.path_of(owners[error.part])) from None
            for name, source, target, st in opened:
                with _located(directory, name):
                    if filedata.is_sparse(st):
                        os.ftruncate(target, st.st_size)
                    pair.give_attributes(source, target, st)

    def _compare(
        self, pair: Pair, directory: Directory, name: str, region: tuple[int, int] | None
    ) -> None:
        with _located(directory, name):
            source, st = pair.open_source(name)
            try:
                target = os.open(name, os.O_RDONLY | _OPEN_TARGET, dir_fd=pair.target)
                try:
                    start, end = region or (0, st.st_size)
                    if os.fstat(target).st_size != st.st_size or not verify.same(
                        source, target, start, end
                    ):
                        raise OSError(DIFFERS, os.strerror(DIFFERS))
                finally:
                    os.close(target)
            finally:
                os.close(source)


@contextlib.contextmanager
def _located(directory: Directory, name: str) -> Iterator[None]:
    """Give an OSError the path of the entry, or make it SourceChanged."""
    try:
        yield
    except OSError as error:
        raise changed_or_located(error, directory.path_of(name)) from None


def _preallocate(part: Part) -> None:
    """Give the target blocks for all data of a part, in as few extents as the volume can."""
    try:
        for start, end in filedata.data_of(part):
            syscalls.fallocate(part.target, syscalls.FALLOC_FL_KEEP_SIZE, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # writing allocates as well
            raise
