"""Where two files have the same blocks, by their extents alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowfs.changes.extents import Piece, unlike

SIZE = 12


@st.composite
def _pieces(draw: st.DrawFn) -> list[Piece]:
    """Extents of a small file, whose units are bytes; None is a place that is not known."""
    found, at = [], 0
    while at < SIZE:
        end = draw(st.integers(at + 1, SIZE))
        place = draw(st.sampled_from([None, *range(0, 40, 10)]))
        if draw(st.booleans()):
            found.append(Piece(at, end, None if place is None else place + at))
        at = end
    return found


def _blocks(pieces: list[Piece], side: object) -> list[object]:
    """For each byte where it is; a place that is not known is like no other one."""
    found: list[object] = [None] * SIZE
    for piece in pieces:
        for at in range(piece.start, piece.end):
            place = piece.place
            found[at] = (side, at) if place is None else place + at - piece.start
    return found


@given(_pieces(), _pieces())
def test_ranges_are_those_in_which_the_places_differ(one: list[Piece], other: list[Piece]) -> None:
    ranges = unlike(one, other)
    expected = {
        at
        for at, (ours, theirs) in enumerate(
            zip(_blocks(one, "one"), _blocks(other, "other"), strict=True)
        )
        if ours != theirs
    }
    assert {at for start, end in ranges for at in range(start, end)} == expected
    assert all(start < end for start, end in ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


@pytest.mark.parametrize("pieces", [[], [Piece(0, 4096, 8192)]])
def test_a_clone_is_alike(pieces: list[Piece]) -> None:
    assert unlike(pieces, list(pieces)) == []
