"""Every case of integration/posix comes out in a copy as on XFS, whatever the copy has to start
from: files of the template, files of its own, or a directory that was renamed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from integration import kernel
from integration.command import run
from integration.conftest import MODES
from integration.leaks import Leaks
from integration.mounts import MountCopy
from integration.posix import attributes, data, directories, locks, names, objects, renaming
from integration.posix.notes import Notes
from integration.trees import tree_state
from integration.volumes import Volume, remove_tree
from integration.watchdog import Watchdog

pytestmark = pytest.mark.timeout(300)  # the first one seals the objects of all of them

Case = Callable[[Notes, Path], None]

FAMILIES = (names, renaming, attributes, data, locks, directories)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]

OPTIONS = ("suid", "dev", "share_min=1M")
SECONDS = 60  # that a case may take, before the connection of its mount is aborted


class Roots(NamedTuple):
    copy: Path
    native: Path


def _shared(root: Path) -> Path:
    return root


def _private(root: Path) -> Path:
    """Everything that can be is the copy's own."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            st = path.stat()
            path.chmod(0o777 ^ st.st_mode & 0o777)
            path.chmod(st.st_mode & 0o7777)
    return root


def _renamed(root: Path) -> Path:
    return root.rename(root.with_name(f"renamed-{root.name}"))


STARTS = {"shared": _shared, "private": _private, "renamed": _renamed}


def _name(case: Case) -> str:
    return f"{case.__module__.split('.')[-1]}-{case.__name__}"


@pytest.fixture(autouse=True)
def nothing_left_behind(session: Watchdog) -> Iterator[None]:
    """In place of the check around each test, which takes longer than a case: `stage` looks."""
    session.arm(SECONDS)
    yield
    session.disarm()


@pytest.fixture(scope="module", params=MODES)
def stage(request: pytest.FixtureRequest, xfs_volume: Volume, session: Watchdog) -> Iterator[Roots]:
    """A copy for all cases, which are many, and the same on XFS: a directory for each of them."""
    leaks = Leaks()
    name = f"posix-{os.getpid()}-{request.param}"
    directory, place = kernel.session_dir() / name, xfs_volume.mountpoint / name
    directory.mkdir()
    place.mkdir()
    objects.make(place / "one")
    (place / "source").mkdir()
    for case, start in itertools.product(CASES, STARTS):
        own = place / "source" / f"{_name(case)}-{start}"
        run("cp", "-a", "--reflink=always", place / "one", own)
    run("cp", "-a", "--reflink=always", place / "source", place / "native")
    passthrough = f"passthrough={'on' if request.param == 'passthrough' else 'off'}"
    mounts = MountCopy(directory, (passthrough, "ephemeral", *OPTIONS))
    try:
        yield Roots(mounts(place / "source", timeout=200), place / "native")
    finally:
        mounts.clean_up()
        remove_tree(directory)
        remove_tree(place)
        remove_tree(xfs_volume.mountpoint / ".cowfs")
    complaints = leaks.take_away()
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", CASES, ids=_name)
def test_comes_out_as_on_xfs(stage: Roots, case: Case, start: str) -> None:
    own = f"{_name(case)}-{start}"
    begun = Roots(*(STARTS[start](root / own) for root in stage))
    expected, got = Notes(), Notes()
    case(expected, begun.native)
    case(got, begun.copy)
    different = [
        f"{what}:\n  XFS:  {wanted!r}\n  copy: {came[1]!r}"
        + ("" if came[0] == what else f" ({came[0]})")
        for (what, wanted), came in zip(expected.lines, got.lines, strict=False)
        if (what, wanted) != came
    ]
    assert not different, "\n".join(different[:40])
    assert len(expected.lines) == len(got.lines)
    trees = [tree_state(root, times=False) for root in begun]
    assert trees[0] == trees[1], "the trees differ"
