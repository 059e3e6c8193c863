"""A copy that somebody has mounted with the kernel's overlayfs by hand, and what cowfs says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.command import Result, cowfs, one_error, run
from integration.mounts import MountCopy
from integration.pair import mount_overlayfs
from integration.volumes import unmount


class Kept:
    """A kept copy that was written to, of a source with a file of two names."""

    def __init__(self, mounts: MountCopy, xfs: Path) -> None:
        self.source = xfs / "source"
        self.source.mkdir()
        (self.source / "one").write_text("old\n")
        os.link(self.source / "one", self.source / "two")
        self.mountpoint = mounts(self.source, None, "copy=kept")
        record = mounts.record(self.mountpoint)
        (self.mountpoint / "new").write_text("mine\n")
        mounts.unmount(self.mountpoint)
        self.store = Path(record["store"])
        self.path = self.store / "copies/kept"
        self.work = self.path / "work"
        self._lower = xfs / "lower"  # files of the template itself are immutable
        tree = self.store / "templates" / record["template"] / "tree"
        run("cp", "-a", "--reflink=always", tree, self._lower)
        self._at = xfs / "merged"
        self._at.mkdir()

    @contextmanager
    def by_hand(self, *options: str) -> Iterator[Path]:
        mount_overlayfs(self._lower, self.path, self._at, ",".join(options))
        try:
            yield self._at
        finally:
            unmount(self._at)

    def check(self, *options: str) -> tuple[Result, list[dict[str, Any]]]:
        result = cowfs("check", "--store", self.store, "--json", *options, "kept", check=False)
        findings: list[dict[str, Any]] = json.loads(result.stdout)["findings"]
        return result, findings


@pytest.fixture
def kept(mount_plain: MountCopy, xfs: Path) -> Kept:
    return Kept(mount_plain, xfs)


@pytest.mark.quick
def test_what_overlayfs_left_is_told_apart_from_a_crash_and_harmless(kept: Kept) -> None:
    with kept.by_hand("redirect_dir=on", "metacopy=off", "index=off") as root:
        (root / "new").write_text("from overlayfs\n")
    assert os.listdir(kept.work) == ["work"]
    result, [found] = kept.check()
    assert (result.returncode, found["status"], found["problem"]) == (0, "harmless", "overlayfs")
    assert found["detail"].startswith("holds what the kernel's overlayfs has left")
    result, [found] = kept.check("--repair")
    assert (result.returncode, found["status"]) == (0, "repaired")
    assert kept.check()[1] == []
    cowfs("mount", "-o", "copy=kept", kept.source, kept.mountpoint)
    assert (kept.mountpoint / "new").read_text() == "from overlayfs\n"


def test_a_copy_that_overlayfs_has_is_in_use_for_every_command(kept: Kept) -> None:
    with kept.by_hand("index=off") as root:
        for command in (
            ("mount", "-o", "copy=kept", kept.source, kept.mountpoint),
            ("rm", "--store", kept.store, "kept"),
        ):
            result = cowfs(*command, check=False)
            assert result.returncode == 32
            assert "overlayfs has it, mounted by hand; unmount that" in one_error(result)
        result = cowfs("check", "--repair", "--store", kept.store, "kept", check=False)
        assert result.returncode == 32
        assert "the copy kept is in use" in result.stdout
        assert os.listdir(kept.work) == ["work"]
        assert (root / "new").read_text() == "mine\n"


def test_an_index_of_hard_links_is_no_harmless_thing_and_stays(kept: Kept) -> None:
    with kept.by_hand("index=on") as root:
        (root / "one").write_text("changed\n")
        assert (root / "two").read_text() == "changed\n"
    before = os.listdir(kept.work / "index")
    assert len(before) == 1
    for options in ((), ("--repair",)):
        result, [found] = kept.check(*options)
        assert (result.returncode, found["status"], found["problem"]) == (16, "error", "index")
        assert "changed files with several names: 1" in found["detail"]
    assert os.listdir(kept.work / "index") == before
    with kept.by_hand("index=on") as root:  # as the remedy says
        assert (root / "two").read_text() == "changed\n"
