"""The ring that copies segments of files, on whatever filesystem the tests run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.copying import Ring

BLOCK = 4096
Open = Callable[..., int]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Open]:
    """`file(data)` opens a new file with these bytes."""
    fds: list[int] = []

    def make(data: bytes = b"") -> int:
        fd = os.open(tmp_path / str(len(fds)), os.O_RDWR | os.O_CREAT)
        os.write(fd, data)
        fds.append(fd)
        return fd

    yield make
    for fd in fds:
        os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 24, 0)


@pytest.mark.parametrize("depth", [1, 2, 7, 64])
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 100 * BLOCK + 13])
def test_all_bytes_arrive_whatever_the_depth(file: Open, depth: int, size: int) -> None:
    data = os.urandom(size)
    source, target = file(data), file()
    Ring(depth, BLOCK).copy([(source, target, 0, size)])
    assert content(target) == data


@pytest.mark.parametrize("depth", [1, 7, 64])
def test_all_bytes_arrive_when_what_takes_long_is_called_back(file: Open, depth: int) -> None:
    """The kernel may forget an operation. Without patience every one counts as forgotten."""
    size = 3000 * BLOCK + 13
    data = os.urandom(size)
    source = file(data)
    os.fsync(source)
    for patience in (0, 1e-6, 1e-5, 1e-4, 1e-3):
        target = file()
        ring = Ring(depth, BLOCK, patience)
        for _ in range(3):
            os.ftruncate(target, 0)
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_DONTNEED)
            ring.copy(
                [(source, target, 0, size // 2), (source, target, size // 2, size - size // 2)]
            )
            assert content(target) == data


def test_many_segments_of_many_files_are_copied_at_once(file: Open) -> None:
    pairs = [(file(os.urandom(number * 1000)), file()) for number in range(50)]
    ring = Ring(8, BLOCK)
    for _ in range(2):
        ring.copy([(s, t, 0, number * 1000) for number, (s, t) in enumerate(pairs)])
    assert all(content(source) == content(target) for source, target in pairs)


def test_a_segment_touches_nothing_else(file: Open) -> None:
    source, target = file(b"x" * 3 * BLOCK), file(b"-" * 3 * BLOCK)
    Ring(2, BLOCK).copy([(source, target, BLOCK, 10), (source, target, 2 * BLOCK, 0)])
    assert content(target) == b"-" * BLOCK + b"x" * 10 + b"-" * (2 * BLOCK - 10)


def test_a_source_that_ends_early_is_told_with_its_segment(file: Open) -> None:
    whole, short = file(b"x" * 5 * BLOCK), file(b"x" * 10)
    ring = Ring(4, BLOCK)
    with pytest.raises(OSError, match="No data") as caught:
        ring.copy([(whole, file(), 0, 5 * BLOCK), (short, file(), 0, BLOCK)])
    assert caught.value.errno == errno.ENODATA
    assert ring.failed == 1


def test_an_error_names_its_segment_and_the_ring_goes_on_working(
    file: Open, tmp_path: Path
) -> None:
    (tmp_path / "read-only").touch()
    source, good = file(b"x" * BLOCK), file()
    bad = os.open(tmp_path / "read-only", os.O_RDONLY)
    ring = Ring(4, BLOCK)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        ring.copy([(source, good, 0, BLOCK), (source, bad, 0, BLOCK)])
    os.close(bad)
    assert caught.value.errno == errno.EBADF
    assert ring.failed == 1
    ring.copy([(source, good, 0, BLOCK)])
    assert content(good) == b"x" * BLOCK


@pytest.mark.parametrize("segments", [[(0,)], [(0, 1, -1, 1)], [(0, 1, 1, 1 << 63)], [None], 7])
def test_what_is_no_segment_is_refused(segments: object) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Ring(1, BLOCK).copy(segments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "block"), [(0, BLOCK), (4, 0), (1025, BLOCK), (1, 1 << 31)])
def test_impossible_rings_are_refused(depth: int, block: int) -> None:
    with pytest.raises(ValueError, match="depth is 1 to 1024"):
        Ring(depth, block)
