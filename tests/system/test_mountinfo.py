"""The mount table: its format, and which mount a path lies on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowfs.system import mountinfo
from cowfs.system.mountinfo import Mount, holding, is_within, mounted_at

TABLE = (
    rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
30 22 7:0 / /data rw,relatime shared:5 master:1 - xfs /dev/loop0 rw
31 30 0:40 / /mnt/a\040b\134c\011 rw - fuse.cowfs /data/model rw,user_id=0
32 22 0:41 / /mnt rw - tmpfs - rw
33 32 0:42 / /mnt rw - fuse.cowfs /data/m"""
    + b"\xff rw\n34 22 0:43 / /odd rw - tmpfs  rw\n"
)


@pytest.fixture
def mounts(tmp_path: Path) -> list[Mount]:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    return mountinfo.read(str(path))


def test_escapes_optional_fields_and_odd_bytes_are_read(mounts: list[Mount]) -> None:
    data = Mount(30, "7:0", "/data", "xfs", "/dev/loop0", "rw,relatime", parent_id=22)
    assert mounts[2] == data
    name = "/mnt/a b\\c\t"
    assert mounts[3] == Mount(31, "0:40", name, "fuse.cowfs", "/data/model", "rw", parent_id=30)
    assert mounts[5].source == os.fsdecode(b"/data/m\xff")
    assert mounts[6].source == ""
    assert [mount.is_cowfs for mount in mounts] == [False, False, False, True, False, True, False]


def test_the_topmost_of_two_mounts_at_one_place_counts(mounts: list[Mount]) -> None:
    mount = mounted_at("/mnt", mounts)
    assert mount is not None
    assert mount.mount_id == 33
    assert mounted_at("/mnt/none", mounts) is None


@pytest.mark.parametrize(
    ("path", "mount_id"),
    [
        ("/", 22),
        ("/etc", 22),
        ("/data", 30),
        ("/data/x/y", 30),
        ("/database", 22),
        ("/mnt/x", 33),
        ("/mnt/a b\\c\t/file", 31),
    ],
)
def test_a_path_lies_on_the_mount_nearest_to_it(
    mounts: list[Mount], path: str, mount_id: int
) -> None:
    assert holding(path, mounts).mount_id == mount_id


@pytest.mark.parametrize(
    ("more", "path", "mount_id"),
    [
        ("", "/data/x", 30),
        ("", "/mnt/x", 33),
        ("35 30 0:50 / /data/x rw - nfs4 server:/ rw", "/data/x/y", 35),
        ("35 30 0:50 / /data rw - nfs4 server:/ rw", "/data/x/y", 35),
        # over a mount with others below: these are not reached any more
        ("35 22 0:50 / /mnt/a rw - xfs - rw\n36 33 0:51 / /mnt rw - nfs4 - rw", "/mnt/a", 36),
        ("36 33 0:51 / /mnt rw - nfs4 - rw\n35 36 0:50 / /mnt/a rw - xfs - rw", "/mnt/a", 35),
    ],
)
def test_a_path_reaches_the_mount_that_was_mounted_over_the_others(
    tmp_path: Path, more: str, path: str, mount_id: int
) -> None:
    table = tmp_path / "table"
    table.write_bytes(TABLE + more.encode() + b"\n" * bool(more))
    mount = mountinfo.reached(path, mountinfo.read(str(table)))
    assert mount is not None
    assert mount.mount_id == mount_id


def test_without_a_mount_for_it_a_path_reaches_none(mounts: list[Mount]) -> None:
    assert mountinfo.reached("/mnt/x", mounts[2:3]) is None
    in_chroot = [mount for mount in mounts if mount.mount_id != 22]
    found = mountinfo.reached("/data/x", in_chroot)
    assert found is not None
    assert found.mount_id == 30


def test_our_own_table_is_readable_and_holds_the_root() -> None:
    assert mounted_at("/") is not None
    assert holding("/proc/self").mountpoint == "/proc"


def test_within_is_about_whole_names() -> None:
    assert is_within("/a", "/a")
    assert is_within("/a/b", "/a")
    assert is_within("/a", "/")
    assert not is_within("/ab", "/a")
    assert not is_within("/", "/a")


def test_a_copy_of_overlayfs_is_known_by_its_layers() -> None:
    ours = mountinfo.LAYERS.format("0123456789abcdef" * 2)
    for options, template in (
        (f"rw,{ours},redirect_dir=on", "0123456789abcdef" * 2),
        (f"ro,{ours}", "0123456789abcdef" * 2),
        ("rw,lowerdir=/l,upperdir=upper,workdir=work", ""),
        (f"rw,{ours}2", ""),
    ):
        mount = mountinfo._parse(f"55 51 0:42 / /mnt rw - overlay /data/m {options}".encode())
        assert (mount.template, mount.is_cowfs) == (template, bool(template)), options
    other = mountinfo._parse(f"55 51 0:42 / /mnt rw - tmpfs /data/m rw,{ours}".encode())
    assert not other.is_cowfs
