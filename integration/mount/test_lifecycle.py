"""Unmounted and mounted again: what is kept, what follows the source, what is thrown away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration import kernel
from integration.command import Result, cowfs, run
from integration.mounts import MountCopy
from integration.trees import tree_state

pytestmark = pytest.mark.filesystems("xfs", "btrfs")


def copies(xfs: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(cowfs("list", "--json").stdout)
    return [entry for entry in listed if entry["source"].startswith(str(xfs))]


@pytest.mark.quick
def test_changes_are_there_after_a_remount(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    (mountpoint / "weights.bin").write_bytes(b"mine")
    (mountpoint / "tokenizer").rename(mountpoint / "moved")
    (mountpoint / "moved" / "new").write_text("new")
    (mountpoint / "config.json").unlink()
    (mountpoint / "hard1").write_text("both names")
    before = tree_state(mountpoint)
    inodes = {p: p.lstat().st_ino for p in mountpoint.rglob("*")}
    mount_copy.unmount(mountpoint)
    assert list(mountpoint.iterdir()) == []
    mount_copy(model, mountpoint)
    assert tree_state(mountpoint) == before
    assert {p: p.lstat().st_ino for p in mountpoint.rglob("*")} == inodes
    assert (mountpoint / "moved" / "hard2").read_text() == "both names"


def test_copy_without_changes_follows_the_source(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    (mountpoint / "weights.bin").read_bytes()
    mount_copy.unmount(mountpoint)
    (model / "config.json").write_text("the source has moved on")
    mount_copy(model, mountpoint)
    assert (mountpoint / "config.json").read_text() == "the source has moved on"


def test_copy_with_changes_keeps_its_template(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    (mountpoint / "mine").write_text("mine")
    config = (mountpoint / "config.json").read_text()
    mount_copy.unmount(mountpoint)
    (model / "config.json").write_text("the source has moved on")
    mount_copy(model, mountpoint)
    assert (mountpoint / "mine").read_text() == "mine"
    assert (mountpoint / "config.json").read_text() == config


def test_copy_with_changes_outlives_its_source(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model)
    (mountpoint / "mine").write_text("mine")
    before = tree_state(mountpoint)
    mount_copy.unmount(mountpoint)
    shutil.rmtree(model)
    mount_copy(model, mountpoint)
    assert tree_state(mountpoint) == before


def test_unmount_says_what_was_kept(mount_copy: MountCopy, model: Path) -> None:
    mountpoint = mount_copy(model, None, "copy=kept")
    (mountpoint / "mine").write_text("mine")
    said = mount_copy.unmount(mountpoint).stdout
    assert "kept" in said
    # Another run may have a copy of that name in its own store: then this one is named, too.
    assert re.search(r"cowfs rm (--store \S+ )?kept\n", said)


def test_ephemeral_copy_leaves_nothing(mount_copy: MountCopy, model: Path, xfs: Path) -> None:
    mountpoint = mount_copy(model, None, "ephemeral")
    (mountpoint / "mine").write_bytes(b"x" * 100_000)
    store = Path(mount_copy.record(mountpoint)["store"])
    mount_copy.unmount(mountpoint)
    assert copies(xfs) == []
    assert list((store / "copies").iterdir()) == []
    assert list((store / "trash").iterdir()) == []


def test_copy_is_listed_with_what_it_is(mount_copy: MountCopy, model: Path, xfs: Path) -> None:
    mountpoint = mount_copy(model, None, "copy=listed")
    (mountpoint / "mine").write_bytes(b"x" * 1_000_000)
    with (mountpoint / "mine").open("rb+") as file:
        file.flush()
    [entry] = copies(xfs)
    record = mount_copy.record(mountpoint)
    assert entry["name"] == "listed"
    assert entry["source"] == str(model)
    assert entry["mountpoint"] == str(mountpoint)
    assert entry["persistent"] is True
    assert entry["daemon_pid"] == record["daemon_pid"]
    assert entry["keeper_pid"] == record["keeper_pid"]
    assert entry["template"] == record["template"]
    assert entry["private_bytes"] >= 1_000_000
    mount_copy.unmount(mountpoint)
    [entry] = copies(xfs)
    assert entry["mountpoint"] is None
    assert entry["daemon_pid"] is None


def test_mounted_copy_is_not_removed(
    mount_copy: MountCopy, model: Path, xfs: Path, cowfs: Callable[..., Result]
) -> None:
    mountpoint = mount_copy(model, None, "copy=busy")
    store = mount_copy.record(mountpoint)["store"]
    refused = cowfs("rm", "--store", store, "busy", check=False)
    assert refused.returncode != 0
    assert "mounted" in refused.stderr
    mount_copy.unmount(mountpoint)
    cowfs("rm", "--store", store, "busy")
    assert copies(xfs) == []


def test_one_seal_for_two_mounts_of_one_source(mount_copy: MountCopy, model: Path) -> None:
    records = [mount_copy.record(mount_copy(model)) for _ in range(2)]
    assert records[0]["template"] == records[1]["template"]
    templates = Path(records[0]["store"], "templates")
    assert [p.name for p in templates.iterdir() if not p.name.startswith(".")] == [
        records[0]["template"]
    ]


@pytest.mark.quick
@pytest.mark.parametrize("ends", ["killed", "terminated"])
def test_daemon_ends_without_unmount(mount_plain: MountCopy, model: Path, ends: str) -> None:
    """Whatever was written before is there when the copy is mounted again."""
    mountpoint = mount_plain(model)
    (mountpoint / "mine").write_text("mine")
    (mountpoint / "weights.bin").write_bytes(b"changed")
    if ends == "killed":
        mount_plain.orphan(mountpoint)
        cowfs("umount", mountpoint)
    else:
        keeper = mount_plain.record(mountpoint)["keeper_pid"]
        os.kill(keeper, signal.SIGTERM)
        assert kernel.wait_for_end(keeper, 10)
    mount_plain(model, mountpoint)
    assert (mountpoint / "mine").read_text() == "mine"
    assert (mountpoint / "weights.bin").read_bytes() == b"changed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_mount_that_is_told_to_end_ends_with_its_last_user(
    mount_plain: MountCopy, model: Path, number: signal.Signals
) -> None:
    """SIGUSR1 means the same where no service manager keeps the mount for the next keeper."""
    mountpoint = mount_plain(model)
    keeper = mount_plain.record(mountpoint)["keeper_pid"]
    with (mountpoint / "mine").open("w") as file:
        os.kill(keeper, number)
        assert not kernel.wait_for_end(keeper, 0.5)
        file.write("mine")
    assert kernel.wait_for_end(keeper, 10)
    mount_plain(model, mountpoint)
    assert (mountpoint / "mine").read_text() == "mine"


def test_group_of_hard_links_whose_copy_up_a_crash_cut_short_is_whole_again(
    mount_plain: MountCopy, model: Path
) -> None:
    root = mount_plain(model, None, "copy=cut")
    (root / "tokenizer").rename(root / "moved")
    (root / "hard1").chmod(0o600)
    (root / "other").write_text("other")
    before = os.lstat(root).st_mtime_ns
    copy = Path(mount_plain.record(root)["store"], "copies", "cut")
    mount_plain.unmount(root)
    # What the disk holds when the power fails between the first name and the second.
    os.link(copy / "upper" / "hard1", copy / "work" / "#group1")
    os.unlink(copy / "upper" / "moved" / "hard2")
    mount_plain(model, root, "copy=cut")
    assert (root / "hard1").stat().st_mode & 0o777 == 0o644, "the change was not finished"
    assert (root / "hard1").stat().st_nlink == 2
    with (root / "hard1").open("ab") as file:
        file.write(b"tail")
    assert (root / "moved" / "hard2").read_bytes() == b"one inode, two names\ntail"
    assert (root / "other").read_text() == "other"
    assert os.lstat(root).st_mtime_ns == before
    assert os.listdir(copy / "work") == []


def test_daemon_that_ends_late_leaves_alone_what_is_mounted_there_by_then(
    mount_copy: MountCopy, xfs: Path
) -> None:
    # The kernel gives the ids and the device number of a mount that has gone to the next one.
    source = xfs / "source"
    source.mkdir()
    mountpoint = mount_copy(source)
    for number in range(3):
        late = mount_copy.record(mountpoint)
        os.kill(late["daemon_pid"], signal.SIGSTOP)
        try:
            run("umount", "-l", mountpoint)
            mount_copy(source, mountpoint, f"copy=next{number}")
        finally:
            os.kill(late["daemon_pid"], signal.SIGCONT)
        assert kernel.wait_for_end(late["keeper_pid"], 10)
        assert os.path.ismount(mountpoint)
        (mountpoint / "served").touch()
        assert mount_copy.record(mountpoint)["copy"] == f"next{number}"
