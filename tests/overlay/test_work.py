from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.overlay.work import Temporary, WorkDirectory


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkDirectory]:
    (tmp_path / "work" / "left" / "over").mkdir(parents=True)
    (tmp_path / "upper").mkdir()
    with closing(WorkDirectory(os.open(tmp_path / "work", os.O_PATH))) as work:
        yield work


@pytest.fixture
def upper_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "upper", os.O_PATH)
    yield fd
    os.close(fd)


def make_full_directory(at: Temporary) -> None:
    os.mkdir(at.name, dir_fd=at.dir_fd)
    os.mkdir(at.name + b"/below", dir_fd=at.dir_fd)


def test_what_a_killed_daemon_left_is_gone(work: WorkDirectory, tmp_path: Path) -> None:
    assert work.fd >= 0
    assert os.listdir(tmp_path / "work") == []


def test_what_is_not_put_anywhere_is_discarded(work: WorkDirectory, tmp_path: Path) -> None:
    with work.temporary() as temporary:
        make_full_directory(temporary)
        assert os.listdir(tmp_path / "work") == [os.fsdecode(temporary.name)]
    assert os.listdir(tmp_path / "work") == []


def move_over_a_file(work: WorkDirectory, upper_fd: int) -> None:
    with work.temporary() as temporary:
        make_full_directory(temporary)
        temporary.move_to(upper_fd, b"name")


def take_over_a_link(work: WorkDirectory, upper_fd: int) -> None:
    with work.temporary() as temporary:
        os.symlink("target", temporary.name, dir_fd=temporary.dir_fd)
        assert stat.S_ISLNK(temporary.stat().st_mode)
        temporary.take(upper_fd, b"name")


def test_a_failure_leaves_nothing(work: WorkDirectory, upper_fd: int, tmp_path: Path) -> None:
    (tmp_path / "upper" / "name").touch()
    with pytest.raises(NotADirectoryError):
        move_over_a_file(work, upper_fd)
    with pytest.raises(FileExistsError):
        take_over_a_link(work, upper_fd)
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "upper") == ["name"]


def test_what_was_moved_is_not_followed(work: WorkDirectory, upper_fd: int, tmp_path: Path) -> None:
    with work.temporary() as temporary:
        make_full_directory(temporary)
        temporary.move_to(upper_fd, b"name")
        os.mkdir(temporary.name, dir_fd=temporary.dir_fd)  # not what it stands for any more
    assert os.listdir(tmp_path / "upper" / "name") == ["below"]
    assert os.listdir(tmp_path / "work") == [os.fsdecode(temporary.name)]


def test_an_exchange_discards_what_was_there(
    work: WorkDirectory, upper_fd: int, tmp_path: Path
) -> None:
    (tmp_path / "upper" / "name").touch()
    with work.temporary() as temporary:
        make_full_directory(temporary)
        temporary.exchange(upper_fd, b"name")
        assert stat.S_ISREG(temporary.stat().st_mode)
    assert os.listdir(tmp_path / "upper" / "name") == ["below"]
    assert os.listdir(tmp_path / "work") == []


def test_a_full_directory_is_left_for_whoever_has_time(
    work: WorkDirectory, upper_fd: int, tmp_path: Path
) -> None:
    (tmp_path / "upper" / "empty").mkdir()
    (tmp_path / "upper" / "full" / "below").mkdir(parents=True)
    taken = []
    for name in (b"empty", b"full"):
        with work.temporary() as temporary:
            temporary.take(upper_fd, name)
            taken.append(temporary.keep())
    for name in taken:
        work.take_apart(name)
    assert work.left == taken[1:]
    assert os.listdir(tmp_path / "work") == [os.fsdecode(taken[1])]
    work.clear_away(work.left)
    assert os.listdir(tmp_path / "work") == []


def test_a_read_only_copy_has_none() -> None:
    with closing(WorkDirectory(None)) as work, pytest.raises(OSError) as refused:  # noqa: PT011
        work.temporary()
    assert refused.value.errno == errno.EROFS
