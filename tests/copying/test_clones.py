"""Clones of many plain files in one call. Empty files, so that it works on any filesystem."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.copying import clone_files

OWNER = (os.geteuid(), os.getegid())


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two directories, open: a source and a target."""
    fds = []
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        fds.append(os.open(tmp_path / name, os.O_RDONLY))
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def clone(places: tuple[int, int], *names: str, dropped: int = 0o7777) -> list[str]:
    return clone_files(*places, list(names), OWNER, dropped, False)


def test_mode_and_times_are_kept_whatever_the_umask(
    tmp_path: Path, places: tuple[int, int]
) -> None:
    names = [f"{mode:o}" for mode in (0o400, 0o666, 0o777, 0o4751, 0o2070, 0o1000)]
    for number, name in enumerate(names):
        file = tmp_path / "source" / name
        file.touch()
        file.chmod(int(name, 8))
        os.utime(file, ns=(number, 1_234_567_890_123_456_789 - number))
    before = os.umask(0o077)
    try:
        assert clone(places, *names) == []
    finally:
        os.umask(before)
    for name in names:
        old, new = ((tmp_path / side / name).stat() for side in ("source", "target"))
        assert (new.st_mode, new.st_mtime_ns) == (old.st_mode, old.st_mtime_ns)
        assert new.st_atime_ns == names.index(name)


def test_what_needs_a_decision_is_left(tmp_path: Path, places: tuple[int, int]) -> None:
    source = tmp_path / "source"
    for name in ("a", "marked", "\udcff \n", "z"):
        (source / name).touch()
    os.setxattr(source / "marked", "user.mark", b"1")
    (source / "directory").mkdir()
    os.mkfifo(source / "fifo")
    names = ["a", "marked", "directory", "fifo", "\udcff \n", "z"]
    assert clone(places, *names) == ["marked", "directory", "fifo"]
    assert sorted(os.listdir(places[1])) == sorted(["a", "\udcff \n", "z"])


def test_a_symlink_is_not_followed(tmp_path: Path, places: tuple[int, int]) -> None:
    (tmp_path / "secret").touch()
    (tmp_path / "source" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links") as caught:
        clone(places, "link")
    assert caught.value.filename == "link"
    assert os.listdir(places[1]) == []


def test_an_error_names_its_file_and_what_came_before_is_there(
    tmp_path: Path, places: tuple[int, int]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "source" / name).touch()
    (tmp_path / "target" / "b").write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        clone(places, "a", "b", "c")
    assert caught.value.filename == "b"
    assert sorted(os.listdir(places[1])) == ["a", "b"]
    assert (tmp_path / "target" / "b").read_text() == "mine"
    with pytest.raises(FileNotFoundError):
        clone(places, "gone")


def test_no_descriptor_is_left_open(tmp_path: Path, places: tuple[int, int]) -> None:
    (tmp_path / "source" / "a").touch()
    os.mkfifo(tmp_path / "source" / "fifo")
    before = os.listdir("/proc/self/fd")
    clone(places, "a", "fifo")
    with pytest.raises(FileExistsError):
        clone(places, "a")
    assert os.listdir("/proc/self/fd") == before


def test_names_that_are_none_are_refused(places: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="null"):
        clone(places, "a\0b")
    with pytest.raises(TypeError):
        clone(places, 7)  # type: ignore[arg-type]


def test_the_file_is_the_owner_s_after_it(tmp_path: Path, places: tuple[int, int]) -> None:
    """An owner that is told to be somebody else's has to be set, which only root may."""
    (tmp_path / "source" / "a").touch()
    (tmp_path / "source" / "a").chmod(0o6755)
    clone_files(*places, ["a"], (OWNER[0] + 1, OWNER[1]), 0o7777, False)
    made = (tmp_path / "target" / "a").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (*OWNER, 0o6755)
