"""An upper directory that the kernel's overlay has written: docs/on-disk-format.md.

effort.py takes more and other steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.command import run
from integration.effort import EFFORT, SEED
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.pair import Origin, as_overlayfs_shows_it, comparable, mount_overlayfs
from integration.randomops import Plan, make_source
from integration.trees import differences, tree_state
from integration.volumes import unmount

STEPS = 300 * EFFORT


class _Rig:
    """A copy on disk that cowfs and overlayfs serve in turns."""

    def __init__(self, mounts: MountCopy, xfs: Path) -> None:
        self.origin = Origin(mounts, make_source(xfs / "source"), ())
        self.copy = self.origin.store / "copies" / "first"
        self.lower = xfs / "lower"
        run("cp", "-a", "--reflink=always", self.origin.template, self.lower)
        self._at = xfs / "merged"
        self._at.mkdir()

    @contextmanager
    def by_cowfs(self) -> Iterator[Path]:
        origin = self.origin
        yield origin.mounts(origin.source, origin.mountpoint, *origin.options, "copy=first")
        origin.mounts.unmount(origin.mountpoint)

    @contextmanager
    def by_overlayfs(self) -> Iterator[Path]:
        mount_overlayfs(self.lower, self.copy, self._at, "redirect_dir=on,metacopy=off,index=off")
        try:
            yield self._at
        finally:
            unmount(self._at)

    def check(self) -> None:
        """cowfs and overlayfs, each from a new mount, show the same."""
        with self.by_cowfs() as root:
            seen = tree_state(root)
        self.origin.check_copy("first")
        shown = as_overlayfs_shows_it(self.origin.template, self.copy)
        different = differences(comparable(shown), comparable(seen))
        assert not different, different
        assert not [
            name
            for entry in seen.values()
            for name, _value in entry.xattrs
            if name.startswith(("trusted.overlay.", "trusted.cowfs."))
        ]
        self.origin.check_unchanged()


def _change(root: Path, seed: str) -> None:
    hand = Hand(root)
    plan = Plan(random.Random(seed), root, lambda: list(hand.fds))
    try:
        for _step in range(STEPS):
            operation = plan.draw()
            if not operation.name.startswith("map"):
                hand.do(operation)
    finally:
        hand.close_all()


@pytest.mark.parametrize("seed", range(2))
def test_cowfs_and_overlayfs_change_a_copy_in_turns(
    mount_plain: MountCopy, xfs: Path, seed: int
) -> None:
    rig = _Rig(mount_plain, xfs)
    for turn in range(3):
        with rig.by_overlayfs() as root:
            _change(root, f"{SEED} {seed} overlayfs {turn}")
        rig.check()
        with rig.by_cowfs() as root:
            _change(root, f"{SEED} {seed} cowfs {turn}")
        rig.check()


def test_hard_links_are_found_in_directories_that_overlayfs_renamed(
    mount_plain: MountCopy, xfs: Path
) -> None:
    rig = _Rig(mount_plain, xfs)
    with rig.by_overlayfs() as root:
        (root / "a/b").rename(root / "a/n1")  # to a sibling: overlayfs says its bare name
        (root / "a").rename(root / "n2")
    with rig.by_cowfs() as root:
        with (root / "biggroup").open("ab") as file:
            file.write(b"tail")
        assert (root / "n2/n1/c/biggroup").read_bytes()[-4:] == b"tail"
    rig.check()


def test_file_that_overlayfs_made_immutable_is_an_ordinary_one(
    mount_plain: MountCopy, xfs: Path
) -> None:
    rig = _Rig(mount_plain, xfs)
    with rig.by_overlayfs() as root:
        run("chattr", "+i", root / "small")
    with rig.by_cowfs() as root:
        (root / "small").write_bytes(b"new")
        (root / "small").rename(root / "n1")
        assert (root / "n1").read_bytes() == b"new"
        (root / "n1").unlink()
    rig.check()


def test_shared_files_are_immutable_for_overlayfs_over_the_template_itself(
    mount_plain: MountCopy, xfs: Path
) -> None:
    rig = _Rig(mount_plain, xfs)
    rig.lower = rig.origin.template
    with rig.by_overlayfs() as root:
        for change in (
            lambda: (root / "small").write_bytes(b"new"),
            lambda: (root / "small").chmod(0o600),
            lambda: (root / "small").rename(root / "n1"),
            lambda: (root / "small").unlink(),
        ):
            with pytest.raises(PermissionError):
                change()
        (root / "new").write_bytes(b"new")
        (root / "a").rename(root / "n1")
    rig.check()
