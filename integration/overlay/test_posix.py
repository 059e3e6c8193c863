"""Every case of integration/posix comes out in a copy as on XFS, whatever the copy has to start
from: files of the template, files of its own, or a directory that was renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.command import run
from integration.mounts import MountCopy
from integration.posix import attributes, data, directories, locks, names, objects, renaming
from integration.posix.notes import Notes
from integration.trees import tree_state

Case = Callable[[Notes, Path], None]

FAMILIES = (names, renaming, attributes, data, locks, directories)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]

OPTIONS = ("suid", "dev", "share_min=1M")


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


@pytest.fixture
def roots(mount_copy: MountCopy, xfs: Path) -> Roots:
    source = xfs / "source"
    objects.make(source / "case")
    run("cp", "-a", "--reflink=always", source, xfs / "native")
    return Roots(mount_copy(source, None, *OPTIONS) / "case", xfs / "native" / "case")


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.__module__.split('.')[-1]}-{case.__name__}"
)
def test_comes_out_as_on_xfs(roots: Roots, case: Case, start: str) -> None:
    begun = Roots(*(STARTS[start](root) for root in roots))
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
