"""A file whose attributes or names alone were changed is read from the template's file.

So a walk that changes owners or modes of every file (chgrp -R, the kubelet's fsGroup) leaves the
copies of a model with one set of pages in memory.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cowfs.system import ondisk
from cowfs.system.syscalls import cachestat
from integration.command import cowfs
from integration.conftest import Mode
from integration.mounts import MountCopy
from integration.trees import MIB

SIZE = 4 * MIB
BEFORE = b"weights!" * (SIZE // 8)
AFTER = b"trained!" * (MIB // 8)


@pytest.fixture
def source(xfs: Path) -> Path:
    path = xfs / "source"
    (path / "d").mkdir(parents=True)
    (path / "d" / "weights.bin").write_bytes(BEFORE)
    return path


def change_owner(path: Path) -> Path:
    os.chown(path, -1, 100)
    return path


def change_mode(path: Path) -> Path:
    path.chmod(0o664)
    return path


def change_times(path: Path) -> Path:
    os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    return path


def change_times_for_ever(path: Path) -> Path:
    os.utime(path, ns=(10_000_000_000 * 10**9, 10_000_000_000 * 10**9))  # in the year 2286
    return path


def set_attribute(path: Path) -> Path:
    os.setxattr(path, "user.tag", b"value")
    return path


def set_acl(path: Path) -> Path:
    # user::rw-, user:1000:r--, group::r--, mask::r--, other::r-- as posix_acl_xattr(5) has it
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
    value = b"\x02\0\0\0" + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", value)
    return path


def rename(path: Path) -> Path:
    return path.rename(path.with_name("renamed"))


def rename_directory_and_file(path: Path) -> Path:
    parent = path.parent.rename(path.parent.with_name("moved"))
    return (parent / path.name).rename(parent.parent / "renamed")


def link(path: Path) -> Path:
    second = path.with_name("second")
    second.hardlink_to(path)
    return second


CHANGES = [
    change_owner,
    change_mode,
    change_times,
    set_attribute,
    set_acl,
    rename,
    rename_directory_and_file,
    link,
]


class Files:
    """The two files on disk that may have the data of one that a copy shows."""

    def __init__(self, mounts: MountCopy, copy: Path) -> None:
        record = mounts.record(copy)
        store = Path(record["store"])
        self.lower = store / "templates" / record["template"] / "tree" / "d" / "weights.bin"
        self._upper = store / "copies" / record["copy"] / "upper"

    def upper(self, copy: Path, path: Path) -> Path:
        return self._upper / path.relative_to(copy)


def pages(path: Path) -> int:
    """How many pages of a file are in memory."""
    with path.open("rb") as file:
        return cachestat(file.fileno(), 0, SIZE)


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert pages(path) == 0


def read(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        data = file.read()
        assert mapped[:] == data
    return data


def assert_shared(copy: Path, path: Path, files: Files) -> None:
    upper = files.upper(copy, path)
    for file in (files.lower, upper):
        drop_pages(file)
    assert read(path) == BEFORE
    assert pages(upper) == 0
    assert pages(files.lower) > 0


@pytest.mark.parametrize("change", CHANGES)
def test_changed_attributes_leave_the_data_shared(
    mount_copy: MountCopy, source: Path, change: Callable[[Path], Path]
) -> None:
    copy = mount_copy(source)
    path = change(copy / "d" / "weights.bin")
    files = Files(mount_copy, copy)
    shown = path.stat()
    assert_shared(copy, path, files)
    mount_copy.unmount(copy)
    mount_copy(source, copy)
    now = path.stat()
    assert (now.st_mode, now.st_gid, now.st_ino) == (shown.st_mode, shown.st_gid, shown.st_ino)
    assert now.st_mtime_ns == shown.st_mtime_ns
    assert_shared(copy, path, files)


@pytest.mark.parametrize("change", [*CHANGES, change_times_for_ever])
@pytest.mark.parametrize("reader", ["nobody", "a reader"])
def test_a_write_after_that_goes_to_the_copy_alone(
    mount_copy: MountCopy, source: Path, change: Callable[[Path], Path], reader: str, mode: Mode
) -> None:
    copy, other = mount_copy(source), mount_copy(source)
    path = change(copy / "d" / "weights.bin")
    attributes = path.stat()
    with path.open("rb") as opened:
        if reader == "nobody":
            opened.close()
        with path.open("r+b", buffering=0) as file:
            file.write(AFTER)
        if reader != "nobody":
            # The mark has no room for such times, so the file counts as written.
            old = mode == "passthrough" and change is not change_times_for_ever
            assert os.pread(opened.fileno(), MIB, 0) == (BEFORE[:MIB] if old else AFTER)
    expected = AFTER + BEFORE[MIB:]
    assert read(path) == expected
    now = path.stat()
    assert (now.st_mode, now.st_gid, now.st_nlink) == (
        attributes.st_mode,
        attributes.st_gid,
        attributes.st_nlink,
    )
    mount_copy.unmount(copy)
    mount_copy(source, copy)
    assert read(path) == expected
    assert read(other / "d" / "weights.bin") == BEFORE
    assert read(source / "d" / "weights.bin") == BEFORE


@pytest.mark.parametrize("size", [0, MIB])
def test_truncation_after_that_is_one_of_data(
    mount_copy: MountCopy, source: Path, size: int
) -> None:
    path = change_mode(mount_copy(source) / "d" / "weights.bin")
    os.truncate(path, size)
    os.truncate(path, SIZE)
    assert path.read_bytes() == BEFORE[:size] + bytes(SIZE - size)


def test_a_descriptor_from_before_the_change_goes_on(mount_copy: MountCopy, source: Path) -> None:
    path = mount_copy(source) / "d" / "weights.bin"
    with path.open("rb") as before:
        change_owner(path)
        with path.open("rb") as after:
            assert before.read() == after.read() == BEFORE
            assert os.path.sameopenfile(before.fileno(), after.fileno())
            assert os.fstat(before.fileno()).st_gid == 100


def test_what_was_written_without_cowfs_is_shown(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source)
    path = change_owner(copy / "d" / "weights.bin")
    upper = Files(mount_plain, copy).upper(copy, path)
    mount_plain.unmount(copy)
    with upper.open("r+b") as file:  # as the kernel's overlay writes to it
        file.write(AFTER)
    mount_plain(source, copy)
    assert read(path) == AFTER + BEFORE[MIB:]
    change_times(path)
    mount_plain.unmount(copy)
    mount_plain(source, copy)
    assert read(path) == AFTER + BEFORE[MIB:]


def test_a_mark_that_leads_nowhere_costs_nothing_but_pages(
    mount_plain: MountCopy, source: Path
) -> None:
    copy = mount_plain(source)
    path = change_owner(copy / "d" / "weights.bin")
    upper = os.fsencode(Files(mount_plain, copy).upper(copy, path))
    mount_plain.unmount(copy)
    mtime, lower = ondisk.get_shared_data(upper) or (0, b"")
    assert lower == b"d/weights.bin"
    for leads_to in (b"d", b"gone/gone", b"../../../source/d/weights.bin", b"/etc/passwd"):
        ondisk.set_shared_data(upper, mtime, leads_to)
        os.utime(upper, ns=(mtime, mtime))
        mount_plain(source, copy)
        assert read(path) == BEFORE
        mount_plain.unmount(copy)


def test_check_finds_nothing_wrong_with_it(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source)
    change_owner(copy / "d" / "weights.bin")
    record = mount_plain.record(copy)
    mount_plain.unmount(copy)
    cowfs("check", "--store", record["store"], record["copy"])  # it exits with 0


def test_eight_copies_after_a_walk_read_one_file(mount_copy: MountCopy, source: Path) -> None:
    copies = [mount_copy(source) for _ in range(8)]
    files = [Files(mount_copy, copy) for copy in copies]
    for copy in copies:
        for path in (copy, *copy.rglob("*")):
            os.chown(path, -1, 100)
            path.chmod(path.stat().st_mode | 0o020)
    uppers = [
        each.upper(copy, copy / "d" / "weights.bin")
        for each, copy in zip(files, copies, strict=True)
    ]
    for upper in uppers:
        drop_pages(upper)
    for copy in copies:
        assert read(copy / "d" / "weights.bin") == BEFORE
    assert [pages(upper) for upper in uppers] == [0] * 8


def test_a_killed_daemon_leaves_them_shared(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source)
    path = change_owner(copy / "d" / "weights.bin")
    pid = mount_plain.daemon_pid(copy)
    with path.open("rb") as before:
        os.kill(pid, 9)
        mount_plain.wait_until_served(copy, other_than=pid)
        assert_shared(copy, path, Files(mount_plain, copy))
        assert before.read() == BEFORE
