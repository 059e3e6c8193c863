"""Whether two files hold the same bytes, told by where these are on the disk (FIEMAP), unread.

Clones share their blocks until one of them is written, so the same place is the same content. Other
places prove nothing: a file that was written anew may hold the same bytes.
"""

from __future__ import annotations

import itertools
import os
from typing import NamedTuple

from cowfs.system import syscalls

_UNWRITTEN = 0x800  # fallocated: reads as zeros, as a hole does
# Not written yet, compressed, encrypted, or inside of metadata: where it is says nothing.
_PLACELESS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
_BLOCK = 1 << 20
_PAGE = 4096


class Piece(NamedTuple):
    """Bytes of a file from `start` to `end`. place: on the disk, None where that is not known."""

    start: int
    end: int
    place: int | None


def pieces(fd: int, size: int, *, sync: bool) -> list[Piece]:
    """The data of a file of this size, without holes. OSError.

    sync: somebody may write to it. What is in memory only would look like what was there before.
    """
    found: list[Piece] = []
    for extent in syscalls.fiemap(fd, sync):
        end = min(extent.logical + extent.length, size)
        if extent.flags & _UNWRITTEN or extent.logical >= end:
            continue
        place = None if extent.flags & _PLACELESS else extent.physical
        before = found[-1] if found else None
        if (
            before is not None
            and before.end == extent.logical
            and None not in (place, before.place)
            and before.place + before.end - before.start == place  # type: ignore[operator]
        ):
            found[-1] = before._replace(end=end)
        else:
            found.append(Piece(extent.logical, end, place))
    return found


def private_bytes(fd: int, size: int) -> int:
    """Bytes on the disk that a file of this size shares with no other one. OSError.

    What lies behind its end counts no more: XFS has room there for what a writer may add.
    """
    end = -(-size // _PAGE) * _PAGE
    return sum(
        max(0, min(found.length, end - found.logical))
        for found in syscalls.fiemap(fd)
        if not found.flags & syscalls.FIEMAP_EXTENT_SHARED
    )


def unlike(one: list[Piece], other: list[Piece]) -> list[tuple[int, int]]:
    """The ranges, from and to, in which two files of one size do not have the same blocks."""
    edges = sorted({edge for piece in (*one, *other) for edge in (piece.start, piece.end)})
    found: list[tuple[int, int]] = []
    at = [0, 0]
    for start, end in itertools.pairwise(edges):
        covers: list[Piece | None] = []
        for side, side_pieces in enumerate((one, other)):
            while at[side] < len(side_pieces) and side_pieces[at[side]].end <= start:
                at[side] += 1
            piece = side_pieces[at[side]] if at[side] < len(side_pieces) else None
            covers.append(piece if piece is not None and piece.start <= start else None)
        first, second = covers
        if first is None and second is None:
            continue
        if (
            first is not None
            and second is not None
            and None not in (first.place, second.place)
            and first.place - first.start == second.place - second.start  # type: ignore[operator]
        ):
            continue
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def placeless(found: list[Piece]) -> bool:
    """Whether only reading tells what some of it is."""
    return any(piece.place is None for piece in found)


def same_bytes(one: int, other: int, ranges: list[tuple[int, int]]) -> bool:
    """Whether two open files have the same bytes in these ranges: both are read. OSError."""
    for start, end in ranges:
        while start < end:
            length = min(_BLOCK, end - start)
            ours, theirs = os.pread(one, length, start), os.pread(other, length, start)
            if ours != theirs or not ours:
                return False
            start += len(ours)
    return True
