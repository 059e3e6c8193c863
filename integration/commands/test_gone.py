"""What commands say of what is not there any more: a mount, a mountpoint's directory, a store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.command import COWFS, Result, cowfs, one_error, run
from integration.host import container
from integration.mounts import MountCopy
from integration.volumes import Volume, unmount


def refused(*arguments: str | Path, code: int = 1) -> str:
    result: Result = cowfs(*arguments, check=False)
    assert result.returncode == code, result
    return one_error(result)


# --- warm -----------------------------------------------------------------------------------------


@pytest.mark.quick
def test_warm_of_a_copy_that_was_unmounted_is_no_success(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain(model)
    mount_plain.unmount(mountpoint)
    said = refused("warm", mountpoint)
    assert said == (
        f"cowfs: {mountpoint} is an empty directory, and no copy is mounted there: mount it first; "
        "cowfs list shows what is kept"
    )


def test_warm_of_one_forgotten_mountpoint_reads_nothing_else_either(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint, other = mount_plain(model), mount_plain.mountpoint()
    result = cowfs("warm", "--json", mountpoint, other, check=False)
    assert result.returncode == 1
    assert str(other) in one_error(result)


def test_warm_of_an_empty_directory_in_a_copy_is_a_success(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain(model)
    (mountpoint / "new").mkdir()
    assert "0 files" in cowfs("warm", mountpoint / "new").stdout


# --- a mountpoint that is not the place of the copy any more --------------------------------------


@pytest.fixture
def moved(mount_plain: MountCopy, model: Path, xfs: Path) -> Iterator[tuple[Path, Path]]:
    """Where a copy was mounted, and where it still is (mount --bind)."""
    place, other = mount_plain.mountpoint(), mount_plain.mountpoint()
    cowfs("mount", "-o", f"copy={xfs.name}", model, place)
    run("mount", "--bind", place, other)
    unmount(place)
    yield place, other
    if os.path.ismount(other):
        unmount(other)


def test_list_shows_the_place_where_the_copy_still_is(
    moved: tuple[Path, Path], xfs_volume: Volume
) -> None:
    place, other = moved
    for place_is_there in (True, False):
        rows = json.loads(
            cowfs("list", "--json", "--store", xfs_volume.mountpoint / ".cowfs").stdout
        )
        assert [row["mountpoint"] for row in rows] == [str(other)]
        if place_is_there:
            place.rmdir()


@pytest.mark.parametrize("is_gone", [False, True])
def test_commands_lead_from_a_place_that_is_gone_to_the_one_that_is_there(
    moved: tuple[Path, Path], model: Path, xfs: Path, is_gone: bool
) -> None:
    place, other = moved
    if is_gone:
        place.rmdir()
    said = refused("umount", place)
    assert said == (
        f"cowfs: {place} is not mounted any more, but its copy {xfs.name} still is at {other}: "
        "unmount that"
    )
    if not is_gone:
        said = refused("warm", place)
        assert f"the copy {xfs.name} still is at {other}: name that" in said
        said = refused("mount", "-o", f"copy={xfs.name}", model, place, code=32)
        assert f"it is mounted at {other}" in said
    assert "kept copy" in cowfs("umount", other).stdout
    assert refused("umount", place) == (f"cowfs: {place} is not mounted: cowfs list shows what is")


def test_a_place_that_only_another_namespace_has_is_said_to_be_there(
    mount_plain: MountCopy, model: Path
) -> None:
    mountpoint = mount_plain(model)
    with container() as other:
        unmount(mountpoint)
        said = refused("umount", mountpoint)
        assert f"still is at {mountpoint} in the mount namespace of" in said
        assert f"(pid {other.pid})" in said


# --- a store --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["list"], ["gc"], ["check", "--all"], ["rm", "copy"]])
def test_a_store_that_is_not_there_is_said_not_to_be(command: list[str], xfs: Path) -> None:
    for path in (xfs / "none", xfs / "none/at/all"):
        said = refused(*command, "--store", path)
        assert said == (
            f"cowfs: the store {path} does not exist: name a directory .cowfs, or leave --store out"
        )


def test_another_directory_of_root_is_no_store_and_nothing_is_made_in_it(xfs: Path) -> None:
    directory = xfs / "private"
    directory.mkdir(mode=0o700)
    said = refused("list", "--store", directory)
    assert said.startswith(f"cowfs: the store {directory} is none: ")
    assert list(directory.iterdir()) == []


def test_the_volume_of_a_store_is_taken_for_no_store_but_leads_to_it(
    mount_plain: MountCopy, model: Path, xfs_volume: Volume
) -> None:
    mount_plain(model)
    volume = xfs_volume.mountpoint
    said = refused("list", "--store", volume)
    assert said == f"cowfs: {volume} is no store, but {volume}/.cowfs is one: name that"


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor_says_nothing_of_what_an_ordinary_user_cannot_try(xfs: Path) -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", COWFS]
    result = run(*command, "doctor", "--json", xfs, check=False)
    assert result.returncode == 32, result
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["privileges"]["status"] == "failed"
    untried = {name for name, check in checks.items() if check["status"] == "unknown"}
    # Who may open the device is the distribution's to say.
    assert untried - {"/dev/fuse"} == {"overlayfs", "passthrough", "descriptors", "reflink"}
    assert {checks[name]["remedy"] for name in untried} == {"become root to try it"}
    shown = run(*command, "doctor", check=False).stdout
    assert "no mounted volume clones files" not in shown
