"""A tree of clones follows another tree, whatever happens to that, and tells when both are one."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cowfs.trees.mirror import Looker, Mirror, is_fine, only_data
from integration.effort import EFFORT, SEED
from integration.hand import Hand
from integration.randomops import Plan, make_source
from integration.trees import Entry, differences, tree_state

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


@contextmanager
def mirrored(source: Path, xfs: Path) -> Iterator[tuple[Looker, Mirror, Path]]:
    for name in ("target", "trash"):
        (xfs / name).mkdir()
    fds = [os.open(path, _DIRECTORY) for path in (source, xfs / "target", xfs / "trash")]
    try:
        yield Looker(fds[0], fine=is_fine(fds[0])), Mirror(*fds), xfs / "target"
    finally:
        for fd in fds:
            os.close(fd)


def same(source: Path, target: Path) -> None:
    different = differences(*map(whiteouts_alike, (source, target)))
    assert not different, different


def whiteouts_alike(root: Path) -> dict[str, Entry]:
    return {
        path: entry._replace(mode=0, uid=0, gid=0, mtime_ns=0, xattrs=())
        if stat.S_ISCHR(entry.mode) and entry.rdev == 0
        else entry
        for path, entry in tree_state(root).items()
    }


def mark(source: random.Random, root: Path) -> None:
    """What overlays leave in an upper layer."""
    where = str(root / source.choice(("a", "d", "void", "a/b")))
    if os.path.isdir(where):
        os.setxattr(where, "trusted.overlay.opaque", b"y")
        os.mknod(f"{where}/white{source.randrange(9)}-{time.monotonic_ns()}", stat.S_IFCHR)
    if os.path.lexists(root / "small"):
        os.setxattr(root / "small", "trusted.cowfs.ino", b"12345678", follow_symlinks=False)


@pytest.mark.timeout(120 * EFFORT)
def test_it_follows_random_operations(xfs: Path) -> None:
    source = make_source(xfs / "source")
    chance = random.Random(f"{SEED} mirror")
    hand = Hand(source)
    plan = Plan(chance, source, lambda: list(hand.fds))
    with mirrored(source, xfs) as (looker, mirror, target):
        try:
            for _ in range(25 * EFFORT):
                for _ in range(chance.choice((1, 5, 40))):
                    operation = plan.draw()
                    if operation.name not in ("map_read", "map_store"):
                        hand.do(operation)
                mark(chance, source)
                state = looker.look()
                mirror.follow(state)
                assert mirror.shows(state)
                same(source, target)
        finally:
            hand.close_all()


def test_a_partial_look_is_a_look(xfs: Path) -> None:
    """Only the directories in which something happened are looked at again."""
    source = make_source(xfs / "source")
    with mirrored(source, xfs) as (looker, mirror, target):
        before = looker.look()
        mirror.follow(before)
        (source / "a").rename(source / "void" / "a")
        (source / "n1" / "n2").mkdir(parents=True)
        (source / "n1" / "n2" / "file").write_text("new")
        (source / "small").write_text("other")
        state = looker.again(before, {b"", b"void"})
        assert state == looker.look()
        mirror.follow(state)
        same(source, target)
        with (source / "d" / "small").open("a") as file:
            file.write("more")
        after = looker.again(state, {b"d"})
        assert only_data(state, after) == [b"d/small"]
        (source / "d" / "e" / "new").touch()
        assert only_data(after, looker.look()) is None


def test_what_goes_away_while_it_is_made_is_told_by_the_next_look(xfs: Path) -> None:
    source = make_source(xfs / "source")
    with mirrored(source, xfs) as (looker, mirror, target):
        state = looker.look()
        shutil.rmtree(source / "a")
        for name in ("small", "biggroup"):
            (source / name).unlink()
        (source / "large").unlink()
        (source / "large").mkdir()
        (source / "void").rmdir()
        (source / "void").write_text("a file")
        mirror.follow(state)
        assert not mirror.shows(state)
        state = looker.look()
        mirror.follow(state)
        assert mirror.shows(state)
        same(source, target)


_SWAPPING = """
import os, sys, time
os.chdir(sys.argv[1])
number = 0
while True:
    number += 1
    for name in ("one", "two"):
        with open(name, "r+") as file:
            file.write("%08d" % number)
    time.sleep(0.004)
"""


def test_two_looks_that_are_the_same_have_one_moment(xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    for name in ("one", "two"):
        (source / name).write_text("00000000")
    proven = 0
    with (
        mirrored(source, xfs) as (looker, mirror, target),
        subprocess.Popen([sys.executable, "-c", _SWAPPING, str(source)]) as swapping,
    ):
        try:
            deadline = time.monotonic() + 30
            while proven < 20 and time.monotonic() < deadline:
                state = looker.look()
                mirror.follow(state)
                if looker.look() == state and mirror.shows(state):
                    proven += 1
                    one, two = (int((target / name).read_text()) for name in ("one", "two"))
                    assert one in (two, two + 1)
        finally:
            swapping.kill()
    assert proven
