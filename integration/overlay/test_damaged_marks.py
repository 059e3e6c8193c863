"""A damaged mark in a copy's upper layer harms what it is on, and nothing beside it."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from cowfs.overlay.inodes import Directory
from cowfs.overlay.overlay import Overlay
from cowfs.system import syscalls
from integration.command import cowfs
from integration.mounts import MountCopy
from integration.trees import make_model, tree_state

INO, BTIME = "trusted.cowfs.ino", "trusted.cowfs.btime"
REDIRECT = "trusted.overlay.redirect"


class Damaged:
    """The copy "made", unmounted; its upper layer is where marks are damaged."""

    def __init__(self, mounts: MountCopy, xfs: Path) -> None:
        self._mounts = mounts
        self.source = make_model(xfs / "model")
        self.root = mounts(self.source, None, "copy=made")
        (self.root / "small.bin").write_text("changed")
        (self.root / "config.json").write_text("changed too")
        (self.root / "weights.bin").write_text("changed as well")
        (self.root / "tokenizer").rename(self.root / "words")
        (self.root / "many" / "f000").unlink()
        self.store = Path(mounts.record(self.root)["store"])
        self.upper = self.store / "copies/made/upper"
        self.before = tree_state(self.root)
        mounts.unmount(self.root)

    def damage(self, name: str, attribute: str, value: bytes) -> None:
        os.setxattr(self.upper / name, attribute, value, follow_symlinks=False)

    def mount(self) -> None:
        self._mounts(self.source, self.root, "copy=made")

    def warnings(self) -> list[str]:
        return [line for line in self._mounts.log(self.root).splitlines() if "damaged mark" in line]

    def findings(self) -> set[str]:
        self._mounts.unmount(self.root)
        found = json.loads(cowfs("check", "made", "--json", check=False).stdout)
        return {finding["problem"] for finding in found["findings"]}


@pytest.fixture
def damaged(mount_plain: MountCopy, xfs: Path) -> Damaged:
    return Damaged(mount_plain, xfs)


def test_damaged_mark_counts_as_none(damaged: Damaged) -> None:
    """The file shows its own number, the directory what is in the upper layer; the log says so."""
    (damaged.upper / "many" / "inner").mkdir()
    damaged.damage("many/inner", REDIRECT, b"/many")  # the directory that it is in
    damaged.damage("words", REDIRECT, b"/many/../..")
    numbers = {"small.bin": b"short", "config.json": bytes(8), "weights.bin": b"\1" + bytes(7)}
    for name, value in numbers.items():
        damaged.damage(name, INO, value)
        damaged.damage(name, BTIME, b"")
    damaged.mount()
    shown = tree_state(damaged.root)
    for path, entry in damaged.before.items():
        # The other name of hard1 was in words, and many has got a directory.
        if "words" not in path and path not in ("hard1", "many"):
            assert shown[path] == entry
    assert {path for path in shown if path not in damaged.before} == {"many/inner"}
    assert os.listdir(damaged.root / "words") == os.listdir(damaged.root / "many/inner") == []
    for name in numbers:
        here, there = os.fsencode(damaged.root / name), os.fsencode(damaged.upper / name)
        assert os.lstat(here).st_ino == os.lstat(there).st_ino
        assert syscalls.birth_time(here, follow=False) == syscalls.birth_time(there, follow=False)
    (damaged.root / "many" / "inner" / "new").touch()
    warnings = "\n".join(damaged.warnings())
    for place in [
        f"{name} has a damaged mark ({mark})" for name in numbers for mark in (INO, BTIME)
    ]:
        assert warnings.count(place) == 1
    assert warnings.count(f"many/inner has a damaged mark ({REDIRECT})") == 1
    assert damaged.findings() >= {"bad-ino", "bad-btime", "bad-redirect", "double-merge"}


def test_redirect_that_leads_to_no_directory_merges_with_nothing(xfs: Path) -> None:
    (xfs / "tree" / "many").mkdir(parents=True)
    (xfs / "tree" / "file").touch()
    (xfs / "upper" / "moved").mkdir(parents=True)
    for value in (b"/", b"../many", b"/a\0b", b"/" + b"x" * 300, b"", b"/file"):
        os.setxattr(xfs / "upper" / "moved", REDIRECT, value)
        tree, upper = (os.open(xfs / name, os.O_PATH) for name in ("tree", "upper"))
        with closing(Overlay(tree, upper, None, [])) as overlay:
            node, _st = overlay.lookup(overlay.nodes.root, b"moved")
            assert isinstance(node, Directory)
            assert node.template_path is None, value
            assert overlay.listings.of(node).is_empty()


def test_what_cannot_be_read_has_its_name_in_the_listing(damaged: Damaged) -> None:
    """Here a directory, whose number a file has taken: only one of the two can be shown."""
    [template] = (damaged.store / "templates").iterdir()
    number = os.lstat(template / "tree/many").st_ino
    damaged.damage("small.bin", INO, number.to_bytes(8, "little"))
    (damaged.upper / "many" / "f000").unlink()  # the whiteout: now it is the template's alone
    (damaged.upper / "many").rmdir()
    root = damaged.root
    damaged.mount()
    assert (root / "small.bin").read_text() == "changed"  # it comes first
    assert sorted(os.listdir(root)) == sorted(
        path for path in damaged.before if "/" not in path and path != "."
    )
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.lstat(root / "many")
    assert (root / "config.json").read_text() == "changed too"
    assert "bad-ino" in damaged.findings()
