"""A listing that is made while names come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cowfs.overlay import listing
from cowfs.overlay.inodes import Directory
from cowfs.overlay.listing import Entries, Listings
from cowfs.overlay.pieces import at_once

SOME = 10


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def upper_directory() -> Directory:
    directory = Directory(2, None)
    directory.upper = True
    return directory


def test_what_was_read_and_is_gone_when_it_is_looked_at(
    upper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "READ", 1)
    layers: Any = SimpleNamespace(upper=lambda _directory: upper)
    listings, directory = Listings(layers), upper_directory()
    names = [b"fifo%d" % number for number in range(SOME)]
    for name in names:
        os.mkfifo(name, dir_fd=upper)  # no directory says of one that it is no whiteout
    work = listings.made(directory)
    next(work)
    for name in names:
        os.unlink(name, dir_fd=upper)
        listings.removed(directory, name, is_directory=False)
    assert at_once(work).is_empty()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_name_that_was_made_anew_behind_the_place_that_is_read(
    is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: Any = None
    listings, directory = Listings(layers), upper_directory()

    def merge(_directory: Directory) -> Entries:
        yield b"name", True
        listings.removed(directory, b"name", is_directory=True)
        listings.added(directory, b"name", is_directory=True)
        yield b"name", True
        if not is_there:
            listings.removed(directory, b"name", is_directory=True)

    monkeypatch.setattr(listings, "_merge", merge)
    made = listings.of(directory)
    assert [name for _place, name in made.after(0)] == [b"name"] * is_there
    assert made.subdirectories == is_there
