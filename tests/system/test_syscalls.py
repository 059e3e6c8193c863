"""System calls through ctypes: what they do, and how they fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowfs.system import syscalls


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_openat2_opens_below_and_never_leaves(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "link").symlink_to("a")
    fd = syscalls.openat2(directory, b"a/file", os.O_RDONLY)
    assert os.read(fd, 9) == b"x"
    assert not os.get_inheritable(fd)
    os.close(fd)
    for path, number in ((b"link/file", errno.ELOOP), (b"../x", errno.EXDEV), (b"/a", errno.EXDEV)):
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            syscalls.openat2(directory, path, os.O_RDONLY)
        assert caught.value.errno == number
        assert caught.value.filename == path


def test_open_below_takes_a_path_of_any_length(directory: int) -> None:
    fd = os.dup(directory)
    parts = [f"{index:03}".ljust(240, "x") for index in range(40)]
    for part in parts:
        os.mkdir(part, dir_fd=fd)
        deeper = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    for count in (0, 1, 16, 17, 18, 34, 35, 40):
        path = os.fsencode("/".join(parts[:count]))
        found = syscalls.open_below(directory, path, os.O_RDONLY | os.O_DIRECTORY)
        assert sorted(os.listdir(found)) == parts[count : count + 1]
        os.close(found)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        syscalls.open_below(directory, os.fsencode("/".join([*parts, "none"])), os.O_RDONLY)


def test_renameat2_with_its_flags(directory: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_EXCHANGE)
    assert (tmp_path / "a").read_text() == "b"
    syscalls.renameat2(directory, b"a", directory, b"b")
    assert os.listdir(tmp_path) == ["b"]


def test_mount_id_is_that_of_the_mount_table(directory: int) -> None:
    with open(f"/proc/self/fdinfo/{directory}", encoding="ascii") as lines:
        [known] = [line.split()[1] for line in lines if line.startswith("mnt_id:")]
    assert syscalls.statx_mount_id(directory) == int(known)


def test_a_mount_is_known_by_an_id_of_its_own(directory: int) -> None:
    unique = syscalls.statx_unique_mount_id(directory)
    assert unique == syscalls.statx_unique_mount_id(directory)
    assert unique != syscalls.statx_mount_id(directory), "the kernel counts them from 2^31 on"
    assert syscalls.is_mounted(unique)
    assert not syscalls.is_mounted(1 << 62)


def test_failure_carries_the_errno_of_the_call(directory: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.statx_mount_id(-1)
    with pytest.raises(FileNotFoundError):
        syscalls.umount2(b"/does/not/exist", 0)


def test_filesystems_that_the_kernel_has_and_has_not() -> None:
    assert syscalls.has_filesystem(b"tmpfs")
    assert not syscalls.has_filesystem(b"nonesuch")
