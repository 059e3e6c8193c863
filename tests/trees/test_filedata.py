"""Moving the data of files, on whatever filesystem the tests run."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowfs.trees import filedata
from cowfs.trees.filedata import LARGE, Failed, Mover, Part

Open = Callable[..., int]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Open]:
    """`file(data)` opens a new file with these bytes."""
    fds: list[int] = []

    def make(data: bytes = b"") -> int:
        fd = os.open(tmp_path / str(len(fds)), os.O_RDWR | os.O_CREAT)
        os.write(fd, data)
        os.fsync(fd)
        fds.append(fd)
        return fd

    yield make
    for fd in fds:
        os.close(fd)


@pytest.fixture(params=["on", "off"])
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mover:
    """One for which these files are on two filesystems, with and without io_uring."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setenv(filedata.IO_URING_VARIABLE, request.param)
    return Mover(4)


def forget(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 26, 0)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("size", [1, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 4096, 3 * LARGE + 13])
def test_all_bytes_arrive(file: Open, mover: Mover, size: int, cached: bool) -> None:
    data = os.urandom(size)
    source, target = file(data), file()
    if not cached:
        forget(source)
    mover.move([Part(target, source, 0, size, False)])
    assert content(target) == data


def test_only_the_part_is_touched_wherever_it_begins_and_ends(file: Open, mover: Mover) -> None:
    size = 4 * LARGE
    source, target = file(os.urandom(size)), file(b"-" * size)
    start, end = 4095, size - 513
    mover.move([Part(target, source, start, end, False)])
    expected = b"-" * start + content(source)[start:end] + b"-" * (size - end)
    assert content(target) == expected


def test_flags_of_the_descriptors_are_what_they_were(file: Open, mover: Mover) -> None:
    source, target = file(b"x" * LARGE), file()
    before = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (source, target)]
    forget(source)
    mover.move([Part(target, source, 0, LARGE, False)])
    assert [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (source, target)] == before


def test_a_filesystem_without_direct_io_gets_all_bytes_too(
    file: Open, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    data = os.urandom(3 * LARGE + 5)
    target = file()
    mover.move([Part(target, file(data), 0, len(data), False)])
    assert content(target) == data


def test_a_disk_with_larger_sectors_gets_all_bytes_too(
    file: Open, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filedata, "_ALIGNED", 16)
    data = os.urandom(3 * LARGE + 40)
    target = file()
    mover.move([Part(target, file(data), 16, len(data), False)])
    assert content(target)[16:] == data[16:]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("left", [0, LARGE + 4096, 2 * LARGE + 7])
def test_a_source_that_ends_early_is_told_with_its_part(
    file: Open, mover: Mover, cached: bool, left: int
) -> None:
    whole, short = file(b"x" * LARGE), file(b"x" * left)
    if not cached:
        forget(short)
    parts = [Part(file(), whole, 0, LARGE, False), Part(file(), short, 0, 3 * LARGE, False)]
    with pytest.raises(Failed) as caught:
        mover.move(parts)
    assert (caught.value.errno, caught.value.part) == (errno.ENODATA, 1)
