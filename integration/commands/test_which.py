"""Where a name is expected a mountpoint is understood, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from integration.command import COWFS, cowfs, one_error, run
from integration.mounts import MountCopy
from integration.volumes import Volume


@pytest.fixture
def store(xfs: Path) -> Path:
    """A store of the test's own."""
    return xfs / "store"


@pytest.fixture
def name(tmp_path: Path) -> str:
    """A name that no copy of another run has: what is mounted is looked for on the machine."""
    return f"copy.of.{tmp_path.name}"


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_a_kept_copy_is_mounted_by_its_name_at_any_place(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path, engine: str
) -> None:
    first = mount_plain(model, None, f"copy={name},store={store},engine={engine}")
    (first / "mine").write_text("kept")
    mount_plain.unmount(first)
    second = mount_plain.mountpoint()
    options = ["-o", f"store={store},engine={engine}"]
    cowfs("mount", *options, name, second, cwd=tmp_path)
    record = mount_plain.record(second)
    assert (record["copy"], record["source"]) == (name, str(model))
    assert (second / "mine").read_text() == "kept"


def test_a_store_that_has_the_copy_is_found(
    mount_plain: MountCopy, model: Path, name: str, tmp_path: Path, xfs_volume: Volume
) -> None:
    mountpoint = mount_plain(model, None, f"copy={name}")
    (mountpoint / "mine").write_text("kept")
    mount_plain.unmount(mountpoint)
    model.rename(model.with_name("gone"))  # its source is not needed
    cowfs("mount", name, mountpoint, cwd=tmp_path)
    assert (mountpoint / "mine").read_text() == "kept"
    assert mount_plain.record(mountpoint)["store"] == str(xfs_volume.mountpoint / ".cowfs")


def test_mount_by_name_for_mount8(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path
) -> None:
    """As /usr/sbin/mount.cowfs does it for a line of fstab."""
    mountpoint = mount_plain(model, None, f"copy={name},store={store}")
    (mountpoint / "mine").write_text("kept")
    mount_plain.unmount(mountpoint)
    helper = [COWFS.with_name("python"), "-m", "cowfs.mounthelper", name, mountpoint, "-n"]
    run(*helper, "-o", f"store={store}", cwd=tmp_path)
    assert (mountpoint / "mine").read_text() == "kept"
    run(*helper, "-o", f"remount,ro,store={store}", cwd=tmp_path)
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "mine").write_text("more")
    mount_plain.unmount(mountpoint)


def test_a_directory_goes_before_a_copy_of_the_same_name(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path
) -> None:
    mount_plain.unmount(mount_plain(model, None, f"copy={name},store={store}"))
    (model.parent / name).mkdir()
    (model.parent / name / "file").write_text("of the directory")
    mountpoint = mount_plain.mountpoint()
    cowfs("mount", "-o", f"store={store}", name, mountpoint, cwd=model.parent)
    assert (mountpoint / "file").read_text() == "of the directory"
    assert mount_plain.record(mountpoint)["copy"] != name


def test_a_copy_cannot_be_another_copy_too(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path
) -> None:
    mount_plain.unmount(mount_plain(model, None, f"copy={name},store={store}"))
    where = mount_plain.mountpoint()
    options = ["-o", f"store={store},copy=other"]
    result = cowfs("mount", *options, name, where, cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert f"{name} is a copy itself: leave out copy=other" in one_error(result)


def test_a_word_that_is_neither_is_answered_as_a_missing_source(
    mount_plain: MountCopy, name: str, store: Path, model: Path, tmp_path: Path
) -> None:
    mount_plain.unmount(mount_plain(model, None, f"copy=other,store={store}"))
    where = mount_plain.mountpoint()
    for options in ("ro", f"store={store}"):
        result = cowfs("mount", "-o", options, name, where, cwd=tmp_path, check=False)
        assert result.returncode == 32
        assert f"source {name} does not exist" in one_error(result)


@pytest.mark.parametrize("engine", ["fuse", "overlay"])
def test_what_is_mounted_is_known_by_its_name(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path, engine: str
) -> None:
    mountpoint = mount_plain(model, None, f"copy={name},store={store},engine={engine}")
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert size > 0
    assert "0 files" not in cowfs("warm", name, cwd=tmp_path).stdout
    assert str(mountpoint) in cowfs("upgrade", name, cwd=tmp_path).stdout
    assert f"kept copy {name} " in cowfs("umount", name, cwd=tmp_path).stdout
    assert f"{name} is not mounted" in one_error(cowfs("umount", name, check=False))


def test_a_file_or_mount_that_is_there_goes_before_a_name(
    mount_plain: MountCopy, model: Path, name: str, store: Path, tmp_path: Path
) -> None:
    mountpoint = mount_plain(model, None, f"copy={name},store={store}")
    (tmp_path / name).write_bytes(bytes(123))
    assert cowfs("warm", name, cwd=tmp_path).stdout.startswith("1 file, 123 B\n")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    other = mount_plain(model, tmp_path / name, f"copy=other,store={store}")
    assert "kept copy other " in cowfs("umount", name, cwd=tmp_path).stdout
    assert mount_plain.record(mountpoint)["copy"] == name
    assert not (other / "config.json").exists()


def test_a_kept_copy_is_checked_and_discarded_by_its_mountpoint(
    mount_plain: MountCopy, model: Path, store: Path, tmp_path: Path
) -> None:
    mountpoint = mount_plain(model, None, f"store={store}")
    (tmp_path / "link").symlink_to(mountpoint)
    result = cowfs("rm", "--store", store, tmp_path / "link", check=False)
    assert result.returncode == 32
    assert f"unmount it with: cowfs umount {mountpoint}" in one_error(result)
    assert cowfs("check", "--store", store, mountpoint, check=False).returncode == 32
    mount_plain.unmount(mountpoint)
    checked = cowfs("check", "--store", store, mountpoint, tmp_path / "link").stdout
    assert checked.startswith("1 copy, 1 template, ")
    cowfs("rm", "--store", store, f"{mountpoint.name}/", cwd=tmp_path)
    assert list((store / "copies").iterdir()) == []
    result = cowfs("rm", "--store", store, mountpoint, check=False)
    assert result.returncode == 1
    assert f"no copy for the mountpoint {mountpoint}: cowfs list" in one_error(result)


def test_of_two_stores_with_the_name_one_has_to_be_named(
    mount_plain: MountCopy,
    model: Path,
    name: str,
    tmp_path: Path,
    xfs_volume: Volume,
    small_xfs: Callable[..., Volume],
) -> None:
    volume = small_xfs()
    source = volume.mountpoint / "model"
    source.mkdir()
    (source / "file").write_text("small")
    stores = [path.mountpoint / ".cowfs" for path in (xfs_volume, volume)]
    where = [mount_plain(one, None, f"copy={name}") for one in (model, source)]
    result = cowfs("umount", name, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert all(str(place) in one_error(result) for place in where)
    for place, store in zip(where, stores, strict=True):
        # What it says to paste says which store.
        assert f": cowfs rm --store {store} {name}\n" in mount_plain.unmount(place).stdout
    for command, option in (("rm", "--store "), ("check", "--store "), ("mount", "-o store=")):
        operands = [name, where[0]] if command == "mount" else [name]
        result = cowfs(command, *operands, check=False, cwd=tmp_path)
        assert result.returncode == 1
        said = one_error(result)
        assert f"several stores have a copy {name}: say which with" in said
        assert all(f"{option}{store}" in said for store in stores)
    cowfs("rm", "--store", stores[1], name)
    cowfs("rm", name)


def test_a_user_without_rights_is_told_so(
    mount_plain: MountCopy, model: Path, name: str, tmp_path: Path
) -> None:
    mountpoint = mount_plain(model, None, f"copy={name}")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", COWFS]
    for command, code, says in (
        (["umount", name], 1, "is not mounted"),
        (["rm", name], 1, "no permission"),
        (["rm", mountpoint], 1, "no permission"),
        (["mount", name, mountpoint], 1, "no permission to mount"),
    ):
        result = run(*map(str, [*nobody, *command]), cwd="/", check=False)
        assert (result.returncode, says in one_error(result)) == (code, True), result
