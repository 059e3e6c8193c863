"""What is refused before a mount is tried: one line that names the thing and the remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cowfs.mount import preflight
from cowfs.system import mountinfo
from cowfs.system.errors import CowfsError, MountFailure, SystemFailure, UsageError
from cowfs.system.mountinfo import Mount

ROOT = Mount(1, "8:1", "/", "xfs", "/dev/sda1")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[Mount]:
    """The mount table that the checks see; it starts with a root and nothing else."""
    mounts = [ROOT]
    monkeypatch.setattr(mountinfo, "read", lambda: list(mounts))
    return mounts


def test_a_process_without_the_capability_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "has_capability", lambda number: number != 21)
    with pytest.raises(UsageError, match=r"CAP_SYS_ADMIN.*root") as failure:
        preflight.require_privilege()
    assert failure.value.exit_code == 1


def test_a_user_namespace_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "has_capability", lambda _: True)
    monkeypatch.setattr(preflight, "in_initial_user_namespace", lambda: False)
    with pytest.raises(UsageError, match="user namespace"):
        preflight.require_privilege()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("000001ffffffffff", True),
        ("0000000000200000", True),
        ("000001ffffdfffff", False),
        ("0000000000000000", False),
    ],
)
def test_capabilities_are_read_from_the_effective_set(
    tmp_path: Path, mask: str, expected: bool
) -> None:
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask}\n")
    assert preflight.has_capability(preflight.CAP_SYS_ADMIN, str(status)) is expected


def test_a_missing_fuse_device_names_modprobe(tmp_path: Path) -> None:
    with pytest.raises(SystemFailure, match="modprobe fuse") as failure:
        preflight.require_fuse_device(str(tmp_path / "fuse"))
    assert failure.value.exit_code == 2
    assert str(tmp_path / "fuse") in str(failure.value)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENODEV, "modprobe fuse"),
        (errno.EPERM, "--device /dev/fuse"),
        (errno.EMFILE, "dmesg"),
    ],
)
def test_a_fuse_device_that_does_not_open_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SystemFailure, match=remedy):
        preflight.require_fuse_device()


def test_a_source_is_made_canonical(table: list[Mount], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    path = preflight.check_source(f"{tmp_path}/link/../link")
    assert path == str((tmp_path / "model").resolve())


def test_a_source_that_is_missing_is_named(table: list[Mount], tmp_path: Path) -> None:
    with pytest.raises(preflight.SourceMissing, match=f"source {tmp_path}/none does not exist"):
        preflight.check_source(f"{tmp_path}/none")


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_source_that_is_a_file_is_refused(table: list[Mount], tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountFailure, match=r"source .* is not a directory"):
        preflight.check_source(str(tmp_path / path))


def test_a_source_that_cannot_be_read_is_refused(
    table: list[Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MountFailure, match=r"not readable \(Permission denied\)"):
        preflight.check_source(str(tmp_path))


def test_a_mountpoint_may_hold_files(table: list[Mount], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert preflight.check_mountpoint(str(tmp_path)) == os.path.realpath(tmp_path)


def test_a_mountpoint_that_is_missing_names_mkdir(table: list[Mount], tmp_path: Path) -> None:
    with pytest.raises(MountFailure, match=f"mkdir -p {tmp_path}/none"):
        preflight.check_mountpoint(f"{tmp_path}/none")


def test_a_mountpoint_that_is_a_file_is_refused(table: list[Mount], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountFailure, match=r"mountpoint .*file is not a directory"):
        preflight.check_mountpoint(str(tmp_path / "file"))


def test_a_second_mount_at_one_place_is_refused(table: list[Mount], tmp_path: Path) -> None:
    mountpoint = os.path.realpath(tmp_path)
    table.append(Mount(2, "0:40", mountpoint, "fuse.cowfs", "/data/model"))
    with pytest.raises(MountFailure, match=r"already a cowfs mount of /data/model.*cowfs umount"):
        preflight.check_mountpoint(mountpoint)


def test_an_empty_path_is_not_the_present_directory() -> None:
    with pytest.raises(UsageError, match="the source has no name"):
        preflight.check_source("")
    with pytest.raises(UsageError, match="the mountpoint has no name"):
        preflight.check_mountpoint("")


def test_a_mountpoint_on_another_filesystem_is_fine(table: list[Mount], tmp_path: Path) -> None:
    mountpoint = os.path.realpath(tmp_path)
    table.append(Mount(2, "0:40", mountpoint, "tmpfs", "tmpfs"))
    assert preflight.check_mountpoint(mountpoint) == mountpoint


@pytest.mark.parametrize(
    ("source", "mountpoint", "says"),
    [
        ("/v/.cowfs", "/mnt", "source /v/.cowfs is inside the store"),
        ("/v/.cowfs/templates/x/tree", "/mnt", "is inside the store"),
        ("/v/model", "/v/.cowfs", "mountpoint /v/.cowfs is inside the store"),
        ("/v/model", "/v/.cowfs/copies", "mountpoint .* is inside the store"),
        ("/v/model", "/v", "would hide the store"),
        ("/v/model", "/", "would hide the store"),
    ],
)
def test_store_source_and_mountpoint_stay_apart(source: str, mountpoint: str, says: str) -> None:
    with pytest.raises(CowfsError, match=says):
        preflight.check_apart_from_store(source, mountpoint, "/v/.cowfs")


@pytest.mark.parametrize(
    ("source", "mountpoint"),
    [("/v/model", "/mnt"), ("/v", "/mnt"), ("/v/model", "/v/model"), ("/v/m", "/v/m/sub")],
)
def test_a_source_may_contain_the_store_or_the_mountpoint(source: str, mountpoint: str) -> None:
    preflight.check_apart_from_store(source, mountpoint, "/v/.cowfs")
